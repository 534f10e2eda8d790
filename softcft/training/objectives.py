"""What each model is pretrained on: modules that turn a batch into a loss, run by :func:`softcft.training.loop.train`.

The objective of fine-tuning is in :mod:`softcft.cft.objective`.

Each loss is a mean over the images of its batch, and each image has noise of its own, which follows from the batch's
``seeds``. So a step does not depend on how its images are divided into processes and accumulated batches. What depends
on all images, such as the error of a classifier, is a buffer that follows the steps. Four things depend on the images
of one forward pass: batch normalisation, the error of the VAE, the coupling of noise by optimal transport, and the log
in the fidelity of a diffusion model.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from softcft.data.augmentation import random_change
from softcft.data.config import AugmentationConfig
from softcft.data.schema import scale_pixels
from softcft.models import CONDITION_DROPOUT, MIN_SNR_GAMMA
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier, attribute_losses
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.hvae import HVAEModel
from softcft.models.patches import fold_patches
from softcft.models.vae import encode_latents
from softcft.noise import noise_generators, spread_evenly
from softcft.training.config import Coupling
from softcft.training.coupling import optimal_transport

__all__ = [
    "ClassifierObjective",
    "DiffusionObjective",
    "HVAEObjective",
    "SCMObjective",
    "VAEObjective",
]

ROUNDING_ERROR = (2 / 255) ** 2 / 12
"""Mean squared error of pixels in [-1, 1] that were rounded to 8 bits."""

Batch = dict[str, Any]
"""See :class:`softcft.training.loop.Objective`."""


class SCMObjective(nn.Module):
    """Maximum likelihood of the attribute mechanisms, in nats per image.

    The terms of variables that are missing or have a missing parent are left out.
    """

    def __init__(self, scm: AttributeSCM) -> None:
        super().__init__()
        self.scm = scm.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``parents`` (B, K)."""
        return {"loss": -self.scm(batch["parents"]).mean()}


class ClassifierObjective(nn.Module):
    """Maximum likelihood of all attributes given the image, in nats per image, summed over variables.

    A continuous variable's likelihood is normal, and its variance the moving average of the squared error, which starts
    at that of a blind guess: no weight has to be chosen to balance years against classes. Missing attributes (NaN) are
    left out: of the likelihood, which is still a mean over all images, and of the squared error, which is not.

    Args:
        classifier: What is trained.
        augmentation: How its images are changed at random; not at all if left out.
    """

    squared_errors: Tensor

    def __init__(self, classifier: AttributeClassifier, augmentation: AugmentationConfig | None = None) -> None:
        super().__init__()
        self.classifier = classifier.train()
        self.augmentation = augmentation
        variables = classifier.causal_graph.variables
        self.continuous = [variable.name for variable in variables if variable.kind == "continuous"]
        self.register_buffer("squared_errors", torch.full((len(self.continuous),), 1 / 3))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        graph = self.classifier.causal_graph
        image, parents = scale_pixels(batch["image"]), batch["parents"]
        if self.augmentation is not None:
            image = random_change(self.augmentation, image.shape, noise_generators(batch), image.device)(image)
        logits = self.classifier(image).logits
        losses, known = {}, {}
        for name, loss in attribute_losses(graph, logits, parents.nan_to_num()).items():
            is_known = ~parents[:, graph.slices[name]].isnan().any(dim=1)
            losses[name], known[name] = (loss * is_known).mean(), is_known.float().mean()
        errors = {name: losses[name].detach() for name in self.continuous}
        for name, variance in zip(self.continuous, self.squared_errors.clamp_min(1e-6).unbind(), strict=True):
            losses[name] = 0.5 * (losses[name] / variance + known[name] * torch.log(variance))
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **{f"loss/{name}": loss for name, loss in losses.items()},
            **{f"squared_error/{name}": error for name, error in errors.items()},
            **{f"known/{name}": known[name] for name in self.continuous},
        }

    def after_step(self, metrics: dict[str, float]) -> None:
        """Follow the squared errors of the images whose value is known, in encoded units."""
        for i, name in enumerate(self.continuous):
            if metrics[f"known/{name}"] > 0:
                error = metrics[f"squared_error/{name}"] / metrics[f"known/{name}"]
                self.squared_errors[i].lerp_(torch.as_tensor(error).to(self.squared_errors), 0.1)


class HVAEObjective(nn.Module):
    """The negative evidence lower bound ``nll + beta * kl`` of images given their parents, in nats per dimension."""

    def __init__(self, hvae: HVAEModel) -> None:
        super().__init__()
        self.hvae = hvae.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        output = self.hvae(scale_pixels(batch["image"]), batch["parents"], noise_generators(batch))
        return {"loss": output.nelbo.mean(), "nll": output.nll.mean(), "kl": output.kl.mean()}


class DiffusionObjective(nn.Module):
    """The denoising loss of images given some of their attributes.

    See :meth:`~softcft.models.denoiser.ConditionalDenoiser.loss`.

    Args:
        denoiser: The diffusion model.
        vae: Where given, the model is one of its latents; not trained.
        condition_dropout: See there.
        min_snr_gamma: See there.
        coupling: Which noise an image is mixed with: any, or ``optimal_transport``, see
            :func:`~softcft.training.coupling.optimal_transport`.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        vae: AutoencoderKL | None = None,
        condition_dropout: float = CONDITION_DROPOUT,
        min_snr_gamma: float | None = MIN_SNR_GAMMA,
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.train()
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.condition_dropout = condition_dropout
        self.min_snr_gamma = min_snr_gamma
        self.coupling = coupling

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        image, parents = scale_pixels(batch["image"]), batch["parents"]
        if self.vae is not None:
            with torch.no_grad():
                image = encode_latents(self.vae, image)
        times = spread_evenly(batch["seeds"]) if "seeds" in batch else None
        generators = noise_generators(batch)
        graph = self.denoiser.parent_encoder.causal_graph
        couple = None if self.coupling == "independent" else partial(optimal_transport, parents=parents, graph=graph)
        losses = self.denoiser.loss(
            image, parents, self.condition_dropout, self.min_snr_gamma, generators, times, couple
        )
        loss = losses.mean()
        return {"loss": loss, "denoising": loss}


class VAEObjective(nn.Module):
    r"""The negative evidence lower bound of images, in nats per dimension: squared error plus KL, without attributes.

    Pixels are normal with one standard deviation for all, the one that fits the batch best (the optimal sigma of Rybkin
    et al., "Simple and effective VAE training with calibrated decoders", 2021): no weight has to be chosen to balance
    error and KL. With n pixels times channels, and the mean squared error e, to which that of 8-bit rounding is added,

    .. math:: loss = \tfrac{1}{2} (\log 2 \pi e + 1) + \tfrac{1}{n} KL(q(z | x) \| N(0, 1))
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1]; other entries are ignored."""
        patches = fold_patches(scale_pixels(batch["image"]), self.vae.config["in_channels"])
        moments = self.vae.encode(patches).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())  # whatever the compute type
        latents = posterior.sample(noise_generators(batch))  # type: ignore[arg-type]  # a list will do
        error = (self.vae.decode(latents).sample.float() - patches).square().mean()
        nll = 0.5 * (torch.log(2 * math.pi * (error + ROUNDING_ERROR)) + 1)
        kl = posterior.kl().mean() / patches[0].numel()
        return {"loss": nll + kl, "nll": nll, "kl": kl}
