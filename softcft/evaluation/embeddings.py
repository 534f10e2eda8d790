"""Distribution shift of counterfactual images: where they lie in a judge's embedding space (the paper's section 4.3).

The judge's embeddings of real images have a few directions of large variance, their PCA modes, and each attribute of an
image shows in one of them. :func:`attribute_modes` finds which. An intervention should leave the images of a subgroup,
say White patients, where they were in the mode of every attribute that it cannot move; :func:`shift_rows` measures by
how much it does not. Where it moves the attribute, its images should lie where real images of the new value do.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from softcft.evaluation.bootstrap import numbered
from softcft.evaluation.permutation import Shift, distribution_shift
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
    """The PCA mode that encodes one variable.

    Attributes:
        component: Its row in the components of the PCA, from 0.
        sign: 1 or -1, the factor after which the variable's last category or larger values lie higher.
        eta_squared: The share of the mode's variance that the variable explains, in [0, 1].
    """

    component: int
    sign: int
    eta_squared: float


@dataclass(frozen=True)
class AttributeModes:
    """PCA of the embeddings of real images, and which of its modes encodes which variable.

    Attributes:
        pca: The fitted PCA. It whitens: the real images have mean 0 and variance 1 along each mode.
        modes: The mode of each variable, by name. Two variables may have the same one.
    """

    pca: PCA
    modes: Mapping[str, Mode]

    def project(self, embeddings: Tensor, name: str) -> NDArray[np.float64]:
        """Where images lie along the mode of one variable.

        Args:
            embeddings: Shape (N, D).
            name: The variable.

        Returns:
            Shape (N,), in standard deviations of the real images that the modes were fitted on.

        Raises:
            ValueError: If there is no mode for such a variable, or the embeddings are not (N, D), not finite, or differ
                in D from those of the modes.
        """
        if name not in self.modes:
            raise ValueError(f"There is no mode for a variable '{name}', only for {list(self.modes)}.")
        mode = self.modes[name]
        scores: NDArray[np.float64] = self.pca.transform(finite_embeddings(embeddings, "embeddings"))[:, mode.component]
        return mode.sign * scores


class Comparison(NamedTuple):
    """Real and counterfactual images of one subgroup along the mode of the variable that makes the subgroup.

    Attributes:
        intervention: The variable intervened on.
        subgroup: A key of :func:`subgroups`.
        real: Real images, shape (N,).
        real_subjects: Who they are of, whole numbers of shape (N,).
        counterfactual: Counterfactual images, shape (M,).
        counterfactual_subjects: Who they are of, whole numbers of shape (M,).
        paired: Whether the i-th of both are the same image before and after, which needs N = M.
    """

    intervention: str
    subgroup: str
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
        ValueError: If shapes are wrong, values are not finite, or all images have one embedding or one value of a
            variable.
    """
    array = finite_embeddings(embeddings, "embeddings")
    if parents.shape != (len(array), graph.width):
        raise ValueError(f"parents must have shape {(len(array), graph.width)}, got {tuple(parents.shape)}.")
    if len(array) < 2 or not array.std(axis=0).any():
        raise ValueError("embeddings must differ between images: give those of at least two different images.")
    # The default solver draws random numbers; this one is exact, and fast for many images.
    pca = PCA(min(array.shape[1], len(array) - 1, COMPONENTS), whiten=True, svd_solver="covariance_eigh").fit(array)
    # Of fewer directions than components the last are rounding, which the whitening made as large as the others.
    scores = pca.transform(array)[:, pca.explained_variance_ratio_ > 1e-12]
    columns = {variable: parents[:, graph.slices[variable.name]] for variable in graph.variables}
    return AttributeModes(pca, {v.name: _encoding_mode(scores, v, column) for v, column in columns.items()})


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
        parents: Encoded attributes of real images, shape (N, K), or of real images and their I counterfactuals, the
            real ones first, shape (N, 1 + I, K).

    Returns:
        Masks of shape (N,) or (N, 1 + I) by subgroup: the categories of a discrete variable, ``"White"``; the halves of
        a continuous one below and from the median of the real images, ``"age below 54 years"`` and ``"age from 54
        years"``.

    Raises:
        ValueError: If the graph has no such variable, the shape is wrong, or there are no images.
    """
    variable = graph[name]
    if parents.ndim not in (2, 3) or parents.shape[-1] != graph.width or not parents.numel():
        raise ValueError(
            f"parents must have shape (N, {graph.width}) or (N, 1 + I, {graph.width}) with N > 0, got "
            f"{tuple(parents.shape)}."
        )
    if variable.kind != "continuous":
        category = variable.category_index(parents[..., graph.slices[name]]).cpu().numpy()
        return {label: category == i for i, label in enumerate(variable.categories)}
    values = parents[..., graph.slices[name]].squeeze(-1).cpu().numpy()
    real = parents if parents.ndim == 2 else parents[:, 0]
    middle = int(real[:, graph.slices[name]].squeeze(1).argsort()[len(real) // 2])
    below = values < values.reshape(len(real), -1)[middle, 0]
    median = variable.in_words(variable.decode(real[middle, None, graph.slices[name]])[0])
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
    If it can, for it is the variable or a cause of it, the counterfactuals that it should have put into the subgroup
    are compared with the real images of the subgroup. Those are other images, which may differ in the variable's causes
    as well, and so in what they show.

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
        ValueError: If a shape is wrong, there is not one subject for each image or a subject is missing, embeddings are
            not finite, or there is no such variable or intervention.
    """
    size = 1 + len(interventions)
    for key, tensor, width in (("embeddings", embeddings, "D"), ("parents", parents, graph.width)):
        if tensor.ndim != 3 or tensor.shape[:2] != (len(embeddings), size):
            raise ValueError(
                f"{key} must have shape (N, {size}, {width}), for real images and {len(interventions)} interventions, "
                f"got {tuple(tensor.shape)}."
            )
    who = numbered(subjects)
    if len(who) != len(embeddings):
        raise ValueError(f"subjects must have an id for each of {len(embeddings)} images, got {len(who)}.")
    masks = subgroups(graph, name, parents)
    real, *counterfactuals = (modes.project(embeddings[:, i], name) for i in range(size))
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
    """Measure the shift of every subgroup under every intervention, see :func:`subgroup_comparisons`.

    Args:
        graph: The causal graph.
        modes: The modes of real images.
        embeddings: The judge's, of real images and their I counterfactuals, shape (N, 1 + I, D).
        parents: The encoded attributes that each image should show, shape (N, 1 + I, K).
        interventions: The I variables intervened on.
        subjects: Who each of the N real images is of; ``range(N)`` if each has a subject of its own.
        seed: Of the permutations, see :func:`~softcft.evaluation.permutation.distribution_shift`.

    Returns:
        Rows with the columns ``intervention``, ``variable`` (whose mode and subgroup it is), ``predictor`` (``judge``),
        ``metric`` (``ks[White]``, ``ks_p[White]``, ``energy[White]``, ``energy_p[White]``), ``value``, ``low`` and
        ``high`` (NaN). Before them, with the intervention ``none``, each variable's ``eta_squared``.

    Raises:
        ValueError: As :func:`subgroup_comparisons`.
    """
    rows = [("none", name, "eta_squared", mode.eta_squared) for name, mode in modes.modes.items()]
    for name in graph.names:
        for comparison in subgroup_comparisons(graph, modes, embeddings, parents, interventions, subjects, name):
            shift = comparison.shift(seed)
            rows += [
                (comparison.intervention, name, f"{metric}[{comparison.subgroup}]", value)
                for metric, value in shift._asdict().items()
            ]
    df = pd.DataFrame(rows, columns=["intervention", "variable", "metric", "value"])
    df.insert(2, "predictor", "judge")
    return df.assign(low=math.nan, high=math.nan)


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
