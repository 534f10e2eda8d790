"""Matched targets: what the guide would say of a real image with the counterfactual attributes.

Soft targets ask for certainty in what is intervened on. Real images do not give it. The matched target of a variable
that moves is what real images with the new attributes look like to the guide (:mod:`softcft.cft.transport`).

Variables that keep their value have the guide's prediction on the factual image as target, like soft ones. Exempt are
their *neighbours*, those that have a variable that moves in their Markov blanket. A patient with an effusion looks
older than he is; made healthy he looks younger, though his age has not changed. To ask for his former looks would hold
back the effusion. So neighbours have matched targets, too.

An image model follows its targets only in part. So the mean strength (:mod:`softcft.cft.strength`) and the mean effect
(:mod:`softcft.cft.effect`) of the counterfactuals are held to those of real images as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softcft.cft.effect import EffectConstraint
from softcft.cft.guides import Guides, View
from softcft.cft.strength import StrengthConstraint
from softcft.cft.targets import moved_variables
from softcft.cft.transport import Reference, matched_targets
from softcft.graph import CausalGraph

__all__ = ["Matched", "expected_targets"]


def expected_targets(graph: CausalGraph, seen: View, reference: Reference, published: bool = False) -> Tensor:
    """Matched targets of variables that move and of their neighbours, the guide's prediction for the rest.

    Args:
        graph: The causal graph.
        seen: A batch of counterfactuals.
        reference: What the guides say of real images.
        published: See :func:`~softcft.cft.targets.moved_variables`.

    Returns:
        Encoded targets, shape (B, K): probabilities or means.
    """
    moved = moved_variables(graph, seen, published)
    around = [[moved[:, graph.names.index(name)] for name in sorted(graph.blanket(v) | {v})] for v in graph.names]
    matched = torch.stack([torch.stack(columns).any(dim=0) for columns in around], dim=1)
    targets = matched_targets(graph, seen.parents, seen.new_parents, seen.prediction, seen.guide, reference)
    return torch.where(graph.expand(matched), targets, seen.prediction)


class Matched(nn.Module):
    """Matched targets, with the constraints of mean strength and mean effect.

    Args:
        guides: The guides.
        published: See :func:`~softcft.cft.targets.moved_variables`.

    Attributes:
        strength: Holds the strength of discrete variables that are asked for.
        effect: Holds their average effects.
        reference_parents: Encoded attributes of N real images, shape (N, K); None before they are measured.
        reference_predictions: What each guide says of them, shape (G, N, K).
    """

    reference_parents: Tensor | None
    reference_predictions: Tensor | None

    def __init__(self, guides: Guides, published: bool = False) -> None:
        super().__init__()
        self.graph, self.published = guides.graph, published
        self.strength = StrengthConstraint(self.graph, names=guides.names)
        self.effect = EffectConstraint(self.graph, names=guides.names)
        self.register_buffer("reference_parents", None)
        self.register_buffer("reference_predictions", None)

    def forward(self, seen: View) -> Tensor:
        """Encoded targets, shape (B, K)."""
        return expected_targets(self.graph, seen, self.reference, self.published)

    def hold(self, seen: View, targets: Tensor, change: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Hold the mean strength and the mean effect of the counterfactuals.

        Args:
            seen: A batch of counterfactuals.
            targets: Their targets, shape (B, K).
            change: Counterfactual minus factual images, shape (B, C, H, W), in units of their range from -1 to 1.

        Returns:
            Targets (B, K) with the offsets of the strength; the penalty of the effect, a scalar; and metrics, among
            them what :meth:`after_step` needs.
        """
        moved = moved_variables(self.graph, seen, self.published)
        prediction = self.graph.probabilities(seen.logits.detach())
        short = self.strength.shortfall(targets, prediction, seen.new_parents, moved, seen.guide, self.reference)
        asked = dict(zip(self.graph.names, seen.asked.unbind(dim=1), strict=True))
        shortfalls = {name: (asked[name] * values).mean() for name, values in short.items()}
        penalty, effect = self.effect(change, seen.parents, seen.new_parents, seen.intervened)
        metrics = {f"shortfall/{name}": value for name, value in shortfalls.items()} | effect
        return self.strength(targets, seen.new_parents, moved), penalty, metrics

    def after_step(self, metrics: dict[str, Any]) -> None:
        """Update both constraints.

        Args:
            metrics: Those of :meth:`hold`, means over all images of the step.
        """
        self.strength.ascend({v.name: metrics[f"shortfall/{v.name}"] for v in self.strength.variables})
        self.effect.follow(metrics)

    @property
    def reference(self) -> Reference:
        """What the guides say of real images.

        Raises:
            ValueError: If it was not measured.
        """
        if self.reference_parents is None or self.reference_predictions is None:
            raise ValueError("Matched targets need a reference: what the guides say of real images. Measure it first.")
        return Reference(self.reference_parents, self.reference_predictions)
