"""What a guide should see in a counterfactual image. This is all that hard and soft fine-tuning differ in.

====================  ==============================================  ==========================================
mode                  target of variables that move                   target of variables that keep their value
====================  ==============================================  ==========================================
:class:`Hard`         their counterfactual value, as a label          their own value, as a label
:class:`Soft`         their counterfactual value, as a label          the guide's prediction on the factual image
====================  ==============================================  ==========================================

A label asks for certainty. An image with a mild effusion, predicted at 0.65, is driven towards 1 although nobody
touched the disease: that is attribute amplification. The soft target asks for 0.65 again. For what *is* intervened on
both ask for certainty, which real images do not give; :mod:`softcft.cft.matched` does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softcft.cft.guides import View
from softcft.graph import CausalGraph

__all__ = ["Hard", "Soft", "moved_variables"]


@dataclass(frozen=True)
class Hard:
    """Counterfactual attributes as labels (the baseline of the paper)."""

    def __call__(self, seen: View) -> Tensor:
        """Encoded targets, shape (B, K)."""
        return seen.new_parents


@dataclass(frozen=True)
class Soft:
    """Labels for what moves, the guide's own prediction for the rest (Algorithm 1, line 4).

    Attributes:
        graph: The causal graph.
        published: See :func:`moved_variables`.
    """

    graph: CausalGraph
    published: bool = False

    def __call__(self, seen: View) -> Tensor:
        """Encoded targets, shape (B, K)."""
        moved = moved_variables(self.graph, seen, self.published)
        return torch.where(self.graph.expand(moved), seen.new_parents, seen.prediction)


def moved_variables(graph: CausalGraph, seen: View, published: bool = False) -> Tensor:
    """Which variables an intervention moves, bool of shape (B, V).

    As published these are the variables intervened on and all their descendants. But most descendants keep their value,
    and a label would amplify them just the same. So here a descendant moves only where its value changes.
    """
    reached = graph.affected(seen.intervened)
    return reached if published else reached & graph.changed(seen.parents, seen.new_parents)
