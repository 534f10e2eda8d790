"""Draft a graph from the columns of a table, without parents: a table does not tell causes."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from softcft.data.columns import column_values
from softcft.data.keys import is_key
from softcft.data.picture_tables import examples
from softcft.data.splits import names_splits
from softcft.data.tables import NUMBER, as_number, as_text, is_missing
from softcft.data.value_patterns import are_codes, are_years, looks_like, mean_nothing, one_hot_columns, spelled_alike

__all__ = ["draft_graph"]

FEW_NUMBERS = 10  # so many different whole numbers are categories, more are a quantity
FEW_WORDS = 20
FEW_ODD = 0.2  # part of a column of numbers that may be other texts
ODD = "odd"  # key of texts that are no numbers, beside the fields of a guessed variable


def draft_graph(table: DatasetDict, unread: Sequence[str] = ()) -> str:
    """Guess variables from the columns of a table.

    Class labels, truth values, words and few different whole numbers become binary or categorical variables with the
    categories that occur; other numbers become continuous ones, their range rounded outward. Dates and lists are left
    out; years, codes and spellings get a comment (:mod:`softcft.data.value_patterns`).

    Args:
        table: What :func:`~softcft.data.own.read_table` returned.
        unread: Files that may be the table of the pictures, see :func:`~softcft.data.unused_files.unread_tables`. If
            there are any, class labels, which are names of folders, are left out.

    Returns:
        YAML with the sections ``graph`` and, where needed, ``columns``, for ``--graph``, and comments on what was left
        out and why.

    Raises:
        ValueError: If there is no column of pictures, or none that could be a variable.
    """
    features: Features = next(iter(table.values())).features
    image = _image_column(features)
    variables: list[dict[str, Any]] = []
    columns: dict[str, Any] = {} if image == "image" else {"image": image}
    left_out = {}
    for column in features:
        if column == image:
            continue
        name = column.rpartition(".")[2]  # of json.age
        variable = _guess(list(table.values()), column)
        if unread and isinstance(features[column], ClassLabel):
            variable = (
                f"the names of the pictures' folders; their attributes may be in {examples(unread)}, which is not "
                f"read: name it by --table_file. If it is what you mean, write {column} into a graph of your own"
            )
        if isinstance(variable, str):
            left_out[column] = variable
        elif name in ("", "image") or name in [other["name"] for other in variables]:
            left_out[column] = f"there is another {name!r}"
        else:
            odd = variable.pop(ODD, [])
            variables.append({"name": name, **variable})
            columns[name] = {"column": column, "values": dict.fromkeys(odd)} if odd else column
    reasons = [f"{column}: {reason}" for column, reason in left_out.items()]
    if not variables:
        raise ValueError(
            "None of the columns could be a variable of a graph"
            + (f" ({'; '.join(reasons)})" if reasons else "")
            + ". Add columns of attributes: to a folder of pictures by metadata.csv, with a column file_name."
        )
    lines = [
        "# A draft: correct kinds, ranges and categories, give units (unit: years). No variable causes another yet,",
        "# for that is your knowledge: add parents: [NAME, NAME]. Other names for categories are given by columns.",
        "graph:",
        *(f"  - {_flow(variable)}{_remark(list(table.values()), columns, variable)}" for variable in variables),
    ]
    lines += [f"# {remark}" for remark in _one_hot(list(table.values()), columns, variables)]
    columns = {name: column for name, column in columns.items() if name != column}
    if columns:
        lines += ["columns:", *(f"  {_flow({name: column})[1:-1]}" for name, column in columns.items())]
    if reasons:
        lines += ["# Left out", *(f"#   {reason}" for reason in reasons)]
    return "\n".join(lines) + "\n"


def _image_column(features: Features) -> str:
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    if "image" in features:
        return "image"
    if not pictures:
        raise ValueError(
            f"The data set has no column of pictures; it has {list(features)}. If one of them holds pictures, or "
            "the names of files, call it 'image', or say so in a graph's file by columns: {image: NAME}."
        )
    return pictures[0]


def _guess(rows: Sequence[Dataset], column: str) -> dict[str, Any] | str:  # noqa: C901  # one rule after the other
    """The fields of a variable, or why the column is none."""
    feature = rows[0].features[column]
    if not isinstance(feature, Value | ClassLabel):  # checked before anything is decoded
        return "neither numbers nor words"
    values = [value for split in rows for value in column_values(split, column) if not is_missing(value)]
    if not all(isinstance(value, bool | int | float | str) for value in values):
        return "neither numbers nor words"
    different = {as_text(value) for value in values}
    if len(different) < 2:
        rest = " or empty" if len(values) < sum(map(len, rows)) else ""
        return f"always {next(iter(different))!r}{rest}" if different else "no values"
    if isinstance(feature, ClassLabel):
        return _discrete([name for name in feature.names if name in different])
    if any(isinstance(value, float) and math.isinf(value) for value in values):
        return "infinite values"
    texts = list(map(as_text, values))
    keep = f"; if it is a patient's, --group_column {shlex.quote(column)} keeps all their rows in one split"
    keep = keep if len(different) < len(values) else ""
    if is_key(column, texts):
        return f"an identifier, it seems{keep}"
    if names_splits(column, texts):
        return f"the split of a row, it seems; to use it, pass --split_column {shlex.quote(column)}"
    if doubt := looks_like(texts):
        return doubt
    if isinstance(values[0], bool):
        return _discrete(sorted(different))
    try:
        numbers = list(map(as_number, values))
    except ValueError:
        if odd := _odd_words(texts):
            numbers = [float(text) for text in texts if text not in odd]
            return {"kind": "continuous", **_range(min(numbers), max(numbers)), ODD: odd}
        if len(different) > FEW_WORDS:
            return f"{len(different):,} different words; for a variable, merge them by columns{keep}"
        if len(different) == len(values) > FEW_NUMBERS:
            return "another one in each row"
        return _discrete(sorted(different))
    if all(number.is_integer() for number in numbers):
        if len(different) <= FEW_NUMBERS:
            return _discrete(sorted(different, key=float))
        if len(different) == len(numbers) == max(numbers) - min(numbers) + 1:
            return "the numbers of the rows, it seems"
    return {"kind": "continuous", **_range(min(numbers), max(numbers))}


def _odd_words(texts: Sequence[str]) -> list[str]:
    """The texts of a column of numbers that are none, such as 90+; none if they are many or the others few."""
    counts = Counter(texts)
    odd = [text for text in counts if not NUMBER.fullmatch(text)]
    are_few = sum(counts[text] for text in odd) <= FEW_ODD * len(texts) and len(odd) <= FEW_NUMBERS
    return odd if are_few and len(counts) - len(odd) > FEW_NUMBERS else []


def _remark(rows: Sequence[Dataset], columns: dict[str, Any], variable: dict[str, Any]) -> str:
    """A comment on what may be wrong with a guessed variable."""
    name = variable["name"]
    if variable["kind"] == "continuous":
        column = columns.get(name, name)
        if isinstance(column, dict):
            return f"  # no numbers, and so missing by columns: {', '.join(map(_scalar, column['values']))}"
        values = [value for split in rows for value in column_values(split, column) if not is_missing(value)]
        if are_years([float(value) for value in values]):
            return "  # years, it seems: of birth? An age, at the time of the picture, is what it shows"
        return ""
    if nothing := mean_nothing(variable["categories"]):
        nulls = ", ".join(f"{_scalar(category)}: null" for category in nothing)
        return (
            f"  # not known, it seems: {', '.join(map(_scalar, nothing))}: then take it out, and make it missing by "
            f"columns: {{{_scalar(name)}: {{values: {{{nulls}}}}}}}"
        )
    if set(variable["categories"]) == {"-1", "1"}:
        meant = f'{{{_scalar(name)}: {{values: {{"-1": "no", "1": "yes"}}}}}}'
        return f'  # codes: if they are no and yes, write categories: ["no", "yes"] and columns: {meant}'
    if are_codes(variable["categories"]):
        codes = ", ".join(f"{_scalar(code)}: ..." for code in variable["categories"])
        return f"  # codes: name what they stand for, or null, by columns: {{{_scalar(name)}: {{values: {{{codes}}}}}}}"
    if alike := spelled_alike(variable["categories"]):
        pairs = "; ".join(", ".join(map(_scalar, group)) for group in alike)
        return f"  # spellings of one category? {pairs}: join them by columns: {{{_scalar(name)}: {{values: ...}}}}"
    return ""


def _one_hot(rows: Sequence[Dataset], columns: dict[str, Any], variables: Sequence[dict[str, Any]]) -> list[str]:
    """A remark on each group of variables that are the categories of one."""
    names = [v["name"] for v in variables if v.get("categories") in (["0", "1"], ["False", "True"])]
    texts = {name: [as_text(x) for split in rows for x in column_values(split, columns[name])] for name in names}
    remarks = []
    for group in one_hot_columns(texts):
        table = ", ".join(repr(columns[name]) for name in group)
        remarks.append(
            f"Each row has a 1 in exactly one of {', '.join(group)}: the categories of one attribute, it seems. Then "
            f"make one column of them, with pandas: table['NAME'] = table[[{table}]].idxmax(axis=1)"
        )
    return remarks


def _discrete(categories: list[str]) -> dict[str, Any]:
    return {"kind": "binary" if len(categories) == 2 else "categorical", "categories": categories}


def _range(low: float, high: float) -> dict[str, float]:
    """A range of two significant digits that holds both."""
    step = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    digits = max(0, -round(math.log10(step)))
    bounds = (round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits))
    return dict(zip(("low", "high"), (int(bound) if bound.is_integer() else bound for bound in bounds), strict=True))


def _flow(fields: dict[str, Any]) -> str:
    """A mapping as YAML in one line."""
    return "{" + ", ".join(f"{_scalar(key)}: {_scalar(value)}" for key, value in fields.items()) + "}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, dict):
        return _flow(value)
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value)
    # In quotes unless it is a word to every version of YAML: "no" is false to some, "1e3" a number to others.
    is_word = re.fullmatch(r"[A-Za-z]\w*( \w+)*", value) and yaml.safe_load(value) == value
    return value if is_word else json.dumps(value, ensure_ascii=False)
