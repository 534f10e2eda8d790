"""How far counterfactual images are from the true ones, where these are known (:mod:`softcft.data.truth`).

Two things are measured. Pixels: how far the image is from the true one. And expressions: of the phantom it is known how
strongly each attribute shows in an image, which labels do not say. Within a class this strength is the image's own
noise, and a counterfactual keeps it. A model that turns a faint effusion into a clear one, or makes all women look
alike, is wrong here, although a classifier sees nothing wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from softcft.data.schema import GREY_LEVELS
from softcft.evaluation.bootstrap import interval
from softcft.evaluation.metrics import weighted_mean

__all__ = ["ExpressionProbe", "probe_rows", "truth_errors", "truth_rows"]

COLUMNS = ["intervention", "variable", "predictor", "metric", "value", "low", "high"]


def truth_errors(image: Tensor, counterfactual: Tensor, true_counterfactual: Tensor) -> dict[str, Tensor]:
    """Errors of each counterfactual image, in grey levels of 0 to 255.

    Args:
        image: The factual images, shape (B, C, H, W) in [-1, 1].
        counterfactual: What a model makes of them, same shape.
        true_counterfactual: What they would be, same shape.

    Returns:
        Float32 tensors of shape (B,). ``error``: mean absolute difference of counterfactual and truth.
        ``error_outside``: the same over the pixels that the true counterfactual leaves alone, which are those within
        half a grey level, that is of one grey level if images are of 8 bits; NaN where there are none.
        ``error_factual``: that of leaving the image alone.

    Raises:
        ValueError: If the shapes differ.
    """
    if image.ndim != 4 or not image.shape == counterfactual.shape == true_counterfactual.shape:
        raise ValueError(
            "image, counterfactual and true_counterfactual must have one shape (B, C, H, W), got "
            f"{tuple(image.shape)}, {tuple(counterfactual.shape)} and {tuple(true_counterfactual.shape)}."
        )
    error = GREY_LEVELS * (counterfactual.float() - true_counterfactual.float()).abs()
    effect = GREY_LEVELS * (true_counterfactual.float() - image.float()).abs()
    outside = effect < 0.5
    return {
        "error": error.mean(dim=(1, 2, 3)),
        "error_outside": (error * outside).sum(dim=(1, 2, 3)) / outside.sum(dim=(1, 2, 3)),
        "error_factual": effect.mean(dim=(1, 2, 3)),
    }


class ExpressionProbe:
    """Reads from a classifier's embedding how strongly each attribute shows: ridge regression, fitted on real images.

    The probe reads only what the embedding has: see its R² (:func:`probe_rows`) before its errors.

    Args:
        embedding: Of real images that are not tested on, shape (N, D).
        expression: Their true expressions (:meth:`softcft.data.truth.PhantomTruth.expression`), shape (N, E).
        columns: For each variable its columns in ``expression``.

    Raises:
        ValueError: If embeddings and expressions differ in number, or ``columns`` do not cover the expressions.
    """

    def __init__(self, embedding: Tensor, expression: Tensor, columns: Mapping[str, slice]) -> None:
        covered = [i for column in columns.values() for i in range(expression.shape[1])[column]]
        if len(embedding) != len(expression) or sorted(covered) != list(range(expression.shape[1])):
            raise ValueError(
                f"embedding must have a row for each of expression, whose columns must each belong to one of columns, "
                f"got {tuple(embedding.shape)}, {tuple(expression.shape)} and {dict(columns)}."
            )
        self.columns = dict(columns)
        self._regression = make_pipeline(
            StandardScaler(), RidgeCV(alphas=np.logspace(-3, 5, 17), alpha_per_target=True)
        )
        self._regression.fit(_numpy(embedding), _numpy(expression))

    def predict(self, embedding: Tensor) -> np.ndarray:
        """Expressions, float64 of shape (B, E), read from embeddings of shape (B, D)."""
        return self._regression.predict(_numpy(embedding))

    def errors(self, counterfactual: Tensor, true_counterfactual: Tensor) -> dict[str, np.ndarray]:
        """How far apart two images of each pair are in what the probe reads.

        Args:
            counterfactual: Embeddings of the counterfactuals, shape (B, D).
            true_counterfactual: Those of the true ones, shape (B, D).

        Returns:
            For each variable shape (B,), in standard deviations of its noise; of a variable with several numbers the
            Euclidean norm of their differences.
        """
        difference = self.predict(counterfactual) - self.predict(true_counterfactual)
        return {name: np.linalg.norm(difference[:, column], axis=1) for name, column in self.columns.items()}


def truth_rows(
    errors: Mapping[str, Mapping[str, Tensor]],
    weights: np.ndarray,
    expression_errors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> pd.DataFrame:
    r"""The table of a model's distance from the truth.

    The *faithfulness ratio* is :math:`\sum_i w_i e_i / \sum_i w_i f_i`, with each image's error e and the error f that
    leaving it alone would have made: 0 is the truth, and at 1 editing is no better than doing nothing. It is a ratio of
    means and not a mean of ratios, for where the true effect is faint f is near 0, and few such images would decide.

    Args:
        errors: By intervention, what :func:`truth_errors` returns, of all N images.
        weights: Of the bootstrap, shape (1 + R, N), see :func:`~softcft.evaluation.bootstrap.bootstrap_weights`.
        expression_errors: By intervention, what :meth:`ExpressionProbe.errors` returns, of all N images.

    Returns:
        The columns ``intervention``, ``variable``, ``predictor``, ``metric``, ``value``, ``low``, ``high``. Of each
        intervention the variable ``image`` with the metrics ``error`` and ``error_outside`` (grey levels; the latter of
        the images that have a value) and ``faithfulness_ratio``, all with no predictor; and each variable that has an
        expression with the judge's ``expression_error`` (standard deviations of the noise).

    Raises:
        ValueError: If an entry has not one value for each column of ``weights``.
    """
    rows = []
    for intervention, named in errors.items():
        error, outside, factual = (
            _checked(named[key], weights, f"errors[{intervention!r}][{key!r}]")
            for key in ("error", "error_outside", "error_factual")
        )
        known = ~np.isnan(outside)
        metrics = {
            "error": weighted_mean(error, weights),
            "error_outside": _ratio(weighted_mean(np.where(known, outside, 0), weights), weighted_mean(known, weights)),
            "faithfulness_ratio": _ratio(weighted_mean(error, weights), weighted_mean(factual, weights)),
        }
        rows += [(intervention, "image", "", metric, *interval(values)) for metric, values in metrics.items()]
    for intervention, by_variable in (expression_errors or {}).items():
        for variable, values in by_variable.items():
            values = _checked(values, weights, f"expression_errors[{intervention!r}][{variable!r}]")
            result = interval(weighted_mean(values, weights))
            rows.append((intervention, variable, "judge", "expression_error", *result))
    return pd.DataFrame(rows, columns=COLUMNS)


def probe_rows(probe: ExpressionProbe, embedding: Tensor, expression: Tensor, weights: np.ndarray) -> pd.DataFrame:
    """How well the probe reads real test images: the share of the variance of their expressions that it explains.

    Args:
        probe: The probe.
        embedding: Of the N real test images, shape (N, D).
        expression: Their true expressions, shape (N, E).
        weights: Of the bootstrap, shape (1 + R, N).

    Returns:
        For each variable the metric ``r2`` (1 at best; of a variable with several numbers that of their total
        variance), with the columns of :func:`truth_rows`, the intervention ``none`` and the predictor ``judge``.

    Raises:
        ValueError: If there is not one image for each column of ``weights``.
    """
    truth = _numpy(expression)
    residual = truth - probe.predict(embedding)
    if len(truth) != weights.shape[1]:
        raise ValueError(f"weights must have a column for each of the {len(truth)} images, got {weights.shape}.")
    rows = []
    for variable, column in probe.columns.items():
        squared = weighted_mean((residual[:, column] ** 2).sum(axis=1), weights)
        centred = truth[:, column] - truth[:, column].mean(axis=0)
        variance = weighted_mean((centred**2).sum(axis=1), weights)
        variance -= sum(weighted_mean(number, weights) ** 2 for number in centred.T)  # of each resample about its mean
        rows.append(("none", variable, "judge", "r2", *interval(1 - _ratio(squared, variance))))
    return pd.DataFrame(rows, columns=COLUMNS)


def _checked(values: Tensor | np.ndarray, weights: np.ndarray, name: str) -> np.ndarray:
    if values.shape != weights.shape[1:]:
        raise ValueError(f"{name} must have shape {weights.shape[1:]}, as weights has, got {tuple(values.shape)}.")
    return _numpy(values) if isinstance(values, Tensor) else values


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
