"""The fields under ``data`` in a recipe's YAML file: which data set, and how much of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from softcft.arguments import Count, Natural, ProperShare, check_fields

__all__ = ["BUILT_IN", "CHEST_XRAYS", "FOLDERS", "SPLITS", "AugmentationConfig", "DataConfig", "SubsetConfig"]

SPLITS = ("train", "validation", "test")
CHEST_XRAYS = ("chexpert", "mimic_cxr", "nih", "padchest")
"""Public sets of chest X-rays, see :data:`softcft.data.chest_xrays.SOURCES`."""
FOLDERS = {
    "morphomnist": "the downloaded files",
    **dict.fromkeys(CHEST_XRAYS, "what prepare_chest_xrays.py made"),
}
"""Data sets that are read from ``data_dir``, and what that holds."""
BUILT_IN = {"phantom", *FOLDERS}


@dataclass(kw_only=True)
class DataConfig:
    """The data set, and how much of it.

    Raises:
        ValueError: If a value is out of range or does not suit the data set. The message names the argument.
    """

    dataset_name: str = field(
        metadata={
            "help": "Your own data: a local folder (pictures with metadata.csv or .jsonl, Parquet or WebDataset files, "
            "or what save_to_disk made) or the name of a data set of the Hub, owner/name. Or one that comes with "
            f"softcft: phantom (procedural chest X-rays, made on first use), morphomnist, {', '.join(CHEST_XRAYS)}."
        }
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a data set of the Hub that has several."}
    )
    table_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "The table of the pictures in a local folder, if it is not called metadata: a .csv, .tsv, .txt, "
            ".xlsx, .jsonl or .parquet file. Several that are called train, valid and so on are those splits."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": f"morphomnist: folder of the downloaded files; {', '.join(CHEST_XRAYS)}: what "
            "prepare_chest_xrays.py made. Others: folder that keeps the prepared images, the cache of Hugging Face "
            "datasets if left out."
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
    split_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the names of splits; columns: {NAME: {values: {0: train}}} translates others. Left "
            "out: a column called split, if there is one."
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
            raise ValueError(f"sample_size must be at least 16 for the phantom, else 1, got {self.sample_size}.")
        if self.dataset_name == "morphomnist" and self.sample_size != 32:
            raise ValueError(
                f"sample_size must be 32 for morphomnist (28 x 28 pixels, padded), got {self.sample_size}."
            )
        if self.dataset_name in BUILT_IN and (self.table_file or self.split_column is not None):
            raise ValueError(
                f"table_file and split_column are for your own data, and {self.dataset_name} has its table and its "
                f"splits; got {self.table_file} and {self.split_column}."
            )
        unfit = self.group_column is not None or self.on_error == "raise"
        if self.streaming and (self.dataset_name in BUILT_IN or unfit):
            raise ValueError(
                f"streaming is for a folder or a data set of the Hub, got {self.dataset_name}; without "
                f"group_column and on_error raise, got {self.group_column} and {self.on_error}."
            )
        if self.dataset_name in FOLDERS and self.data_dir is None:
            raise ValueError(
                f"data_dir must be the folder of {FOLDERS[self.dataset_name]} for {self.dataset_name}, got none."
            )

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers of images that were asked for, by split."""
        numbers = {split: getattr(self, f"num_{split}") for split in SPLITS}
        return {split: number for split, number in numbers.items() if number is not None}

    @property
    def subject_column(self) -> str | None:
        """The column that says whom an image is of."""
        return self.group_column or ("subject_id" if self.dataset_name in CHEST_XRAYS else None)


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
            "of a set of chest X-rays; where none is known, every other image), or all."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class AugmentationConfig:
    """How images are changed at random while a classifier learns, each anew at every step. 0 turns a change off.

    Leave out changes that change an attribute: brightness, if an attribute is the intensity; flips, if left and right
    differ, as in the chest.

    Raises:
        ValueError: If a value is out of range. The message names the argument.
    """

    random_flip: bool = field(
        default=False, metadata={"help": "Mirror half of the images, drawn at random, left to right."}
    )
    random_shift: ProperShare = field(
        default=0.0,
        metadata={"help": "Move images by up to this share of their side, in each direction; the rim is mirrored in."},
    )
    random_zoom: ProperShare = field(
        default=0.0, metadata={"help": "Make what they show larger or smaller by up to this share."}
    )
    random_brightness: ProperShare = field(
        default=0.0,
        metadata={
            "help": "Add up to this share of the range from black to white; change contrast by up to this share."
        },
    )
    random_noise: ProperShare = field(
        default=0.0,
        metadata={"help": "Add noise of up to this share of the standard deviation of the image's pixels."},
    )

    def __post_init__(self) -> None:
        check_fields(self)
