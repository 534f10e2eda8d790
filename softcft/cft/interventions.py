"""Random interventions for a batch, none of them null: a null intervention gives back the image."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from softcft.graph import CausalGraph, Intervention
from softcft.noise import Generator, uniform

__all__ = ["Mechanisms", "draw_counterfactuals", "draw_interventions", "other_values"]


class Mechanisms(Protocol):
    """What fine-tuning knows of attribute mechanisms, an ``nn.Module``: the graph, draws, and counterfactuals."""

    @property
    def causal_graph(self) -> CausalGraph: ...  # noqa: D102

    def sample(self, n: int, *, generator: Generator = None) -> Tensor:
        """Draw encoded attributes, shape (n, K)."""
        ...

    def counterfactual(self, values: Tensor, intervention: Intervention, generator: Generator = None) -> Tensor:
        """Encoded attributes (B, K) to those under the interventions, shape (B, K)."""
        ...


def other_values(
    graph: CausalGraph, name: str, parents: Tensor, generator: Generator = None, others: Tensor | None = None
) -> Tensor:
    """A new value of one variable for each image, not its own.

    A discrete variable takes one of its other categories, all equally likely. A continuous one takes the value of
    another image, so that values keep their distribution.

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded factual attributes, shape (B, K).
        generator: Makes the draw reproducible; with ``others``, a list may have one for each image.
        others: For each image the encoded attributes of another one, shape (B, K). Left out, the values are permuted
            within the batch.

    Returns:
        Encoded values of the variable, shape (B, width).

    Raises:
        ValueError: If the graph has no such variable, or it is continuous and there is no other image.
    """
    variable, columns = graph[name], graph.slices[name]
    own = parents[:, columns]
    if variable.kind == "binary":
        return variable.other_category(own, 1)
    if variable.kind == "categorical":
        draw = uniform((len(own), 1), generator, own.device)[:, 0]
        shift = 1 + (draw * (variable.width - 1)).long().clamp_max(variable.width - 2)
        return variable.other_category(own, shift)
    if others is not None:
        return others[:, columns]
    if len(own) < 2:
        raise ValueError(
            f"An intervention on '{name}' takes the value of another image, but parents has {len(own)}: choose a "
            "batch size that leaves no image alone."
        )
    order = uniform((len(own), 1), generator, own.device)[:, 0].argsort()
    values = torch.empty_like(own)
    values[order] = own[order.roll(1)]
    return values


def draw_interventions(
    graph: CausalGraph, parents: Tensor, others: Tensor, generator: Generator = None
) -> Intervention:
    """Intervene on one random variable of each image, see :func:`other_values`.

    De Sousa Ribeiro et al. (2023) draw one variable per batch and permute its values, so many images keep the value
    that they had. Here each image has its own variable and a new value: no image is wasted, the gradient has less
    variance, and an image's intervention does not depend on the rest of its batch.

    Args:
        graph: The causal graph.
        parents: Encoded factual attributes, shape (B, K).
        others: For each image the encoded attributes of another one, shape (B, K): draws from the attributes'
            distribution.
        generator: Makes the draw reproducible; a list has one generator per image.

    Returns:
        One intervention per image.
    """
    values = torch.cat([other_values(graph, name, parents, generator, others) for name in graph.names], dim=1)
    draw = uniform((len(parents), 1), generator, parents.device)[:, 0]
    variable = (draw * len(graph)).long().clamp_max(len(graph) - 1)
    return Intervention(values, variable[:, None] == torch.arange(len(graph), device=parents.device))


@torch.no_grad()
def draw_counterfactuals(
    attribute_scm: Mechanisms, parents: Tensor, generator: Generator = None
) -> tuple[Intervention, Tensor]:
    """Draw an intervention on each image, and compute the attributes that follow from it.

    Args:
        attribute_scm: Trained attribute mechanisms.
        parents: Encoded factual attributes, shape (B, K).
        generator: As in :func:`draw_interventions`.

    Returns:
        The interventions, and encoded counterfactual attributes, shape (B, K).
    """
    others = attribute_scm.sample(len(parents), generator=generator).to(parents)
    intervention = draw_interventions(attribute_scm.causal_graph, parents, others, generator)
    return intervention, attribute_scm.counterfactual(parents, intervention, generator)
