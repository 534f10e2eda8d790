"""How far the guide's view of a counterfactual image is from its targets, in nats for every kind of variable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.graph import CausalGraph

__all__ = ["guidance_losses"]


def guidance_losses(graph: CausalGraph, logits: Tensor, targets: Tensor, scales: Tensor) -> dict[str, Tensor]:
    r"""Negative log likelihood of the targets under the guide's prediction (paper, Algorithm 1, step 5).

    * binary: cross-entropy :math:`-t \log p - (1 - t) \log(1 - p)` with probability target t;
    * categorical: cross-entropy :math:`-\sum_k t_k \log p_k` with probability targets;
    * continuous: Gaussian :math:`(m - t)^2 / 2 s^2` with the guide's measured error s, constants left out.

    The entropy of soft targets is subtracted, so that 0 is reached exactly where prediction and target agree;
    gradients are those of the cross-entropy.

    Args:
        graph: The causal graph.
        logits: The guide's calibrated logits and means on counterfactual images, shape (B, K).
        targets: Encoded targets, shape (B, K).
        scales: Per column the guide's error (only continuous columns are read), shape (K,) or (B, K).

    Returns:
        For each variable the loss of each image in nats, at least 0, shape (B,).
    """
    losses = {}
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        logit, target = logits[:, columns], targets[:, columns]
        if variable.kind == "continuous":
            loss = 0.5 * ((logit - target) / scales[..., columns]).square()
        elif variable.kind == "binary":
            entropy = -torch.xlogy(target, target) - torch.xlogy(1 - target, 1 - target)
            loss = F.binary_cross_entropy_with_logits(logit, target, reduction="none") - entropy
        else:
            loss = torch.xlogy(target, target) - target * logit.log_softmax(dim=1)
        losses[variable.name] = loss.sum(dim=1)
    return losses
