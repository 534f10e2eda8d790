"""Grids of images: counterfactuals and their effects (the paper's Fig. 1), and examples."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from softcft.evaluation.figures.style import FONT_SIZE, PLAIN_TEXT, VALUE_FONT_SIZE, to_pixels

__all__ = ["cft_comparison", "example_grid"]

CELL = 1.25  # inches
WRAP = 18  # characters to a line over or under an image
VALUE_WRAP = 22  # the same in the font of values
# White means no change; the colour-blind, too, tell red from blue.
EFFECT_COLORS = "RdBu_r"
GREY_LEVEL = 1 / 255


@rc_context(PLAIN_TEXT)
def cft_comparison(
    image: Tensor,
    counterfactuals: Mapping[str, Mapping[str, Tensor]],
    captions: Sequence[str],
    values: Mapping[str, Sequence[str]],
) -> Figure:
    """Show counterfactuals of a few subjects by one or several models, as in Fig. 1 of the paper.

    For each subject and model there are two rows: the original image and its counterfactuals, each over the value that
    was asked for; below them the effects, counterfactual minus original. One colour scale serves all effects. It ends
    at the 99.5th percentile of their size, so that the few largest do not pale the others.

    Args:
        image: Original images in [-1, 1], shape (B, C, H, W), C 1 or 3.
        counterfactuals: By model, such as ``"Soft-CFT"``, or ``""`` for no title: by heading, such as ``"do(sex)"``,
            images of the same shape. All models have the same headings in the same order.
        captions: The factual attributes of each subject, see :meth:`~softcft.graph.CausalGraph.in_words`.
        values: By heading, the new value of each subject, such as ``"female"``; the same for all models.
    """
    first = next(iter(counterfactuals))
    headings = list(counterfactuals[first])
    blocks = [(i, model) for i in range(len(captions)) for model in counterfactuals]
    effects = {(i, m): [_effect(x[i], image[i]) for x in counterfactuals[m].values()] for i, m in blocks}
    # Less than a grey level is no effect, and must not look like one.
    limit = max(float(np.quantile(np.abs(list(effects.values())), 0.995)), GREY_LEVEL)
    texts = [[textwrap.fill(values[heading][i], VALUE_WRAP) for heading in headings] for i, _ in blocks]
    lines = sum(max(text.count("\n") + 1 for text in row) for row in texts)
    shape = (2 * len(blocks), 1 + len(headings))
    height, width = image.shape[-2:]
    size = (CELL * shape[1] + 0.9, CELL * height / width * shape[0] + 0.4 + VALUE_FONT_SIZE / 60 * lines)
    figure, grid = _empty_grid(size, shape, h_pad=0.02)
    for axes, heading in zip(grid[0], ["original", *headings], strict=True):
        axes.set_title(textwrap.fill(heading, WRAP, break_long_words=False), fontsize=FONT_SIZE)
    for (i, model), row, upper, lower in zip(blocks, texts, grid[::2], grid[1::2], strict=True):
        pictures = [image[i], *(x[i] for x in counterfactuals[model].values())]
        for axes, picture, text in zip(upper, pictures, ["", *row], strict=True):
            _show(axes, picture, text)
        for axes, effect in zip(lower[1:], effects[i, model], strict=True):
            mapped = axes.imshow(effect, cmap=EFFECT_COLORS, vmin=-limit, vmax=limit)
        _write(lower[0], model, captions[i] if model == first else "")
    bar = figure.colorbar(mapped, ax=grid, extend="both", aspect=25, shrink=min(1, 3.5 / size[1]))
    bar.set_label("change in grey value (full range = 1)", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    return figure


@rc_context(PLAIN_TEXT)
def example_grid(image: Mapping[str, Tensor], captions: Mapping[str, Sequence[str]]) -> Figure:
    """Show real images in rows, such as one row for each category.

    Args:
        image: By heading of the row, such as ``"sex: female"``, images in [-1, 1], shape (B, C, H, W), C 1 or 3. Rows
            may differ in B.
        captions: By heading, what is written below each of its images.
    """
    wrapped = {heading: [textwrap.fill(text, VALUE_WRAP) for text in captions[heading]] for heading in image}
    lines = [max(text.count("\n") + 1 for text in texts) for texts in wrapped.values()]
    heights = [CELL + VALUE_FONT_SIZE / 60 * number + 0.15 for number in lines]
    columns = max(len(images) for images in image.values())
    size = (CELL * columns + 0.5, sum(heights))
    figure, grid = _empty_grid(size, (len(image), columns), h_pad=0.04, height_ratios=heights)
    for row, (heading, images) in zip(grid, image.items(), strict=True):
        row[0].set_ylabel(textwrap.fill(heading, WRAP), fontsize=FONT_SIZE)
        for axes, picture, text in zip(row[: len(images)], images, wrapped[heading], strict=True):
            _show(axes, picture, text)
    return figure


def _empty_grid(
    size: tuple[float, float], shape: tuple[int, int], h_pad: float, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, without frames."""
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=h_pad, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=layout)
    grid = figure.subplots(*shape, squeeze=False, height_ratios=height_ratios)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid


def _show(axes: Axes, image: Tensor, text: str) -> None:
    """Draw an image in [-1, 1], shape (C, H, W), with a text below it."""
    axes.imshow(to_pixels(image), cmap="gray", vmin=0, vmax=1)
    axes.set_xlabel(text, fontsize=VALUE_FONT_SIZE, labelpad=2)


def _write(axes: Axes, title: str, text: str) -> None:
    """A title, and a text with each attribute on a line of its own."""
    lines = [textwrap.fill(part, WRAP) for part in text.split(", ")]
    if title:
        axes.text(0, 0.97, title, transform=axes.transAxes, va="top", fontsize=FONT_SIZE, weight="bold")
        lines = ["", *lines]  # the title's line
    axes.text(0, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=FONT_SIZE)


def _effect(counterfactual: Tensor, image: Tensor) -> np.ndarray:
    """Counterfactual minus original, mean over channels, shape (H, W), as a fraction of the full range."""
    change = (counterfactual.detach().float() - image.detach().float().to(counterfactual.device)) / 2
    return change.mean(dim=0).cpu().numpy()
