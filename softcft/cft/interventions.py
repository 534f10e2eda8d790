"""Which interventions a training batch gets."""

from __future__ import annotations

import torch
from torch import Tensor

from softcft.graph import CausalGraph, Intervention

__all__ = ["draw_interventions"]


def draw_interventions(graph: CausalGraph, parents: Tensor, generator: torch.Generator | None = None) -> Intervention:
    """Intervene on one random variable of each image, with the value of a random image of the batch.

    As in De Sousa Ribeiro et al. (2023) the values follow the data's own distribution; unlike there each image has
    its own variable, which lowers the variance of the gradient at no cost.

    Args:
        graph: The causal graph.
        parents: Encoded factual attributes, shape (B, K).
        generator: Makes the draw reproducible.

    Returns:
        One intervention per image.
    """
    batch_size = len(parents)
    device = "cpu" if generator is None else generator.device
    variable = torch.randint(len(graph), (batch_size,), generator=generator, device=device)
    donor = torch.randperm(batch_size, generator=generator, device=device)
    mask = torch.nn.functional.one_hot(variable, len(graph)).bool()
    return Intervention(values=parents[donor.to(parents.device)], mask=mask.to(parents.device))
