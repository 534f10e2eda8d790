"""Counterfactuals of a hierarchical VAE."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softcft.counterfactuals.backbone import BackboneOutput
from softcft.models.hvae import HVAEModel

__all__ = ["HVAEBackbone"]


class HVAEBackbone(nn.Module):
    r"""Abduction and prediction with an HVAE: one encoder, one posterior and one counterfactual decoder pass.

    Abduction draws z from q(z | x, pa) and keeps the pixel residual :math:`u = (x - \mu(z, pa)) / \sigma(z, pa)`.
    Prediction decodes the same z under the counterfactual parents: :math:`x^* = \mu(z, pa^*) + \sigma(z, pa^*) u`.
    With pa* = pa that is x again, whatever the model has learned.

    Args:
        model: The image mechanism.
    """

    def __init__(self, model: HVAEModel) -> None:
        super().__init__()
        self.model = model

    def counterfactual(
        self,
        image: Tensor,
        parents: Tensor,
        counterfactual_parents: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> BackboneOutput:
        """See :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`; fidelity is the NELBO."""
        abducted = self.model(image, parents, generator=generator)
        residual = (image - abducted.loc) * torch.exp(-abducted.log_scale)
        loc, log_scale = self.model.decode(abducted.injections, counterfactual_parents)
        counterfactual = (loc + torch.exp(log_scale) * residual).clamp(-1, 1)
        return BackboneOutput(image=counterfactual, fidelity=abducted.nelbo.mean(), latents=abducted.latents)
