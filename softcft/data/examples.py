"""Pictures beside a saved pipeline for people to try it on: a folder ``examples``, which softcft-app shows."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from PIL import Image

from softcft.data.schema import ImageAttributeDataset

__all__ = ["save_examples"]


def save_examples(folder: str | Path, images: ImageAttributeDataset, number: int) -> Path:
    """Save images of a data set beside a pipeline, with their attributes, in place of those that are there.

    Args:
        folder: That of the pipeline.
        images: Of the pipeline's size and graph. Those are taken that miss no value, spread over all of them.
        number: How many, at most.

    Returns:
        The folder ``examples``: pictures (PNG), and ``metadata.csv`` with ``file_name`` and the attributes in natural
        units.

    Raises:
        ValueError: If ``number`` is below 1, or no image has all values.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1, got {number}.")
    if not images.complete:
        raise ValueError("images has none that has a value of every variable of the graph.")
    number = min(number, len(images.complete))
    rows = [images.complete[i * len(images.complete) // number] for i in range(number)]
    examples, new = Path(folder, "examples"), Path(folder, "examples.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with (new / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", *images.graph.names])
        for i, row in enumerate(rows):
            pixels = images[row]["image"].permute(1, 2, 0).numpy()
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(new / f"{i}.png")
            values = images.graph.decode(images.parents[row][None])
            table.writerow([f"{i}.png", *(values[name][0] for name in images.graph.names)])
    shutil.rmtree(examples, ignore_errors=True)
    new.rename(examples)
    return examples
