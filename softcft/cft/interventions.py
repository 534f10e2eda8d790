"""Which interventions a batch gets: always one that does something, for a null intervention gives back the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.graph import CausalGraph, Intervention

__all__ = ["draw_interventions", "other_values"]


def other_values(graph: CausalGraph, name: str, parents: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A new value of one variable for each image, not its own.

    A discrete variable takes one of its other categories, all equally likely. A continuous one takes the value of
    another image of the batch, so that values keep their distribution; each image gives its value away once.

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded factual attributes, shape (B, K).
        generator: Makes the draw reproducible.

    Returns:
        Encoded values of the variable, shape (B, width).

    Raises:
        ValueError: If the graph has no such variable, or it is continuous and there is no other image.
    """
    variable, own = graph[name], parents[:, graph.slices[name]]
    batch_size, device = len(parents), "cpu" if generator is None else generator.device
    if variable.kind == "binary":
        return 1 - own
    if variable.kind == "categorical":
        shift = torch.randint(1, variable.width, (batch_size,), generator=generator, device=device).to(own.device)
        return F.one_hot((own.argmax(dim=1) + shift) % variable.width, variable.width).to(own.dtype)
    if batch_size < 2:
        raise ValueError(
            f"An intervention on '{name}' takes the value of another image, but parents has {batch_size}: choose a "
            "batch size that leaves no image alone."
        )
    order = torch.randperm(batch_size, generator=generator, device=device).to(own.device)
    values = torch.empty_like(own)
    values[order] = own[order.roll(1)]
    return values


def draw_interventions(graph: CausalGraph, parents: Tensor, generator: torch.Generator | None = None) -> Intervention:
    """Intervene on one random variable of each image, see :func:`other_values`.

    De Sousa Ribeiro et al. (2023) draw one variable per batch and permute its values, which leaves many an image with
    the value that it had. Here each image has its own variable and a new value: no image is wasted, and the gradient
    has less variance.

    Args:
        graph: The causal graph.
        parents: Encoded factual attributes, shape (B, K).
        generator: Makes the draw reproducible.

    Returns:
        One intervention per image.

    Raises:
        ValueError: If there is a continuous variable and only one image.
    """
    values = torch.cat([other_values(graph, name, parents, generator) for name in graph.names], dim=1)
    device = "cpu" if generator is None else generator.device
    variable = torch.randint(len(graph), (len(parents),), generator=generator, device=device)
    return Intervention(values, F.one_hot(variable, len(graph)).bool().to(parents.device))
