"""From a table of images and attributes to the tensors that models take.

The table is a :class:`datasets.Dataset` with a column ``image`` and one for each variable of the causal graph, in
natural units and category names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from torch.utils.data import Subset

from softcft.data.pixels import picture_shape, read_pixels
from softcft.graph import CausalGraph

__all__ = [
    "FEWEST_SUBJECTS",
    "GREY_LEVELS",
    "ImageAttributeDataset",
    "check_known",
    "encode_rows",
    "random_part",
    "scale_pixels",
    "to_eight_bits",
]

FEWEST_SUBJECTS = 3
"""So many validation subjects at least have a category, and so many have not, where it is to be told whether a
classifier sees it. With 3 and 3 to 7 a blind guess passes the margin in 1 of 20 cases; with 2 and 2 its AUC is 1 in 1
of 6, and so in all resamples."""

GREY_LEVELS = 127.5
"""How many of the 255 steps between grey levels are one unit of pixels in [-1, 1]."""


def scale_pixels(image: Tensor) -> Tensor:
    """Images of 8 bits to floats in [-1, 1]: black to -1, white to 1. Images that are floats stay as they are."""
    return image.float().div_(GREY_LEVELS).sub_(1) if image.dtype == torch.uint8 else image


def to_eight_bits(image: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8: the inverse of :func:`scale_pixels`."""
    return ((image + 1) * GREY_LEVELS).round().byte()


def random_part(rows: Sequence[int], number: int | None, seed: int) -> list[int]:
    """Draw a number of rows, all if None or too large, and return them in their order in ``rows``.

    With the same seed, a larger number has the rows of a smaller one, and others.
    """
    chosen = np.random.default_rng(seed).permutation(len(rows))[:number]
    return [rows[i] for i in sorted(chosen.tolist())]


class ImageAttributeDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Prepared images with their encoded attributes.

    Attributes are encoded and checked once, when the data set is made. Pixels stay in the memory-mapped Arrow file
    until they are asked for, and are 8 bits until they are on the device (:func:`scale_pixels`).

    Args:
        rows: Columns ``image``, as :func:`~softcft.data.pixels.prepare_images` makes it, and one for each variable of
            ``graph``, None where its value is missing. Class labels are read by their names. Other columns are ignored.
        graph: The causal graph.
        subjects: Who each image is of, which :meth:`subset` keeps together; each image is of another one if left out.

    Attributes:
        graph: The causal graph.
        parents: Encoded attributes of all images, float32 of shape (N, K), NaN where the value is missing.
        complete: The rows that miss no value, from which an image model can learn.
        image_channels: 1 (grey) or 3 (RGB).
        sample_size: Height and width of the images in pixels.

    Raises:
        ValueError: If ``rows`` is no :class:`datasets.Dataset`, has no rows or lacks a column; the number of subjects
            is wrong; a value is out of range or no category (the message names row and column); or the first image is
            not prepared. Later images are checked when they are read.

    Example:
        >>> dataset = ImageAttributeDataset(load_phantom(64)["train"], PHANTOM_GRAPH)
        >>> dataset[0]["image"].shape, dataset[0]["parents"].shape
        (torch.Size([1, 64, 64]), torch.Size([6]))
    """

    def __init__(self, rows: Dataset, graph: CausalGraph, subjects: Sequence[str] | None = None) -> None:
        if not isinstance(rows, Dataset):
            raise ValueError(
                f"rows must be a datasets.Dataset, got {type(rows).__name__}; of a DatasetDict pass one split, "
                "rows['train'] for instance."
            )
        missing = [name for name in ("image", *graph.names) if name not in rows.column_names]
        if missing:
            raise ValueError(
                f"rows has no column {missing}; it has {rows.column_names}. Rename columns "
                "(rows.rename_column) or variables of the graph until they agree."
            )
        if len(rows) == 0:
            raise ValueError("rows is empty; pass at least one row.")
        if subjects is not None and len(subjects) != len(rows):
            raise ValueError(f"subjects must have one for each of the {len(rows)} rows, got {len(subjects)}.")
        rows = rows.with_format(None)
        self.graph = graph
        self._subjects = range(len(rows)) if subjects is None else subjects
        self.parents = encode_rows(rows, graph)
        self.complete = (~self.parents.isnan().any(dim=1)).nonzero()[:, 0].tolist()
        self._images = rows.select_columns(["image"]).with_format("arrow")
        self._shape = picture_shape(rows)
        self.image_channels, self.sample_size, _ = self._shape
        read_pixels(self._images, [0], self._shape)

    def __len__(self) -> int:
        return len(self.parents)

    def subset(self, half: Literal["even", "odd", "all"] = "all", complete: bool = False) -> Subset[dict[str, Tensor]]:
        """The images of every other subject or of all, without those that miss a value if ``complete``.

        Raises:
            ValueError: If there is no subject in that half.
        """
        numbers: dict[Any, int] = {}  # of subjects, in the order of their first rows
        parity = {"even": (0,), "odd": (1,), "all": (0, 1)}[half]
        of_row = [numbers.setdefault(subject, len(numbers)) for subject in self._subjects]
        rows = [row for row, number in enumerate(of_row) if number % 2 in parity]
        if not rows:
            raise ValueError(f"half is {half!r}, but all {len(self)} images are of one subject; at least 2 are needed.")
        wanted = set(self.complete) if complete else range(len(self))
        return Subset(self, [row for row in rows if row in wanted])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One example: ``image``, uint8 of shape (C, H, W), and ``parents``, encoded, of shape (K,).

        Raises:
            ValueError: If the image is not prepared or has another size than the first.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        """Several examples at once, which is how a DataLoader reads them; see :meth:`__getitem__`."""
        images = torch.from_numpy(read_pixels(self._images, rows, self._shape)).permute(0, 3, 1, 2)
        parents = self.parents[rows]
        return [{"image": image, "parents": values} for image, values in zip(images, parents, strict=True)]


def check_known(images: ImageAttributeDataset, split: str) -> None:
    """Raise ValueError if a variable is missing in all images of a split."""
    for name in images.graph.names:
        if images.parents[:, images.graph.slices[name]].isnan().any(dim=1).all():
            raise ValueError(
                f"'{name}' is missing in all {len(images)} images of the {split} split. Fill in its column, or leave "
                "it out of the graph."
            )


def encode_rows(rows: Dataset, graph: CausalGraph) -> Tensor:
    """Encode the attributes of all rows, float32 of shape (N, K), NaN where a value is missing.

    Raises:
        ValueError: If a value is out of range or no category. The message names row and column.
    """
    columns = rows.select_columns(list(graph.names))[:]
    for name, feature in rows.features.items():
        if name in columns and isinstance(feature, ClassLabel):
            known = dict(enumerate(feature.names))
            columns[name] = [known.get(value, value) for value in columns[name]]
    parents = torch.full((len(rows), graph.width), torch.nan)
    for variable in graph.variables:
        values = columns[variable.name]
        there = [i for i, value in enumerate(values) if value is not None and value == value]  # NaN equals nothing
        try:
            parents[there, graph.slices[variable.name]] = variable.encode([values[i] for i in there])
        except ValueError:
            for i in there:
                try:
                    variable.encode(values[i])
                except ValueError as error:
                    raise ValueError(f"Row {i}: {error}") from None
            raise
    return parents
