"""Morpho-MNIST with thickness and intensity: the common benchmark of deep structural causal models.

MNIST digits redrawn at a sampled stroke thickness and brightness, where thick strokes tend to be bright (Pawlowski,
Castro, Glocker, "Deep Structural Causal Models for Tractable Counterfactual Inference", NeurIPS 2020). The files are in
``assets/data/morphomnist`` of https://github.com/biomedia-mira/deepscm and are read from a local folder.

Two things differ from published code (causal-gen): a validation set is split off the training images, where that code
selects models on the test set; and training images are padded like all others, not cropped at random.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image

from softcft.arguments import check_whole
from softcft.data.columns import graph_features
from softcft.data.pixels import encode_pixels
from softcft.graph import CausalGraph, Variable

__all__ = ["MORPHOMNIST_GRAPH", "load_morphomnist"]

MORPHOMNIST_GRAPH = CausalGraph(
    [
        Variable(name="thickness", kind="continuous", low=0.87598526, high=6.255515, unit="pixels"),
        Variable(
            name="intensity",
            kind="continuous",
            low=66.601204,
            high=254.90317,
            unit="grey levels",
            parents=("thickness",),
        ),
        Variable(name="digit", kind="categorical", categories=tuple("0123456789")),
    ]
)
"""The graph of the data's equations; ranges are those of the training set, and the test set lies inside."""

SIDE = 28
PADDING = 2  # on each side: 32 halves evenly down to 1
SOURCE = "copy it anew from assets/data/morphomnist of https://github.com/biomedia-mira/deepscm"


def load_morphomnist(
    data_dir: str | Path,
    num_train: int | None = None,
    num_validation: int = 5_000,
    num_test: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Read Morpho-MNIST from its files.

    Args:
        data_dir: Folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` (each with or without ``.gz``),
            ``train-morpho.csv``, and the same for ``t10k``.
        num_train: Number of training images; all but the validation images if left out.
        num_validation: Number of validation images, drawn at random from the training files.
        num_test: Number of test images, the first ones; all if left out.
        seed: Seed of the random order of the training files. The first n images of ``train`` and ``validation`` do not
            depend on the numbers asked for.

    Returns:
        Splits ``train``, ``validation``, ``test`` with columns ``image`` (grey, 8 bit, 28 x 28 padded with black to
        32 x 32), ``thickness`` (pixels), ``intensity`` (0 to 255), ``digit`` (``"0"`` to ``"9"``).

    Raises:
        FileNotFoundError: If the folder or a file is missing.
        ValueError: If a file is damaged or is not what its name says, if files of one set differ in length, or if there
            are fewer images than asked for. The message names the file.
    """
    folder = Path(data_dir)
    train, test = find_files(folder, "train"), find_files(folder, "t10k")
    for name, n in (("num_train", num_train), ("num_validation", num_validation), ("num_test", num_test)):
        if n is not None:
            check_whole(name, n)

    images, columns = read_files(*train)
    if (num_train or 1) + num_validation > len(images):
        raise ValueError(
            f"num_train={num_train} and num_validation={num_validation} ask for more than the {len(images)} images of "
            f"{train[0]}; lower one of them."
        )
    # Training images from the front, validation images from the back: neither depends on the number of the others.
    order = np.random.default_rng(seed).permutation(len(images))
    num_train = num_train or len(images) - num_validation
    splits = {
        "train": _table(images, columns, order[:num_train]),
        "validation": _table(images, columns, order[::-1][:num_validation]),
    }

    images, columns = read_files(*test)
    if (num_test or 1) > len(images):
        raise ValueError(f"num_test={num_test} asks for more than the {len(images)} images of {test[0]}; lower it.")
    splits["test"] = _table(images, columns, np.arange(num_test or len(images)))
    return DatasetDict(splits)


def find_files(folder: Path, prefix: str) -> tuple[Path, Path, Path]:
    """The paths of images, labels and attributes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir {folder} is no folder; give the one that holds the Morpho-MNIST files.")
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte", f"{prefix}-morpho.csv")
    paths = []
    for name in names:
        choices = [name] if name.endswith(".csv") else [f"{name}.gz", name]
        found = [folder / choice for choice in choices if (folder / choice).is_file()]
        if not found:
            raise FileNotFoundError(
                f"{folder} has no {' or '.join(choices)}; needed are {', '.join(names)} (the first two may be .gz). "
                f"To get a file, {SOURCE}."
            )
        paths.append(found[0])
    return paths[0], paths[1], paths[2]


def read_files(images_path: Path, labels_path: Path, csv_path: Path) -> tuple[np.ndarray, dict[str, list]]:
    """Images, uint8 of shape (N, 28, 28), and the attributes in natural units."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"{images_path}: images must be {SIDE} x {SIDE} pixels, got {images.shape[1:]}; {SOURCE}.")
    columns = _read_csv(csv_path)
    lengths = {images_path.name: len(images), labels_path.name: len(labels), csv_path.name: len(columns["thickness"])}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{images_path.parent}: files must have one entry per image, but have {lengths}; {SOURCE}.")
    return images, {**columns, "digit": [str(label) for label in labels.tolist()]}


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read MNIST's IDX format: two zero bytes, type (8 = uint8), number of axes, big-endian lengths, data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}); {SOURCE}.") from error
    if data[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{path} must start with the bytes 0 0 8 {ndim} (IDX), got {list(data[:4])}; {SOURCE}.")
    start = 4 + 4 * ndim
    shape = np.frombuffer(data[4:start].ljust(4 * ndim, b"\0"), ">i4").tolist()
    if len(data) - start != math.prod(shape):
        raise ValueError(f"{path} must hold {shape} bytes after its header, got {len(data) - start}; {SOURCE}.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_csv(path: Path) -> dict[str, list[float]]:
    if not path.read_bytes().endswith(b"\n"):  # or the last number may be half of one
        raise ValueError(f"{path} is cut short, for its last line has no end; {SOURCE}.")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        missing = [name for name in ("index", "thickness", "intensity") if name not in names]
        if missing:
            raise ValueError(f"{path} has no column {missing}; it has {list(names)}; {SOURCE}.")
        columns: dict[str, list[float]] = {"thickness": [], "intensity": []}
        for number, row in enumerate(reader):
            if row["index"] != str(number):  # rows belong to images by their place in the file
                raise ValueError(
                    f"{path}, line {reader.line_num}: index must be {number}, got {row['index']!r}; sort the file."
                )
            for name, values in columns.items():
                try:
                    values.append(float(row[name]))
                except (TypeError, ValueError):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {name} must be a number, got {row[name]!r}; {SOURCE}."
                    ) from None
    return columns


def _table(images: np.ndarray, columns: dict[str, list], index: np.ndarray) -> Dataset:
    """The rows of ``index`` as a data set."""
    padded = np.pad(images[index], ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    features = graph_features(MORPHOMNIST_GRAPH)
    return Dataset.from_dict(
        {
            "image": [encode_pixels(image) for image in padded],
            **{name: [columns[name][i] for i in index.tolist()] for name in features},
        },
        features=Features({"image": Image(), **features}),
    )
