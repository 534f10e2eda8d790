"""Counterfactual fine-tuning: Algorithm 1 of the paper. Everything it is made of lies beside this file."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.guides import Guides
from softcft.cft.interventions import Mechanisms, draw_counterfactuals
from softcft.cft.matched import Matched
from softcft.cft.targets import Hard, Soft
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.data.augmentation import random_change
from softcft.data.config import AugmentationConfig
from softcft.data.schema import GREY_LEVELS, scale_pixels
from softcft.noise import noise_generators

__all__ = ["CFTObjective"]


class CFTObjective(nn.Module):
    """Minimises the guidance loss of counterfactual images while the constraint holds the model's fidelity.

    Args:
        backbone: The image mechanism to fine-tune, an ``nn.Module``.
        attribute_scm: Trained attribute mechanisms, an ``nn.Module``; frozen here.
        guides: Trained and calibrated classifiers; frozen here.
        targets: What a guide should see: :class:`~softcft.cft.targets.Hard`, :class:`~softcft.cft.targets.Soft` or
            :class:`~softcft.cft.matched.Matched`.
        constraint: Holds the fidelity.
        minimality: Weight of the mean absolute change of the images, in nats per grey level of 255.
        augmentation: Random changes of factual and counterfactual images, the same for both, before guides see them.
            A pattern that does not survive a shift or noise is not an attribute.

    Raises:
        ValueError: If the backbone is not a module, or mechanisms and guides have different graphs.
    """

    def __init__(
        self,
        backbone: CounterfactualBackbone,
        attribute_scm: Mechanisms,
        guides: Guides,
        targets: Hard | Soft | Matched,
        constraint: LagrangianConstraint,
        minimality: float = 0.0,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise ValueError(f"The backbone must be an nn.Module to be trained, got {type(backbone).__name__}.")
        if attribute_scm.causal_graph != guides.graph:
            raise ValueError(
                f"Attribute mechanisms and guide have different graphs: {attribute_scm.causal_graph} against "
                f"{guides.graph}. Train both from one config."
            )
        self.backbone = backbone.train()
        self.attribute_scm = cast("Any", attribute_scm).eval().requires_grad_(False)
        self.guides = guides
        self.targets = targets
        self.constraint = constraint
        self.minimality = minimality
        self.augmentation = augmentation or AugmentationConfig()

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        image, parents = scale_pixels(batch["image"]), batch["parents"]
        generators = noise_generators(batch)

        intervention, new_parents = draw_counterfactuals(self.attribute_scm, parents, generators)
        output = self.backbone.counterfactual(image, parents, new_parents, generators)

        change_both = random_change(self.augmentation, image.shape, generators, image.device)
        views = change_both(image), change_both(output.image)
        seen = self.guides.look(*views, parents, new_parents, intervention.mask, generators)
        targets = self.targets(seen)
        metrics: dict[str, Tensor] = {}
        penalty = torch.zeros((), device=image.device)
        if isinstance(self.targets, Matched):  # which also holds all counterfactuals together
            targets, penalty, metrics = self.targets.hold(seen, targets, output.image - image)
        losses = self.guides.mean_losses(seen, targets)

        guidance = torch.stack(list(losses.values())).sum()
        change = GREY_LEVELS * (output.image - image).abs().mean()
        loss = guidance + self.constraint(output.fidelity) + self.minimality * change + penalty
        metrics |= {"fidelity": output.fidelity, "multiplier": self.constraint.multiplier.clone(), "change": change}
        return {"loss": loss, "guidance": guidance, **metrics, **{f"guidance/{name}": x for name, x in losses.items()}}

    def after_step(self, metrics: dict[str, Any]) -> None:
        """Gradient ascent of the Lagrange multiplier, and what matched targets follow."""
        self.constraint.ascend(metrics["fidelity"])
        if isinstance(self.targets, Matched):
            self.targets.after_step(metrics)
