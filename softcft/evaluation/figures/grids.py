"""Grids of images: counterfactuals and their effects (the paper's Fig. 1), results of a pipeline, and examples."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softcft.evaluation.figures.style import FONT_SIZE, PLAIN_TEXT, VALUE_FONT_SIZE, fit_text, to_pixels

__all__ = ["cft_comparison", "counterfactual_grid", "draw_results", "example_grid"]

CELL = 1.25  # inches
WRAP = 18  # characters to a line over or under an image
VALUE_WRAP = 22  # the same in the font of values
MARGIN = 3  # characters left of a table
# White means no change; the colour-blind, too, tell red from blue.
EFFECT_COLORS = "RdBu_r"
GREY_LEVEL = 1 / 255


@rc_context(PLAIN_TEXT)
def counterfactual_grid(
    image: Tensor,
    counterfactuals: Mapping[str, Tensor],
    captions: Sequence[str],
    values: Mapping[str, Sequence[str]],
) -> Figure:
    """Show counterfactuals of a few subjects by one model, as in Fig. 1 of the paper.

    For each subject there are two rows: the original image and its counterfactuals, each over the value that was asked
    for; below them the effects, counterfactual minus original. One colour scale serves all effects. It ends at the
    99.5th percentile of their size, so that the few largest do not pale the others.

    Args:
        image: Original images in [-1, 1], shape (B, C, H, W), C 1 or 3.
        counterfactuals: By heading, such as ``"do(sex)"``, images of the same shape.
        captions: The factual attributes of each subject, see :meth:`~softcft.graph.CausalGraph.in_words`.
        values: By heading, the new value of each subject, such as ``"female"``.
    """
    effects = [[_effect(x[i], image[i]) for x in counterfactuals.values()] for i in range(len(captions))]
    limit = _largest(effects)
    texts = [[textwrap.fill(of_all[i], VALUE_WRAP) for of_all in values.values()] for i in range(len(captions))]
    lines = sum(max(text.count("\n") + 1 for text in row) for row in texts)
    shape = (2 * len(captions), 1 + len(counterfactuals))
    height, width = image.shape[-2:]
    size = (CELL * shape[1] + 0.9, CELL * height / width * shape[0] + 0.4 + VALUE_FONT_SIZE / 60 * lines)
    figure, grid = _empty_grid(size, shape, h_pad=0.02)
    for axes, heading in zip(grid[0], ["original", *counterfactuals], strict=True):
        axes.set_title(textwrap.fill(heading, WRAP, break_long_words=False), fontsize=FONT_SIZE)
    for i, (row, upper, lower) in enumerate(zip(texts, grid[::2], grid[1::2], strict=True)):
        pictures = [image[i], *(x[i] for x in counterfactuals.values())]
        for axes, picture, text in zip(upper, pictures, ["", *row], strict=True):
            _show(axes, picture, text)
        mapped = _show_effects(lower[1:].tolist(), effects[i], limit)
        lines_of_caption = [textwrap.fill(part, WRAP) for part in captions[i].split(", ")]
        lower[0].text(0, 0.97, "\n".join(lines_of_caption), transform=lower[0].transAxes, va="top", fontsize=FONT_SIZE)
    _add_scale(figure, mapped, grid, size[1])
    return figure


@rc_context(PLAIN_TEXT)
def cft_comparison(
    image: Tensor,
    counterfactuals: Mapping[str, Mapping[str, Tensor]],
    caption: str,
    values: Mapping[str, str],
) -> Figure:
    """Show counterfactuals of one subject by several models side by side, a row for each intervention.

    A row has the original image, and for each model the counterfactual and its effect, all on one colour scale, see
    :func:`counterfactual_grid`.

    Args:
        image: The original image in [-1, 1], shape (C, H, W), C 1 or 3.
        counterfactuals: By model, such as ``"Soft-CFT"``, and by heading, such as ``"do(sex)"``, images of the same
            shape. All models have the same headings in the same order.
        caption: The factual attributes.
        values: By heading, the new value, such as ``"female"``.
    """
    effects = {model: [_effect(x, image) for x in images.values()] for model, images in counterfactuals.items()}
    limit = _largest(list(effects.values()))
    shape = (len(values), 1 + 2 * len(counterfactuals))
    height, width = image.shape[-2:]
    size = (CELL * shape[1] + 1.5, CELL * height / width * shape[0] + 0.6)
    figure, grid = _empty_grid(size, shape, h_pad=0.02)
    figure.suptitle(fit_text(caption, size[0], FONT_SIZE), fontsize=FONT_SIZE)
    grid[0, 0].set_title("original", fontsize=FONT_SIZE)
    for axes, (heading, value) in zip(grid[:, 0], values.items(), strict=True):
        label = [textwrap.fill(text, WRAP, break_long_words=False) for text in (heading, value)]
        _show(axes, image, "")
        axes.set_ylabel("\n".join(label), fontsize=VALUE_FONT_SIZE)
    for i, (model, images) in enumerate(counterfactuals.items()):
        after, change = grid[:, 1 + 2 * i], grid[:, 2 + 2 * i]
        after[0].set_title(textwrap.fill(model, WRAP), fontsize=FONT_SIZE, weight="bold")
        change[0].set_title("its effect", fontsize=FONT_SIZE)
        for axes, picture in zip(after, images.values(), strict=True):
            _show(axes, picture, "")
        mapped = _show_effects(change.tolist(), effects[model], limit)
    _add_scale(figure, mapped, grid, size[1])
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


@rc_context(PLAIN_TEXT)
def draw_results(
    counterfactual: Tensor, effect: Tensor | None, rows: Sequence[Sequence[Sequence[str]]], left_out: int = 0
) -> Figure:
    """Show what a pipeline returned, one counterfactual to a row: original, counterfactual, effect, and a table.

    Args:
        counterfactual: Images in [-1, 1], shape (B, C, H, W), C 1 or 3.
        effect: Counterfactual minus original in units of the full grey range, of the same shape; None for samples,
            which have no original.
        rows: For each image its table: a head, and rows of as many cells. What differs in the second and the third
            column is bold.
        left_out: How many counterfactuals are not shown, which is said below.
    """
    letter, line, picture = 0.56 * VALUE_FONT_SIZE / 72, 1.6 * VALUE_FONT_SIZE / 72, 1.3 * CELL  # inches
    columns = [[max(map(len, column)) + 2 for column in zip(*table, strict=True)] for table in rows]
    widths = [max(column) for column in zip(*columns, strict=True)]
    ratios = [picture] * (1 if effect is None else 3) + [letter * (MARGIN + sum(widths))]
    height = max(picture * counterfactual.shape[2] / counterfactual.shape[3], line * max(map(len, rows))) + 0.1
    size = (sum(ratios) + 0.9, height * len(rows) + 0.3 + line * bool(left_out))
    figure, grid = _empty_grid(size, (len(rows), len(ratios)), h_pad=0.03, width_ratios=ratios)
    if effect is not None:
        changes = effect.detach().float().cpu().mean(dim=1).numpy()
        limit = _largest(changes)
        original = (counterfactual - 2 * effect.to(counterfactual)).clamp(-1, 1)
        for axes, before, after, change in zip(grid, original, counterfactual, changes, strict=True):
            _show(axes[0], before, "")
            _show(axes[1], after, "")
            mapped = _show_effects([axes[2]], [change], limit)
        for axes, title in zip(grid[0], ["original", "counterfactual", "effect"], strict=False):
            axes.set_title(title, fontsize=FONT_SIZE)
        bar = figure.colorbar(mapped, ax=grid[:, 2].tolist(), extend="both", aspect=15, shrink=min(1, 2 / size[1]))
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
        bar.ax.tick_params(labelsize=VALUE_FONT_SIZE)
    else:
        for axes, image in zip(grid, counterfactual, strict=True):
            _show(axes[0], image, "")
    for axes, table in zip(grid[:, -1], rows, strict=True):
        _write_table(axes, table, widths)
    if left_out:
        figure.supxlabel(f"and {left_out} more, not shown", fontsize=VALUE_FONT_SIZE)
    return figure


def _largest(effects: Any) -> float:
    """Where the scale of effects ends; less than a grey level is no effect, and must not look like one."""
    return max(float(np.quantile(np.abs(effects), 0.995)), GREY_LEVEL)


def _write_table(axes: Axes, table: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    """Words in rows and columns, the head on top; what differs in the second and the third column is bold."""
    starts = np.cumsum([MARGIN, *widths]) / (MARGIN + sum(widths))
    for i, row in enumerate(table):
        is_moved = i > 0 and len(row) > 2 and row[1].removesuffix(" (inferred)") != row[2]
        for k, (cell, x) in enumerate(zip(row, starts, strict=False)):
            y = 1 - (i + 0.5) / len(table)
            text = axes.text(x, y, cell, transform=axes.transAxes, va="center", fontsize=VALUE_FONT_SIZE)
            text.set(weight="bold" if is_moved and k == 2 else "normal", color="0.4" if i == 0 else "black")


def _empty_grid(
    size: tuple[float, float],
    shape: tuple[int, int],
    h_pad: float,
    height_ratios: Sequence[float] | None = None,
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, without frames."""
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=h_pad, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=layout)
    grid = figure.subplots(*shape, squeeze=False, height_ratios=height_ratios, width_ratios=width_ratios)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid


def _show(axes: Axes, image: Tensor, text: str) -> None:
    """Draw an image in [-1, 1], shape (C, H, W), with a text below it."""
    axes.imshow(to_pixels(image), cmap="gray", vmin=0, vmax=1)
    axes.set_xlabel(text, fontsize=VALUE_FONT_SIZE, labelpad=2)


def _show_effects(row: Sequence[Axes], effects: Sequence[np.ndarray], limit: float) -> AxesImage:
    """Draw effects (H, W) in colours that end at the limit; returns one of them, for a colour bar."""
    return [
        axes.imshow(effect, cmap=EFFECT_COLORS, vmin=-limit, vmax=limit)
        for axes, effect in zip(row, effects, strict=True)
    ][-1]


def _add_scale(figure: Figure, mapped: AxesImage, grid: np.ndarray, height: float) -> None:
    """The colour bar of all effects, beside them."""
    bar = figure.colorbar(mapped, ax=grid, extend="both", aspect=25, shrink=min(1, 3.5 / height))
    bar.set_label("change in grey value (full range = 1)", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)


def _effect(counterfactual: Tensor, image: Tensor) -> np.ndarray:
    """Counterfactual minus original, mean over channels, shape (H, W), as a fraction of the full range."""
    change = (counterfactual.detach().float() - image.detach().float().to(counterfactual.device)) / 2
    return change.mean(dim=0).cpu().numpy()
