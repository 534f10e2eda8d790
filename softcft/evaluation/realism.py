"""Realism: how far counterfactual images are from real images *of the same attributes*, in a judge's embedding space.

The Fréchet distance of Heusel et al. (2017) compares two sets of images. The distance to all real images would be large
under do(disease) even for perfect images, for more of them are ill. And it is biased upwards, more so for few and for
varied images: for rare categories this hides everything else. Therefore

* subjects are divided into two halves, and four images with the same attributes make a *quartet*: a counterfactual and
  a real image of the first half, a counterfactual and a real image of the second. The attributes are those that a
  counterfactual should show: equal categories, continuous variables as near as there are images. No image is in two
  quartets, so a category weighs at most as much as it has images in each half;
* three distances are measured between the halves: counterfactual to real, real to real, and counterfactual to
  counterfactual. All sets have one size, and no two that are compared share a subject;
* the *excess* is the first less the mean of the other two, as in an energy distance. It is 0 on average for
  counterfactuals that cannot be told from real images of their attributes, whatever the number of images. To first
  order the bias cancels for others, too.

All are means over several divisions into halves. An excess may be a little below 0 by chance. Images that swap their
attributes with each other have no excess; effectiveness shows those.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from softcft.evaluation.bootstrap import halves, numbered
from softcft.evaluation.embeddings import finite_embeddings
from softcft.evaluation.strength import distinct_lookalikes
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph

__all__ = ["Quartets", "frechet_distance", "frechet_rows", "quartets"]

DIVISIONS = 8  # into halves, whose mean varies less by chance than one does
GROUPS = 20  # of subjects, each of which is left out once for the interval


class Quartets(NamedTuple):
    """Rows of images with the same attributes, shapes (Q,); no row is there twice in one of them."""

    counterfactual: NDArray[np.int64]  #: of the first half of the subjects
    real: NDArray[np.int64]  #: of the first half
    other_real: NDArray[np.int64]  #: of the second half
    other_counterfactual: NDArray[np.int64]  #: of the second half


class _Gaussian(NamedTuple):
    mean: NDArray[np.float64]  # (D,)
    root: NDArray[np.float64]  # R with R^T R the covariance, (min(N, D), D)


def quartets(
    graph: CausalGraph,
    name: str,
    parents: Tensor,
    counterfactual_parents: Tensor,
    first_half: NDArray[np.bool_],
    seed: int,
) -> Quartets:
    """Find counterfactual and real images of both halves of the subjects that should all show the same.

    The arguments are those of :func:`~softcft.evaluation.strength.lookalikes`, with whether an image, and so its
    counterfactual, is of the first half, shape (N,).
    """
    first, second = np.flatnonzero(first_half), np.flatnonzero(~first_half)
    chosen = [first]
    for rows, values in ((first, parents), (second, parents), (second, counterfactual_parents)):
        wanted = counterfactual_parents[chosen[0]]
        kept, alike = distinct_lookalikes(graph, name, values[rows], wanted, seed)
        chosen = [*(part[kept] for part in chosen), rows[alike]]
    return Quartets(*chosen)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of embeddings (Heusel et al. 2017, there the FID).

    ``|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))``, in float64. With ``cov = R^T R`` the trace of
    the root is the sum of the singular values of ``R_a R_b^T``, which is exact for singular covariances, too. The
    distance is biased upwards, more so for few images: compare sets of the same sizes.

    Args:
        a: Shape (N, D), N > 1.
        b: Shape (M, D), M > 1.

    Returns:
        The distance, at least 0, in squared units of the embeddings.

    Raises:
        ValueError: If a set is not (N, D), has fewer than two rows or is not finite, or the sets differ in D.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a and b must have at least two rows, for a covariance, got {len(a)} and {len(b)}.")
    return _distance(_gaussian(finite_embeddings(a, "a")), _gaussian(finite_embeddings(b, "b")))


def frechet_rows(
    graph: CausalGraph,
    labels: Tensor,
    embeddings: Tensor,
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    seed: int,
) -> pd.DataFrame:
    """Measure how far the counterfactuals of each intervention are from real images of the same attributes.

    Args:
        graph: The causal graph.
        labels: Encoded attributes that each image should show, the real ones first, shape (N, 1 + I, K).
        embeddings: The judge's, in the same order, shape (N, 1 + I, D).
        interventions: The I variables, in the same order.
        subjects: Who each of the N real images is of; ``range(N)`` if each has a subject of its own.
        seed: Of the halves and of the draws of :func:`quartets`, at least 0.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`, with the variable ``image`` and the predictor ``judge``.
        Metrics are means over 8 divisions into halves: ``frechet_excess``, ``frechet_to_real`` (counterfactual to real
        images) and ``frechet_real`` (real to real) in squared units of the embeddings, and ``frechet_images``, the
        number of quartets. The excess has a 95 % interval by the jackknife over 20 groups of subjects (a bootstrap
        repeats images, which would add to the bias). Where no division has two quartets there is only their number.

    Raises:
        ValueError: If a subject is missing, or embeddings or labels are not finite.
    """
    who = numbered(subjects)
    real, *counterfactuals = (finite_embeddings(x, "embeddings") for x in embeddings.unbind(dim=1))
    divisions = [halves(subjects, seed + i) for i in range(DIVISIONS)]
    number = int(who.max()) + 1
    groups = (np.random.default_rng(seed).permutation(number) % GROUPS)[who]
    rows = []
    for i, (name, counterfactual) in enumerate(zip(interventions, counterfactuals, strict=True), start=1):
        found = [quartets(graph, name, labels[:, 0], labels[:, i], half, seed + j) for j, half in enumerate(divisions)]
        measured = [("frechet_images", float(np.mean([len(some.real) for some in found])), np.nan, np.nan)]
        if found := [some for some in found if len(some.real) > 1]:
            value, to_real, real_to_real = _excess(found, real, counterfactual, np.ones(len(who), dtype=bool))
            without = [_excess(found, real, counterfactual, groups != group)[0] for group in np.unique(groups)]
            half_width = _jackknife(np.array(without))
            measured += [
                ("frechet_excess", value, value - half_width, value + half_width),
                ("frechet_to_real", to_real, np.nan, np.nan),
                ("frechet_real", real_to_real, np.nan, np.nan),
            ]
        rows += [(name, "image", "judge", *each) for each in measured]
    return pd.DataFrame(rows, columns=RESULT)


def _excess(
    found: Sequence[Quartets],
    real: NDArray[np.float64],
    counterfactual: NDArray[np.float64],
    kept: NDArray[np.bool_],
) -> tuple[float, float, float]:
    """Excess, counterfactual to real and real to real, of the images that are kept (N,); NaN of fewer than two."""
    distances = []
    for some in found:
        sets = [x[rows[kept[rows]]] for x, rows in zip((counterfactual, real, real, counterfactual), some, strict=True)]
        if min(map(len, sets)) < 2:
            return np.nan, np.nan, np.nan
        ours, theirs, other_theirs, other_ours = map(_gaussian, sets)
        to_real = (_distance(ours, other_theirs) + _distance(other_ours, theirs)) / 2
        distances.append((to_real, _distance(theirs, other_theirs), _distance(ours, other_ours)))
    to_real, real_to_real, ours_to_ours = (float(mean) for mean in np.mean(distances, axis=0))
    return to_real - (real_to_real + ours_to_ours) / 2, to_real, real_to_real


def _jackknife(without: NDArray[np.float64]) -> float:
    """Half the width of a 95 % interval, given the values without each of the groups; NaN if one is undefined."""
    number = len(without)
    error = np.sqrt((number - 1) / number * np.square(without - without.mean()).sum())
    return float(stats.t.ppf(0.975, number - 1) * error)


def _gaussian(x: NDArray[np.float64]) -> _Gaussian:
    """Mean and root of the covariance of a set (N, D), N > 1."""
    mean = x.mean(axis=0)
    return _Gaussian(mean, np.linalg.qr(x - mean).R / np.sqrt(len(x) - 1))


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    common = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * common
    return max(0.0, float(distance))  # equal sets may end a hair below
