"""Counterfactuals of a conditional diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from softcft.arguments import check_choice, check_number, check_whole, plain, shown, takes_any_numbers
from softcft.counterfactuals import Solver, check_guidance
from softcft.counterfactuals.backbone import BackboneOutput
from softcft.counterfactuals.solvers import Interrupted, NoiseLevels, OnStep, invert, predict
from softcft.models import CONDITION_DROPOUT, MIN_SNR_GAMMA
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.networks import network_size
from softcft.models.patches import patch_size_of
from softcft.models.vae import decode_latents, encode_latents
from softcft.noise import Generator, uniform

__all__ = ["DiffusionBackbone"]

logger = logging.get_logger(__name__)


class DiffusionBackbone(nn.Module):
    r"""Abduction by deterministic inversion, prediction by denoising under the counterfactual parents.

    Both take the same levels of noise. Abduction is never guided. Prediction may be. With
    :math:`\epsilon_\emptyset`, the noise that the network predicts without any attributes, groups g of attributes,
    and a weight for each,

    .. math:: \hat\epsilon = \epsilon_\emptyset + \sum_g w_g (\epsilon(pa^*_g) - \epsilon_\emptyset).

    - A number is the weight of a single group, of all attributes: Ho and Salimans, "Classifier-free diffusion
      guidance" (2022). A weight of 1 is no guidance.
    - *Factored* guidance has a group of the attributes that the intervention changes, and one of the others: Xia et
      al., "Decoupled classifier-free guidance for counterfactual diffusion models" (2025).
    - A mapping has a group for each variable that it names, whether it changes or not. The others are a group of
      weight 1.

    Args:
        denoiser: The image mechanism.
        vae: Where given, the diffusion model is one of its latents: images are encoded to the mean of their posterior.
            Frozen here.
        num_inference_steps: Levels of noise, S; must divide the training steps of the scheduler, but for flow matching.
        strength: Share of these levels that abduction goes up, above 0 and at most 1, as in diffusers' image-to-image
            pipelines. At 1 it ends in pure noise. Below, counterfactuals keep more of the image: what the network
            would only decide in the most noise, such as the colour of the whole image, stays.
        abduction: The solver, see :mod:`softcft.counterfactuals.solvers`. With ``bdia``, without ``vae`` and guidance,
            a null intervention returns exactly the image, whatever type the network computes in. Other interventions
            have the error of that type, which is larger if the network predicts the noise.
        guidance_scale: The weight of all attributes, or, beside ``invariant_guidance_scale``, of those that change; or
            a mapping from variables to weights. Above 1 attributes are exaggerated, at 0 they are left out.
        invariant_guidance_scale: The weight of those that do not change; left out, guidance is not factored.
        gradient_steps: How many of the last steps of prediction, and of the same steps of abduction, have gradients;
            all if left out.
        condition_dropout: Of the fidelity, see :meth:`~softcft.models.denoiser.ConditionalDenoiser.loss`. Without it
            fine-tuning would forget what guidance needs.
        min_snr_gamma: Of the fidelity, see there.
        on_step: From the images (or latents) after each step, first of abduction, then of prediction, and their level,
            to those to go on with; may raise :class:`~softcft.counterfactuals.solvers.Interrupted`.

    Raises:
        ValueError: If there is no such ``abduction``, ``num_inference_steps`` or ``gradient_steps`` does not fit the
            scheduler, ``strength`` is out of range or leaves fewer than two levels, a guidance scale is no number from
            0 to 1000, a variable is unknown, or there is an ``invariant_guidance_scale`` beside weights of variables.
    """

    @takes_any_numbers
    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        vae: AutoencoderKL | None = None,
        num_inference_steps: int = 50,
        strength: float = 1.0,
        abduction: Solver = "bdia",
        guidance_scale: float | Mapping[str, float] = 1.0,
        invariant_guidance_scale: float | None = None,
        gradient_steps: int | None = None,
        condition_dropout: float = CONDITION_DROPOUT,
        min_snr_gamma: float | None = MIN_SNR_GAMMA,
        on_step: OnStep | None = None,
    ) -> None:
        super().__init__()
        check_choice("abduction", abduction, get_args(Solver))
        if isinstance(guidance_scale, Mapping):
            guidance_scale = plain(dict(guidance_scale))
        check_guidance(guidance_scale, invariant_guidance_scale)
        names = denoiser.parent_encoder.causal_graph.names
        if isinstance(guidance_scale, Mapping) and (unknown := [name for name in guidance_scale if name not in names]):
            raise ValueError(f"guidance_scale names {shown(unknown[0])}; the variables are {list(names)}.")
        check_number("strength", strength, above=0, most=1)
        levels = NoiseLevels.spaced(denoiser.schedule, num_inference_steps, strength)
        if gradient_steps is not None:
            check_whole("gradient_steps", gradient_steps)
            if gradient_steps > len(levels):
                raise ValueError(
                    f"gradient_steps must be from 1 to {len(levels)}, the steps of num_inference_steps "
                    f"{num_inference_steps} and strength {strength:g}, got {gradient_steps}."
                )
        self.denoiser = denoiser
        self.vae = None if vae is None else vae.requires_grad_(False)
        self.levels = levels
        self.strength = strength
        self.abduction = abduction
        self.guidance_scale = guidance_scale
        self.invariant_guidance_scale = invariant_guidance_scale
        self.gradient_steps = gradient_steps or len(levels)
        self.condition_dropout = condition_dropout
        self.min_snr_gamma = min_snr_gamma
        self.on_step = on_step

    def train(self, mode: bool = True) -> DiffusionBackbone:
        """Stays in evaluation mode: abduction and prediction need the same network, without dropout."""
        return super().train(False)

    def counterfactual(
        self,
        image: Tensor,
        parents: Tensor,
        counterfactual_parents: Tensor,
        generator: Generator = None,
    ) -> BackboneOutput:
        """See :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`.

        Fidelity is half the log of the denoising loss of the factual images, in nats: that of a normal likelihood with
        the best variance, on the scale of an HVAE's. ``generator`` is for its random times and noise; nothing else is
        random.
        """
        if torch.is_autocast_enabled(image.device.type):
            logger.warning_once(  # type: ignore[attr-defined]  # diffusers adds it
                "The network computes in half precision, whose rounding moves counterfactuals, also where nothing "
                "changes: by 2 grey levels in the example of docs/diffusion.md. Choose mixed_precision=no."
            )
        clean = self._encode(image)
        # Before the inversion: autocast caches its copies of the weights, and those made without gradients have none.
        # At evenly spread times, as it is a mean over the batch.
        one = generator[0] if isinstance(generator, list) else generator
        times = (uniform((1,), one, clean.device) + torch.arange(len(clean), device=clean.device) / len(clean)) % 1
        loss = self.denoiser.loss(clean, parents, self.condition_dropout, self.min_snr_gamma, generator, times)
        factual = partial(self._denoise, parents=parents)
        fidelity = 0.5 * loss.mean().log()
        try:
            latents, passed = invert(factual, clean, self.levels, self.abduction, self.gradient_steps, self.on_step)
        except Interrupted as stopped:
            return BackboneOutput(image=self._decode(stopped.images), fidelity=fidelity, latents=[stopped.images])
        if counterfactual_parents.ndim == 2:
            predicted = self._predict(latents, passed, parents, counterfactual_parents)
        else:
            each = counterfactual_parents.unbind(dim=1)
            predictions = [self._predict(latents, passed, parents, other) for other in each]
            predicted = torch.stack(predictions, dim=1)
            latents = [z[:, None].expand(-1, predicted.shape[1], -1, -1, -1) for z in latents]
        return BackboneOutput(image=predicted, fidelity=fidelity, latents=latents)

    def sample(self, parents: Tensor, generator: Generator = None) -> Tensor:
        """Images of encoded attributes (B, K), shape (B, C, H, W), by DDIM, all guided by ``guidance_scale``.

        Raises:
            ValueError: If ``strength`` is not 1: images are drawn from pure noise.
        """
        if self.strength != 1:
            raise ValueError(f"strength must be 1 to draw images, which begin with pure noise, got {self.strength:g}.")
        latents = (1, 3) if self.vae is None else (self.vae.config["latent_channels"],)
        channels, patch_size = patch_size_of(self.denoiser.channels, latents)
        size = patch_size * network_size(self.denoiser.network)
        shape = (len(parents), channels, size, size)
        noise = randn_tensor(shape, generator=generator, device=parents.device, dtype=torch.float32)
        variables = len(self.denoiser.parent_encoder.causal_graph)
        changed = torch.ones(len(noise), variables, dtype=torch.bool, device=noise.device)
        return self._follow([noise], None, parents, changed)

    def _predict(
        self, latents: list[Tensor], passed: list[Tensor], parents: Tensor, counterfactual_parents: Tensor
    ) -> Tensor:
        graph = self.denoiser.parent_encoder.causal_graph
        changed = graph.any_column(parents != counterfactual_parents)
        return self._follow(latents, passed, counterfactual_parents, changed)

    def _follow(self, latents: list[Tensor], passed: list[Tensor] | None, parents: Tensor, changed: Tensor) -> Tensor:
        guided = partial(self._denoise, parents=parents, changed=changed)
        try:
            image = predict(guided, latents, self.levels, self.gradient_steps, passed, self.on_step)
        except Interrupted as stopped:
            image = stopped.images
        return self._decode(image)

    def _denoise(
        self, noisy: Tensor, level: int, network_level: int, parents: Tensor, changed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image and noise in noisy images, guided if ``changed`` is given."""
        timestep = torch.full((len(noisy),), self.levels.timesteps[network_level - 1], device=noisy.device)
        prediction = self._predict_guided(noisy, timestep, parents, changed)
        return self.denoiser.schedule.split(noisy, prediction, self.levels.signal[level], self.levels.noise[level])

    def _predict_guided(self, noisy: Tensor, timestep: Tensor, parents: Tensor, changed: Tensor | None) -> Tensor:
        if changed is None or (self.guidance_scale in (1, {}) and self.invariant_guidance_scale is None):
            return self.denoiser(noisy, timestep, parents)
        groups = self._groups(changed)
        # One pass for all: none of the attributes, then each group. Velocity is linear in the noise, and guided alike.
        present = torch.cat([torch.zeros_like(changed), *(mask for _, mask in groups)])
        times = 1 + len(groups)
        none, *given = self.denoiser(
            noisy.repeat(times, 1, 1, 1), timestep.repeat(times), parents.repeat(times, 1), present
        ).chunk(times)
        guidance = [scale * (prediction - none) for (scale, _), prediction in zip(groups, given, strict=True)]
        return none + torch.stack(guidance).sum(dim=0)

    def _groups(self, changed: Tensor) -> list[tuple[float, Tensor]]:
        """Weights of groups of variables, with which these are, of each image, (B, V)."""
        scale = self.guidance_scale
        if not isinstance(scale, Mapping):
            if self.invariant_guidance_scale is None:
                return [(scale, torch.ones_like(changed))]
            return [(scale, changed), (self.invariant_guidance_scale, ~changed)]
        names = self.denoiser.parent_encoder.causal_graph.names
        sets = [(weight, [name]) for name, weight in scale.items()] + [(1.0, [n for n in names if n not in scale])]
        members = [(weight, [name in group for name in names]) for weight, group in sets if group]
        return [(weight, torch.tensor(member, device=changed.device).expand_as(changed)) for weight, member in members]

    @torch.no_grad()
    def _encode(self, image: Tensor) -> Tensor:
        return image.float() if self.vae is None else encode_latents(self.vae, image)

    def _decode(self, latent: Tensor) -> Tensor:
        return (latent.float() if self.vae is None else decode_latents(self.vae, latent)).clamp(-1, 1)
