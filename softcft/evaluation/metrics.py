"""Metrics of one variable's predictions, each for all resamples of the bootstrap at once.

Every metric takes the ``weights`` of :func:`~softcft.evaluation.bootstrap.bootstrap_weights`, shape (1 + R, N), and
returns one value for each row, shape (1 + R,), NaN where it is undefined. Images are sorted or binned once.

Discrete predictions are compared by :func:`log_odds`. These rank images as probabilities do, but do not saturate where
a probability rounds to 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import expit, logsumexp
from torch import Tensor

from softcft.graph import Variable

__all__ = [
    "calibration_error",
    "evidence",
    "log_odds",
    "logit_shift",
    "roc_auc",
    "variable_metrics",
    "weighted_mean",
]

NUM_BINS = 15


def variable_metrics(variable: Variable, logits: Tensor, labels: Tensor, weights: np.ndarray) -> dict[str, np.ndarray]:
    """How well predictions of one variable match its labels.

    Args:
        variable: The variable.
        logits: Logits of a discrete variable, encoded values of a continuous one, shape (N, width).
        labels: Encoded labels, shape (N, width).
        weights: Shape (1 + R, N).

    Returns:
        Values of shape (1 + R,). Of a continuous variable ``mae``, the mean absolute error in the variable's unit. Of a
        discrete one, all in %: ``auc``, the area under the ROC curve; ``accuracy`` of the most probable category; and
        ``ece``, see :func:`calibration_error`. Area and error of a categorical variable are means over its categories,
        each against the rest.

    Raises:
        ValueError: If shapes differ, numbers are not finite, or a category has no image or all of them, so that there
            is no AUC.
    """
    if not logits.shape == labels.shape == (weights.shape[1], variable.width):
        raise ValueError(
            f"'{variable.name}': logits and labels must both have shape ({weights.shape[1]}, {variable.width}), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    for name, tensor in (("logits", logits), ("labels", labels)):
        if not tensor.isfinite().all():
            raise ValueError(
                f"'{variable.name}': {name} must be finite, but are not for "
                f"{(~tensor.isfinite()).any(dim=1).sum()} of {len(tensor)} images; leave out images whose value is "
                "missing, and look for a model that diverged."
            )
    if variable.kind == "continuous":
        return {"mae": weighted_mean(np.abs(evidence(variable, logits, labels)), weights)}
    counts = variable.category_probabilities(labels).sum(dim=0)
    if ((counts == 0) | (counts == len(labels))).any():
        raise ValueError(
            f"'{variable.name}' has no AUC: each category needs images with and without it, but there are "
            f"{dict(zip(variable.categories, counts.int().tolist(), strict=True))}. Evaluate on more images."
        )
    odds, truth = log_odds(variable, logits), labels.double().cpu().numpy()
    columns, probabilities = range(variable.width), expit(odds)
    predicted, label = (variable.category_index(torch.from_numpy(x)).numpy() for x in (probabilities, truth))
    return {
        "auc": np.mean([roc_auc(odds[:, k], truth[:, k], weights) for k in columns], axis=0),
        "accuracy": 100 * weighted_mean(predicted == label, weights),
        "ece": np.mean([calibration_error(probabilities[:, k], truth[:, k], weights) for k in columns], axis=0),
    }


def logit_shift(
    variable: Variable,
    logits: Tensor,
    labels: Tensor,
    counterfactual_logits: Tensor,
    counterfactual_labels: Tensor,
    weights: np.ndarray,
) -> np.ndarray:
    r"""How much surer a predictor is of what counterfactual images should show than of what the real ones do.

    .. math:: \frac{1}{N} \sum_i s(x^*_i, a^*_i) - s(x_i, a_i), \quad s(x, k) = \log p_k(x) - \log(1 - p_k(x))

    0: as sure as on real images. Positive on a variable that the intervention cannot move: amplified. Negative on the
    variable that was intervened on: the intervention falls short. Unlike an AUC near 100 %, log-odds do not saturate.

    Args:
        variable: A discrete variable.
        logits: The predictor's logits on the real images x, shape (N, width).
        labels: Their encoded labels a, shape (N, width).
        counterfactual_logits: Its logits on the counterfactual images x*, in the same order, shape (N, width).
        counterfactual_labels: What these should show, a*, shape (N, width).
        weights: Shape (1 + R, N).

    Returns:
        The mean shift in nats, shape (1 + R,).
    """
    shift = evidence(variable, counterfactual_logits, counterfactual_labels) - evidence(variable, logits, labels)
    return weighted_mean(shift, weights)


def evidence(variable: Variable, logits: Tensor, labels: Tensor) -> np.ndarray:
    """How clearly a predictor sees in each image the value that the image should show.

    Args:
        variable: The variable.
        logits: Logits of a discrete variable, encoded values of a continuous one, shape (N, width).
        labels: Encoded labels, shape (N, width).

    Returns:
        Shape (N,), float64. Of a discrete variable the log-odds of the category that the image should show, in nats; of
        a continuous one the error predicted - label, in its unit.
    """
    if variable.kind == "continuous":
        return np.subtract(variable.decode(logits), variable.decode(labels))
    odds, truth = log_odds(variable, logits), labels.double().cpu().numpy()
    signs = 2 * truth - 1 if variable.kind == "binary" else truth
    return (signs * odds).sum(axis=1)


def log_odds(variable: Variable, logits: Tensor) -> np.ndarray:
    r"""Log-odds :math:`\log p_k - \log(1 - p_k)` of each category of a discrete variable against the rest.

    Of logits (N, width) float64 of shape (N, width), in nats: of a binary variable the logit itself, which is that of
    its second category; of a categorical one each logit less the log-sum-exp of the others.
    """
    values = logits.double().cpu().numpy()
    if variable.kind == "binary":
        return values
    others = [logsumexp(np.delete(values, k, axis=1), axis=1) for k in range(variable.width)]
    return values - np.stack(others, axis=1)


def roc_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the weight of the pairs of a positive and a negative image that are in order.

    Ties count half.

    Args:
        scores: Higher for what is more likely positive, shape (N,).
        labels: 0 or 1, shape (N,).
        weights: Shape (1 + R, N).

    Returns:
        In %, shape (1 + R,); NaN where no positive or no negative image has weight.
    """
    positive, negative = (np.flatnonzero(labels == value) for value in (1, 0))
    negative = negative[np.argsort(scores[negative])]
    below, not_above = (np.searchsorted(scores[negative], scores[positive], side) for side in ("left", "right"))
    areas = []
    for part in _parts(weights):
        # The weight of the first k negatives, for k = 0 to their number.
        cumulative = np.zeros((len(part), 1 + len(negative)))
        np.cumsum(part[:, negative], axis=1, out=cumulative[:, 1:])
        in_order = 0.5 * (cumulative[:, below] + cumulative[:, not_above])
        pairs = part[:, positive].sum(axis=1) * cumulative[:, -1]
        with np.errstate(invalid="ignore"):
            areas.append(100 * np.einsum("ri,ri->r", part[:, positive], in_order) / pairs)
    return np.concatenate(areas)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Expected calibration error of the probability of one category, over 15 bins of equal width.

    .. math:: \sum_b \frac{W_b}{W} \left| \bar{y}_b - \bar{p}_b \right|

    with each bin's weight, share of positive images and mean probability (Naeini et al., *Obtaining Well Calibrated
    Probabilities Using Bayesian Binning*, 2015). Its mean over categories, each against the rest, is the classwise
    error of Kull et al., *Beyond Temperature Scaling*, 2019 (https://arxiv.org/abs/1910.12656).

    Chance alone makes it positive, and more so in a resample: the interval of a nearly calibrated predictor lies above
    the estimate.

    Args:
        probabilities: Of the category, shape (N,), in [0, 1].
        labels: 0 or 1, shape (N,).
        weights: Shape (1 + R, N).

    Returns:
        In %, shape (1 + R,).
    """
    edges = np.linspace(0, 1, 1 + NUM_BINS)
    gaps = np.zeros((len(labels), NUM_BINS))
    gaps[np.arange(len(labels)), np.searchsorted(edges[1:-1], probabilities)] = labels - probabilities
    return 100 * np.abs(weighted_mean(gaps, weights)).sum(axis=1)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of values (N,) or (N, M) by each row of weights (1 + R, N): float64 of shape (1 + R,) or (1 + R, M)."""
    sums = np.concatenate([part @ values for part in _parts(weights)])
    return (sums.T / weights.sum(axis=1, dtype=np.float64)).T


def _parts(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows of the weights at a time, in float64, so few that what is made of them fits into the cache."""
    rows = max(1, 2**18 // weights.shape[1])
    for start in range(0, len(weights), rows):
        yield weights[start : start + rows].astype(np.float64)
