"""Figure of the strength of interventions, beside real images with the same attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from softcft.evaluation.figures.style import (
    FONT_SIZE,
    MAX_WIDTH,
    PANELS_ABREAST,
    PLAIN_TEXT,
    common_axis,
    draw_density,
    fit_text,
    line_styles,
    plain_axes,
)
from softcft.evaluation.metrics import evidence
from softcft.evaluation.strength import lookalikes
from softcft.evaluation.tables import ROW_NAMES
from softcft.graph import CausalGraph

__all__ = ["strength_figure"]

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
    """
    first = next(iter(labels))
    columns = min(len(interventions[first]), PANELS_ABREAST)
    rows = math.ceil(len(interventions[first]) / columns)
    width = MAX_WIDTH / PANELS_ABREAST
    abreast = max(2, columns)  # what the legend needs
    lines = math.ceil((1 + len(labels)) / abreast)
    figure = Figure(figsize=(abreast * width, rows * PANEL_HEIGHT + lines * LINE + 0.1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(interventions[first]) :]:
        axes.remove()
    # A model has the same line in all panels.
    styles = line_styles(model for model in labels if model != TRUTH_NAME) | {TRUTH_NAME: ("black", "--")}
    for i, (axes, name) in enumerate(zip(grid.flat, interventions[first], strict=False), start=1):
        alike = lookalikes(graph, name, labels[first][:, 0], labels[first][:, i], seed)
        samples = {REAL_NAME: _evidence(graph, name, labels[first][alike, 0], logits[first][alike, 0])}
        for model in labels:
            if name in interventions[model]:
                place = 1 + list(interventions[model]).index(name)
                samples[model] = _evidence(graph, name, labels[model][:, place], logits[model][:, place])
        x = common_axis(list(samples.values()))
        for model, sample in samples.items():
            draw_density(axes, x, sample, model, styles.get(model))
        axes.set_ylim(bottom=0)
        plain_axes(axes, x)
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


def _evidence(graph: CausalGraph, name: str, labels: Tensor, logits: Tensor) -> NDArray[np.float64]:
    columns = graph.slices[name]
    return evidence(graph[name], logits[:, columns], labels[:, columns])
