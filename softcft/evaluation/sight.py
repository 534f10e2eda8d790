"""Measures what a classifier sees in images that it has not learned; :mod:`softcft.models.sight` has the margins."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from softcft.data.schema import FEWEST_SUBJECTS
from softcft.evaluation.bootstrap import bootstrap_weights, interval, numbered
from softcft.evaluation.metrics import log_odds, roc_auc, weighted_mean
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph, Variable
from softcft.models.sight import Sight, not_seen

__all__ = ["measure_sight", "sight_rows", "sight_warnings"]

NUMBERS = RESULT[4:]


def measure_sight(
    graph: CausalGraph,
    logits: Tensor,
    parents: Tensor,
    subjects: Sequence[Hashable],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Sight]:
    """How well a classifier sees each variable, with an interval of a bootstrap that draws whole subjects.

    Args:
        graph: The causal graph.
        logits: Its calibrated logits and means on images that it has not learned, shape (N, K).
        parents: Their encoded attributes, shape (N, K), NaN where a value is missing.
        subjects: Who each of the N images is of.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        By the variable's name. Of a categorical variable the mean over those categories that at least
        :data:`~softcft.data.schema.FEWEST_SUBJECTS` subjects have and as many have not. Where no category is such, or
        there are fewer than twice as many subjects, there is no interval.

    Raises:
        ValueError: If the id of a subject is missing, or not each of the images has one.
    """
    numbers = numbered(subjects)
    if len(numbers) != len(parents):
        raise ValueError(f"subjects must have one for each of the {len(parents)} images, got {len(numbers)}.")
    sight = {}
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        known = ~parents[:, columns].isnan().any(dim=1)
        whose = numbers[known.cpu().numpy()]
        is_enough = len(set(whose)) >= 2 * FEWEST_SUBJECTS
        weights = bootstrap_weights(whose, num_resamples, seed) if is_enough else np.ones((1, len(whose)))
        values = _values(variable, logits[known][:, columns], parents[known][:, columns], whose, weights)
        metric = "skill" if variable.kind == "continuous" else "auc"
        # Three numbers or none each: config.json has no NaN.
        sight[variable.name] = Sight(metric, *(None if np.isnan(x) else x for x in interval(values)))
    return sight


def _values(
    variable: Variable, logits: Tensor, labels: Tensor, subjects: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The metric in each resample, shape (1 + R,), NaN where it is undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if variable.kind == "continuous":
            predicted, values = (x[:, 0].double().cpu().numpy() for x in (logits, labels))
            mean, square = weighted_mean(np.stack([values, values**2], axis=1), weights).T
            variance = square - mean**2
            # Of values that are all alike nothing can be seen; what is left of their variance is rounding.
            variance[variance <= 1e-12] = np.nan
            return 1 - np.sqrt(weighted_mean((predicted - values) ** 2, weights) / variance)
        odds, truth = log_odds(variable, logits), labels.cpu().numpy()
        areas = [
            roc_auc(odds[:, k], truth[:, k], weights) / 100
            for k in range(variable.width)
            if min(len(set(subjects[truth[:, k] == value])) for value in (0, 1)) >= FEWEST_SUBJECTS
        ]
        if not areas:
            return np.full(len(weights), np.nan)
        # A rare category is not in every resample: the mean of those that are.
        there = ~np.isnan(areas)
        return np.where(there, areas, 0).sum(axis=0) / there.sum(axis=0)


def sight_rows(classifiers: Mapping[str, Mapping[str, Sight]]) -> pd.DataFrame:
    """What classifiers see, given the ``sight`` of each, guide or judge.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`. The metric is ``auc`` or ``skill``, from 0 to 1. What was
        not measured has no row.
    """
    rows = [
        ("none", name, predictor, entry.metric, entry.value, entry.low, entry.high)
        for predictor, sight in classifiers.items()
        for name, entry in sight.items()
    ]
    return pd.DataFrame(rows, columns=RESULT).astype(dict.fromkeys(NUMBERS, float))


def sight_warnings(rows: pd.DataFrame) -> list[str]:
    """A sentence for each variable that a guide or judge does not see, by :func:`sight_rows` and a column ``seed``."""
    warnings = []
    for (seed, predictor), group in rows.groupby(["seed", "predictor"], sort=False):
        sight = {
            row["variable"]: Sight(row["metric"], *(None if np.isnan(row[x]) else row[x] for x in NUMBERS))
            for row in group.to_dict("records")
        }
        whose = f"Seed {seed}: " if rows["seed"].nunique() > 1 else ""
        warnings += [whose + sentence for sentence in not_seen(sight, str(predictor)).values()]
    return warnings
