"""How far counterfactual images are from the true ones, where these are known (:mod:`softcft.data.truth`).

Two things are measured: the error of the pixels, and the error of *expressions*. Of the phantom it is known how
strongly each attribute shows in an image. Within a class this strength is the image's own noise, and a counterfactual
keeps it. A model that turns a faint effusion into a clear one has an error, although a classifier sees nothing wrong.
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
from softcft.evaluation.tables import RESULT

__all__ = ["ExpressionProbe", "probe_rows", "truth_errors", "truth_rows"]


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
    """
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
    """

    def __init__(self, embedding: Tensor, expression: Tensor, columns: Mapping[str, slice]) -> None:
        self.columns = dict(columns)
        self._regression = make_pipeline(
            StandardScaler(), RidgeCV(alphas=np.logspace(-3, 5, 17), alpha_per_target=True)
        )
        self._regression.fit(_numpy(embedding), _numpy(expression))

    def predict(self, embedding: Tensor) -> np.ndarray:
        """Expressions, float64 of shape (B, E), read from embeddings of shape (B, D)."""
        return self._regression.predict(_numpy(embedding))

    def errors(self, counterfactual: Tensor, true_counterfactual: Tensor) -> dict[str, np.ndarray]:
        """How far apart counterfactuals and the true ones are in what the probe reads from their embeddings (B, D).

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
    means: in a mean of ratios the few images with a faint true effect, where f is near 0, would decide.

    Args:
        errors: By intervention, what :func:`truth_errors` returns, of all N images.
        weights: Of the bootstrap, shape (1 + R, N), see :func:`~softcft.evaluation.bootstrap.bootstrap_weights`.
        expression_errors: By intervention, what :meth:`ExpressionProbe.errors` returns, of all N images.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`. Of each intervention the variable ``image`` with the
        metrics ``error`` and ``error_outside`` (grey levels; the latter of the images that have a value) and
        ``faithfulness_ratio``, all with no predictor; and each variable that has an expression with the judge's
        ``expression_error`` (standard deviations of the noise).
    """
    rows = []
    for intervention, named in errors.items():
        error, outside, factual = (_numpy(named[key]) for key in ("error", "error_outside", "error_factual"))
        known = ~np.isnan(outside)
        metrics = {
            "error": weighted_mean(error, weights),
            "error_outside": _ratio(weighted_mean(np.where(known, outside, 0), weights), weighted_mean(known, weights)),
            "faithfulness_ratio": _ratio(weighted_mean(error, weights), weighted_mean(factual, weights)),
        }
        rows += [(intervention, "image", "", metric, *interval(values)) for metric, values in metrics.items()]
    for intervention, by_variable in (expression_errors or {}).items():
        for variable, values in by_variable.items():
            rows.append(
                (intervention, variable, "judge", "expression_error", *interval(weighted_mean(values, weights)))
            )
    return pd.DataFrame(rows, columns=RESULT)


def probe_rows(probe: ExpressionProbe, embedding: Tensor, expression: Tensor, weights: np.ndarray) -> pd.DataFrame:
    """How well the probe reads real test images: the share of the variance of their expressions that it explains.

    Args:
        probe: The probe.
        embedding: Of the N real test images, shape (N, D).
        expression: Their true expressions, shape (N, E).
        weights: Of the bootstrap, shape (1 + R, N).

    Returns:
        For each variable the metric ``r2`` (1 at best; of a variable with several numbers that of their total
        variance), with the columns :data:`~softcft.evaluation.tables.RESULT`, the intervention ``none`` and the
        predictor ``judge``.
    """
    truth = _numpy(expression)
    residual = truth - probe.predict(embedding)
    rows = []
    for variable, column in probe.columns.items():
        squared = weighted_mean((residual[:, column] ** 2).sum(axis=1), weights)
        centred = truth[:, column] - truth[:, column].mean(axis=0)
        variance = weighted_mean((centred**2).sum(axis=1), weights)
        variance -= sum(weighted_mean(number, weights) ** 2 for number in centred.T)  # of each resample about its mean
        rows.append(("none", variable, "judge", "r2", *interval(1 - _ratio(squared, variance))))
    return pd.DataFrame(rows, columns=RESULT)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
