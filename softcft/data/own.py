"""Read a local folder or a data set of the Hub: its table, in splits train, validation and test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, IterableDatasetDict, load_from_disk

from softcft.arguments import is_hub_name
from softcft.data.columns import column_values
from softcft.data.config import SPLITS, DataConfig
from softcft.data.entries import Entry, read_entry
from softcft.data.folders import find_builder, has_readme, read_folder
from softcft.data.integrity import check_whole, read_cache
from softcft.data.picture_tables import PictureTables
from softcft.data.rows import check_labels, keep_rows, name_groups, split_by
from softcft.data.splits import rename_splits, split_of
from softcft.data.tables import as_text
from softcft.data.unused_files import left_out, naming_unread

__all__ = ["ROWS", "read_own", "read_table", "variable_columns"]

ROWS = "rows"
"""The key of ``columns`` that says which rows to keep; a section of its own in files."""

logger = logging.getLogger(__name__)


def read_own(
    dataset_name: str, config: DataConfig, columns: Mapping[str, Any] | None = None
) -> tuple[DatasetDict | IterableDatasetDict, dict[str, Any]]:
    """Read the data set of a recipe: its rows, splits and patients, as the settings and ``columns`` describe them.

    Args:
        dataset_name: Its folder or its name.
        config: The settings; ``table_file``, ``split_column`` and ``group_column`` name parts of it.
        columns: Entries (:mod:`softcft.data.entries`) for variables, for ``image`` and for the columns of splits and of
            groups; and under ``rows`` which values of which columns the rows must have.

    Returns:
        The table, see :func:`read_table`, and what of ``columns`` is about variables.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it cannot be read, or does not have what is described. The message names it.
    """
    named = {name: entry for name, entry in (columns or {}).items() if name != ROWS}
    wanted = (columns or {}).get(ROWS) or {}
    entries = {name: read_entry(name, entry) for name, entry in named.items()}
    split, group = config.split_column, config.group_column
    others = {name: entry for name, entry in entries.items() if name != "image"}
    kept = {*wanted, *(entry.column for entry in others.values()), *filter(None, (split, group))}
    tables = PictureTables(config.table_file or (), entries.get("image"), kept)
    found = _open(dataset_name, config.dataset_config_name, config.streaming, tables)
    read = {name: rows for name, rows in found.items() if isinstance(rows, Dataset)}
    if split is not None and len(read) < len(found):
        raise ValueError(f"split_column {split}: rows that are streamed are not split by a column; leave it out.")
    with naming_unread(dataset_name, read):
        check_labels(read, entries)
        if wanted:
            found = keep_rows(found, wanted)
        found = _split_by_column(found) if split is None else split_by(found, entries.get(split, Entry(split)))
        if group is not None and group in entries:
            found = name_groups(found, group, entries[group])
    table = _name(dataset_name, found, config.streaming, tables.files)
    return table, variable_columns(config, columns, next(iter(table.values())).features)


def variable_columns(
    config: DataConfig, columns: Mapping[str, Any] | None, features: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What of ``columns`` is about variables, once a table with such features is read by :func:`read_own`."""
    others = (ROWS, config.split_column, config.group_column)
    left = {name: entry for name, entry in (columns or {}).items() if name not in others}
    image = read_entry("image", left["image"]).column if "image" in left else "image"
    pictures = {name for name, feature in (features or {}).items() if isinstance(feature, Image)}
    if "image" in pictures and (image == "image" or image not in pictures):
        left.pop("image", None)  # the column of names has become that of pictures
    return left


def read_table(
    dataset_name: str, config_name: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """Read a data set as it is.

    Args:
        dataset_name: A local folder: pictures with ``metadata.csv`` or ``metadata.jsonl`` (columns ``file_name`` and
            the attributes), Parquet or WebDataset files, or what ``save_to_disk`` made; or a data set of the Hub.
        config_name: Which configuration of a data set of the Hub, if it has several.
        streaming: Whether to leave the rows where they are until they are asked for.

    Returns:
        Those of the splits ``train``, ``validation`` and ``test`` that it has. A single split is ``train``, unless it
        has a column ``split`` with the names of splits (not in data files that are streamed). Each field of a nested
        column ``json`` becomes a column such as ``json.age``; of streamed rows, once they are read.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it cannot be read, has a file that was cut short or lies elsewhere
            (:func:`~softcft.data.paths.check_files`), or has several splits of which none is ``train``.
    """
    return _name(dataset_name, _split_by_column(_open(dataset_name, config_name, streaming)), streaming)


def _open(
    dataset_name: str, config_name: str | None, streaming: bool, tables: PictureTables | None = None
) -> dict[str, Any]:
    """The splits by the names that they have. What is nested becomes columns such as ``json.age``."""
    folder = Path(dataset_name)
    if not dataset_name or (not folder.is_dir() and not is_hub_name(dataset_name)):
        raise FileNotFoundError(
            f"dataset_name {dataset_name} is no folder, and no data set of the Hub is called so (owner/name)."
        )
    try:
        rows = _read(dataset_name, config_name, streaming, tables or PictureTables())
    except Exception as error:  # of many kinds, which datasets does not list
        hub = "" if folder.is_dir() else " is no folder, and as a data set of the Hub it"
        raise ValueError(f"dataset_name {dataset_name}{hub} cannot be read: {error}") from error
    found = {"train": rows} if isinstance(rows, Dataset) else dict(rows)
    is_table = {name: isinstance(rows, Dataset) for name, rows in found.items()}
    return {name: rows.with_format(None).flatten() if is_table[name] else rows for name, rows in found.items()}


def _name(
    dataset_name: str, found: Mapping[str, Any], streaming: bool, read: Sequence[str] = ()
) -> DatasetDict | IterableDatasetDict:
    """The splits that are used by the names of splits; ``read`` are the files that are the table of the pictures."""
    names = rename_splits(found)
    if others := [name for name in found if name not in names]:
        logger.warning("%s: the splits %s are left out; rename one to use it.", dataset_name, others)
    splits = {split: found[name] for split in SPLITS for name in names if names[name] == split}
    if not streaming:
        return DatasetDict(splits)
    if tables := {name: rows for name, rows in splits.items() if isinstance(rows, Dataset)}:
        for note in left_out(dataset_name, tables, read):
            logger.warning("%s: %s", dataset_name, note)
    return IterableDatasetDict(splits | {name: rows.to_iterable_dataset() for name, rows in tables.items()})


def _read(
    dataset_name: str, config_name: str | None, streaming: bool, tables: PictureTables
) -> Dataset | DatasetDict | IterableDatasetDict:
    folder = Path(dataset_name)
    is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if is_saved and not streaming and not tables.files:
        if "::" in str(folder.resolve()):  # which datasets takes for the way into an archive
            raise ValueError("what save_to_disk made must have no '::' in its path; rename the folder")
        for path in sorted(folder.rglob("*.arrow")):
            check_whole(path)
        return load_from_disk(dataset_name)
    if tables.files and not folder.is_dir():
        raise ValueError(f"table_file {' '.join(tables.files)} is for a folder of pictures, and this is none")
    if not tables.files and (not folder.is_dir() or has_readme(folder)):
        found = find_builder(dataset_name, config_name)
    elif config_name is not None:
        raise ValueError(f"it has no README.md with 'configs', so that dataset_config_name {config_name} is unknown")
    else:
        found = read_folder(folder, tables)
    if isinstance(found, DatasetDict):
        return found
    return found.as_streaming_dataset() if streaming else read_cache(found)


def _split_by_column(splits: dict[str, Any]) -> dict[str, Any]:
    """Split a single table by its column ``split``, as lists of published images have it, if it names splits."""
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
