"""Read a local folder or a data set of the Hub as it is: its table, in splits train, validation and test."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict, load_from_disk

from softcft.arguments import is_hub_name
from softcft.data.columns import column_values
from softcft.data.folders import find_builder, has_readme, read_folder
from softcft.data.integrity import check_whole, read_cache
from softcft.data.splits import SPLITS, rename_splits, split_of
from softcft.data.tables import as_text
from softcft.data.unused_files import left_out

__all__ = ["read_table"]

logger = logging.getLogger(__name__)


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
    found = _split_by_column({"train": rows} if isinstance(rows, Dataset) else dict(rows))
    names = rename_splits(found)
    if others := [name for name in found if name not in names]:
        logger.warning("%s: the splits %s are left out; rename one to use it.", dataset_name, others)
    splits = {split: found[name] for split in SPLITS for name in names if names[name] == split}
    if not streaming:
        # What is nested, as the .json files of WebDataset are, becomes columns such as "json.age".
        return DatasetDict({name: rows.with_format(None).flatten() for name, rows in splits.items()})
    if tables := {name: rows for name, rows in splits.items() if isinstance(rows, Dataset)}:
        for note in left_out(dataset_name, tables):
            logger.warning("%s: %s", dataset_name, note)
    return IterableDatasetDict(splits | {name: rows.to_iterable_dataset() for name, rows in tables.items()})


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
