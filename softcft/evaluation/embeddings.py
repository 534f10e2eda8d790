"""Distribution shift of counterfactual images: where they lie in a judge's embedding space (the paper's section 4.3).

The judge's embeddings of real images have a few directions of large variance, their PCA modes, and each attribute of an
image shows in one of them. :func:`attribute_modes` finds which. An intervention should leave the images of a subgroup,
say White patients, where they were in the mode of every attribute that it cannot move; :func:`shift_rows` measures by
how much it does not. Where it moves the attribute, its images should lie where real images of the new value do.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from softcft.evaluation.bootstrap import numbered
from softcft.evaluation.permutation import Shift, distribution_shift
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph, Variable

__all__ = [
    "AttributeModes",
    "Comparison",
    "Mode",
    "attribute_modes",
    "finite_embeddings",
    "shift_rows",
    "subgroup_comparisons",
    "subgroups",
]

COMPONENTS = 16  # far more than there are attributes; of many more, one would fit any variable by chance
SMALLEST_SUBGROUP = 20


class Mode(NamedTuple):
    """The PCA mode that encodes one variable."""

    component: int  #: its row in the components of the PCA, from 0
    sign: int  #: 1 or -1, the factor after which the variable's last category or larger values lie higher
    eta_squared: float  #: the share of the mode's variance that the variable explains, in [0, 1]


class AttributeModes(NamedTuple):
    """PCA of the embeddings of real images, and which of its modes encodes which variable; two may have the same one.

    The PCA whitens: the real images have mean 0 and variance 1 along each mode.
    """

    pca: PCA
    modes: Mapping[str, Mode]

    def project(self, embeddings: Tensor, name: str) -> NDArray[np.float64]:
        """Where images (N, D) lie along the mode of one variable, (N,), in standard deviations of the fitted images.

        Raises:
            ValueError: If the embeddings are not (N, D), not finite, or differ in D from those of the modes.
        """
        mode = self.modes[name]
        scores: NDArray[np.float64] = self.pca.transform(finite_embeddings(embeddings, "embeddings"))[:, mode.component]
        return mode.sign * scores


class Comparison(NamedTuple):
    """Real (N,) and counterfactual images (M,) of one subgroup along the mode of the variable that makes the subgroup.

    Subjects are whole numbers. If ``paired``, the i-th of both are the same image before and after, and N = M.
    """

    intervention: str
    subgroup: str  #: a key of subgroups
    real: NDArray[np.float64]
    real_subjects: NDArray[np.int64]
    counterfactual: NDArray[np.float64]
    counterfactual_subjects: NDArray[np.int64]
    paired: bool

    def shift(self, seed: int) -> Shift:
        """How far apart they are, see :func:`~softcft.evaluation.permutation.distribution_shift`."""
        return distribution_shift(
            self.real,
            self.counterfactual,
            real_subjects=self.real_subjects,
            counterfactual_subjects=self.counterfactual_subjects,
            seed=seed,
        )


def attribute_modes(embeddings: Tensor, graph: CausalGraph, parents: Tensor) -> AttributeModes:
    """Fit PCA to the embeddings of real images and find for each variable the mode that encodes it.

    It is the mode of whose variance the variable explains the largest share: eta squared, the variance between
    categories over all variance, or the squared correlation with a continuous variable. Of a variable of more than two
    categories, one mode may not show them all.

    Give it other images than those that are compared: in modes that fit real images better than their counterfactuals,
    tests find a difference where there is none.

    Args:
        embeddings: Of real images, shape (N, D).
        graph: The causal graph.
        parents: Encoded attributes of the same images, shape (N, K).

    Returns:
        The fitted PCA of at most 16 modes, and the mode of each variable.

    Raises:
        ValueError: If embeddings are not (N, D) or not finite, or all images have one embedding or one value of a
            variable.
    """
    array = finite_embeddings(embeddings, "embeddings")
    if len(array) < 2 or not array.std(axis=0).any():
        raise ValueError("embeddings must differ between images: give those of at least two different images.")
    # The default solver draws random numbers; this one is exact, and fast for many images.
    pca = PCA(min(array.shape[1], len(array) - 1, COMPONENTS), whiten=True, svd_solver="covariance_eigh").fit(array)
    # Of fewer directions than components the last are rounding, which the whitening made as large as the others.
    scores = pca.transform(array)[:, pca.explained_variance_ratio_ > 1e-12]
    modes = {v.name: _encoding_mode(scores, v, parents[:, graph.slices[v.name]]) for v in graph.variables}
    return AttributeModes(pca, modes)


def _encoding_mode(scores: NDArray[np.float64], variable: Variable, encoded: Tensor) -> Mode:
    """The mode of one variable, given its columns (N, width) and the scores (N, C), which have mean 0."""
    column = encoded if variable.kind == "continuous" else variable.category_index(encoded)[:, None]
    values = column.double().cpu().numpy()
    if (values == values[0]).all():
        raise ValueError(f"'{variable.name}' has one value in all images, which no mode can encode: use more images.")
    if variable.kind == "continuous":
        centred = values[:, 0] - values.mean()
        trend = centred @ scores
        explained = np.square(trend) / np.square(centred).sum()
    else:
        members = values == np.unique(values)
        means = members.T @ scores / members.sum(axis=0)[:, None]
        explained = members.sum(axis=0) @ np.square(means)
        trend = means[-1]
    eta_squared = explained / np.square(scores).sum(axis=0)
    best = int(eta_squared.argmax())
    return Mode(best, -1 if trend[best] < 0 else 1, float(eta_squared[best]))


def subgroups(graph: CausalGraph, name: str, parents: Tensor) -> dict[str, NDArray[np.bool_]]:
    """Split images by the values of one variable.

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded attributes of real images and their I counterfactuals, the real ones first, (N, 1 + I, K).

    Returns:
        Masks of shape (N, 1 + I) by subgroup: the categories of a discrete variable, ``"White"``; the halves of
        a continuous one below and from the median of the real images, ``"age below 54 years"`` and ``"age from 54
        years"``.
    """
    variable, own = graph[name], parents[..., graph.slices[name]]
    if variable.kind != "continuous":
        category = variable.category_index(own).cpu().numpy()
        return {label: category == i for i, label in enumerate(variable.categories)}
    values = own.squeeze(-1).cpu().numpy()
    middle = int(own[:, 0, 0].argsort()[len(own) // 2])
    below = values < values[middle, 0]
    median = variable.in_words(variable.decode(own[middle, :1])[0])
    return {f"{name} below {median}": below, f"{name} from {median}": ~below}


def subgroup_comparisons(
    graph: CausalGraph,
    modes: AttributeModes,
    embeddings: Tensor,
    parents: Tensor,
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    name: str,
) -> list[Comparison]:
    """The real and counterfactual images to compare along the mode of one variable.

    If an intervention cannot move the variable, the images of a subgroup are compared with their own counterfactuals.
    If it can, because it is the variable or a cause of it, the counterfactuals that it should have put into the
    subgroup are compared with the real images of the subgroup. Those are other images, which may differ in the
    variable's causes as well, and so in what they show.

    Args:
        graph: The causal graph.
        modes: The modes of real images.
        embeddings: Of real images and their I counterfactuals, the real ones first, shape (N, 1 + I, D).
        parents: The encoded attributes that each image should show, shape (N, 1 + I, K).
        interventions: The I variables intervened on.
        subjects: Who each of the N real images is of; ``range(N)`` if each has a subject of its own.
        name: The variable.

    Returns:
        A comparison for each intervention and each subgroup with at least 20 images of both sorts.

    Raises:
        ValueError: If a subject is missing, or embeddings are not finite.
    """
    who, masks = numbered(subjects), subgroups(graph, name, parents)
    real, *counterfactuals = (modes.project(x, name) for x in embeddings.unbind(dim=1))
    comparisons = []
    for i, (intervention, scores) in enumerate(zip(interventions, counterfactuals, strict=True), start=1):
        paired = name not in graph.affected_by(intervention)
        for label, mask in masks.items():
            chosen = mask[:, 0] if paired else mask[:, i]
            if min(mask[:, 0].sum(), chosen.sum()) >= SMALLEST_SUBGROUP:
                samples = real[mask[:, 0]], who[mask[:, 0]], scores[chosen], who[chosen]
                comparisons.append(Comparison(intervention, label, *samples, paired))
    return comparisons


def shift_rows(
    graph: CausalGraph,
    modes: AttributeModes,
    embeddings: Tensor,
    parents: Tensor,
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    seed: int,
) -> pd.DataFrame:
    """Measure the shift of every subgroup under every intervention.

    The arguments are those of :func:`subgroup_comparisons`, with the seed of the permutations, see
    :func:`~softcft.evaluation.permutation.distribution_shift`.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`, where ``variable`` is whose mode and subgroup it is, and
        ``metric`` is ``ks[White]``, ``ks_p[White]``, ``energy[White]`` or ``energy_p[White]``; no intervals. Before
        them, with the intervention ``none``, each variable's ``eta_squared``.
    """
    none = math.nan, math.nan
    rows = [("none", name, "judge", "eta_squared", mode.eta_squared, *none) for name, mode in modes.modes.items()]
    for name in graph.names:
        for comparison in subgroup_comparisons(graph, modes, embeddings, parents, interventions, subjects, name):
            rows += [
                (comparison.intervention, name, "judge", f"{metric}[{comparison.subgroup}]", value, *none)
                for metric, value in comparison.shift(seed)._asdict().items()
            ]
    return pd.DataFrame(rows, columns=RESULT)


def finite_embeddings(embeddings: Tensor, name: str) -> NDArray[np.float64]:
    """Embeddings, (N, D), as float64 of NumPy.

    Raises:
        ValueError: If they are not (N, D) with N, D > 0, or not finite; the message calls them ``name``.
    """
    array = embeddings.detach().double().cpu().numpy()
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must have shape (N, D) with N, D > 0, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but has NaN or infinite values: check the model that made them.")
    return array
