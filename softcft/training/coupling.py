"""Which noise an image is mixed with while flow matching learns."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from softcft.graph import CausalGraph

__all__ = ["optimal_transport"]

BINS = 4
"""Of equal width, by which continuous values are near each other."""


@torch.no_grad()
def optimal_transport(image: Tensor, noise: Tensor, parents: Tensor, graph: CausalGraph) -> Tensor:
    """The same noise in another order, as near to the images as it can be, among images of equal or near parents.

    Straight paths from near noise cross less often (Tong et al., "Improving and generalizing flow-based generative
    models with minibatch optimal transport", TMLR 2024). Noise changes places among images with equal discrete
    attributes and continuous ones in the same bin only: across different ones it would come to depend on them, and
    abducted noise must not.

    Args:
        image: Shape (B, C, H, W).
        noise: Of the same shape.
        parents: Encoded attributes, shape (B, K).
        graph: What they are.
    """
    group = parents.clone()
    for variable in graph.variables:
        if variable.kind == "continuous":
            column = graph.slices[variable.name]
            group[:, column] = ((parents[:, column] + 1) / 2 * BINS).floor().clamp(0, BINS - 1)
    # Of the squared distance, what depends on the order.
    cost = -(image.flatten(1).double() @ noise.flatten(1).double().T)
    cost[(group[:, None] != group).any(dim=2)] = torch.inf
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.as_tensor(order, device=noise.device)]
