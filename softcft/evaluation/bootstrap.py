"""Confidence intervals by resampling subjects: one draw of weights that all metrics of a data set share.

A resample of the bootstrap draws as many subjects as there are, with replacement. The *weight* of an image is how often
it was drawn. Metrics with the same weights belong to the same resamples: their differences between models, variables or
images are paired, and have intervals of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

__all__ = ["bootstrap_weights", "halves", "interval", "numbered", "resampled_unit"]

MAX_UNDEFINED = 0.05
"""The share of resamples in which a metric may be undefined and still get an interval."""


def bootstrap_weights(subjects: Sequence[Hashable], num_resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each resample, if whole subjects are drawn.

    Images of one patient are alike: if they were drawn one by one, intervals would be too narrow.

    Args:
        subjects: For each of the N images the id of its subject; ``range(N)`` if each has a subject of its own.
        num_resamples: R, the number of resamples; with 0 there is only the point estimate.
        seed: Seed of the draw.

    Returns:
        Float32 of shape (1 + R, N). Row 0 is all ones (the point estimate), the others hold whole numbers.

    Raises:
        ValueError: If there are fewer than two subjects, an id is missing, or ``num_resamples`` is negative.
    """
    if num_resamples < 0:
        raise ValueError(f"num_resamples must be at least 0, got {num_resamples}; 1000 is usual, 0 is no interval.")
    codes = numbered(subjects)
    number = codes.max(initial=-1) + 1
    if number < 2:
        raise ValueError(f"subjects must hold at least 2 subjects to resample, got {number}; evaluate on more.")
    generator = np.random.default_rng(seed)
    weights = np.ones((1 + num_resamples, len(codes)), dtype=np.float32)
    for row in weights[1:]:
        drawn = generator.integers(number, size=number)
        row[:] = np.bincount(drawn, minlength=number)[codes]
    return weights


def numbered(subjects: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """The number of each of the N images' subject, from 0, whole numbers of shape (N,).

    Raises:
        ValueError: If an id is missing.
    """
    numbers, _ = pd.factorize(pd.Series(subjects, dtype=object))  # type: ignore[arg-type]  # the stubs know str only
    if (numbers < 0).any():
        raise ValueError(
            f"subjects has no id for {(numbers < 0).sum()} of {len(numbers)} images; give each image the id of its "
            "subject, one of its own if that is unknown."
        )
    return numbers


def resampled_unit(subjects: Sequence[Hashable]) -> Literal["subject", "image"]:
    """What a resample draws: ``"image"`` if each image has a subject of its own, as where no subject is known."""
    return "subject" if len(set(subjects)) < len(subjects) else "image"


def halves(subjects: Sequence[Hashable], seed: int) -> np.ndarray:
    """Divide images into two halves that have no subject in common, as nearly of one size as subjects allow.

    Args:
        subjects: For each of the N images the id of its subject.
        seed: Of the draw.

    Returns:
        Which images are in the first half, bool of shape (N,).
    """
    numbers = numbered(subjects)
    sizes = np.bincount(numbers)
    first, balance = np.zeros(len(sizes), dtype=bool), 0
    order = np.random.default_rng(seed).permutation(len(sizes))
    for subject in order[np.argsort(-sizes[order], kind="stable")]:  # the largest first: small ones even it out
        first[subject] = balance <= 0
        balance += sizes[subject] if first[subject] else -sizes[subject]
    return first[numbers]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Point estimate and 95 % percentile interval of the bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: One value for each row of :func:`bootstrap_weights`, shape (1 + R,), NaN where a metric is undefined.

    Returns:
        ``values[0]`` and the 2.5th and 97.5th percentiles of the defined ones of the rest; these are NaN if R is 0 or
        more than 5 % of the rest are undefined.
    """
    point, resampled = float(values[0]), values[1:]
    if not len(resampled) or np.isnan(resampled).mean() > MAX_UNDEFINED:
        return point, np.nan, np.nan
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return point, float(low), float(high)
