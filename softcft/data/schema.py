"""From a table of images and attributes to the tensors that models take.

The table is a :class:`datasets.Dataset` with a column ``image`` and one for each variable of the causal graph, in
natural units and category names. It may come from a generator, a folder with a CSV file or the Hub: all that follows
sees :class:`ImageAttributeDataset` only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage
from torch import Tensor

from softcft.graph import CausalGraph

__all__ = ["ImageAttributeDataset"]


class ImageAttributeDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Images in [-1, 1] with their encoded attributes.

    Attributes are encoded and checked once, when the data set is made. Images are decoded whenever they are asked for:
    at 64 x 64 that takes about 0.1 ms, a small part of any training step, and leaves the memory to the model.

    Args:
        rows: Columns ``image`` (pictures of 8 bits per channel, or paths to them) and one for each variable of
            ``graph``. Columns of class labels are read by their names. Other columns are ignored.
        graph: The causal graph.
        sample_size: Height and width of the images in pixels. Images are not resized.
        image_channels: 1 (grey) or 3 (RGB); pictures of another mode are converted.

    Attributes:
        graph: The causal graph.
        parents: Encoded attributes of all images, float32 of shape (N, K).

    Raises:
        ValueError: If ``rows`` is no :class:`datasets.Dataset`, has no rows or lacks a column; if ``image_channels`` is
            neither 1 nor 3; if a value is missing, out of range or no category (the message names row and column); or
            if the first image does not fit. Later images are checked when they are read.

    Example:
        >>> dataset = ImageAttributeDataset(load_phantom(64)["train"], PHANTOM_GRAPH, sample_size=64)
        >>> dataset[0]["image"].shape, dataset[0]["parents"].shape
        (torch.Size([1, 64, 64]), torch.Size([6]))
    """

    def __init__(self, rows: Dataset, graph: CausalGraph, sample_size: int, image_channels: int = 1) -> None:
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
        if image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 (grey) or 3 (RGB), got {image_channels!r}.")
        rows = rows.with_format(None)
        self.graph = graph
        self.parents = _encode(rows, graph)
        self._images = rows.select_columns(["image"]).cast_column("image", Image())
        self._size = (sample_size, sample_size)
        self._mode = "L" if image_channels == 1 else "RGB"
        self._pixels([0])

    def __len__(self) -> int:
        return len(self.parents)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One example: ``image``, float32 of shape (C, H, W) in [-1, 1], and ``parents``, encoded, of shape (K,).

        Raises:
            ValueError: If the image cannot be read or has the wrong size. The message names the row.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        """Several examples at once, which is how a DataLoader reads them; see :meth:`__getitem__`."""
        images = self._pixels(rows).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
        parents = self.parents[rows]
        return [{"image": image, "parents": values} for image, values in zip(images, parents, strict=True)]

    def _pixels(self, rows: list[int]) -> Tensor:
        """Decoded images, uint8 of shape (B, H, W, C)."""
        try:
            pictures = self._images[rows]["image"]
        except OSError as error:
            if len(rows) == 1:
                raise ValueError(f"Row {rows[0]}: the image cannot be read: {error}") from error
            for row in rows:  # which one it was shows only one by one
                self._pixels([row])
            raise
        pixels = np.stack([self._convert(picture, row) for picture, row in zip(pictures, rows, strict=True)])
        return torch.from_numpy(pixels).view(*pixels.shape[:3], -1)

    def _convert(self, picture: PILImage.Image | None, row: int) -> np.ndarray[Any, Any]:
        if picture is None:
            raise ValueError(f"Row {row} has no image; drop such rows (rows.filter).")
        if picture.size != self._size:
            raise ValueError(
                f"Row {row}: the image is {picture.width} x {picture.height} pixels (width x height), but sample_size "
                f"is {self._size[0]}; resize the images to {self._size[0]} x {self._size[0]} beforehand, or change "
                "sample_size."
            )
        if picture.mode.startswith(("I", "F")):  # PIL would clip these to 255 without a word
            raise ValueError(
                f"Row {row}: the image has more than 8 bits per channel (PIL mode {picture.mode!r}); scale it to 8 "
                "bits beforehand."
            )
        return np.asarray(picture if picture.mode == self._mode else picture.convert(self._mode))


def _encode(rows: Dataset, graph: CausalGraph) -> Tensor:
    """Encode the attributes of all rows, shape (N, K). An error names the first bad row."""
    columns = rows.select_columns(list(graph.names))[:]
    for name, feature in rows.features.items():
        if name in columns and isinstance(feature, ClassLabel):
            known = dict(enumerate(feature.names))
            columns[name] = [known.get(value, value) for value in columns[name]]
    try:
        return graph.encode(columns)
    except ValueError:
        for row in range(len(rows)):
            try:
                graph.encode({name: [columns[name][row]] for name in graph.names})
            except ValueError as error:
                raise ValueError(f"Row {row}: {error}") from None
        raise
