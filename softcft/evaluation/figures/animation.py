"""Counterfactuals of a continuous variable as an animation: what changes, and what stays, as its value moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from softcft.evaluation.figures.style import PLAIN_TEXT, to_pixels

__all__ = ["write_interpolation"]

CELL = 1.6  # inches
FONT_SIZE = 10.0
FRAMES_PER_SECOND = 6


@rc_context(PLAIN_TEXT)
def write_interpolation(path: str | Path, images: Mapping[str, Tensor], captions: Sequence[str]) -> None:
    """Write a GIF that runs forth and back over the values of an intervention, models in rows, subjects in columns.

    Args:
        path: The file to write, ``.gif``.
        images: By model, such as ``"Soft-CFT"``, counterfactuals in [-1, 1], shape (T, B, C, H, W), C 1 or 3: one
            frame for each of T values in rising order. All models have the same shape.
        captions: What is written above each of the T frames, such as ``"do(age = 45 years)"``.
    """
    num_subjects = next(iter(images.values())).shape[1]
    figure = Figure(figsize=(CELL * num_subjects + 0.3, CELL * len(images) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)  # a writer draws on the figure's canvas, and pyplot, which would bring one, is not used
    heading = figure.suptitle(captions[0], fontsize=FONT_SIZE)
    shown = []
    grid = figure.subplots(len(images), num_subjects, squeeze=False)
    for row, (model, frames) in zip(grid, images.items(), strict=True):
        pixels = to_pixels(frames)
        row[0].set_ylabel(model, fontsize=FONT_SIZE)
        for subject, axes in enumerate(row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            picture = axes.imshow(pixels[0, subject], cmap="gray", vmin=0, vmax=1)
            shown.append((picture, pixels[:, subject]))

    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    with writer.saving(figure, str(path), dpi=72):
        for frame in (*range(len(captions)), *range(len(captions) - 2, 0, -1)):
            heading.set_text(captions[frame])
            for picture, pixels in shown:
                picture.set_data(pixels[frame])
            writer.grab_frame()
