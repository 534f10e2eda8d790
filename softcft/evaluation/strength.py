"""Strength of interventions: do the variables that they move look as clear as in real images with the same attributes?

:mod:`~softcft.evaluation.effectiveness` compares counterfactuals with the real images that they were made of. Of a
variable that the intervention moves this is unfair: under do(disease) the ill are those who were healthy, who are
younger, and harder to tell apart. Even of true counterfactuals the AUC changes.

Here each counterfactual is compared with a *lookalike*: a real image that has the same value of the variable and of its
Markov blanket (its causes, its effects and their other causes). The difference is the strength of the intervention, 0
if it is as strong as in reality. Variables that keep their value are compared too, if one moves in their blanket:
patients with an effusion look older than they are, and younger without it, in reality too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torch import Tensor

from softcft.evaluation.bootstrap import interval
from softcft.evaluation.effectiveness import BIASED
from softcft.evaluation.metrics import evidence, variable_metrics, weighted_mean
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph, Variable

__all__ = ["check_lookalikes", "distinct_lookalikes", "lookalikes", "strength_rows"]

CHUNK = 2**21  # distances at a time, 16 MB
EXCESSES = ("auc", "ece", "mae")  # of the metrics of a variable


def lookalikes(
    graph: CausalGraph,
    name: str,
    parents: Tensor,
    counterfactual_parents: Tensor,
    seed: int,
    compared: Collection[str] | None = None,
) -> NDArray[np.int64]:
    """Find for each counterfactual a real image with the same value of one variable and of its Markov blanket.

    The lookalike has the same category of a discrete variable. Among the real images that have it, it is the nearest by
    the squared distance of the blanket, and of the value of a continuous variable, in standard deviations. Among those
    equally near it is drawn at random. An image whose variable and blanket have not changed may be its own lookalike.

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded attributes of the real images, without missing values, shape (N, K).
        counterfactual_parents: Encoded attributes that the counterfactuals should show, shape (M, K).
        seed: Of the draws, at least 0.
        compared: Names of the variables that are compared in place of the blanket.

    Returns:
        For each counterfactual the row of its lookalike in ``parents``, shape (M,), in [0, N).

    Raises:
        ValueError: If attributes are not finite, or no real image has the category of a counterfactual.
    """
    variable = graph[name]
    if not (parents.isfinite().all() and counterfactual_parents.isfinite().all()):
        raise ValueError("parents and counterfactual_parents must be finite; leave out images that miss a value.")
    near = [other for other in (sorted(graph.blanket(name)) if compared is None else compared) if other != name]
    near += [name] if variable.kind == "continuous" else []
    columns = [column for other in near for column in range(graph.width)[graph.slices[other]]]
    real, wanted = (x.double().cpu().numpy() for x in (parents, counterfactual_parents))
    scale = _deviations(real)
    real, wanted = real / scale, wanted / scale
    category, wanted_category = (_categories(graph, name, x) for x in (parents, counterfactual_parents))
    draws = np.random.default_rng(seed).random(len(wanted))
    chosen = np.empty(len(wanted), dtype=np.int64)
    for value in np.unique(wanted_category):
        candidates, rows = np.flatnonzero(category == value), np.flatnonzero(wanted_category == value)
        if not len(candidates):
            raise ValueError(_nobody(variable, int(value), len(rows)))
        around = real[candidates][:, columns]
        size = max(1, CHUNK // len(candidates))
        for part in np.array_split(rows, range(size, len(rows), size)):
            chosen[part] = candidates[_nearest(wanted[part][:, columns], around, draws[part])]
    return chosen


def _categories(graph: CausalGraph, name: str, encoded: Tensor) -> NDArray[np.int64]:
    return graph[name].category_index(encoded[:, graph.slices[name]]).cpu().numpy()


def _deviations(real: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard deviation of each column, 1 where there is none."""
    spread = real.std(axis=0)
    return np.where(spread > 1e-6, spread, 1)


def distinct_lookalikes(
    graph: CausalGraph, name: str, parents: Tensor, counterfactual_parents: Tensor, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair counterfactuals with real images that have all their attributes, each image in one pair at most.

    The real image is the one of :func:`lookalikes` by all variables. It has the same category of every discrete one.
    Of several counterfactuals with one lookalike the nearest is kept, by the continuous variables, or one at random.
    The arguments are those of :func:`lookalikes`; ``name`` is the variable intervened on.

    Returns:
        Rows of counterfactuals and of their lookalikes, shapes (P,), P at most N and M; no row is there twice. P is 0
        if there is no pair.
    """
    categories = [
        tuple(_categories(graph, other, x) for x in (parents, counterfactual_parents)) for other in graph.names
    ]
    theirs, ours = categories[graph.names.index(name)]
    rows = np.flatnonzero(np.isin(ours, theirs))
    if not len(rows):
        return rows, rows
    alike = lookalikes(graph, name, parents, counterfactual_parents[rows], seed, graph.names)
    same = np.all([ours[rows] == theirs[alike] for theirs, ours in categories], axis=0)
    rows, alike = rows[same], alike[same]
    continuous = [graph.slices[variable.name].start for variable in graph.variables if variable.kind == "continuous"]
    real, wanted = (x.double().cpu().numpy() for x in (parents, counterfactual_parents))
    gaps = np.square((wanted[rows] - real[alike]) / _deviations(real))[:, continuous].sum(axis=1)
    order = np.lexsort((np.random.default_rng((seed, 1)).random(len(rows)), gaps))
    _, first = np.unique(alike[order], return_index=True)
    return rows[order[first]], alike[order[first]]


def check_lookalikes(
    graph: CausalGraph, parents: Tensor, counterfactual_parents: Tensor, interventions: Sequence[str]
) -> None:
    """Make sure, before any image is made, that each counterfactual will have a lookalike.

    Args:
        graph: The causal graph.
        parents: Encoded attributes of the real images, shape (N, K).
        counterfactual_parents: Those that their I counterfactuals should show, shape (N, I, K).
        interventions: The I variables, in the same order.

    Raises:
        ValueError: If no real image has the category of a variable that an intervention moves some image to.
    """
    for i, intervention in enumerate(interventions):
        for name in sorted(graph.affected_by(intervention)):
            real, wanted = (_categories(graph, name, x) for x in (parents, counterfactual_parents[:, i]))
            for value in np.setdiff1d(wanted, real):
                raise ValueError(_nobody(graph[name], int(value), int((wanted == value).sum())))


def strength_rows(
    graph: CausalGraph,
    labels: Tensor,
    logits: Mapping[str, Tensor],
    interventions: Sequence[str],
    weights: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Compare predictions on counterfactual images with those on their lookalikes, of the variables that were moved.

    The arguments are those of :func:`~softcft.evaluation.effectiveness.effectiveness_rows`, with the seed of
    :func:`lookalikes`.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`. The variables of an intervention are itself, its
        descendants, and those that have one of these in their Markov blanket. All metrics are those of the
        counterfactuals less those of their lookalikes: ``auc_excess`` and ``ece_excess`` in percentage points,
        ``mae_excess`` in the variable's unit, ``logit_excess`` of the mean log-odds of the category that the image
        should show, in nats. AUC and log-odds are positive where the intervention is too strong, the error where it is
        too weak. ``ks`` is the Kolmogorov-Smirnov distance between the distributions of
        :func:`~softcft.evaluation.metrics.evidence`, in [0, 1]; chance alone makes it positive. Intervals resample
        lookalikes with their own subjects.

    Raises:
        ValueError: If a metric is undefined, or as :func:`lookalikes`.
    """
    rows = []
    for i, intervention in enumerate(interventions, start=1):
        moved = graph.affected_by(intervention)
        near = moved.union(*map(graph.blanket, moved))
        for variable in (variable for variable in graph.variables if variable.name in near):
            columns = graph.slices[variable.name]
            alike = lookalikes(graph, variable.name, labels[:, 0], labels[:, i], seed)
            for predictor, predicted in logits.items():
                counterfactual = predicted[:, i, columns], labels[:, i, columns]
                lookalike = predicted[alike, 0, columns], labels[alike, 0, columns]
                excess = _excess(variable, counterfactual, lookalike, weights, weights[:, alike])
                rows += [
                    (intervention, variable.name, predictor, metric, *interval(values))
                    for metric, values in excess.items()
                ]
    return pd.DataFrame(rows, columns=RESULT)


def _nobody(variable: Variable, value: int, number: int) -> str:
    return (
        f"'{variable.name}': no real image has the category '{variable.categories[value]}' to compare {number} "
        "counterfactuals with. Evaluate on more images."
    )


def _nearest(
    wanted: NDArray[np.float64], candidates: NDArray[np.float64], draws: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For each row of wanted (M, D) the nearest of candidates (N, D); draws (M,) in [0, 1) choose among several."""
    distances = np.zeros((len(wanted), len(candidates)))
    for ours, theirs in zip(wanted.T, candidates.T, strict=True):  # column by column: (M, N, D) would be too large
        distances += np.square(ours[:, None] - theirs)
    ties = distances == distances.min(axis=1, keepdims=True)
    numbers = ties.sum(axis=1)
    _, nearest = np.nonzero(ties)  # those of the first row first
    return nearest[np.cumsum(numbers) - numbers + (draws * numbers).astype(np.int64)]


def _excess(
    variable: Variable,
    counterfactual: tuple[Tensor, Tensor],
    lookalike: tuple[Tensor, Tensor],
    weights: np.ndarray,
    lookalike_weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """The metrics by name, shape (1 + R,), or (1,) of those without interval; images are logits and labels."""
    ours = variable_metrics(variable, *counterfactual, weights)
    theirs = variable_metrics(variable, *lookalike, lookalike_weights)
    excess = {
        f"{metric}_excess": (ours[metric] - theirs[metric])[: 1 if metric in BIASED else None]
        for metric in EXCESSES
        if metric in ours
    }
    seen, expected = (evidence(variable, *images) for images in (counterfactual, lookalike))
    if variable.kind != "continuous":
        excess["logit_excess"] = weighted_mean(seen, weights) - weighted_mean(expected, lookalike_weights)
    return excess | {"ks": np.array([ks_2samp(seen, expected, method="asymp").statistic])}
