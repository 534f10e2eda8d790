"""Anybody's own images: a local folder or a data set of the Hub, as splits whose columns are a graph's variables.

The graph says which variables there are. Where the table has other names or values for them, ``columns`` translates:

.. code-block:: yaml

    graph:
      - {name: age, kind: continuous, low: 18, high: 92, unit: years}
      - {name: sex, kind: binary, categories: [male, female]}
    columns:
      age: PatientAge                                            # another name
      sex: {column: gender, values: {0: male, 1: female, 9: null}}  # other values; null is a missing one
      image: scan                                                # the pictures
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_from_disk,
)

from softcft.arguments import is_hub_name
from softcft.data.folders import find_builder, has_readme, read_folder
from softcft.data.integrity import check_whole, read_cache
from softcft.data.splits import SPLITS, rename_splits, split_of
from softcft.data.tables import TRUTH, as_text, is_missing
from softcft.data.unused_files import left_out
from softcft.graph import CausalGraph, Variable

__all__ = [
    "as_text",
    "column_values",
    "doubt_places",
    "explain_unknown",
    "find_columns",
    "is_missing",
    "make_splits",
    "read_column",
    "read_table",
    "translate",
]

logger = logging.getLogger(__name__)

FRACTIONS = {"validation": 0.1, "test": 0.2}
YES = ("yes", "y", "true", "present", "positive")
NO = ("no", "n", "false", "absent", "negative")


def read_table(
    dataset_name: str, config_name: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """Read a data set as it is.

    Args:
        dataset_name: A local folder, of pictures with ``metadata.csv`` or ``metadata.jsonl`` (columns ``file_name`` and
            the attributes), of Parquet or WebDataset files, or made by ``save_to_disk``; or a data set of the Hub.
        config_name: Which configuration of a data set of the Hub, if it has several.
        streaming: Whether to leave the rows where they are until they are asked for.

    Returns:
        Of its splits ``train``, ``validation`` and ``test``, by these names; a single one is ``train``, unless it has a
        column ``split`` of such names (which is not looked for in data files that are streamed). Of a nested
        column ``json`` each field is a column, ``json.age`` for instance; of streamed rows, once they are read.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it cannot be read, has a file that was cut short or one that is elsewhere
            (:func:`~softcft.data.paths.check_files`), or has several splits of which none is ``train``.
    """
    folder = Path(dataset_name)
    if not dataset_name or (not folder.is_dir() and not is_hub_name(dataset_name)):
        raise FileNotFoundError(
            f"--dataset_name {dataset_name} is no folder, and no data set of the Hub is called so (owner/name)."
        )
    try:
        rows = _read(dataset_name, config_name, streaming)
    except Exception as error:  # of many kinds, which datasets does not list
        hub = "" if folder.is_dir() else " is no folder, and as a data set of the Hub it"
        raise ValueError(f"--dataset_name {dataset_name}{hub} cannot be read: {error}") from error
    splits = {"train": rows} if isinstance(rows, Dataset) else dict(rows)
    splits = _split_by_column(splits)
    names = rename_splits(splits)
    if others := [name for name in splits if name not in names]:
        logger.warning("%s: the splits %s are left out; rename one to use it.", dataset_name, others)
    splits = {split: splits[name] for split in SPLITS for name in names if names[name] == split}
    if streaming:
        tables = {name: rows for name, rows in splits.items() if isinstance(rows, Dataset)}
        for note in left_out(dataset_name, tables) if tables else ():
            logger.warning("%s: %s", dataset_name, note)
        return IterableDatasetDict(
            {name: rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows for name, rows in splits.items()}
        )
    # What is nested, as the .json files of WebDataset are, becomes columns such as "json.age".
    return DatasetDict({name: rows.with_format(None).flatten() for name, rows in splits.items()})


def _read(dataset_name: str, config_name: str | None, streaming: bool) -> Dataset | DatasetDict | IterableDatasetDict:
    folder = Path(dataset_name)
    if not streaming and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        if "::" in str(folder.resolve()):  # which datasets takes for the way into an archive
            raise ValueError("what save_to_disk made must have no '::' in its path; rename the folder")
        for path in sorted(folder.rglob("*.arrow")):
            check_whole(path)
        return load_from_disk(dataset_name)
    if not folder.is_dir() or has_readme(folder):
        found = find_builder(dataset_name, config_name)
    elif config_name is not None:
        raise ValueError(f"it has no README.md with 'configs', so that --dataset_config_name {config_name} is unknown")
    else:
        found = read_folder(folder)
    if isinstance(found, DatasetDict):
        return found
    return found.as_streaming_dataset() if streaming else read_cache(found)


def _split_by_column(splits: dict[str, Any]) -> dict[str, Any]:
    """Part a table that has no splits but a column ``split``, of names of splits, as lists of published images have."""
    rows = next(iter(splits.values()))
    column = next((name for name in rows.column_names or () if name.casefold() == "split"), None)
    if len(splits) > 1 or not isinstance(rows, Dataset) or column is None:
        return splits
    values = [as_text(value) for value in column_values(rows, column)]
    if len({split_of(value) for value in values} - {None}) < 2:
        return splits
    parts = {value: [row for row, other in enumerate(values) if other == value] for value in sorted(set(values))}
    logger.warning(
        "The splits are those of the column %r: %s.", column, {name: len(part) for name, part in parts.items()}
    )
    return {name: rows.select(part).remove_columns(column) for name, part in parts.items()}


def make_splits(
    splits: DatasetDict, numbers: Mapping[str, int] | None = None, group_column: str | None = None, seed: int = 0
) -> DatasetDict:
    """Make sure that there are train, validation and test.

    A split that is missing is drawn at random from the training rows: 10 % of them for validation, 20 % for test.

    Args:
        splits: What :func:`read_table` returned.
        numbers: Numbers of rows by name of split, drawn at random; all rows of the splits that are not named.
        group_column: Rows with the same value in this column, of one patient for instance, stay in one split. A row
            without a value is on its own.
        seed: Seed of what is random.

    Raises:
        ValueError: If there is no such column in a split, or there are not enough rows (or groups) for the numbers.
    """
    numbers = dict(numbers or {})
    rows = splits["train"]
    lacking = [name for name, others in splits.items() if group_column not in (None, *others.column_names)]
    if lacking:
        where = "the data set has" if len(lacking) == len(splits) else f"{' and '.join(lacking)} of the data set have"
        raise ValueError(f"--group_column {group_column}: {where} no such column; correct the name, or add it.")
    order = np.random.default_rng(seed).permutation(len(rows))
    if group_column is not None:  # groups in random order, and their rows one after the other
        names = [f"none {i}" if is_missing(name) else as_text(name) for i, name in enumerate(rows[group_column][:])]
        codes = np.unique(np.asarray(names), return_inverse=True)[1]
        order = np.argsort(np.random.default_rng(seed).permutation(codes.max() + 1)[codes], kind="stable")
        ends = np.flatnonzero(np.diff(codes[order])) + 1
    else:
        ends = np.arange(1, len(rows))
    start = 0
    result = {}
    for name in ("test", "validation"):
        if name in splits:
            result[name] = splits[name]
            continue
        wanted = numbers.get(name) or max(1, round(FRACTIONS[name] * len(rows)))
        stops = ends[ends >= start + wanted]
        if not len(stops):
            raise ValueError(
                f"The {len(rows)} training rows are too few to draw {wanted} for {name} from"
                + (f", if rows of one {group_column} stay together." if group_column else ".")
            )
        result[name] = rows.select(np.sort(order[start : stops[0]]))
        start = int(stops[0])
    result["train"] = rows.select(np.sort(order[start:])) if start else rows
    for name, number in numbers.items():
        if number > len(result[name]):
            raise ValueError(
                f"--num_{name} is {number}, but there are {len(result[name])} rows in that split; lower it."
            )
        if number < len(result[name]):
            chosen = np.random.default_rng(seed).permutation(len(result[name]))[:number]
            result[name] = result[name].select(np.sort(chosen))
    return DatasetDict({name: result[name] for name in SPLITS})


def translate(
    rows: Dataset, graph: CausalGraph, columns: Mapping[str, Any] | None = None, keep: Sequence[str] = ()
) -> Dataset:
    """Give a table the columns of a graph: numbers and category names, None where a value is missing.

    Discrete values may be names of categories, class labels, numbers that are names of categories, or, where no
    category's name is a number and ``values`` gives no names, their positions in the list of categories, from 0 on.
    They are none if one of them is too large: of two categories 1 and 2 are codes, and 1 is not the second.
    Continuous values may be numbers in strings.

    Args:
        rows: The table.
        graph: The causal graph.
        columns: For some variables, and for ``image``, the name of the column if it is another one, or a dict of
            ``column`` and ``values``, a mapping from the values of the table to those of the graph.
        keep: Other columns to keep as they are, unless a variable has that name.

    Returns:
        ``image``, the variables of the graph and what is kept.

    Raises:
        ValueError: If ``columns`` has an unknown key, the table lacks a column, or a value cannot be understood. The
            message names them.
    """
    sources, mappings = find_columns(graph, columns)
    lacking = [name for name in sources.values() if name not in rows.column_names]
    if lacking:
        raise ValueError(
            f"The data set has no column {lacking}; it has {rows.column_names}. Rename variables of the graph, or add "
            f"'columns: {{{next(n for n, c in sources.items() if c in lacking)}: NAME_OF_THE_COLUMN}}' to its file."
        )
    translated: dict[str, list[Any]] = {}
    for variable in graph.variables:
        source = sources[variable.name]
        translated[variable.name], wrong = read_column(rows, variable, source, mappings.get(variable.name))
        if wrong:
            raise ValueError(explain_unknown(variable, source, wrong))
    types = {v.name: Value("float64" if v.kind == "continuous" else "string") for v in graph.variables}
    attributes = Dataset.from_dict(translated, features=Features(types))
    kept = [name for name in keep if name in rows.column_names and name not in ("image", *graph.names)]
    pictures = rows.select_columns([sources["image"], *kept])
    if sources["image"] != "image":
        pictures = pictures.rename_column(sources["image"], "image")
    return concatenate_datasets([pictures, attributes], axis=1)


def find_columns(
    graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read a section ``columns``.

    Args:
        graph: The causal graph.
        columns: See :func:`translate`.

    Returns:
        For ``image`` and each variable the name of its column, and for some a mapping of their values, by their texts.

    Raises:
        ValueError: If ``columns`` has an unknown key or an entry is neither a name nor ``column`` and ``values``.
    """
    sources = {name: name for name in ("image", *graph.names)}
    mappings = {}
    for name, entry in (columns or {}).items():
        if name not in sources:
            raise ValueError(
                f"columns: there is no variable {name!r}; the graph has {list(graph.names)}, and there is image."
            )
        entry = {"column": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or not set(entry) <= {"column", "values"}:
            raise ValueError(
                f"columns: {name} must be the name of a column or {{column: ..., values: ...}}, got {entry!r}."
            )
        sources[name] = str(entry.get("column", name))
        values = entry.get("values", {})
        if not isinstance(values, Mapping):
            raise ValueError(f"columns: {name}: values must be a mapping from old to new values, got {values!r}.")
        mappings[name] = {as_text(old): new for old, new in values.items()}
    return sources, mappings


def read_column(
    rows: Dataset, variable: Variable, column: str, mapping: Mapping[str, Any] | None = None
) -> tuple[list[Any], Counter[str]]:
    """Read one column as the values of its variable, as :func:`translate` describes.

    Args:
        rows: The table.
        variable: The variable.
        column: The name of its column.
        mapping: From texts of the table's values to values of the variable, for those that differ.

    Returns:
        Numbers or category names, None where a value is missing or cannot be understood; and how often each value
        occurs that cannot be.
    """
    understood: list[Any] = []
    wrong: Counter[str] = Counter()
    mapping = mapping or {}
    raws = column_values(rows, column)
    categories = _categories(variable, raws, mapping)
    for raw in raws:
        value = mapping.get(as_text(raw), raw)
        if is_missing(value):
            understood.append(None)
            continue
        try:
            understood.append(_number(variable, value) if variable.kind == "continuous" else categories[as_text(value)])
        except (KeyError, TypeError, ValueError):
            understood.append(None)
            wrong[as_text(value)] += 1
    return understood, wrong


def column_values(rows: Dataset, column: str) -> list[Any]:
    """The values of a column as they are, class labels by their names."""
    feature = rows.features[column]
    values = rows.with_format(None)[column][:]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return values


def explain_unknown(variable: Variable, column: str, wrong: Counter[str]) -> str:
    """What to say of the values of a column that its variable does not know."""
    examples = ", ".join(f"{value!r} ({count} rows)" for value, count in wrong.most_common(5))
    if variable.kind == "continuous":
        fix = f"translate or null them by columns: {{{variable.name}: {{column: {column}, values: {{...}}}}}}"
    else:
        # Which category a code stands for is not for us to guess.
        values = ", ".join(f"{value}: ..." for value, _ in wrong.most_common(5))
        fix = (
            f"the categories are {list(variable.categories)}: add them, or say which of these, or null, each value "
            f"stands for, by columns: {{{variable.name}: {{column: {column}, values: {{{values}}}}}}}"
        )
    return f"Column {column!r} has {len(wrong)} values that '{variable.name}' does not know: {examples}; {fix}."


def doubt_places(variable: Variable, column: str, texts: Iterable[str]) -> str | None:
    """What to say of codes from 1 on that all happen to be positions of categories, which are from 0 on.

    Args:
        variable: The variable.
        column: The name of its column.
        texts: Its values that are neither names of categories nor translated.
    """
    numbers = sorted(filter(str.isdigit, texts), key=int)
    if not numbers or "0" in numbers:
        return None
    read = ", ".join(f"{text} is {variable.categories[int(text)]}" for text in numbers)
    return (
        f"Column {column!r} has numbers but no 0, read as places in {list(variable.categories)}, from 0 on: {read}. "
        f"If they count from 1, translate them by columns: {{{variable.name}: {{column: {column}, values: {{...}}}}}}."
    )


def _number(variable: Variable, value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(variable.name)
    number = float(value)
    if math.isnan(number):  # of the string "nan"
        raise ValueError(variable.name)
    return number


def _categories(variable: Variable, values: Sequence[Any], mapping: Mapping[str, Any]) -> dict[str, str]:
    """What the texts of a column's values mean: names of categories, or their positions.

    Where categories are numbers themselves, 1 means the category "1", which is not there, and not the second one. Nor
    are numbers positions if one of them is none, as of 1 and 2 in two categories, or has been given a name; nor if the
    categories are yes and no, in this order, where 1 may be the place of no and mean yes.
    """
    names = {category: category for category in variable.categories}
    names |= {str(TRUTH[c.casefold()]): c for c in names if c.casefold() in TRUTH}  # true or TRUE in a table is True
    are_names = any(map(_is_number, names)) or any(not is_missing(new) for new in mapping.values())
    if are_names or _is_yes_and_no(variable.categories):
        return names
    known = [value for value in values if not is_missing(value) and as_text(value) not in {*names, *mapping}]
    numbers = [value for value in known if isinstance(value, int | float)]
    if all(number in range(len(names)) for number in numbers):
        names |= {as_text(number): variable.categories[int(number)] for number in numbers}
    return names


def _is_yes_and_no(categories: Sequence[str]) -> bool:
    words = [category.casefold() for category in categories]
    return len(words) == 2 and (words[0] in YES or words[1] in NO or words[1].startswith(("no ", "not ")))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
