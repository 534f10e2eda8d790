r"""From the columns of any table to the variables of a graph.

Where the table has other names or values than the graph, ``columns`` translates (:mod:`softcft.data.entries` has all
keys of an entry):

.. code-block:: yaml

    graph:
      - {name: age, kind: continuous, low: 18, high: 92, unit: years}
      - {name: sex, kind: binary, categories: [male, female]}
      - {name: effusion, kind: binary, categories: ["no", "yes"]}
    columns:
      age: {column: PatientAge, pattern: '(\d+)Y'}                # another name, and 058Y
      sex: {column: gender, values: {0: male, 1: female, 9: null}}  # other values; null is a missing one
      effusion: {column: Finding Labels, contains: [Effusion]}      # a set of labels: Effusion|Mass
      image: scan                                                   # the pictures
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from softcft.data.entries import REFUSED, SEPARATORS, Entry, in_yaml, label_separator, read_entry, split_labels
from softcft.data.tables import TRUTH, are_thousands, as_number, as_text, is_missing
from softcft.data.value_patterns import looks_like, mean_nothing, spelled_alike
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

YES = ("yes", "y", "true", "present", "positive", "on", "abnormal", "case", "cases", "affected", "malignant", "sick")
NO = (
    *("no", "n", "none", "false", "absent", "negative", "off", "never", "normal", "healthy", "benign", "control"),
    *("controls", "unaffected"),
)

TYPED = {"decimal": float, **dict.fromkeys(("timestamp", "date", "time", "duration"), str)}  # by the types' names


def graph_features(graph: CausalGraph) -> dict[str, Value]:
    """The type of each variable's column: numbers of float64, or category names."""
    return {v.name: Value("float64" if v.kind == "continuous" else "string") for v in graph.variables}


def translate(
    rows: Dataset,
    graph: CausalGraph,
    columns: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    splits: Mapping[str, Dataset] | None = None,
) -> Dataset:
    """Give a table the columns of a graph: numbers and category names, None where a value is missing.

    A discrete value may be the name of a category, a class label or a number that is the name of a category. A number
    may also be a position in the list of categories, from 0 on, if no category's name is a number, ``values`` gives no
    names, and all numbers of the column are positions: of two categories, 1 and 2 are codes, and 1 is not the second.
    A continuous value may be a number in a string.

    Args:
        rows: The table.
        graph: The causal graph.
        columns: For some variables, and for ``image``, the name of the column if it is another one, or a dict with the
            keys of :mod:`softcft.data.entries`.
        keep: Other columns to keep as they are, unless a variable has that name.
        splits: All splits of the table, or the first rows of a stream, which decide together what numbers mean and
            what is between labels; the rows alone if left out.

    Returns:
        ``image``, the variables of the graph and what is kept.

    Raises:
        ValueError: If ``columns`` has an unknown key, the table lacks a column, or a value cannot be understood. The
            message names them.
    """
    entries = find_columns(graph, columns)
    lacking = [entry.column for entry in entries.values() if entry.column not in rows.column_names]
    if lacking:
        raise ValueError(
            f"The data set has no column {lacking}; it has {rows.column_names}. Rename variables of the graph, or add "
            f"'columns: {{{next(n for n, e in entries.items() if e.column in lacking)}: NAME_OF_THE_COLUMN}}' to its "
            "file."
        )
    translated: dict[str, list[Any]] = {}
    for variable in graph.variables:
        entry = entries[variable.name]
        translated[variable.name], wrong = read_column(rows, variable, entry, splits)
        if wrong:
            raise ValueError(explain_unknown(variable, entry.column, wrong, translated[variable.name]))
    attributes = Dataset.from_dict(translated, features=Features(graph_features(graph)))
    kept = [name for name in keep if name in rows.column_names and name not in ("image", *graph.names)]
    image = entries["image"].column
    pictures = rows.select_columns([image, *kept])
    if image != "image":
        pictures = pictures.rename_column(image, "image")
    return concatenate_datasets([pictures, attributes], axis=1)


def find_columns(graph: CausalGraph, columns: Mapping[str, Any] | None = None) -> dict[str, Entry]:
    """How ``image`` and each variable are read, by a section ``columns``, see :func:`translate`.

    Raises:
        ValueError: If ``columns`` has an unknown key, or an entry that does not suit its variable.
    """
    entries = {name: Entry(name) for name in ("image", *graph.names)}
    for name, entry in (columns or {}).items():
        if name not in entries:
            raise ValueError(
                f"columns: there is no variable {name!r}; the graph has {list(graph.names)}, and there is image. A "
                "column of patients or of splits is described here if group_column or split_column names it."
            )
        entries[name] = read_entry(name, entry)
        if name != "image":
            _check_entry(graph[name], entries[name])
    return entries


def _check_entry(variable: Variable, entry: Entry) -> None:
    """Raise ValueError if an entry does not suit the kind or the categories of its variable."""
    where, categories = f"columns: {variable.name}", variable.categories
    if variable.kind == "continuous":
        if entry.contains:
            raise ValueError(f"{where}: contains is for categories, but '{variable.name}' is continuous.")
        given: list[Any] = []
    else:
        if entry.factor != 1 or any(factor != 1 for _, factor in entry.patterns):
            raise ValueError(f"{where}: factors are for numbers, but '{variable.name}' is {variable.kind}.")
        if entry.contains and not isinstance(entry.contains, Mapping) and len(categories) != 2:
            raise ValueError(
                f"{where}: a list in contains is for two categories, but '{variable.name}' has {list(categories)}; say "
                "which label is which, by contains: {LABEL: CATEGORY}."
            )
        given = [*(entry.contains.values() if isinstance(entry.contains, Mapping) else ())]
    given += [*entry.values.values(), *([] if entry.default is REFUSED else [entry.default])]
    if wrong := [value for value in given if not _is_known(variable, value)]:
        known = "a number" if variable.kind == "continuous" else f"one of {list(categories)}"
        raise ValueError(f"{where}: {', '.join(map(repr, wrong))} must be {known}, or null.")


def _is_known(variable: Variable, value: Any) -> bool:
    try:
        _known(variable, value)
    except KeyError:
        return False
    return True


def _known(variable: Variable, value: Any) -> Any:
    """A value that ``columns`` gives a variable: a number, or the name of a category; KeyError if it is none."""
    return _reader(variable, [], Entry(variable.name))(value)


def read_column(
    rows: Dataset, variable: Variable, entry: Entry, splits: Mapping[str, Dataset] | None = None
) -> tuple[list[Any], Counter[str]]:
    """Read a column as the values of its variable, as :func:`translate` does.

    Whether numbers are places, and what is between labels, is decided by all ``splits``; by the rows if left out.
    Rows of a stream that do not agree with its first ones are refused.

    Returns:
        Numbers or category names, None where a value is missing or unknown; and how often each unknown value occurs.
    """
    raws = column_values(rows, entry.column)
    others = [] if splits is None else [split for split in splits.values() if entry.column in split.column_names]
    seen = [raw for split in others for raw in column_values(split, entry.column)] or raws
    read = _reader(variable, seen, entry)
    default = None if entry.default is REFUSED else _known(variable, entry.default)
    understood: list[Any] = []
    wrong: Counter[str] = Counter()
    for raw in raws:
        try:
            understood.append(read(raw))
        except KeyError as error:
            understood.append(default)
            if entry.default is REFUSED:
                wrong[str(error.args[0])] += 1
    return understood, wrong


def column_values(rows: Dataset, column: str) -> list[Any]:
    """The values of a column as they are; class labels by their names, dates as texts, and decimals as floats."""
    feature = rows.features[column]
    values = rows.with_format(None)[column][:]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    read = next((read for kind, read in TYPED.items() if str(getattr(feature, "dtype", "")).startswith(kind)), None)
    return values if read is None else [None if value is None else read(value) for value in values]


def explain_unknown(variable: Variable, column: str, wrong: Counter[str], found: Iterable[Any] = ()) -> str:
    """The message about values of a column that its variable does not know; ``found`` are those that it knows."""
    most = [value for value, _ in wrong.most_common(5)]
    examples = ", ".join(f"{value!r} ({wrong[value]} rows)" for value in most)
    if variable.kind == "continuous":
        fix = (
            f"translate or null them by columns: {{{variable.name}: {{column: {column}, values: {{...}}}}}}, or make "
            "all that are no numbers missing by default: null"
        )
        if doubt := looks_like([*wrong, *(as_text(value) for value in found if value is not None)]):
            fix += f". They are {doubt}"
        elif any(any(map(str.isdigit, value)) for value in most):
            fix += "; where a number is in the text, as in 58Y, by pattern: '(\\d+)Y'"
        if are_thousands(most) and not any("," in value for value in most):
            fix += "; 1.234 may be a thousand or one: say factor: 1000, or write it without a sign between thousands"
    else:
        meant = _suggest(variable, wrong, found)
        values = in_yaml({value: meant[value] for value in most})
        fix = (
            f"the categories are {list(variable.categories)}: add them, or say which of these, or null, each value "
            f"stands for, by columns: {{{variable.name}: {{column: {column}, values: {{{values}}}}}}}, or by default: "
            "null for all others"
        )
    return f"Column {column!r} has {len(wrong)} values that '{variable.name}' does not know: {examples}; {fix}."


def _suggest(variable: Variable, wrong: Counter[str], found: Iterable[Any]) -> dict[str, str | None]:
    """What each unknown value may stand for: a category of another spelling, None, or ``...``: only the user knows."""
    nothing = mean_nothing(list(wrong))
    unseen = len(set(variable.categories) - set(found))
    meant: dict[str, str | None] = {}
    for value in wrong:
        alike = [group for group in spelled_alike([*variable.categories, value]) if value in group]
        known = [category for group in alike for category in group if category in variable.categories]
        if len(known) == 1:
            meant[value] = known[0]
        else:
            is_other = len(wrong) - len(nothing) > unseen and not (unseen and _is_number(value))  # which may be a code
            meant[value] = None if value in nothing or is_other else "..."
    return meant


def doubt_places(splits: Mapping[str, Dataset], variable: Variable, entry: Entry) -> str | None:
    """What is wrong if codes that may count from 1 were read as positions of categories, which count from 0."""
    if variable.kind == "continuous" or entry.patterns or entry.contains:
        return None
    values = [value for rows in splits.values() for value in column_values(rows, entry.column)]
    categories = _categories(variable, values, entry)
    texts = {as_text(value) for value in values if not is_missing(value)} - {*variable.categories, *entry.values}
    numbers = [text for text in texts if text in categories and text.isdigit()]
    if not numbers or "0" in numbers:
        return None
    read = ", ".join(f"{text} would be {categories[text]}" for text in sorted(numbers, key=int))
    return (
        f"Column {entry.column!r} has numbers but no 0, and places in {list(variable.categories)} count from 0: {read}."
        f" Say what they stand for by columns: {{{variable.name}: {{column: {entry.column}, values: "
        f"{{{in_yaml(dict.fromkeys(sorted(numbers, key=int), '...'))}}}}}}}."
    )


def _reader(variable: Variable, raws: Sequence[Any], entry: Entry) -> Callable[[Any], Any]:
    """What reads a value of a column; it raises KeyError, with its text, for one that is unknown."""
    if entry.contains:
        return _label_reader(variable, raws, entry)
    is_number = variable.kind == "continuous"
    categories = {} if is_number else _categories(variable, raws, entry)
    is_unclear = is_number and not entry.patterns and entry.factor == 1 and are_thousands(raws)

    def read(raw: Any) -> Any:
        value, factor = entry.meaning(raw, whole=is_number)
        if is_missing(value):
            return None
        if is_unclear and isinstance(value, str) and factor is not None:
            raise KeyError(value)
        try:
            if not is_number:
                return categories[as_text(value)]
            return as_number(value) * (1 if factor is None else factor)
        except (KeyError, TypeError, ValueError):
            raise KeyError(as_text(value)) from None

    return read


def _label_reader(variable: Variable, raws: Sequence[Any], entry: Entry) -> Callable[[Any], Any]:
    separator = label_separator(raws)
    default = None if entry.default is REFUSED else _known(variable, entry.default)
    if isinstance(entry.contains, Mapping):
        meant = {label.casefold(): _known(variable, category) for label, category in entry.contains.items()}
    else:
        meant = {label.casefold(): variable.categories[1] for label in entry.contains}

    def read(raw: Any) -> Any:
        if is_missing(raw):
            return default
        mark = label_separator([raw])
        if separator is not None and mark is not None and SEPARATORS.index(mark) < SEPARATORS.index(separator):
            raise ValueError(
                f"columns: {variable.name}: in the first rows {separator!r} is between labels, and now {mark!r}, in "
                f"{raw!r}. Write one of them everywhere, or read the data without streaming."
            )
        labels = {label.casefold() for label in split_labels(raw, separator)}
        for label, category in meant.items():
            if label in labels:
                return category
        if isinstance(entry.contains, Mapping):
            raise KeyError(as_text(raw))
        return variable.categories[0]

    return read


def _categories(variable: Variable, values: Sequence[Any], entry: Entry) -> dict[str, str]:
    """The category that each text of a column's values means.

    Numbers are positions, unless a category's name is a number, ``values`` gives names, a number is no position, or the
    categories are yes and no in this order, where 1 may be the position of no and mean yes. A column called male is yes
    and no, too.
    """
    mapping = entry.values
    names = {category: category for category in variable.categories}
    names |= {str(TRUTH[c.casefold()]): c for c in names if c.casefold() in TRUTH}  # true or TRUE in a table is True
    are_names = any(map(_is_number, names)) or any(not is_missing(new) for new in mapping.values())
    if are_names or entry.patterns or _is_turned(variable.categories, entry.column):
        return names
    known = [value for value in values if not is_missing(value) and as_text(value) not in {*names, *mapping}]
    numbers = [value for value in known if isinstance(value, int | float)]
    if numbers and all(number in range(len(variable.categories)) for number in numbers):
        places = range(len(variable.categories)) if not isinstance(numbers[0], bool) else (False, True)
        names |= {str(place): variable.categories[place] for place in places}
    return names


def _is_turned(categories: Sequence[str], column: str) -> bool:
    """Whether 0 and 1 are not the first two categories: 1 is yes, and the first one, or what the column is called."""
    *plain, name = [" ".join(re.findall(r"[^\W_]+", text.casefold())) for text in (*categories, column)]
    named = [category for category in plain if f" {category} " in f" {name} "]
    if len(plain) != 2:
        return len(named) == 1  # a column for each category, with 0 and 1
    first, second = plain
    is_yes = first in YES or second in NO or second.startswith(("no ", "not ", "non ", "without "))
    return named == [first] or is_yes


def _is_number(text: str) -> bool:
    try:
        as_number(text)
    except ValueError:
        return False
    return True
