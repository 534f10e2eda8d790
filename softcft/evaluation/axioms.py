"""Axioms of counterfactual images: composition, reversibility and minimality.

*Composition*: a null intervention gives the same image. *Reversibility*: an intervention and its inverse give the same
image. Both are of Monteiro et al., "Measuring axiomatic soundness of counterfactual image models" (ICLR 2023), measured
as mean absolute differences of pixels in grey levels of 0 to 255 after one cycle and more. A backbone that keeps the
pixel residual, as :class:`~softcft.counterfactuals.hvae_backbone.HVAEBackbone` does, composes exactly by construction;
:func:`reconstruction` measures how much of the image its latents hold.

*Minimality*: an intervention changes no more than it must, by the counterfactual latent divergence of Sanchez and
Tsaftaris, "Diffusion causal models for counterfactual estimation" (CLeaR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.data.schema import GREY_LEVELS
from softcft.evaluation.bootstrap import interval
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph
from softcft.models.hvae import HVAEModel
from softcft.models.normals import normal_kl

__all__ = [
    "axiom_rows",
    "composition",
    "counterfactual_latent_divergence",
    "reconstruction",
    "reversibility",
    "value_groups",
]

Normal = tuple[Tensor, Tensor]

QUINTILES = (0.2, 0.4, 0.6, 0.8)
CHUNK = 512
"""Images compared with all others at once: 40 MB for 10,000 others."""


# ---- composition and reversibility -----------------------------------------------------------------------------------


def composition(
    backbone: CounterfactualBackbone, image: Tensor, parents: Tensor, cycles: int, generators: list[torch.Generator]
) -> Tensor:
    """How far images drift under repeated null interventions.

    Args:
        backbone: The image mechanism.
        image: Factual images in [-1, 1], shape (B, C, H, W). Each cycle is applied to the result of the one before,
            brought back into [-1, 1].
        parents: Their encoded parents, shape (B, K).
        cycles: How many null interventions, at least 1.
        generators: One per image, so that no image's noise depends on its batch. Each abduction draws from them, and
            leaves them where its last draw ended: the cycles have noise of their own.

    Returns:
        Mean absolute difference to the factual image in grey levels after 1 to ``cycles`` cycles, shape (B, cycles).
    """
    return _drift(image, cycles, lambda x: backbone.counterfactual(x, parents, parents, generators).image)


def reversibility(
    backbone: CounterfactualBackbone,
    image: Tensor,
    parents: Tensor,
    counterfactual_parents: Tensor,
    cycles: int,
    generators: list[torch.Generator],
) -> Tensor:
    """How far images drift under repeated interventions, each followed by its inverse; see :func:`composition`.

    A backbone that ignores its parents reverses all it does: read it beside effectiveness.
    """

    def there_and_back(x: Tensor) -> Tensor:
        there = backbone.counterfactual(x, parents, counterfactual_parents, generators).image.clamp(-1, 1)
        return backbone.counterfactual(there, counterfactual_parents, parents, generators).image

    return _drift(image, cycles, there_and_back)


def reconstruction(
    hvae: HVAEModel, image: Tensor, parents: Tensor, cycles: int, generators: list[torch.Generator]
) -> Tensor:
    """Composition without the pixel residual: each cycle replaces an image by the mean that its latents decode to."""
    return _drift(image, cycles, lambda x: hvae(x, parents, generator=generators).loc)


@torch.no_grad()
def _drift(image: Tensor, cycles: int, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean absolute difference to an image after each of some steps, (B, cycles)."""
    current, differences = image, []
    for _ in range(cycles):
        current = step(current).clamp(-1, 1)  # what can be shown, and what the next abduction may expect
        differences.append(GREY_LEVELS * (current - image).float().abs().flatten(1).mean(dim=1))
    return torch.stack(differences, dim=1)


# ---- minimality ------------------------------------------------------------------------------------------------------


def value_groups(graph: CausalGraph, name: str, parents: Tensor, reference_parents: Tensor) -> Tensor:
    """Which images count as having the same value of a variable.

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded attributes without missing values, factual or counterfactual, shape (N, K).
        reference_parents: Encoded attributes of the real images, shape (M, K), whose quintiles divide a continuous
            variable into five groups.

    Returns:
        Number of the category or of the fifth, int64 of shape (N,).
    """
    variable, columns = graph[name], graph.slices[name]
    values = parents[:, columns]
    if variable.kind != "continuous":
        return variable.category_index(values)
    reference = reference_parents[:, columns][:, 0]
    bounds = torch.quantile(reference, torch.tensor(QUINTILES, dtype=reference.dtype, device=reference.device))
    return torch.bucketize(values[:, 0].contiguous(), bounds)


@torch.no_grad()
def counterfactual_latent_divergence(
    factual: Normal,
    counterfactual: Normal,
    groups: Tensor,
    new_groups: Tensor,
    weights: tuple[float, float] = (0.8, 0.2),
) -> Tensor:
    r"""Counterfactual latent divergence (CLD): whether each counterfactual changes no more than it must.

    Distances are divergences of posteriors, :math:`d_i = KL(q(x^*_i) \| q(x_i))`. A counterfactual should be nearer to
    its factual image than real images with the counterfactual value, and farther away than real images with the factual
    value:

    .. math:: CLD_i = \log(w_1 e^{P(S_{cf} \le d_i)} + w_2 e^{P(S_f \ge d_i)}), \quad S = \{KL(q(x_j) \| q(x_i))\}

    Lower is better, 0 is the least and, for weights that add up to 1, 1 the most. An unchanged image scores
    :math:`\log(w_1 + w_2 e)`, 0.295 with the default weights, and good counterfactuals hardly less where the variable
    changes little of an image: read CLD beside effectiveness. Sanchez and Tsaftaris (CLeaR 2022) give the sum, Melistas
    et al. ("Benchmarking counterfactual image generation", 2024) its weights.

    Args:
        factual: Means and log standard deviations of the posteriors of N real images, each (N, D): see
            :func:`~softcft.models.vae.image_posterior`.
        counterfactual: Those of their counterfactuals, in the same order.
        groups: Group of each real image's own value of the intervened variable, int of shape (N,): see
            :func:`value_groups`.
        new_groups: Group of its counterfactual value, int of shape (N,).
        weights: :math:`w_1` and :math:`w_2`.

    Returns:
        Float32 of shape (N,), NaN where no other real image has the factual or none has the counterfactual value.
    """
    (loc, log_scale), (cf_loc, cf_log_scale) = (
        tuple(x.double() for x in normal) for normal in (factual, counterfactual)
    )
    divergence = normal_kl(cf_loc, cf_log_scale, loc, log_scale)[:, None]
    parts = []
    for rows in torch.arange(len(loc), device=loc.device).split(CHUNK):
        to_rows = _pairwise_kl(loc, log_scale, loc[rows], log_scale[rows])
        has_own, has_new = groups[rows, None] == groups, new_groups[rows, None] == groups
        itself = torch.arange(len(rows), device=loc.device), rows
        to_rows[itself] = 0
        # An image's distance to itself, 0, does not count.
        has_own[itself] = has_new[itself] = False
        nearer = (has_new & (to_rows <= divergence[rows])).sum(dim=1) / has_new.sum(dim=1)
        farther = (has_own & (to_rows >= divergence[rows])).sum(dim=1) / has_own.sum(dim=1)
        parts.append(torch.log(weights[0] * nearer.exp() + weights[1] * farther.exp()))
    return torch.cat(parts)


def _pairwise_kl(q_loc: Tensor, q_log_scale: Tensor, p_loc: Tensor, p_log_scale: Tensor) -> Tensor:
    """KL(q_j || p_i) in nats of N and M diagonal normals of D dimensions, in double precision: shape (M, N).

    The square is expanded, so that matrix products do the work and nothing has the shape (M, N, D).
    """
    precision = torch.exp(-2 * p_log_scale)
    squares = precision @ (torch.exp(2 * q_log_scale) + q_loc.square()).T
    squares += (precision * p_loc.square()).sum(dim=1, keepdim=True) - 2 * (precision * p_loc) @ q_loc.T
    log_ratio = p_log_scale.sum(dim=1, keepdim=True) - q_log_scale.sum(dim=1)
    return (log_ratio + 0.5 * (squares - q_loc.shape[1])).clamp_min(0)  # rounding may take equals a hair below


# ---- the table -------------------------------------------------------------------------------------------------------


def axiom_rows(measures: Mapping[str, Mapping[str, Tensor]], weights: np.ndarray) -> pd.DataFrame:
    """Means over images, with intervals.

    Args:
        measures: What was measured, by metric and intervention: for N images (N,), or (N, cycles). Composition and
            reconstruction have the intervention ``"none"``. Images with NaN are left out of their mean.
        weights: Bootstrap weights of shape (1 + R, N), see :func:`~softcft.evaluation.bootstrap.bootstrap_weights`.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`, with the variable ``image`` and no predictor. What was
        measured over cycles has one metric per cycle, ``composition_1`` and so on. Composition, reversibility and
        reconstruction are in grey levels of 0 to 255; the divergence ``cld`` has no unit.

    Example:
        >>> measures = {"composition": {"none": torch.rand(50, 10)}, "cld": {"sex": torch.rand(50)}}
        >>> len(axiom_rows(measures, bootstrap_weights(range(50), 100, seed=0)))
        11
    """
    rows = []
    for metric, by_intervention in measures.items():
        for intervention, tensor in by_intervention.items():
            names = [metric] if tensor.ndim == 1 else [f"{metric}_{i + 1}" for i in range(tensor.shape[1])]
            values = tensor.double().cpu().numpy().reshape(len(tensor), -1)
            known = ~np.isnan(values)
            totals, counts = weights @ np.where(known, values, 0), weights @ known.astype(np.float64)
            means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
            for name, column in zip(names, means.T, strict=True):
                rows.append((intervention, "image", "", name, *interval(column)))
    return pd.DataFrame(rows, columns=RESULT)
