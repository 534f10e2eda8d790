"""A conditional diffusion model of images given their attributes, from the parts that diffusers saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from softcft.graph import CausalGraph
from softcft.models.networks import (
    adopt_network,
    conditions_of,
    family_of,
    image_tokens,
    network_channels,
    new_network,
)
from softcft.models.noise_schedule import NoiseSchedule, Prediction, Scheduler, new_scheduler
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.patches import fold_patches, unfold_patches
from softcft.models.prompt import PromptEmbedding
from softcft.noise import Generator, uniform

__all__ = ["ConditionalDenoiser", "new_denoiser"]


class ConditionalDenoiser(nn.Module):
    """Predicts the noise in noisy images, given their attributes; see :mod:`softcft.models.noise_schedule`.

    A network that takes more channels than the images have sees patches of pixels, see :mod:`softcft.models.patches`.

    Args:
        network: A network of diffusers of a family that takes tokens of attributes, see
            :mod:`softcft.models.networks`.
        parent_encoder: Makes the tokens.
        scheduler: Holds the noise schedule and what the network predicts; nothing else of it is used.
        prompt: What a network that reads text is told besides; may be None.

    Raises:
        ValueError: If the network takes no such tokens, or tokens of another size; or the scheduler is not for
            :class:`~softcft.models.noise_schedule.NoiseSchedule`.
    """

    def __init__(
        self,
        network: ModelMixin,
        parent_encoder: ParentEncoder,
        scheduler: Scheduler,
        prompt: PromptEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.channels = network_channels(network)
        size, taken = parent_encoder.config["embedding_dim"], conditions_of(network, prompt).token_size
        if size != taken:
            raise ValueError(f"parent_encoder makes tokens of size {size}, but the network takes such of size {taken}.")
        self.schedule = NoiseSchedule(scheduler, image_tokens(network))
        self.network = network
        self.parent_encoder = parent_encoder
        self.scheduler = scheduler
        self.prompt = prompt
        self._predict = family_of(network).predict

    def forward(self, noisy: Tensor, timestep: Tensor, parents: Tensor, present: Tensor | None = None) -> Tensor:
        """The network's prediction, of the schedule's kind, in float32 and of the shape of the images.

        Args:
            noisy: Noisy images, shape (B, C, H, W).
            timestep: What the schedule tells the network of the noise in each image, shape (B,).
            parents: Encoded attributes, shape (B, K).
            present: Which variables to condition on, boolean, shape (B, V); all if left out.
        """
        tokens = self.parent_encoder(parents.to(self.parent_encoder.dtype), present).to(self.network.dtype)
        patches = fold_patches(noisy, self.channels).to(self.network.dtype)
        prediction = self._predict(self.network, patches, timestep, tokens, self.prompt)
        return unfold_patches(prediction[:, : self.channels].float(), noisy.shape[1])  # without a variance

    def loss(
        self,
        image: Tensor,
        parents: Tensor,
        condition_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        generator: Generator = None,
        time: Tensor | None = None,
        couple: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        r"""Mean squared error of the prediction for images at random times, given some of their attributes, shape (B,).

        Args:
            image: Clean images (or their latents), shape (B, C, H, W).
            parents: Encoded attributes, shape (B, K).
            condition_dropout: The share of the images that lose attributes, in [0, 1]. Guidance needs images given all
                attributes, a group of them, or none: of the images that lose any, equally many lose 1, 2, ... or all,
                drawn at random.
            min_snr_gamma: Weighs the error of the *image* at each time by its signal-to-noise ratio, at most this: Hang
                et al., "Efficient diffusion training via min-SNR weighting" (ICCV 2023), who recommend 5. Left out, and
                for flow matching, whose times are chosen already: the plain error of the prediction.
            generator: Makes times, dropout and noise reproducible; a list has one generator per image.
            time: Quantile of each image's time, in [0, 1), shape (B,): 0 is no noise, 1 pure noise. Left out, they are
                drawn: spread evenly by one generator, independent by a list of them.
            couple: From images and their noise to the same noise in another order. Left out, it is independent of them.

        Returns:
            One error per image; their mean over random times is what training minimises.
        """
        variables = len(self.parent_encoder.causal_graph)
        drawn, loses, number, order = uniform((len(image), 3 + variables), generator, image.device).split(
            [1, 1, 1, variables], dim=1
        )
        if time is None and isinstance(generator, list):
            time = drawn[:, 0]
        elif time is None:
            # Evenly spread from one random start: each is still uniform, but their mean loss varies less.
            # Kingma et al., "Variational diffusion models" (NeurIPS 2021), appendix I.1.
            time = (drawn[0] + torch.arange(len(image), device=image.device) / len(image)) % 1
        timestep, signal, noise = self.schedule.at(time.to(image.device))
        lost = torch.where(loses < condition_dropout, 1 + (number * variables).long().clamp_max(variables - 1), 0)
        present = order.argsort(dim=1).argsort(dim=1) >= lost
        epsilon = randn_tensor(image.shape, generator=generator, device=image.device, dtype=torch.float32)
        if couple is not None:
            epsilon = couple(image, epsilon)
        prediction = self(signal * image + noise * epsilon, timestep, parents, present)
        target = self.schedule.target(image, epsilon, signal, noise)
        error = (prediction - target).square().flatten(1).mean(dim=1)
        return self.schedule.weighted(error, signal, noise, min_snr_gamma)


def new_denoiser(
    graph: CausalGraph,
    network: str,
    prediction_type: Prediction,
    channels: int,
    size: int,
    patch_size: int,
    model: Mapping[str, Any],
) -> ConditionalDenoiser:
    """An untrained model.

    Args:
        graph: The attributes.
        network: Class of the network, by its name.
        prediction_type: What it predicts.
        channels: Of images, or of latents.
        size: Their side.
        patch_size: Side of the patches that the network sees as channels.
        model: Arguments of the network.

    Raises:
        ValueError: If patches do not fill the image, or the network cannot be made or conditioned.
    """
    if size % patch_size:
        raise ValueError(f"patch_size {patch_size} must divide the images' side, {size}.")
    made = new_network(network, channels * patch_size**2, size // patch_size, **model)
    return ConditionalDenoiser(*adopt_network(made, graph), new_scheduler(prediction_type))
