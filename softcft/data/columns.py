"""From the columns of any table to the variables of a graph.

Where the table has other names or values than the graph, ``columns`` translates:

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

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from softcft.data.tables import TRUTH, as_text, is_missing
from softcft.graph import CausalGraph, Variable

__all__ = [
    "column_values",
    "doubt_places",
    "explain_unknown",
    "find_columns",
    "graph_features",
    "read_column",
    "translate",
]

YES = ("yes", "y", "true", "present", "positive")
NO = ("no", "n", "false", "absent", "negative")


def graph_features(graph: CausalGraph) -> dict[str, Value]:
    """The type of each variable's column: numbers of float64, or category names."""
    return {v.name: Value("float64" if v.kind == "continuous" else "string") for v in graph.variables}


def translate(
    rows: Dataset, graph: CausalGraph, columns: Mapping[str, Any] | None = None, keep: Sequence[str] = ()
) -> Dataset:
    """Give a table the columns of a graph: numbers and category names, None where a value is missing.

    A discrete value may be the name of a category, a class label or a number that is the name of a category. A number
    may also be a position in the list of categories, from 0 on, if no category's name is a number, ``values`` gives no
    names, and all numbers of the column are positions: of two categories, 1 and 2 are codes, and 1 is not the second.
    A continuous value may be a number in a string.

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
    attributes = Dataset.from_dict(translated, features=Features(graph_features(graph)))
    kept = [name for name in keep if name in rows.column_names and name not in ("image", *graph.names)]
    pictures = rows.select_columns([sources["image"], *kept])
    if sources["image"] != "image":
        pictures = pictures.rename_column(sources["image"], "image")
    return concatenate_datasets([pictures, attributes], axis=1)


def find_columns(
    graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read a section ``columns``, see :func:`translate`.

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
    """Read a column as the values of its variable, as :func:`translate` does.

    ``mapping`` goes from texts of the table's values to values of the variable, for those that differ.

    Returns:
        Numbers or category names, None where a value is missing or unknown; and how often each unknown value occurs.
    """
    mapping = mapping or {}
    raws = column_values(rows, column)
    categories = _categories(variable, raws, mapping)
    read: Callable[[Any], Any] = _number if variable.kind == "continuous" else lambda v: categories[as_text(v)]
    understood: list[Any] = []
    wrong: Counter[str] = Counter()
    for raw in raws:
        value = mapping.get(as_text(raw), raw)
        try:
            understood.append(None if is_missing(value) else read(value))
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
    """The message about values of a column that its variable does not know."""
    examples = ", ".join(f"{value!r} ({count} rows)" for value, count in wrong.most_common(5))
    if variable.kind == "continuous":
        fix = f"translate or null them by columns: {{{variable.name}: {{column: {column}, values: {{...}}}}}}"
    else:
        values = ", ".join(f"{value}: ..." for value, _ in wrong.most_common(5))
        fix = (
            f"the categories are {list(variable.categories)}: add them, or say which of these, or null, each value "
            f"stands for, by columns: {{{variable.name}: {{column: {column}, values: {{{values}}}}}}}"
        )
    return f"Column {column!r} has {len(wrong)} values that '{variable.name}' does not know: {examples}; {fix}."


def doubt_places(variable: Variable, column: str, texts: Iterable[str]) -> str | None:
    """A warning if codes that may count from 1 were read as positions of categories, which count from 0.

    ``texts`` are the values of the column that are neither names of categories nor translated.
    """
    numbers = sorted(filter(str.isdigit, texts), key=int)
    if not numbers or "0" in numbers:
        return None
    read = ", ".join(f"{text} is {variable.categories[int(text)]}" for text in numbers)
    return (
        f"Column {column!r} has numbers but no 0, read as places in {list(variable.categories)}, from 0 on: {read}. "
        f"If they count from 1, translate them by columns: {{{variable.name}: {{column: {column}, values: {{...}}}}}}."
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or math.isnan(number := float(value)):  # of the string "nan"
        raise ValueError(value)
    return number


def _categories(variable: Variable, values: Sequence[Any], mapping: Mapping[str, Any]) -> dict[str, str]:
    """The category that each text of a column's values means.

    Numbers are positions, unless a category's name is a number, ``mapping`` gives names, a number is no position, or
    the categories are yes and no in this order, where 1 may be the position of no and mean yes.
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
