"""Load the data set that a recipe's settings name (:mod:`softcft.data.config`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset

from softcft.data.chest_xrays import SOURCES
from softcft.data.chest_xrays.prepared import check_prepared
from softcft.data.columns import doubt_places, find_columns, translate
from softcft.data.config import FOLDERS, SPLITS, DataConfig
from softcft.data.keys import group_doubts
from softcft.data.lost_rows import absent_pictures, complete_rows, explain_lost
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, load_morphomnist
from softcft.data.own import read_own
from softcft.data.paths import check_paths, find_repeats
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.pixels import list_problems, picture_shape, prepare_images
from softcft.data.schema import ImageAttributeDataset
from softcft.data.splits import make_splits, split_doubts
from softcft.data.streaming import StreamedImages, stream_splits
from softcft.data.tables import as_text, is_missing
from softcft.data.unused_files import left_out, naming_unread
from softcft.graph import CausalGraph

__all__ = ["GRAPHS", "load_data", "subjects_of", "training_images"]

GRAPHS = {"phantom": PHANTOM_GRAPH, "morphomnist": MORPHOMNIST_GRAPH}
"""Data sets that come with a causal graph."""

logger = logging.getLogger(__name__)


def training_images(
    rows: Dataset | IterableDataset, config: DataConfig, graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> ImageAttributeDataset | StreamedImages:
    """The training images of :func:`load_data` for the training loop, whether they are prepared or streamed."""
    if isinstance(rows, Dataset):
        return ImageAttributeDataset(rows, graph, subjects_of(rows, config))
    return StreamedImages(rows, config, graph, columns)


def load_data(
    config: DataConfig, graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> dict[str, Dataset | IterableDataset]:
    """Load the data set of a recipe, its images prepared (:mod:`softcft.data.pixels`).

    Args:
        config: Which one, and how much of it.
        graph: The causal graph of the recipe. Parents and ranges may differ from those of the data set's own graph.
        columns: Where the table has other names or values than the graph, see :mod:`softcft.data.columns`.

    Returns:
        Splits ``train``, ``validation``, ``test`` with a column ``image``, one for each variable in natural units or
        category names, None where a value is missing, and the column of subjects. With ``config.streaming`` the
        training split is a stream of the table as it is: see :func:`training_images`.

    Raises:
        FileNotFoundError: If a folder or a file of the data set is missing.
        ValueError: If the data set has no column for a variable, a value cannot be understood, or a file is damaged.
    """
    if config.dataset_name in GRAPHS:
        names = GRAPHS[config.dataset_name].names
        if not columns and not set(graph.names) <= set(names):  # before anything is made
            raise ValueError(
                f"The graph has the variables {sorted(graph.names)}, but the data set {config.dataset_name!r} has "
                f"{sorted(names)}; correct the section 'graph' or dataset_name."
            )
    if config.streaming:
        return stream_splits(config, graph, columns)
    name = str(config.data_dir) if config.dataset_name in SOURCES else config.dataset_name
    splits, columns = _read(config, name, columns)
    with naming_unread(name, splits):
        splits = _translate(splits, config, graph, columns)
        for rows in splits.values():
            check_paths(rows, "image", name)
        splits = make_splits(splits, config.numbers, config.group_column, config.data_seed)
    values = {variable: {split: rows[variable][:] for split, rows in splits.items()} for variable in graph.names}
    _warn(name, find_repeats(splits, "image", values))

    channels = config.image_channels or picture_shape(splits["train"])[0]
    cache_dir = None if config.dataset_name in FOLDERS else config.data_dir
    prepared = {}
    for split, rows in splits.items():
        prepared[split], problems = prepare_images(
            rows, config.sample_size, channels, on_error=config.on_error, cache_dir=cache_dir, desc=f"{split} images"
        )
        if problems:
            logger.warning(
                "%d of %d %s images are left out:%s", len(problems), len(rows), split, list_problems(problems)
            )
        _note_lost(split, rows, prepared[split], len(problems), graph)
    return prepared


def _read(
    config: DataConfig, name: str, columns: Mapping[str, Any] | None
) -> tuple[DatasetDict, Mapping[str, Any] | None]:
    """The rows as they are, in the splits that the data set has, and what of ``columns`` is about variables."""
    made = {f"num_{split}": number for split, number in config.numbers.items()}
    if config.dataset_name == "phantom":
        return load_phantom(config.sample_size, seed=config.data_seed, cache_dir=config.data_dir, **made), columns
    if config.dataset_name == "morphomnist":
        return load_morphomnist(str(config.data_dir), seed=config.data_seed, **made), columns
    if config.dataset_name in SOURCES:
        check_prepared(name, config.dataset_name, config.sample_size)
    splits, columns = read_own(name, config, columns)
    _warn(name, left_out(name, splits, config.table_file or ()))
    _warn(name, split_doubts(splits))
    _warn(name, group_doubts(splits, config.subject_column))
    if drawn := [split for split in SPLITS if split not in splits]:
        logger.warning("%s: %s drawn at random from the training images.", name, " and ".join(drawn))
    return splits, columns


def _note_lost(split: str, rows: Dataset, prepared: Dataset, num_problems: int, graph: CausalGraph) -> None:
    """Log how many rows image models and the evaluation cannot use, and why."""
    absent = absent_pictures(rows, "image") if num_problems else set()
    why = explain_lost({name: rows[name][:] for name in graph.names}, absent, max(0, num_problems - len(absent)))
    if why:
        usable = sum(complete_rows({name: prepared[name][:] for name in graph.names}))
        logger.warning("%s: image models and the evaluation use %d of %d rows: %s.", split, usable, len(rows), why)


def _warn(name: str, notes: list[str]) -> None:
    for note in notes:
        logger.warning("%s: %s", name, note)


def _translate(
    splits: DatasetDict, config: DataConfig, graph: CausalGraph, columns: Mapping[str, Any] | None
) -> DatasetDict:
    """Translate all splits, and refuse codes that may not be positions of categories."""
    keep = [config.subject_column] if config.subject_column else []
    result = DatasetDict()
    for split, rows in splits.items():
        try:
            result[split] = translate(rows, graph, columns, keep, splits)
        except ValueError as error:  # another split may be right
            raise ValueError(f"In the {split} split: {error}") from None
    entries = find_columns(graph, columns)
    for variable in graph.variables:
        if doubt := doubt_places(splits, variable, entries[variable.name]):
            raise ValueError(doubt)
    return result


def subjects_of(rows: Dataset, config: DataConfig) -> list[str]:
    """The subject of each row of a split of :func:`load_data`: images of one subject are no independent evidence.

    It is the value of ``config.subject_column``; where that is missing, an image has a subject of its own.
    """
    column = config.subject_column
    subjects = rows[column][:] if column in rows.column_names else [None] * len(rows)
    return [f"none {row}" if is_missing(subject) else as_text(subject) for row, subject in enumerate(subjects)]
