"""Counterfactuals of a continuous variable as an animation: what changes, and what stays, as its value moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from softcft.evaluation.figures.style import PLAIN_TEXT

__all__ = ["write_interpolation"]

CELL = 1.6  # inches
FONT_SIZE = 10.0


@rc_context(PLAIN_TEXT)
def write_interpolation(
    path: str | Path, images: Mapping[str, Tensor], captions: Sequence[str], frames_per_second: int = 6
) -> None:
    """Write a GIF that runs forth and back over the values of an intervention, models in rows, subjects in columns.

    Args:
        path: The file to write, ``.gif``.
        images: By model, such as ``"Soft-CFT"``, counterfactuals in [-1, 1], shape (T, B, C, H, W), C 1 or 3: one
            frame for each of T values in rising order. All models have the same shape.
        captions: What is written above each of the T frames, such as ``"do(age = 45 years)"``.
        frames_per_second: Speed.

    Raises:
        ValueError: If there are no models, their shapes differ, or captions are not T.
    """
    shapes = {model: tuple(frames.shape) for model, frames in images.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 5:
        raise ValueError(f"images must all have one shape (T, B, C, H, W), got {shapes}.")
    num_frames, num_subjects = next(iter(shapes.values()))[:2]
    if len(captions) != num_frames:
        raise ValueError(f"captions must be {num_frames}, one per frame, got {len(captions)}.")

    figure = Figure(figsize=(CELL * num_subjects + 0.3, CELL * len(images) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)  # a writer draws on the figure's canvas, and pyplot, which would bring one, is not used
    heading = figure.suptitle(captions[0], fontsize=FONT_SIZE)
    shown = []
    grid = figure.subplots(len(images), num_subjects, squeeze=False)
    for row, (model, frames) in zip(grid, images.items(), strict=True):
        pixels = (frames.detach().float().cpu().permute(0, 1, 3, 4, 2).numpy() + 1) / 2
        row[0].set_ylabel(model, fontsize=FONT_SIZE)
        for subject, axes in enumerate(row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            picture = axes.imshow(pixels[0, subject].clip(0, 1), cmap="gray", vmin=0, vmax=1)
            shown.append((picture, pixels[:, subject]))

    writer = PillowWriter(fps=frames_per_second)
    with writer.saving(figure, str(path), dpi=72):
        for frame in (*range(num_frames), *range(num_frames - 2, 0, -1)):
            heading.set_text(captions[frame])
            for picture, pixels in shown:
                picture.set_data(pixels[frame].clip(0, 1))
            writer.grab_frame()
