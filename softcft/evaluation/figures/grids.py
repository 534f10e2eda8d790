"""Grids of images: counterfactuals and their effects (the paper's Fig. 1), and examples.

Figures are free of pyplot and its global state: save one with ``figure.savefig(path)``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from softcft.evaluation.figures.style import FONT_SIZE, PLAIN_TEXT, VALUE_FONT_SIZE, show

__all__ = [
    "cft_comparison",
    "counterfactual_grid",
    "example_grid",
]

CELL = 1.25  # inches
WRAP = 18  # characters to a line over or under an image
VALUE_WRAP = 22  # the same in the font of values
# White means no change; the colour-blind, too, tell red from blue.
EFFECT_COLORS = "RdBu_r"
GREY_LEVEL = 1 / 255


class _Block(NamedTuple):
    """Two rows of a grid: an image and its counterfactuals with their values, below text and the effects."""

    image: Tensor
    counterfactuals: Sequence[Tensor]
    values: Sequence[str]
    title: str
    text: str


@rc_context(PLAIN_TEXT)
def counterfactual_grid(
    image: Tensor,
    counterfactuals: Mapping[str, Tensor],
    captions: Sequence[str],
    values: Mapping[str, Sequence[str]],
) -> Figure:
    """Show counterfactuals of a few subjects and their direct effects, as in Fig. 1 of the paper.

    Each subject has two rows: the original image and its counterfactuals, each over the value that was asked for, below
    them the effects, counterfactual minus original. One colour scale serves all effects. It ends at the
    99.5th percentile of their size, so that the few largest do not pale the others.

    Args:
        image: Original images in [-1, 1], shape (B, C, H, W), C 1 or 3.
        counterfactuals: By heading, such as ``"do(sex)"``, images of the same shape.
        captions: The factual attributes of each subject, see :meth:`~softcft.graph.CausalGraph.in_words`.
        values: By heading, the new value of each subject, such as ``"female"``.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no images or counterfactuals, shapes differ, captions are not B, or values are not B
            for each heading.
    """
    return cft_comparison(image, {"": counterfactuals}, captions, values)


@rc_context(PLAIN_TEXT)
def cft_comparison(
    image: Tensor,
    counterfactuals: Mapping[str, Mapping[str, Tensor]],
    captions: Sequence[str],
    values: Mapping[str, Sequence[str]],
) -> Figure:
    """Show the same counterfactuals of several models one below the other, on one colour scale of effects.

    Args:
        image: Original images of one or two subjects in [-1, 1], shape (B, C, H, W), C 1 or 3.
        counterfactuals: By model, such as ``"Soft-CFT"``, what :func:`counterfactual_grid` takes; all models have the
            same headings in the same order.
        captions: The factual attributes of each subject, see :meth:`~softcft.graph.CausalGraph.in_words`.
        values: By heading, the new value of each subject, the same for all models.

    Returns:
        The figure, with two rows per subject and model.

    Raises:
        ValueError: If there are no models, their headings differ, or as :func:`counterfactual_grid`.
    """
    if not counterfactuals:
        raise ValueError("counterfactuals is empty: there is no model to show.")
    first = next(iter(counterfactuals))
    headings = list(counterfactuals[first])
    for model, images in counterfactuals.items():
        if list(images) != headings:
            raise ValueError(f"counterfactuals['{model}'] must have the headings {headings}, got {list(images)}.")
        _check_images(image, images)
    _check_texts(len(image), headings, captions, values)
    blocks = [
        _Block(
            image[i],
            counterfactuals=[x[i] for x in images.values()],
            values=[values[heading][i] for heading in headings],
            title=model,
            text=caption if model == first else "",
        )
        for i, caption in enumerate(captions)
        for model, images in counterfactuals.items()
    ]
    return _draw_grid(blocks, headings)


@rc_context(PLAIN_TEXT)
def example_grid(image: Mapping[str, Tensor], captions: Mapping[str, Sequence[str]]) -> Figure:
    """Show real images in rows, such as one row for each category.

    Args:
        image: By heading of the row, such as ``"sex: female"``, images in [-1, 1], shape (B, C, H, W), C 1 or 3. Rows
            may differ in B.
        captions: By heading, what is written below each of its images.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no rows, a row has no images, or captions are not one per image.
    """
    if not image:
        raise ValueError("image is empty: there is nothing to show.")
    for heading, images in image.items():
        if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
            raise ValueError(
                f"image['{heading}'] must have shape (B, C, H, W) with B > 0 and C 1 or 3, got {tuple(images.shape)}."
            )
        if len(captions.get(heading, ())) != len(images):
            raise ValueError(f"captions['{heading}'] must be {len(images)}, one per image.")
    wrapped = {heading: [textwrap.fill(text, VALUE_WRAP) for text in captions[heading]] for heading in image}
    lines = [max(text.count("\n") + 1 for text in texts) for texts in wrapped.values()]
    heights = [CELL + VALUE_FONT_SIZE / 60 * number + 0.15 for number in lines]
    columns = max(len(images) for images in image.values())
    figure = Figure(
        figsize=(CELL * columns + 0.5, sum(heights)),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04, wspace=0, hspace=0),
    )
    grid = figure.subplots(len(image), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, (heading, images) in zip(grid, image.items(), strict=True):
        row[0].set_ylabel(textwrap.fill(heading, WRAP), fontsize=FONT_SIZE)
        for axes, picture, text in zip(row[: len(images)], images, wrapped[heading], strict=True):
            show(axes, picture)
            axes.set_xlabel(text, fontsize=VALUE_FONT_SIZE, labelpad=2)
    return figure


def _check_images(image: Tensor, counterfactuals: Mapping[str, Tensor]) -> None:
    if image.ndim != 4 or not len(image) or image.shape[1] not in (1, 3):
        raise ValueError(f"image must have shape (B, C, H, W) with B > 0 and C 1 or 3, got {tuple(image.shape)}.")
    if not counterfactuals:
        raise ValueError("counterfactuals is empty: there is nothing to show beside the original.")
    for heading, counterfactual in counterfactuals.items():
        if counterfactual.shape != image.shape:
            raise ValueError(
                f"The counterfactuals '{heading}' must have the shape of image, {tuple(image.shape)}, got "
                f"{tuple(counterfactual.shape)}."
            )


def _check_texts(
    size: int, headings: Sequence[str], captions: Sequence[str], values: Mapping[str, Sequence[str]]
) -> None:
    if len(captions) != size:
        raise ValueError(f"captions must be {size}, one per image, got {len(captions)}.")
    if set(values) != set(headings):
        raise ValueError(f"values must have the headings of counterfactuals, {list(headings)}, got {list(values)}.")
    for heading, texts in values.items():
        # A string, too, has a length, and would be dealt out letter by letter.
        if isinstance(texts, str) or len(texts) != size:
            raise ValueError(f"values['{heading}'] must be a list of {size} strings, one per image, got {texts!r}.")


def _draw_grid(blocks: Sequence[_Block], headings: Sequence[str]) -> Figure:
    effects = [[_effect(x, block.image) for x in block.counterfactuals] for block in blocks]
    # Less than a grey level is no effect, and must not look like one.
    limit = max(float(np.quantile(np.abs(effects), 0.995)), GREY_LEVEL)
    shape = (2 * len(blocks), 1 + len(headings))
    height, width = blocks[0].image.shape[-2:]
    values = [[textwrap.fill(value, VALUE_WRAP) for value in block.values] for block in blocks]
    lines = sum(max(value.count("\n") + 1 for value in row) for row in values)
    size = (CELL * shape[1] + 0.9, CELL * height / width * shape[0] + 0.4 + VALUE_FONT_SIZE / 60 * lines)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    grid = figure.subplots(*shape, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, heading in zip(grid[0], ["original", *headings], strict=True):
        axes.set_title(textwrap.fill(heading, WRAP, break_long_words=False), fontsize=FONT_SIZE)
    for block, row, block_effects, upper, lower in zip(blocks, values, effects, grid[::2], grid[1::2], strict=True):
        for axes, image, value in zip(upper, [block.image, *block.counterfactuals], ["", *row], strict=True):
            show(axes, image)
            axes.set_xlabel(value, fontsize=VALUE_FONT_SIZE, labelpad=2)
        for axes, effect in zip(lower[1:], block_effects, strict=True):
            mapped = axes.imshow(effect, cmap=EFFECT_COLORS, vmin=-limit, vmax=limit)
        _write(lower[0], block)
    bar = figure.colorbar(mapped, ax=grid, extend="both", aspect=25, shrink=min(1, 3.5 / size[1]))
    bar.set_label("change in grey value (full range = 1)", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    return figure


def _write(axes: Axes, block: _Block) -> None:
    """The block's title, and its text with each attribute on a line of its own."""
    lines = [textwrap.fill(part, WRAP) for part in block.text.split(", ")]
    if block.title:
        axes.text(0, 0.97, block.title, transform=axes.transAxes, va="top", fontsize=FONT_SIZE, weight="bold")
        lines = ["", *lines]  # the title's line
    axes.text(0, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=FONT_SIZE)


def _effect(counterfactual: Tensor, image: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Counterfactual minus original, mean over channels, shape (H, W), as a fraction of the full range."""
    change = (counterfactual.detach().float() - image.detach().float().to(counterfactual.device)) / 2
    return change.mean(dim=0).cpu().numpy()
