"""Figure of the strength of interventions, beside real images with the same attributes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from softcft.evaluation.effectiveness import check_predictions
from softcft.evaluation.figures.style import (
    COLORS,
    DASHES,
    FONT_SIZE,
    MAX_WIDTH,
    PANELS_ABREAST,
    PLAIN_TEXT,
    REAL_COLOR,
    common_axis,
    density,
    fit_text,
    plain_axes,
    save,
)
from softcft.evaluation.metrics import evidence
from softcft.evaluation.strength import lookalikes
from softcft.evaluation.tables import ROW_NAMES
from softcft.graph import CausalGraph

__all__ = ["draw_strength", "strength_figure"]

# Inches.
PANEL_HEIGHT = 1.9  # with title and label
LINE = 1.6 * FONT_SIZE / 72  # the height of a line of the legend
REAL_NAME = "Real images with the same attributes"
TRUTH_NAME = ROW_NAMES["truth"]


@rc_context(PLAIN_TEXT)
def strength_figure(
    graph: CausalGraph,
    labels: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    interventions: Mapping[str, Sequence[str]],
    seed: int,
) -> Figure:
    """Plot what the judge sees of each variable that was set, see :mod:`~softcft.evaluation.strength`.

    Each intervention is a panel: the distribution of the log-odds of the category that an image should show, or of the
    error of a continuous variable, in its unit. Each model is a line, true counterfactuals are dashed and black. The
    real images that should look the same are filled; they are the lookalikes of the first model's counterfactuals. An
    intervention is as strong as in reality where its line lies on their edge.

    Args:
        graph: The causal graph.
        labels: By model, such as ``"Soft-CFT"`` or ``"True counterfactuals"``, the encoded attributes that each image
            should show, the real ones first, shape (N, 1 + I, K). The real images are the same for all models.
        logits: By model, the judge's logits and means, shape (N, 1 + I, K).
        interventions: By model, the I variables intervened on. Those of the first model are shown, the others may have
            fewer.
        seed: That of :func:`~softcft.evaluation.strength.strength_rows`, for the same lookalikes.

    Returns:
        The figure, at most 7.5 inches wide.

    Raises:
        ValueError: If there are no models or interventions, the models of the arguments differ, or as
            :func:`~softcft.evaluation.strength.strength_rows`.
    """
    if not labels or {*labels} != {*logits} or {*labels} != {*interventions}:
        raise ValueError(
            f"labels, logits and interventions must be of the same models, got {[*labels]}, {[*logits]} and "
            f"{[*interventions]}."
        )
    for model in labels:
        check_predictions(graph, labels[model], {model: logits[model]}, interventions[model])
    first = next(iter(labels))
    if not interventions[first]:
        raise ValueError(f"interventions: '{first}' has none to show.")

    columns = min(len(interventions[first]), PANELS_ABREAST)
    rows = math.ceil(len(interventions[first]) / columns)
    width = MAX_WIDTH / PANELS_ABREAST
    abreast = max(2, columns)  # what the legend needs
    lines = math.ceil((1 + len(labels)) / abreast)
    figure = Figure(figsize=(abreast * width, rows * PANEL_HEIGHT + lines * LINE + 0.1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(interventions[first]) :]:
        axes.remove()
    for i, (axes, name) in enumerate(zip(grid.flat, interventions[first], strict=False), start=1):
        alike = lookalikes(graph, name, labels[first][:, 0], labels[first][:, i], seed)
        samples = {REAL_NAME: _evidence(graph, name, labels[first][alike, 0], logits[first][alike, 0])}
        for model in labels:
            if name in interventions[model]:
                place = 1 + list(interventions[model]).index(name)
                samples[model] = _evidence(graph, name, labels[model][:, place], logits[model][:, place])
        _draw_panel(axes, samples, [model for model in labels if model != TRUTH_NAME])
        variable = graph[name]
        unit = f" ({variable.unit})" if variable.unit else ""
        label = f"error of {name}{unit}" if variable.kind == "continuous" else f"log-odds of {name} (nats)"
        axes.set_title(fit_text(f"do({name})", width, FONT_SIZE), fontsize=FONT_SIZE)
        axes.set_xlabel(fit_text(label, width, FONT_SIZE), fontsize=FONT_SIZE)
    handles = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=abreast, fontsize=FONT_SIZE, frameon=False
    )
    return figure


def draw_strength(
    graph: CausalGraph,
    labels: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    interventions: Mapping[str, Sequence[str]],
    seed: int,
    folder: Path,
) -> None:
    """Draw how strong each intervention is, beside real images with the same attributes.

    Args:
        graph: The causal graph.
        labels: By fine-tuning, and ``truth`` if known, see :func:`strength_figure`.
        logits: The judge's, by the same.
        interventions: The variables intervened on, by the same.
        seed: Of the lookalikes.
        folder: Gets ``strength``.
    """
    shown, seen = ({ROW_NAMES[cft]: x for cft, x in y.items()} for y in (labels, logits))
    moved = {ROW_NAMES[cft]: x for cft, x in interventions.items()}
    save(strength_figure(graph, shown, seen, moved, seed), folder / "strength")


def _evidence(graph: CausalGraph, name: str, labels: Tensor, logits: Tensor) -> NDArray[np.float64]:
    columns = graph.slices[name]
    return evidence(graph[name], logits[:, columns], labels[:, columns])


def _draw_panel(axes: Axes, samples: Mapping[str, NDArray[np.float64]], models: Sequence[str]) -> None:
    """Draw the real images filled and the rest as lines; a model has the same line in all panels."""
    x = common_axis(list(samples.values()))
    styles = dict(zip(models, zip(itertools.cycle(COLORS), itertools.cycle(DASHES)), strict=False))
    for name, sample in samples.items():
        heights = density(sample, x)
        if name == REAL_NAME:
            axes.fill_between(x, heights, facecolor=(REAL_COLOR, 0.3), edgecolor=REAL_COLOR, label=name)
        else:
            color, dashes = styles.get(name, ("black", "--"))
            axes.plot(x, heights, color=color, linestyle=dashes, linewidth=1.3, label=name)
    axes.set_ylim(bottom=0)
    plain_axes(axes, x)
