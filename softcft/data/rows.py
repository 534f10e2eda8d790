"""Which rows of a table are used, which split each is in, and whom it is of, where the columns of the table say so."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets

from softcft.data.columns import column_values
from softcft.data.config import SPLITS
from softcft.data.entries import Entry, label_separator, split_labels
from softcft.data.splits import split_of
from softcft.data.tables import as_text, is_missing

__all__ = ["check_labels", "keep_rows", "name_groups", "split_by"]

logger = logging.getLogger(__name__)

Splits = Mapping[str, Dataset]


def keep_rows(splits: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the rows whose columns have certain values, and log how many are left out.

    Args:
        splits: Tables. Of those that are streamed, rows are left out as they come, and not counted.
        wanted: For some columns a value or a list of values; ``""`` is a missing one.

    Raises:
        ValueError: If there is no such column or value, or no row is left.
    """
    kept = {column: _wanted_texts(column, values) for column, values in wanted.items()}
    tables = {name: rows for name, rows in splits.items() if isinstance(rows, Dataset)}
    texts = {column: _texts(tables, column, "rows") for column in kept} if tables else {}
    for column, values in kept.items():
        counts = Counter(text for found in texts.get(column, {}).values() for text in found)
        if tables and (unknown := [value for value in values if value not in counts]):
            raise ValueError(f"rows: column {column!r} never is {unknown}; it is {_most(counts)}.")
    result: dict[str, Any] = {}
    left_out: Counter[str] = Counter()
    for name, rows in splits.items():
        if name not in tables:
            result[name] = _filter_stream(rows, kept)
            continue
        cells = [[(column, text) for text in texts[column][name]] for column in kept]
        of_row = [
            next((f"{column}: {text}" for column, text in row if text not in kept[column]), None)
            for row in zip(*cells, strict=True)
        ]
        left_out.update(reason for reason in of_row if reason is not None)
        result[name] = rows.select([row for row, reason in enumerate(of_row) if reason is None])
    if tables:
        total = sum(map(len, tables.values()))
        if left_out.total() == total:
            raise ValueError(f"rows: no row has all of {dict(wanted)}; first reasons: {_most(left_out)}.")
        logger.warning("rows: %d of %d rows are left out: %s.", left_out.total(), total, _most(left_out) or "none")
    return {name: rows for name, rows in result.items() if not isinstance(rows, Dataset) or len(rows)}


def _wanted_texts(column: str, values: Any) -> set[str]:
    values = values if isinstance(values, list) else [values]
    if not values or not all(isinstance(value, str | int | float | None) for value in values):
        raise ValueError(f"rows: {column} must be a value or a list of values, got {values}.")
    return set(map(_text, values))


def _filter_stream(rows: IterableDataset, kept: Mapping[str, set[str]]) -> IterableDataset:
    def is_kept(row: Mapping[str, Any]) -> bool:
        if lacking := [column for column in kept if column not in row]:
            raise ValueError(f"rows: the data set has no column {lacking}; it has {list(row)}.")
        return all(_text(row[column]) in values for column, values in kept.items())

    return rows.decode(False).filter(is_kept).decode(True)


def split_by(splits: Splits, entry: Entry) -> dict[str, Dataset]:
    """Split all rows anew by a column with names of splits.

    Raises:
        ValueError: If there is no such column, it has other values, or none is ``train``.
    """
    names = _names(splits, entry, "split_column")
    wrong = Counter(name for found in names.values() for name in found if name is not None and split_of(name) is None)
    if wrong:
        fix = ", ".join(f"{value}: ..." for value, _ in wrong.most_common(5))
        raise ValueError(
            f"split_column: column {entry.column!r} has values that name no split: {_most(wrong)}. Say what they "
            f"mean, train, validation, test or null, by columns: {{{entry.column}: {{values: {{{fix}}}}}}}."
        )
    parts: dict[str, list[Dataset]] = {split: [] for split in SPLITS}
    missing = 0
    for name, rows in splits.items():
        of_row = [None if value is None else split_of(value) for value in names[name]]
        missing += of_row.count(None)
        for split, found in parts.items():
            if chosen := [row for row, other in enumerate(of_row) if other == split]:
                found.append(rows.select(chosen))
    if not parts["train"]:
        raise ValueError(f"split_column: no row of column {entry.column!r} is of the training split.")
    result = {split: concatenate_datasets(found) for split, found in parts.items() if found}
    sizes = {split: len(rows) for split, rows in result.items()}
    logger.warning(
        "The splits are those of the column %r: %s; %d rows of no split are left out.", entry.column, sizes, missing
    )
    return result


def name_groups(splits: Splits, group_column: str, entry: Entry) -> dict[str, Dataset]:
    """Add the column of patients that ``columns`` describes.

    Raises:
        ValueError: If there is no such column, or a pattern does not fit a value.
    """
    names = _names(splits, entry, "group_column")
    result = {}
    for name, rows in splits.items():
        rows = rows.remove_columns(group_column) if group_column in rows.column_names else rows
        result[name] = rows.add_column(group_column, names[name])
    return result


def check_labels(splits: Splits, entries: Mapping[str, Entry]) -> None:
    """Refuse labels in ``contains`` that no cell has, which are misspelled.

    Raises:
        ValueError: If there are any. The message names them and those that there are.
    """
    for name, entry in entries.items():
        if not entry.contains or any(entry.column not in rows.column_names for rows in splits.values()):
            continue
        cells = [cell for rows in splits.values() for cell in column_values(rows, entry.column) if not is_missing(cell)]
        separator = label_separator(cells)
        counts = Counter(label for cell in cells for label in split_labels(cell, separator))
        known = set(map(str.casefold, counts))
        if unknown := [label for label in entry.contains if label.casefold() not in known]:
            raise ValueError(
                f"columns: {name}: no cell of {entry.column!r} has the label {unknown}; its labels are "
                f"{_most(counts, 20)}."
            )


def _names(splits: Splits, entry: Entry, flag: str) -> dict[str, list[str | None]]:
    """The name that each row has in a column."""
    wrong: Counter[str] = Counter()
    names: dict[str, list[str | None]] = {}
    for split, rows in splits.items():
        _check_column(rows, entry.column, flag)
        names[split] = []
        for raw in column_values(rows, entry.column):
            try:
                names[split].append(entry.name(raw))
            except KeyError:
                wrong[as_text(raw)] += 1
    if wrong:
        raise ValueError(
            f"{flag}: the pattern in columns does not fit {wrong.total()} rows of {entry.column!r}: {_most(wrong)}. "
            "Correct it, or give it default: null."
        )
    return names


def _texts(splits: Splits, column: str, where: str) -> dict[str, list[str]]:
    for rows in splits.values():
        _check_column(rows, column, where)
    return {split: list(map(_text, column_values(rows, column))) for split, rows in splits.items()}


def _check_column(rows: Dataset, column: str, where: str) -> None:
    if column not in rows.column_names:
        raise ValueError(f"{where}: the data set has no column {column!r}; it has {rows.column_names}.")


def _text(value: Any) -> str:
    return "" if is_missing(value) else as_text(value)


def _most(counts: Counter[str], number: int = 10) -> str:
    return ", ".join(f"{value!r} ({count})" for value, count in counts.most_common(number)) + (
        ", ..." if len(counts) > number else ""
    )
