"""Figures of the distribution shift of counterfactual images (the paper's Fig. 2 and A3)."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from softcft.evaluation.embeddings import (
    AttributeModes,
    Comparison,
    subgroup_comparisons,
    subgroups,
)
from softcft.evaluation.figures.style import (
    COLORS,
    DASHES,
    FONT_SIZE,
    MAX_WIDTH,
    PLAIN_TEXT,
    REAL_COLOR,
    VALUE_FONT_SIZE,
    Dashes,
    common_axis,
    density,
    fit_text,
    plain_axes,
    save,
)
from softcft.evaluation.tables import CFT_NAMES
from softcft.graph import CausalGraph

__all__ = ["draw_shifts", "shift_figure"]

# Inches.
PANEL_WIDTH = 2.6
CURVES = 1.1  # the height of a panel without its legend
LINE = VALUE_FONT_SIZE * 1.35 / 72  # the height of a line of the legend

ROWS = 3  # subgroups in one figure, which must fit on a page


@rc_context(PLAIN_TEXT)
def shift_figure(
    graph: CausalGraph,
    name: str,
    modes: AttributeModes,
    embeddings: Mapping[str, Tensor],
    parents: Mapping[str, Tensor],
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    seed: int,
    shown: Sequence[str] | None = None,
) -> Figure:
    """Plot where real and counterfactual images lie along the mode of one variable, as in Fig. 2 of the paper.

    Models are columns, the variable's subgroups are rows. Real images are filled, the counterfactuals of each
    intervention are a line; which images are compared is described in
    :func:`~softcft.evaluation.embeddings.subgroup_comparisons`. Where an intervention moves the variable, so that its
    counterfactuals are of other images than the real ones, the legend says "set by". It gives the energy distance E
    and its p-value, see :func:`~softcft.evaluation.embeddings.distribution_shift`.

    Args:
        graph: The causal graph.
        name: The variable.
        modes: The modes of real images.
        embeddings: By model, such as ``"Soft-CFT"``, the judge's embeddings of real images and their I counterfactuals,
            the real ones first, shape (N, 1 + I, D). The real images are the same for all models.
        parents: By model, the encoded attributes that each image should show, shape (N, 1 + I, K).
        interventions: The I variables intervened on.
        subjects: Who each of the N real images is of.
        seed: That of :func:`~softcft.evaluation.embeddings.shift_rows`, for the same p-values.
        shown: Subgroups to show, keys of :func:`~softcft.evaluation.embeddings.subgroups`; if left out, all with at
            least 20 images.

    Returns:
        The figure, at most 7.5 inches wide.

    Raises:
        ValueError: If there are no models, those of embeddings and parents differ, a subgroup to be shown is unknown or
            too small, no subgroup is large enough, or as :func:`~softcft.evaluation.embeddings.subgroup_comparisons`.
    """
    if not embeddings or list(parents) != list(embeddings):
        raise ValueError(f"embeddings and parents must be of the same models, got {[*embeddings]} and {[*parents]}.")
    models = list(embeddings)
    comparisons = {
        model: subgroup_comparisons(graph, modes, embeddings[model], parents[model], interventions, subjects, name)
        for model in models
    }
    large = {comparison.subgroup for each in comparisons.values() for comparison in each}
    known = [label for label in subgroups(graph, name, parents[models[0]]) if label in large]
    rows = known if shown is None else list(shown)
    if not rows or not set(rows) <= set(known):
        raise ValueError(f"Cannot show the subgroups {rows} of '{name}': those with enough images are {known}.")

    width = min(PANEL_WIDTH, (MAX_WIDTH - 0.3) / len(models))
    panels = [[[c for c in comparisons[m] if c.subgroup == label] for m in models] for label in rows]
    room = width - 0.5  # beside the sample of a line
    legends = [[[fit_text(_legend(c, seed), room, VALUE_FONT_SIZE) for c in panel] for panel in row] for row in panels]
    # Above the curves there is room for the longest legend, with the line of the real images.
    lines = 1 + max(sum(text.count("\n") + 1 for text in texts) for row in legends for texts in row)
    height = CURVES + LINE * lines
    figure = Figure(figsize=(width * len(models) + 0.3, (height + 0.25) * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), len(models), squeeze=False, sharex="row", sharey="row")
    styles = dict(zip(interventions, zip(itertools.cycle(COLORS), itertools.cycle(DASHES)), strict=False))
    for axes, label, row, texts in zip(grid, rows, panels, legends, strict=True):
        _draw_row(axes, row, texts, styles, headroom=height / CURVES)
        axes[0].set_ylabel(fit_text(label, height, FONT_SIZE), fontsize=FONT_SIZE)
    for axes, model in zip(grid[0], models, strict=True):
        axes.set_title(fit_text(model, width, FONT_SIZE), fontsize=FONT_SIZE)
    mode = f"PCA mode {modes.modes[name].component + 1} (encodes {name}), in standard deviations of real images"
    figure.supxlabel(fit_text(mode, figure.get_figwidth(), FONT_SIZE), fontsize=FONT_SIZE)
    return figure


def draw_shifts(
    graph: CausalGraph,
    modes: AttributeModes,
    embeddings: Mapping[str, Tensor],
    parents: Mapping[str, Tensor],
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    seed: int,
    folder: Path,
) -> None:
    """Draw Figures 2 and A3: where counterfactuals lie along the mode of each variable.

    Args:
        graph: The causal graph.
        modes: The modes of the real images.
        embeddings: By fine-tuning, see :func:`shift_figure`.
        parents: By fine-tuning, see there.
        interventions: The I variables intervened on.
        subjects: Who each of the real images is of.
        seed: Of the permutation tests.
        folder: Gets ``shift_age`` and so on, one for each variable that has a subgroup of at least 20 images; with more
            subgroups than fit on a page, ``shift_age_1`` and so on.
    """
    named, labels = ({CFT_NAMES[cft]: x for cft, x in y.items()} for y in (embeddings, parents))
    for name in graph.names:
        large = {
            comparison.subgroup
            for model in named
            for comparison in subgroup_comparisons(
                graph, modes, named[model], labels[model], interventions, subjects, name
            )
        }
        rows = [label for label in subgroups(graph, name, next(iter(labels.values()))) if label in large]
        pages = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        for number, shown in enumerate(pages, start=1):
            figure = shift_figure(graph, name, modes, named, labels, interventions, subjects, seed, shown)
            save(figure, folder / (f"shift_{name}" if len(pages) == 1 else f"shift_{name}_{number}"))


def _legend(comparison: Comparison, seed: int) -> str:
    shift = comparison.shift(seed)
    # Spaces that a line is never broken at.
    return f"{'' if comparison.paired else 'set by '}do({comparison.intervention}): " + (
        f"E = {shift.energy:.2f}, p = {shift.energy_p:.3f}".replace(" ", "\N{NO-BREAK SPACE}")
    )


def _draw_row(
    row: Sequence[Axes],
    panels: Sequence[Sequence[Comparison]],
    legends: Sequence[Sequence[str]],
    styles: Mapping[str, tuple[str, Dashes]],
    headroom: float,
) -> None:
    samples = [sample for panel in panels for c in panel for sample in (c.real, c.counterfactual)]
    x = common_axis(samples)
    highest = 0.0
    for axes, panel, texts in zip(row, panels, legends, strict=True):
        for comparison in panel[:1]:
            heights = density(comparison.real, x)
            text = f"real (n = {len(comparison.real)})"
            axes.fill_between(x, heights, facecolor=(REAL_COLOR, 0.3), edgecolor=REAL_COLOR, label=text)
            highest = np.nanmax(heights, initial=highest)
        for comparison, text in zip(panel, texts, strict=True):
            color, dashes = styles[comparison.intervention]
            heights = density(comparison.counterfactual, x)
            axes.plot(x, heights, color=color, linestyle=dashes, linewidth=1.3, label=text)
            highest = np.nanmax(heights, initial=highest)
        axes.legend(
            loc="upper left", fontsize=VALUE_FONT_SIZE, frameon=False, borderaxespad=0, labelspacing=0.2, handlelength=2
        )
        plain_axes(axes, x)
    row[0].set_ylim(0, 1.05 * headroom * highest)
