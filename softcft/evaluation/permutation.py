"""Permutation tests of two samples of images with several images of one subject.

``scipy.stats.permutation_test`` exchanges the labels of all subjects with each other, or of each subject by itself.
These tests exchange labels among subjects with the same numbers of images only, which it cannot do.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softcft.evaluation.bootstrap import numbered

__all__ = ["Shift", "distribution_shift"]

RESAMPLES = 999
CHUNK = 2**18  # resampled values at once: 2 MiB in float64 stay in the cache


class Shift(NamedTuple):
    """How far two samples lie apart, with p-values."""

    ks: float  #: Kolmogorov-Smirnov statistic, the largest difference between distribution functions, in [0, 1]
    ks_p: float
    energy: float  #: energy distance, the root of twice the integral of their squared difference
    energy_p: float


def distribution_shift(
    real: NDArray[np.float64],
    counterfactual: NDArray[np.float64],
    *,
    real_subjects: Sequence[Hashable] | NDArray[Any],
    counterfactual_subjects: Sequence[Hashable] | NDArray[Any],
    seed: int,
) -> Shift:
    """Compare two samples of one number by their distribution functions, with permutation tests.

    Under the null hypothesis the labels real and counterfactual of a subject's images may be exchanged, all together.
    A subject with as many real as counterfactual images is exchanged with probability 1/2; paired samples have only
    such subjects. A subject with n images of one kind and m of the other exchanges its labels only with subjects who
    also have n and m, because subjects with more images may differ in what their images show. A subject without such a
    partner keeps its labels, so few subjects with many different numbers of images give large p-values.

    Of 999 random exchanges, # are at least as far apart as the observed samples: ``p = (1 + #) / (1 + 999)`` (Phipson
    and Smyth 2010).

    Args:
        real: Shape (N,).
        counterfactual: Shape (M,).
        real_subjects: Who each real image is of, N ids; ``range(N)`` if each has a subject of its own.
        counterfactual_subjects: Who each counterfactual is of, M ids. A subject may be in both samples.
        seed: Two calls with the same seed and subjects try the same permutations.

    Returns:
        Statistics as of ``scipy.stats.ks_2samp`` and ``scipy.stats.energy_distance``, and p-values in (0, 1].

    Raises:
        ValueError: If a value is not finite, an id is missing, or there is not one for each image.
    """
    if (len(real_subjects), len(counterfactual_subjects)) != (len(real), len(counterfactual)):
        raise ValueError("real_subjects and counterfactual_subjects must have an id for each image.")
    if not (np.isfinite(real).all() and np.isfinite(counterfactual).all()):
        raise ValueError("real and counterfactual must be finite.")
    sizes = [len(real), len(counterfactual)]
    pooled = np.concatenate([real, counterfactual])
    subject = numbered([*real_subjects, *counterfactual_subjects])
    order = pooled.argsort()
    gaps = np.diff(pooled[order])
    # The difference between distribution functions is a sum of steps 1/N and -1/M. Times their denominator all of them
    # are whole numbers, so that ties between permutations are exact.
    denominator = math.lcm(*sizes)
    up, down = denominator / sizes[0], -denominator / sizes[1]
    steps, swapped_steps = np.repeat([up, down], sizes), np.repeat([down, up], sizes)

    def distances(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Both statistics, shape (R, 2), given the step at each pooled value, shape (R, N + M)."""
        difference = steps[:, order].cumsum(axis=1)[:, :-1]
        # Distribution functions are not read between equal values.
        ks = (np.abs(difference) * (gaps > 0)).max(axis=1)
        return np.stack([ks, np.sqrt(2 * np.square(difference) @ gaps)], axis=1) / denominator

    observed = distances(steps[None])[0]
    at_least_as_far = np.ones(2)
    generator = np.random.default_rng(seed)
    counts = np.stack([np.bincount(part, minlength=subject.max() + 1) for part in np.split(subject, sizes[:1])])
    exchanges = _exchanges(counts)
    rows = max(1, CHUNK // len(pooled))
    for start in range(0, RESAMPLES, rows):
        number = min(rows, RESAMPLES - start)
        swapped = generator.integers(2, size=(number, counts.shape[1]), dtype=np.int8).astype(bool)
        for members, side in exchanges:
            swapped[:, members] = generator.permuted(np.tile(side, (number, 1)), axis=1) != side
        relabelled = np.where(swapped[:, subject], swapped_steps, steps)
        # The tolerance is for rounding.
        at_least_as_far += (distances(relabelled) >= observed * (1 - 1e-9)).sum(axis=0)
    (ks, energy), (ks_p, energy_p) = observed.tolist(), (at_least_as_far / (1 + RESAMPLES)).tolist()
    return Shift(ks, ks_p, energy, energy_p)


def _exchanges(counts: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Groups of subjects that may exchange sides, given how many real and counterfactual images each has, (2, S).

    Returns:
        Of each group the subjects and whether each has more real images than counterfactual ones. Subjects who have as
        many of both are in none.
    """
    fewer, more = np.sort(counts, axis=0)
    kinds = {(few, many) for few, many in zip(fewer.tolist(), more.tolist(), strict=True) if few < many}
    groups = [np.flatnonzero((fewer == few) & (more == many)) for few, many in sorted(kinds)]
    return [(members, counts[0, members] > counts[1, members]) for members in groups]
