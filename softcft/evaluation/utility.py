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
from softcft.evaluation.tables import RESULT
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
        logits: The logits of each predictor on the same N real images, shape (N, K), by the fine-tuning of the model
            that made its training images (``none``, ``hard``, ``soft`` or ``matched``) and the variable that was
            intervened on in them. Under :data:`REAL` those of the predictor that learned from real images.
        labels: Encoded attributes of the real images, shape (N, K).
        weights: Bootstrap weights of the images, shape (1 + R, N), see
            :func:`~softcft.evaluation.bootstrap.bootstrap_weights`.

    Returns:
        The column ``cft`` and :data:`~softcft.evaluation.tables.RESULT`; ``predictor`` is empty. Of each predictor and
        variable there is ``auc`` in % (discrete) or ``mae`` in the variable's unit; and, but for :data:`REAL`,
        ``auc_change`` or ``mae_change``, the value less that of :data:`REAL`, whose interval is paired: both values are
        of the same resample.

    Raises:
        ValueError: If a metric is not defined (:func:`~softcft.evaluation.metrics.variable_metrics`).
    """
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
    return pd.DataFrame(rows, columns=["cft", *RESULT])
