"""Utility: how well predictors that learned from counterfactual images alone do on real ones (Table 2).

In :mod:`softcft.evaluation.effectiveness` it is the other way round: predictors that learned from real images see
counterfactuals. Counterfactuals that are too weak or too strong, or change other attributes too, teach something that
does not hold for real images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from softcft.evaluation.bootstrap import interval
from softcft.evaluation.metrics import variable_metrics
from softcft.graph import CausalGraph

__all__ = ["REAL", "utility_rows"]

REAL = ("real", "none")
"""The predictor that learned from real images."""


def utility_rows(
    graph: CausalGraph, logits: Mapping[tuple[str, str], Tensor], labels: Tensor, weights: np.ndarray
) -> pd.DataFrame:
    """Compare predictors that learned from counterfactuals with the one that learned from real images.

    Args:
        graph: The causal graph.
        logits: What each predictor says of the same N real images, shape (N, K), by the fine-tuning of the model that
            made its training images (``none``, ``hard``, ``soft`` or ``matched``) and the variable that was intervened
            on in them.
            Under :data:`REAL` those of the predictor that learned from real images.
        labels: Encoded attributes of the real images, shape (N, K).
        weights: Bootstrap weights of the images, shape (1 + R, N), see
            :func:`~softcft.evaluation.bootstrap.bootstrap_weights`.

    Returns:
        Columns ``cft``, ``intervention``, ``variable``, ``predictor`` (empty), ``metric``, ``value``, ``low`` and
        ``high``. Of each predictor and variable there is ``auc`` in % (discrete) or ``mae`` in the variable's unit;
        and, but for :data:`REAL`, ``auc_change`` or ``mae_change``, the value less that of :data:`REAL`, whose interval
        is paired: both values are of the same resample.

    Raises:
        ValueError: If there is no predictor that learned from real images, an intervention is no variable of the graph,
            a shape is wrong, or a metric is not defined (:func:`~softcft.evaluation.metrics.variable_metrics`).
    """
    if REAL not in logits:
        raise ValueError(f"logits must have a predictor {REAL}, which learned from real images, got {list(logits)}.")
    for cft, intervention in logits:
        if (cft, intervention) != REAL:
            graph[intervention]
    for name, tensor in {"labels": labels, **{f"logits[{key}]": tensor for key, tensor in logits.items()}}.items():
        if tensor.shape != (len(labels), graph.width):
            expected = (len(labels), graph.width)
            raise ValueError(f"{name} must have shape {expected}, as the labels, got {tuple(tensor.shape)}.")
    rows = []
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        metric = "mae" if variable.kind == "continuous" else "auc"
        values = {
            key: variable_metrics(variable, tensor[:, columns], labels[:, columns], weights)[metric]
            for key, tensor in logits.items()
        }
        for key, value in values.items():
            rows.append((*key, variable.name, "", metric, *interval(value)))
            if key != REAL:
                rows.append((*key, variable.name, "", f"{metric}_change", *interval(value - values[REAL])))
    names = ["cft", "intervention", "variable", "predictor", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names)
