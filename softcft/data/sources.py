"""Which data set a recipe reads: the fields under ``data`` in its YAML file, and what they load."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, IterableDataset

from softcft.arguments import Count, Natural, check_fields
from softcft.data.columns import column_values, doubt_places, find_columns, translate
from softcft.data.mimic_cxr import load_mimic_cxr
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, load_morphomnist
from softcft.data.paths import check_paths, find_repeats
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.pixels import list_problems, picture_shape, prepare_images
from softcft.data.reading import read_table
from softcft.data.schema import ImageAttributeDataset
from softcft.data.splits import SPLITS, make_splits
from softcft.data.streaming import StreamedImages, stream_splits
from softcft.data.tables import as_text, is_missing
from softcft.data.unused_files import left_out
from softcft.graph import CausalGraph

__all__ = ["DataConfig", "SubsetConfig", "load_data", "subjects_of", "training_images"]

logger = logging.getLogger(__name__)

GRAPHS = {"phantom": PHANTOM_GRAPH, "morphomnist": MORPHOMNIST_GRAPH}
FOLDERS = {
    "morphomnist": "the downloaded files",
    "mimic_cxr": "PhysioNet's files, or what prepare_mimic_cxr.py made of them",
}


@dataclass(kw_only=True)
class DataConfig:
    """The data set, and how much of it.

    Raises:
        ValueError: If a value is out of range or does not suit the data set. The message names the flag.
    """

    dataset_name: str = field(
        metadata={
            "help": "Your own data: a local folder (pictures with metadata.csv or .jsonl, Parquet or WebDataset files, "
            "or what save_to_disk made) or the name of a data set of the Hub, owner/name. Or one that comes with "
            "softcft: phantom (procedural chest X-rays, made on first use), morphomnist, mimic_cxr."
        }
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a data set of the Hub that has several."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "morphomnist: folder of the downloaded files; mimic_cxr: folder of PhysioNet's files, or what "
            "prepare_mimic_cxr.py made of them. Others: folder that keeps the prepared images, the cache of Hugging "
            "Face datasets if left out."
        },
    )
    sample_size: int = field(
        metadata={
            "help": "Image height and width in pixels. Pictures of another size are resized, so that the shorter side "
            "fits, and cropped. phantom: any from 16; morphomnist: 32."
        }
    )
    image_channels: Literal[1, 3] | None = field(
        default=None, metadata={"help": "1 for grey, 3 for colour. Left out: as the first training image is."}
    )
    num_train: Count | None = field(
        default=None,
        metadata={"help": "Number of training images. Left out: phantom 20,000; else all that are left for it."},
    )
    num_validation: Count | None = field(
        default=None,
        metadata={
            "help": "Number of validation images. Left out: phantom 2,000; morphomnist 5,000 of the training's; else "
            "the validation split, or a tenth of the training split where there is none."
        },
    )
    num_test: Count | None = field(
        default=None,
        metadata={
            "help": "Number of test images. Left out: phantom 10,000; else the test split, or a fifth of the training "
            "split where there is none."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of a patient's number or the like: rows with the same value stay in one split when splits "
            "are made. A data set that has its splits keeps them."
        },
    )
    data_seed: Natural = field(
        default=0, metadata={"help": "Seed of the phantom's images, and of the choice of rows that is made here."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read training images while training, from the Hub or from files, and keep none: for data that do "
            "not fit the disk. Give --dataloader_num_workers to decode them beside the training."
        },
    )
    on_error: Literal["skip", "raise"] = field(
        default="skip", metadata={"help": "Leave out images that are missing or damaged, and say which, or stop there."}
    )

    def __post_init__(self) -> None:
        self.dataset_name = os.path.expanduser(self.dataset_name)  # a shell leaves --dataset_name=~/x as it is
        self.data_dir = None if self.data_dir is None else os.path.expanduser(self.data_dir)
        check_fields(self)
        if self.sample_size < 1 or (self.dataset_name == "phantom" and self.sample_size < 16):
            raise ValueError(f"--sample_size must be at least 16 for the phantom, else 1, got {self.sample_size}.")
        if self.dataset_name == "morphomnist" and self.sample_size != 32:
            raise ValueError(
                f"--sample_size must be 32 for morphomnist (28 x 28 pixels, padded), got {self.sample_size}."
            )
        unfit = self.group_column is not None or self.on_error == "raise"
        if self.streaming and (self.dataset_name in (*GRAPHS, *FOLDERS) or unfit):
            raise ValueError(
                f"--streaming is for a folder or a data set of the Hub, got {self.dataset_name}; without "
                f"--group_column and --on_error raise, got {self.group_column} and {self.on_error}."
            )
        if self.dataset_name in FOLDERS and self.data_dir is None:
            raise ValueError(
                f"--data_dir must be the folder of {FOLDERS[self.dataset_name]} for {self.dataset_name}, got none."
            )


@dataclass(kw_only=True)
class SubsetConfig:
    """Which of the training data a model sees.

    Raises:
        ValueError: If the value is unknown.
    """

    half: Literal["even", "odd", "all"] = field(
        default="all",
        metadata={
            "help": "Training images to learn from: those of every other subject (value of --group_column, or patient "
            "of MIMIC-CXR; where none is known, every other image), or all."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)


def training_images(
    rows: Dataset | IterableDataset, config: DataConfig, graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> ImageAttributeDataset | StreamedImages:
    """The training images of :func:`load_data` for the training loop, whether they are prepared or streamed."""
    if isinstance(rows, Dataset):
        return ImageAttributeDataset(rows, graph, subjects_of(rows, config))
    return StreamedImages(
        rows, config.dataset_name, graph, columns, config.sample_size, config.image_channels, config.data_seed
    )


def load_data(
    config: DataConfig, graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> dict[str, Dataset | IterableDataset]:
    """Load the data set of a recipe, its images prepared (:mod:`softcft.data.pixels`).

    Args:
        config: Which one, and how much of it.
        graph: The causal graph of the recipe. Who causes whom, and the ranges, are the recipe's business.
        columns: Where the table has other names or values than the graph, see :mod:`softcft.data.columns`.

    Returns:
        Splits ``train``, ``validation``, ``test`` with a column ``image``, one for each variable in natural units or
        category names, None where a value is missing, and the one of :func:`subjects_of`. With ``config.streaming`` the
        training split is a stream of the table as it is: see :func:`training_images`.

    Raises:
        FileNotFoundError: If a folder or a file of the data set is missing.
        ValueError: If the data set has no column for a variable, a value cannot be understood, or a file is damaged.
    """
    numbers = {name: getattr(config, f"num_{name}") for name in ("train", "validation", "test")}
    numbers = {name: number for name, number in numbers.items() if number is not None}
    made = {f"num_{name}": number for name, number in numbers.items()}
    if config.dataset_name in GRAPHS:
        names = GRAPHS[config.dataset_name].names
        if not columns and not set(graph.names) <= set(names):  # told before anything is made
            raise ValueError(
                f"The graph has the variables {sorted(graph.names)}, but the data set {config.dataset_name!r} has "
                f"{sorted(names)}; correct the section 'graph' or --dataset_name."
            )
    if config.streaming:
        return stream_splits(
            config.dataset_name,
            config.dataset_config_name,
            graph,
            columns,
            config.sample_size,
            config.image_channels,
            numbers,
            config.data_dir,
        )
    name = str(config.data_dir) if config.dataset_name == "mimic_cxr" else config.dataset_name
    if config.dataset_name == "phantom":
        splits = load_phantom(config.sample_size, seed=config.data_seed, cache_dir=config.data_dir, **made)
    elif config.dataset_name == "morphomnist":
        splits = load_morphomnist(str(config.data_dir), seed=config.data_seed, **made)
    elif config.dataset_name == "mimic_cxr" and not Path(str(config.data_dir), "dataset_dict.json").is_file():
        splits = load_mimic_cxr(str(config.data_dir), config.sample_size, on_error=config.on_error)
    else:
        splits = _read_own(name, config.dataset_config_name)
    subject = _subject_column(config)
    keep = [] if subject is None else [subject]
    splits = _translate(splits, graph, columns, keep)
    for rows in splits.values():
        check_paths(rows, "image", name)
    splits = make_splits(splits, numbers, config.group_column, config.data_seed)
    _tell_repeats(splits, name)

    channels = config.image_channels or picture_shape(splits["train"])[0]
    prepared = {}
    for name, rows in splits.items():
        prepared[name], problems = prepare_images(
            rows,
            config.sample_size,
            channels,
            on_error=config.on_error,
            cache_dir=None if config.dataset_name in FOLDERS else config.data_dir,
            desc=f"{name} images",
        )
        if problems:
            logger.warning(
                "%d of %d %s images are left out:%s", len(problems), len(rows), name, list_problems(problems)
            )
    return prepared


def _read_own(name: str, config_name: str | None) -> DatasetDict:
    """A table, after saying what of it is not used and what it does not decide."""
    splits = read_table(name, config_name)
    for note in left_out(name, splits):
        logger.warning("%s: %s", name, note)
    if drawn := [split for split in SPLITS if split not in splits]:
        logger.warning("%s: %s drawn at random from the training images.", name, " and ".join(drawn))
    return splits


def _translate(
    splits: DatasetDict, graph: CausalGraph, columns: Mapping[str, Any] | None, keep: Sequence[str]
) -> DatasetDict:
    """Translate all splits, and say what is guessed of codes without names."""
    result = DatasetDict()
    for split, rows in splits.items():
        try:
            result[split] = translate(rows, graph, columns, keep)
        except ValueError as error:  # another split may be right
            raise ValueError(f"In the {split} split: {error}") from None
    sources, mappings = find_columns(graph, columns)
    for variable in graph.variables:
        column, known = sources[variable.name], {*variable.categories, *mappings.get(variable.name, {})}
        if variable.kind != "continuous":
            texts = {as_text(value) for rows in splits.values() for value in column_values(rows, column)}
            if doubt := doubt_places(variable, column, texts - known):
                logger.warning("%s", doubt)
    return result


def _tell_repeats(splits: DatasetDict, name: str) -> None:
    for note in find_repeats(splits, "image"):
        logger.warning("%s: %s", name, note)


def subjects_of(rows: Dataset, config: DataConfig) -> list[str]:
    """Who each image is of: images of one subject are alike, and no independent evidence.

    Args:
        rows: A split of :func:`load_data`.
        config: Its settings.

    Returns:
        For each row the value of ``config.group_column``, or of MIMIC-CXR's ``subject_id``. Each image has a subject of
        its own if there is no such column, and where its value is missing.
    """
    column = _subject_column(config)
    subjects = rows[column][:] if column in rows.column_names else [None] * len(rows)
    return [f"none {row}" if is_missing(subject) else as_text(subject) for row, subject in enumerate(subjects)]


def _subject_column(config: DataConfig) -> str | None:
    return config.group_column or ("subject_id" if config.dataset_name == "mimic_cxr" else None)
