"""Images that are read while a model learns from them, from the Hub or from disk, for data that do not fit the disk.

Nothing is prepared or kept. Each image is decoded and resized (:func:`~softcft.data.pictures.fit_picture`) when it is
needed, so let worker processes do it (``--dataloader_num_workers``). Rows are shuffled within a buffer of
:data:`BUFFER`, and files are read in random order; in their own order, if the training split has to be cut (for
validation or test, or by ``--num_train``). So rows that are streamed should be mixed already.

What a table decides as a whole, namely whether numbers are places of categories and what is between labels, the first
rows of training decide for all, and rows that contradict them are an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, Literal

import datasets
import torch
from datasets import Dataset, Image, concatenate_datasets
from torch import Tensor

from softcft.data.columns import doubt_places, find_columns, translate
from softcft.data.config import DataConfig
from softcft.data.entries import Entry
from softcft.data.own import read_own, variable_columns
from softcft.data.paths import check_paths
from softcft.data.pictures import fit_picture, why_unread
from softcft.data.pixels import list_problems, open_picture, picture_shape, prepare_images
from softcft.data.rows import check_labels
from softcft.data.schema import encode_rows
from softcft.graph import CausalGraph

__all__ = ["StreamedImages", "stream_splits"]

logger = logging.getLogger(__name__)

BUFFER = 1_000
BATCH = 64  # rows that are translated at once, and the first ones, which decide how all are read
LOST = 64  # images that cannot be read, one after the other, before it ends
HELD_OUT = {"validation": 2_000, "test": 10_000}


class StreamedImages(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Examples as :class:`~softcft.data.schema.ImageAttributeDataset` gives them, one after the other without end.

    Images that cannot be read are left out, each with a warning. :data:`LOST` of them in a row are an error: the folder
    or the connection is gone. ``config.data_seed`` seeds the order, which differs from epoch to epoch.

    Args:
        rows: A data set that is streamed.
        config: Where it comes from (pictures elsewhere are refused, see :mod:`softcft.data.paths`), and what size and
            channels images shall have; those of the first image, if ``image_channels`` is None.
        graph: The causal graph.
        columns: Where the table has other names or values than the graph, see :mod:`softcft.data.columns`.

    Attributes:
        first: The columns of the variables in the first rows, which decide how all rows are read.
        sample_size: Height and width of the images in pixels.
        image_channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: If there are no rows, or the first ones lack a column or have a value that the graph does not know.
            Later rows are checked when they are read.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        config: DataConfig,
        graph: CausalGraph,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        self._rows, self._config, self._graph = rows, config, graph
        self._columns = variable_columns(config, columns, rows.features)
        self._half: Literal["even", "odd", "all"] = "all"
        self._only_complete = False
        self._skipped = 0
        self._unread = 0  # images one after the other
        entries = find_columns(graph, self._columns)
        batch = next(iter(rows.decode(False).iter(BATCH)), None)
        if batch is None:
            raise ValueError(
                "rows is empty. If validation and test images were taken off it, lower num_validation and "
                "num_test; if the section rows chooses some, see that its values are right."
            )
        self.first = _table(batch, rows)
        first = self._translate(self.first)
        used = {entry.column for name, entry in entries.items() if name != "image"}
        self.first = self.first.select_columns(sorted(used))  # without pictures, as workers get a copy
        for variable in graph.variables:
            if doubt := doubt_places({"train": self.first}, variable, entries[variable.name]):
                raise ValueError(f"In the first {len(first)} rows: {doubt}")
        _warn_of_labels(self.first, entries)
        encode_rows(first, graph)
        self.sample_size = config.sample_size
        self.image_channels = config.image_channels or picture_shape(first)[0]

    def subset(self, half: Literal["even", "odd", "all"] = "all", complete: bool = False) -> StreamedImages:
        """Every other row or all of them, without those that miss a value if ``complete``."""
        chosen = copy(self)
        chosen._half, chosen._only_complete = half, complete
        return chosen

    def skip(self, examples: int) -> StreamedImages:
        """What comes after so many examples; exact without damaged images, missing values and worker processes."""
        later = copy(self)
        later._skipped = self._skipped + examples
        return later

    @property
    def parents(self) -> Tensor:
        """Encoded attributes of all rows, float32 of shape (N, K), NaN where missing. Reads all, decodes no image."""
        return torch.cat([encode_rows(table, self._graph) for table in self.tables(self._rows)])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go through the rows, again and again. Of several workers each decodes its share of them."""
        rows, to_skip = self._rows, self._skipped
        if self._half != "all":
            rows = _every(rows, 2, int(self._half == "odd"))
        if (worker := torch.utils.data.get_worker_info()) is not None:
            rows, to_skip = _every(rows, worker.num_workers, worker.id), to_skip // worker.num_workers
        for epoch in range(2**31):
            seen = given = 0
            # One file at a time: several would be read by threads.
            shuffled = rows.shuffle(seed=self._config.data_seed + epoch, buffer_size=BUFFER, max_buffer_input_shards=1)
            for table in self.tables(shuffled):
                seen += len(table)
                if to_skip >= len(table):
                    to_skip -= len(table)
                    given += len(table)
                    continue
                parents = encode_rows(table, self._graph)
                for i in range(to_skip, len(table)):
                    example = self._example(table[i]["image"], parents[i])
                    if example is not None:
                        given += 1
                        yield example
                to_skip = 0
            if given == 0:
                raise ValueError(
                    f"None of the {seen} rows has an image that can be read and all values that are needed."
                )

    def tables(self, rows: datasets.IterableDataset, size: int = BATCH) -> Iterator[Dataset]:
        """Rows of any split in tables of a size, with the columns of the graph and images that are not decoded."""
        seen = 0
        for batch in rows.decode(False).iter(size):
            table = self._translate(_table(batch, rows), seen)
            seen += len(table)
            yield table

    def _translate(self, raw: Dataset, seen: int = 0) -> Dataset:
        table = translate(raw, self._graph, self._columns, splits={"train": self.first})
        check_paths(table, "image", self._config.dataset_name, seen)
        return table.cast_column("image", Image(decode=False))

    def _example(self, stored: dict[str, Any] | None, parents: Tensor) -> dict[str, Tensor] | None:
        if self._only_complete and parents.isnan().any():
            return None
        try:
            with open_picture(stored) as picture:
                pixels = fit_picture(picture, self.sample_size, self.image_channels)
        except Exception as error:  # of many kinds; one picture must not end it all
            path = (stored or {}).get("path") or "An image"
            self._unread += 1
            if self._unread == LOST:
                raise OSError(
                    f"{self._config.dataset_name}: {LOST} images in a row cannot be read; the last is {path}: {error}. "
                    "See that its files are still there and can be reached."
                ) from error
            logger.warning("%s is left out: %s", path, why_unread(error))
            return None
        self._unread = 0
        image = torch.from_numpy(pixels.copy()).view(self.sample_size, self.sample_size, self.image_channels)
        return {"image": image.permute(2, 0, 1), "parents": parents}


def _every(rows: datasets.IterableDataset, step: int, first: int) -> datasets.IterableDataset:
    """Every ``step``-th row, from row ``first`` on."""
    # Not decoded: each worker would decode all rows, and the first damaged one would end it.
    return rows.decode(False).filter(lambda _, index: index % step == first, with_indices=True).decode(True)


def _table(batch: dict[str, list[Any]], rows: datasets.IterableDataset) -> Dataset:
    """A batch of rows as a table. What is nested becomes columns such as ``json.age``."""
    return Dataset.from_dict(batch, features=rows.features).flatten()


def _warn_of_labels(first: Dataset, entries: Mapping[str, Entry]) -> None:
    try:
        check_labels({"train": first}, entries)
    except ValueError as error:  # later rows may have them
        logger.warning("In the first %d rows: %s", len(first), error)


def stream_splits(
    config: DataConfig, graph: CausalGraph, columns: Mapping[str, Any] | None = None
) -> dict[str, Dataset | datasets.IterableDataset]:
    """Training rows as a stream, and some images for validation and test, prepared as those of other data sets are.

    Args:
        config: The data set, not one of ``save_to_disk``. Of each split the first ``config.numbers`` rows are taken;
            left out, all for training, 2,000 for validation and 10,000 for test. Where there is no split for the last
            two, they are taken off the training split.
        graph: The causal graph.
        columns: Where the table has other names or values than the graph.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the data set cannot be read, has no split ``train``, or has a value that the graph does not know.
    """
    name, numbers = config.dataset_name, HELD_OUT | config.numbers
    splits, _ = read_own(name, config, columns)
    train = splits["train"]
    held_out = {}
    for split in HELD_OUT:
        if split in splits:
            held_out[split] = splits[split].take(numbers[split])
        else:
            logger.warning("%s: %s is the first %d rows of train.", name, split, numbers[split])
            held_out[split], train = train.take(numbers[split]), train.skip(numbers[split])
    if "train" in numbers:
        train = train.take(numbers["train"])
    images = StreamedImages(train, config, graph, columns)
    prepared = {}
    for split, rows in held_out.items():
        parts = []
        for table in images.tables(rows, BUFFER):
            part, problems = prepare_images(
                table, config.sample_size, images.image_channels, cache_dir=config.data_dir, desc=f"{split} images"
            )
            parts.append(part)
            if problems:
                logger.warning("%d %s images are left out:%s", len(problems), split, list_problems(problems))
        if not parts:
            raise ValueError(f"The split {split!r} has no rows.")
        prepared[split] = concatenate_datasets(parts)
    return {"train": train, **prepared}
