"""Counterfactuals of a hierarchical VAE."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from softcft.arguments import check_choice
from softcft.counterfactuals.backbone import BackboneOutput
from softcft.models.hvae import HVAEModel, HVAEOutput
from softcft.noise import Generator

__all__ = ["Effect", "HVAEBackbone"]

Effect = Literal["direct", "indirect", "total"]


class HVAEBackbone(nn.Module):
    r"""Abduction and prediction with an HVAE: one encoder, one posterior and one counterfactual decoder pass.

    Abduction draws z from q(z | x, pa) and keeps the pixel residual :math:`u = (x - \mu(z, pa)) / \sigma(z, pa)`.
    Prediction decodes the same z under the counterfactual parents: :math:`x^* = \mu(z, pa^*) + \sigma(z, pa^*) u`.
    With pa* = pa this is exactly x. The means are clamped to [-1, 1] first: at black and white pixels the likelihood
    does not constrain how far beyond a mean lies.

    If the prior is conditional, the latents are a mediator between attributes and image, with a counterfactual z* of
    their own. De Sousa Ribeiro et al. (ICML 2023, section 3.2) draw it from a mixture of the factual posterior and the
    prior under pa*, with the abducted noise :math:`u_z = (z - \mu_q) / \sigma_q` of each latent:

    .. math:: z^* = a \mu_q + (1 - a) \mu_{p^*} + \sqrt{a^2 \sigma_q^2 + (1 - a)^2 \sigma_{p^*}^2}\, u_z, \quad a = 1/2

    =========  =======================  =====================================
    effect     decoded                  shows what the attributes do
    =========  =======================  =====================================
    direct     z under pa*              past the latents
    indirect   z* under pa              through the latents
    total      z* under pa*             in both ways
    =========  =======================  =====================================

    Of a null intervention only the direct effect is exactly zero: z* depends on the prior. With an exogenous prior
    there is no mediator, and the direct effect is the total one.

    Args:
        model: The image mechanism.
        effect: The path that the intervention takes.

    Raises:
        ValueError: If the effect is unknown, or is not direct and the model's prior is exogenous.
    """

    def __init__(self, model: HVAEModel, effect: Effect = "direct") -> None:
        super().__init__()
        check_choice("effect", effect, get_args(Effect))
        if effect != "direct" and not model.config["conditional_prior"]:
            raise ValueError(
                f"effect is {effect!r}, but this model has an exogenous prior and no latent mediator: its only effect "
                f"is 'direct'."
            )
        self.model = model
        self.effect = effect

    def counterfactual(
        self,
        image: Tensor,
        parents: Tensor,
        counterfactual_parents: Tensor,
        generator: Generator = None,
    ) -> BackboneOutput:
        """See :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`; fidelity is the NELBO."""
        abducted = self.model(image, parents, generator=generator)
        residual = (image - abducted.loc.clamp(-1, 1)) * torch.exp(-abducted.log_scale)
        fidelity = abducted.nelbo.mean()
        if counterfactual_parents.ndim == 2:
            counterfactual, latents = self._predict(abducted, residual, parents, counterfactual_parents, generator)
            return BackboneOutput(image=counterfactual, fidelity=fidelity, latents=latents)
        images, noise = zip(
            *(self._predict(abducted, residual, parents, p, generator) for p in counterfactual_parents.unbind(dim=1)),
            strict=True,
        )
        latents = [torch.stack(tensors, dim=1) for tensors in zip(*noise, strict=True)]
        return BackboneOutput(image=torch.stack(images, dim=1), fidelity=fidelity, latents=latents)

    def sample(self, parents: Tensor, generator: Generator = None) -> Tensor:
        """Images of encoded attributes (B, K), shape (B, C, H, W): the means of the pixels for latents of the prior."""
        loc, _ = self.model.decode(self.model.walk_prior(parents, generator=generator).injections, parents)
        return loc.clamp(-1, 1)

    def _predict(
        self,
        abducted: HVAEOutput,
        residual: Tensor,
        parents: Tensor,
        counterfactual_parents: Tensor,
        generator: Generator,
    ) -> tuple[Tensor, list[Tensor]]:
        """Images under counterfactual parents (B, K), and the latents that they are decoded from."""
        latents, injections = abducted.latents, abducted.injections
        if self.effect != "direct":
            latents = self._mediate(abducted, counterfactual_parents, generator)
        if self.effect == "indirect":
            counterfactual_parents = parents
        if self.model.config["conditional_prior"]:
            injections = self.model.walk_prior(counterfactual_parents, latents).injections
        loc, log_scale = self.model.decode(injections, counterfactual_parents)
        return (loc.clamp(-1, 1) + torch.exp(log_scale) * residual).clamp(-1, 1), latents

    def _mediate(self, abducted: HVAEOutput, counterfactual_parents: Tensor, generator: Generator) -> list[Tensor]:
        """Counterfactual latents, from one draw of the prior under pa*, as published."""
        priors = self.model.walk_prior(counterfactual_parents, generator=generator).priors
        latents = []
        for z, (q_loc, q_log_scale), (p_loc, p_log_scale) in zip(
            abducted.latents, abducted.posteriors, priors, strict=True
        ):
            noise = (z - q_loc) * torch.exp(-q_log_scale)
            scale = 0.5 * torch.sqrt(torch.exp(2 * q_log_scale) + torch.exp(2 * p_log_scale))
            latents.append(0.5 * (q_loc + p_loc) + scale * noise)
        return latents
