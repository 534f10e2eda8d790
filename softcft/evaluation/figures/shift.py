"""Figures of the distribution shift of counterfactual images (the paper's Fig. 2 and A3)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from softcft.evaluation.embeddings import AttributeModes, Comparison, subgroup_comparisons, subgroups
from softcft.evaluation.figures.style import (
    FONT_SIZE,
    MAX_WIDTH,
    PLAIN_TEXT,
    VALUE_FONT_SIZE,
    Dashes,
    common_axis,
    draw_density,
    fit_text,
    line_styles,
    plain_axes,
    save,
)
from softcft.graph import CausalGraph

__all__ = ["draw_shifts", "shift_figures"]

# Inches.
PANEL_WIDTH = 2.6
CURVES = 1.1  # the height of a panel without its legend
LINE = VALUE_FONT_SIZE * 1.35 / 72  # the height of a line of the legend

ROWS = 3  # subgroups in one figure, which must fit on a page


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

    The arguments are those of :func:`shift_figures`. ``folder`` gets ``shift_age`` and so on, one for each variable
    that has a subgroup of at least 20 images; with more subgroups than fit on a page, ``shift_age_1`` and so on.
    """
    for name in graph.names:
        figures = shift_figures(graph, name, modes, embeddings, parents, interventions, subjects, seed)
        for number, figure in enumerate(figures, start=1):
            save(figure, folder / (f"shift_{name}" if len(figures) == 1 else f"shift_{name}_{number}"))


@rc_context(PLAIN_TEXT)
def shift_figures(
    graph: CausalGraph,
    name: str,
    modes: AttributeModes,
    embeddings: Mapping[str, Tensor],
    parents: Mapping[str, Tensor],
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    seed: int,
) -> list[Figure]:
    """Plot where real and counterfactual images lie along the mode of one variable, as in Fig. 2 of the paper.

    Models are columns, the variable's subgroups are rows. Real images are filled, the counterfactuals of each
    intervention are a line; which images are compared is described in
    :func:`~softcft.evaluation.embeddings.subgroup_comparisons`. Where an intervention moves the variable, so that its
    counterfactuals are of other images than the real ones, the legend says "set by". It gives the energy distance E
    and its p-value, see :func:`~softcft.evaluation.permutation.distribution_shift`.

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

    Returns:
        A figure for each three subgroups that have at least 20 images, at most 7.5 inches wide.
    """
    comparisons = {
        model: subgroup_comparisons(graph, modes, embeddings[model], parents[model], interventions, subjects, name)
        for model in embeddings
    }
    large = {comparison.subgroup for each in comparisons.values() for comparison in each}
    rows = [label for label in subgroups(graph, name, next(iter(parents.values()))) if label in large]
    mode = f"PCA mode {modes.modes[name].component + 1} (encodes {name}), in standard deviations of real images"
    styles = line_styles(interventions)
    return [_figure(comparisons, rows[i : i + ROWS], styles, mode, seed) for i in range(0, len(rows), ROWS)]


def _figure(
    comparisons: Mapping[str, Sequence[Comparison]],
    rows: Sequence[str],
    styles: Mapping[str, tuple[str, Dashes]],
    mode: str,
    seed: int,
) -> Figure:
    """The subgroups of one page, with ``mode`` below them."""
    width = min(PANEL_WIDTH, (MAX_WIDTH - 0.3) / len(comparisons))
    panels = [[[c for c in each if c.subgroup == label] for each in comparisons.values()] for label in rows]
    room = width - 0.5  # beside the sample of a line
    legends = [[[fit_text(_legend(c, seed), room, VALUE_FONT_SIZE) for c in panel] for panel in row] for row in panels]
    # Above the curves there is room for the longest legend, with the line of the real images.
    lines = 1 + max(sum(text.count("\n") + 1 for text in texts) for row in legends for texts in row)
    height = CURVES + LINE * lines
    size = (width * len(comparisons) + 0.3, (height + 0.25) * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(comparisons), squeeze=False, sharex="row", sharey="row")
    for axes, label, row, texts in zip(grid, rows, panels, legends, strict=True):
        _draw_row(axes, row, texts, styles, headroom=height / CURVES)
        axes[0].set_ylabel(fit_text(label, height, FONT_SIZE), fontsize=FONT_SIZE)
    for axes, model in zip(grid[0], comparisons, strict=True):
        axes.set_title(fit_text(model, width, FONT_SIZE), fontsize=FONT_SIZE)
    figure.supxlabel(fit_text(mode, figure.get_figwidth(), FONT_SIZE), fontsize=FONT_SIZE)
    return figure


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
    x = common_axis([sample for panel in panels for c in panel for sample in (c.real, c.counterfactual)])
    highest = []
    for axes, panel, texts in zip(row, panels, legends, strict=True):
        for comparison in panel[:1]:
            highest.append(draw_density(axes, x, comparison.real, f"real (n = {len(comparison.real)})"))
        for comparison, text in zip(panel, texts, strict=True):
            highest.append(draw_density(axes, x, comparison.counterfactual, text, styles[comparison.intervention]))
        axes.legend(
            loc="upper left", fontsize=VALUE_FONT_SIZE, frameon=False, borderaxespad=0, labelspacing=0.2, handlelength=2
        )
        plain_axes(axes, x)
    row[0].set_ylim(0, 1.05 * headroom * max(highest))
