"""A conditional hierarchical VAE as an image mechanism: the architecture of De Sousa Ribeiro et al. (ICML 2023).

The encoder is a residual network whose activations at every resolution feed the posterior. The decoder climbs from
1x1 to full resolution through blocks that each hold a *prior*, a *posterior* and a *residual* part::

    p_loc, p_log_scale, features = prior(state)             # exogenous: state is a function of the latents above only
    q_loc, q_log_scale           = posterior(h, parents, encoder activation)
    z      ~ N(q_loc, q_scale)  (abduction)   or   N(p_loc, p_scale)  (sampling)
    h      = conv(h + features + z_proj(z, parents))
    state  = z_feat_proj(z, features)

A block above ``z_max_resolution`` is deterministic: no posterior, and z is p_loc. Features are written as published;
:meth:`~softcft.models.hvae_blocks.DecoderBlock.inject` avoids computing them where it can.

An exogenous prior does not see the parents, so that ``features + z_proj(z)`` of every block, here called *injections*,
are the same in the factual posterior pass and in the counterfactual decode; only ``h`` is computed again. A
*conditional* prior sees the parents: latents are then a mediator between attributes and image, and other parents have
other injections (:meth:`HVAEModel.walk_prior`).

Likelihood and KL are in float32 whatever the compute type. Reference: "High Fidelity Image Counterfactuals with
Probabilistic Causal Models", section 3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from softcft.arguments import takes_any_numbers
from softcft.graph import CausalGraph
from softcft.models.hvae_arguments import check_hvae_arguments
from softcft.models.hvae_blocks import MAX_LOG_SCALE, MIN_LOG_SCALE, DecoderBlock, ResidualBlock, convolve_shared
from softcft.models.likelihoods import discretised_gaussian_log_prob
from softcft.models.normals import normal_kl
from softcft.models.patches import overlap_patches
from softcft.models.weights import SafetensorsOnly
from softcft.noise import Generator, draw_normal

__all__ = ["HVAEModel", "HVAEOutput", "HVAEPriorOutput"]


@dataclass
class HVAEOutput(BaseOutput):
    """The result of one encoder and one posterior pass.

    Attributes:
        nelbo: Negative evidence lower bound ``nll + beta * kl`` in nats per dimension, shape (B,); lower is better.
        nll: Negative log likelihood in nats per dimension, shape (B,).
        kl: Kullback-Leibler divergence of posterior and prior in nats per dimension, shape (B,).
        loc: Mean of the pixels given latents and parents, shape (B, C, H, W).
        log_scale: Log standard deviation of the pixels, shape (B, C, H, W).
        latents: One latent (B, z_dim, r, r) per stochastic block, from 1x1 up.
        posteriors: Mean and log standard deviation of each latent, two tensors of its shape.
        injections: For every block what the latents add to the decoder's state, (B, channels, r, r), from 1x1 up.
    """

    nelbo: Tensor
    # All are set. accelerate needs the defaults, to make it from a dict under mixed precision and offloading.
    nll: Tensor = None  # type: ignore[assignment]
    kl: Tensor = None  # type: ignore[assignment]
    loc: Tensor = None  # type: ignore[assignment]
    log_scale: Tensor = None  # type: ignore[assignment]
    latents: list[Tensor] = None  # type: ignore[assignment]
    posteriors: list[tuple[Tensor, Tensor]] = None  # type: ignore[assignment]
    injections: list[Tensor] = None  # type: ignore[assignment]


@dataclass
class HVAEPriorOutput(BaseOutput):
    """One pass through the prior.

    Attributes:
        latents: One latent (B, z_dim, r, r) per stochastic block, from 1x1 up: drawn, or those that were given.
        priors: Mean and log standard deviation of each given the latents above it, two tensors of its shape.
        injections: For every block what the latents add to the decoder's state, (B, channels, r, r), from 1x1 up.
    """

    latents: list[Tensor]
    priors: list[tuple[Tensor, Tensor]] = None  # type: ignore[assignment]  # as above
    injections: list[Tensor] = None  # type: ignore[assignment]


class HVAEModel(SafetensorsOnly, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers declares config_name twice
    """Conditional hierarchical VAE with a discretised Gaussian likelihood.

    Args:
        graph: The causal graph as plain data (:meth:`~softcft.graph.CausalGraph.to_list`).
        sample_size: Image height and width in pixels.
        in_channels: Image channels; each has its own mean and scale.
        patch_size: Works on ``patch_size`` x ``patch_size`` patches folded into channels; 1 is the published model.
        resolutions: Sides of the feature maps, from ``sample_size / patch_size`` down to 1.
        channels: Width of each resolution.
        encoder_blocks: Residual blocks per resolution; one more block at each but the last changes width and pools.
        decoder_blocks: Decoder blocks per resolution.
        z_dim: Channels of each latent.
        z_max_resolution: Blocks above this resolution are deterministic.
        bias_max_resolution: Resolutions up to this one have a learned spatial bias.
        block_type: ``"bottleneck"`` (GELU, four convolutions) or ``"light"`` (ReLU, two).
        conditional_prior: Whether the prior sees the parents, which makes the latents a mediator.
        smooth: Whether patches of the image overlap, each fading into the next, and small maps are interpolated
            linearly. False is the published model, in whose counterfactuals edges of patches and cells show.
        parents_scale: Factor for each column of the encoded parents, for converted weights that learned another
            encoding. None is 1.
        parents_shift: Added to each column after that. None is 0.
        beta: Weight of the KL in the NELBO; 1 is the evidence lower bound, more makes the model obey its parents more.

    Raises:
        ValueError: If the graph is invalid, lists differ in length, sizes do not divide, or a value is out of range.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock", "ResidualBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @takes_any_numbers
    @register_to_config
    def __init__(
        self,
        graph: list[dict[str, Any]],
        sample_size: int = 64,
        in_channels: int = 1,
        patch_size: int = 1,
        resolutions: list[int] = [64, 32, 16, 8, 4, 1],  # noqa: B006  (config values must be plain lists)
        channels: list[int] = [16, 32, 64, 96, 128, 256],  # noqa: B006
        encoder_blocks: list[int] = [2, 2, 2, 2, 2, 2],  # noqa: B006
        decoder_blocks: list[int] = [2, 2, 2, 2, 2, 2],  # noqa: B006
        z_dim: int = 16,
        z_max_resolution: int = 64,
        bias_max_resolution: int = 64,
        block_type: Literal["bottleneck", "light"] = "bottleneck",
        conditional_prior: bool = False,
        smooth: bool = False,
        parents_scale: list[float] | None = None,
        parents_shift: list[float] | None = None,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        self.causal_graph = CausalGraph(graph)
        parents_dim = self.causal_graph.width
        check_hvae_arguments(self.config, parents_dim)
        patch_channels = in_channels * patch_size**2

        self.stem = nn.Conv2d(patch_channels, channels[0], 7, padding=3)
        blocks: list[ResidualBlock] = []
        for i, width in enumerate(channels):
            blocks += [ResidualBlock(width, width // 4, width, 3, block_type) for _ in range(encoder_blocks[i])]
            if i + 1 < len(channels):
                rate = resolutions[i] // resolutions[i + 1]
                blocks.append(ResidualBlock(width, width // 4, channels[i + 1], 3, block_type, downsample=rate))
        self.encoder: list[ResidualBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]

        stages = list(zip(resolutions, channels, decoder_blocks, strict=True))[::-1]
        layout = [(resolution, width) for resolution, width, count in stages for _ in range(count)]
        self.decoder: list[DecoderBlock] = nn.ModuleList(  # type: ignore[assignment]
            DecoderBlock(
                resolution,
                width,
                out_channels=layout[min(i + 1, len(layout) - 1)][1],
                z_dim=z_dim,
                parents_dim=parents_dim,
                block_type=block_type,
                conditional_prior=conditional_prior,
                stochastic=resolution <= z_max_resolution,
                last=i + 1 == len(layout),
            )
            for i, (resolution, width) in enumerate(layout)
        )
        self.biases = nn.ParameterDict(
            {str(r): nn.Parameter(torch.zeros(1, c, r, r)) for r, c, _ in stages if r <= bias_max_resolution}
        )
        self._overlaps = smooth and patch_size > 1
        pixels = 4 * patch_channels if self._overlaps else patch_channels
        self.x_loc = nn.Conv2d(channels[0], pixels, 1)
        self.x_log_scale = nn.Conv2d(channels[0], pixels, 1)
        self.gradient_checkpointing = False
        self._init_weights()

    def _init_weights(self) -> None:
        """Published initialisation: residual branches shrink with depth, the prior starts as N(0, 1)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for encoder_block in self.encoder:
                encoder_block.block.last.weight.mul_(math.sqrt(1 / len(self.encoder)))
            for block in self.decoder:
                block.prior.last.weight.zero_()
                for layer in (block.z_proj, block.z_parents.conv, block.conv.block.last):
                    layer.weight.mul_(math.sqrt(1 / len(self.decoder)))

    def enable_layerwise_casting(self, *args: Any, **kwargs: Any) -> None:
        """Not possible: always raises ValueError."""
        raise ValueError(
            "HVAEModel cannot keep its weights in another type than it computes in, for it computes with the weights "
            "of several layers at once: load it with dtype=torch.bfloat16."
        )

    # ---- the two halves -----------------------------------------------------------------------------------------

    def _run(self, block: Callable[..., Any], *inputs: Tensor) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _condition(self, parents: Tensor) -> Tensor:
        """Encoded parents (B, K) as the network takes them."""
        if self.x_loc.weight.is_meta:
            raise ValueError(
                "HVAEModel cannot be offloaded layer by layer, for it computes with the weights of several layers at "
                "once: use enable_model_cpu_offload of the pipeline, or accelerate's cpu_offload with "
                "preload_module_classes=['HVAEModel']."
            )
        if (scale := self.config["parents_scale"]) is not None:
            parents = parents * parents.new_tensor(scale)
        if (shift := self.config["parents_shift"]) is not None:
            parents = parents + parents.new_tensor(shift)
        return parents

    def _encode(self, image: Tensor) -> dict[int, Tensor]:
        """Encoder activations by resolution: the last one at each."""
        patches = F.pixel_unshuffle(image.to(self.dtype), self.config["patch_size"])
        # After the stem: a map of one channel has no layout that the convolution would keep.
        h = self.stem(patches).contiguous(memory_format=torch.channels_last)
        activations = {h.shape[-1]: h}
        for block in self.encoder:
            h = self._run(block, h)
            activations[h.shape[-1]] = h
        return activations

    def _convolve_activations(self, activations: dict[int, Tensor]) -> Iterator[Tensor]:
        """The encoder's activations, convolved for each stochastic block's posterior, from 1x1 up."""
        for resolution, blocks in groupby(self.decoder, key=lambda block: block.resolution):
            posteriors = [block.posterior for block in blocks if block.posterior is not None]
            if posteriors:
                yield from self._run(partial(convolve_shared, posteriors), activations[resolution])

    def _lift(self, h: Tensor | None, resolution: int, batch_size: int) -> Tensor:
        """Upsample a state to a resolution and add the learned bias; without a state, the bias alone."""
        bias = self.biases.get(str(resolution))
        if h is None:
            assert bias is not None
            return bias.expand(batch_size, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        if h.shape[-1] == resolution:
            return h
        h = F.interpolate(h, size=(resolution, resolution), mode="bilinear" if self.config["smooth"] else "nearest")
        h = h.contiguous(memory_format=torch.channels_last)  # lost where the map had one pixel
        return h if bias is None else h + bias

    def _likelihood(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of the pixels, float32 of shape (B, C, H, W)."""
        with torch.autocast(h.device.type, enabled=False):  # rounding the mean would cost up to half a grey level
            heads = (self.x_loc, self.x_log_scale)
            weight = torch.cat([head.weight for head in heads]).float()
            bias = torch.cat([head.bias for head in heads if head.bias is not None]).float()
            maps = F.conv2d(h.float(), weight, bias).chunk(2, dim=1)
            unfold = overlap_patches if self._overlaps else F.pixel_shuffle
            loc, log_scale = (unfold(m.contiguous(), self.config["patch_size"]) for m in maps)
        return loc, F.hardtanh(log_scale, MIN_LOG_SCALE, MAX_LOG_SCALE)  # a clamp with a faster gradient

    @apply_forward_hook
    def decode(self, injections: list[Tensor], parents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the pixels, each (B, C, H, W), given injections and parents (B, K)."""
        h, parents = None, self._condition(parents)
        batch_size = parents.shape[0]  # not len(parents), which torch.export takes for a constant
        for block, injection in zip(self.decoder, injections, strict=True):
            h = self._run(block, self._lift(h, block.resolution, batch_size), injection, parents.to(injection.dtype))
        assert h is not None
        return self._likelihood(h)

    @apply_forward_hook
    def walk_prior(
        self, parents: Tensor, latents: list[Tensor] | None = None, generator: Generator = None
    ) -> HVAEPriorOutput:
        """Run the prior, from 1x1 up, with latents that are drawn or given.

        Args:
            parents: Encoded parents, shape (B, K). An exogenous prior uses only B.
            latents: For example those of :meth:`forward`. Left out, they are drawn.
            generator: Makes the draw reproducible; one for the batch or a list with one per image.

        Raises:
            ValueError: If the number of latents is not that of the stochastic blocks.
        """
        stochastic = sum(block.posterior is not None for block in self.decoder)
        if latents is not None and len(latents) != stochastic:
            raise ValueError(f"latents must be {stochastic}, one for each stochastic block, got {len(latents)}.")
        noise = iter([] if latents else self.draw_noise(parents.shape[0], generator, parents.device))
        parents = self._condition(parents)
        drawn: list[Tensor] = []
        state, priors, injections = None, [], []
        for block in self.decoder:
            lifted = self._lift(state, block.resolution, parents.shape[0])
            hidden, loc, log_scale = self._run(block.run_prior, lifted, parents.to(lifted.dtype))
            z = None
            if block.posterior is not None:
                priors.append((loc, log_scale))
                z = torch.addcmul(loc, log_scale.exp(), next(noise)) if latents is None else latents[len(drawn)]
                drawn.append(z)
            injection, state = block.inject(hidden, z)
            injections.append(injection)
        return HVAEPriorOutput(latents=drawn, priors=priors, injections=injections)

    def draw_noise(
        self, batch_size: int, generator: Generator = None, device: torch.device | str | None = None
    ) -> list[Tensor]:
        """Standard normal noise for all latents of a batch, float32, by one draw for each image.

        Args:
            batch_size: Number of images B.
            generator: Makes the draw reproducible; one for the batch or a list with one per image.
            device: Where the noise is needed, by default where the model is.

        Returns:
            For each stochastic block, from 1x1 up, noise of shape (B, z_dim, r, r), channels last in memory.
        """
        sides = [block.resolution for block in self.decoder if block.posterior is not None]
        sizes = [side**2 * self.config["z_dim"] for side in sides]
        noise = draw_normal((batch_size, sum(sizes)), generator, self.device if device is None else device)
        parts = zip(sides, noise.split(sizes, dim=1), strict=True)
        return [part.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2) for side, part in parts]

    def forward(
        self,
        image: Tensor,
        parents: Tensor,
        generator: Generator = None,
        return_dict: bool = True,
        noise: list[Tensor] | None = None,
    ) -> HVAEOutput | tuple[Tensor, ...]:
        """Abduct the latents of images and compute the evidence lower bound.

        Args:
            image: Factual images in [-1, 1], shape (B, C, H, W).
            parents: Encoded factual parents, shape (B, K).
            generator: Of the posterior draw; one for the batch or a list with one per image.
            return_dict: Whether to return an :class:`HVAEOutput` or a plain tuple with ``nelbo`` first.
            noise: Of the posterior draw, from :meth:`draw_noise`, in place of the generator: so the pass draws nothing
                itself, and compiles as a whole.

        Raises:
            ValueError: If a shape is wrong, or the weights are offloaded layer by layer.
        """
        self._check_inputs(image, parents)
        noise = self.draw_noise(image.shape[0], generator, image.device) if noise is None else noise
        convolved, parents = self._convolve_activations(self._encode(image)), self._condition(parents)
        h = state = None
        kl = torch.zeros(image.shape[0], device=image.device)
        latents: list[Tensor] = []
        posteriors, injections = [], []
        for block in self.decoder:
            h = self._lift(h, block.resolution, image.shape[0])
            given = parents.to(h.dtype)
            lifted = self._lift(state, block.resolution, image.shape[0])
            hidden, p_loc, p_log_scale = self._run(block.run_prior, lifted, given)
            z = None
            if block.posterior is not None:
                q_loc, q_log_scale = self._run(block.run_posterior, h, next(convolved), given)
                kl = kl + normal_kl(q_loc, q_log_scale, p_loc, p_log_scale)
                z = torch.addcmul(q_loc, q_log_scale.exp(), noise[len(latents)])
                latents.append(z)
                posteriors.append((q_loc, q_log_scale))
            injection, state = block.inject(hidden, z)
            injections.append(injection)
            h = self._run(block, h, injection, given)
        assert h is not None
        loc, log_scale = self._likelihood(h)
        nll = -discretised_gaussian_log_prob(image, loc, log_scale).flatten(1).mean(dim=1)
        kl = kl / image[0].numel()
        nelbo = nll + self.config["beta"] * kl
        output = HVAEOutput(nelbo, nll, kl, loc, log_scale, latents, posteriors, injections)
        return output if return_dict else output.to_tuple()

    def _check_inputs(self, image: Tensor, parents: Tensor) -> None:
        size = (self.config["in_channels"], self.config["sample_size"], self.config["sample_size"])
        if image.ndim != 4 or tuple(image.shape[1:]) != size:
            raise ValueError(f"image must have shape (B, {', '.join(map(str, size))}), got {tuple(image.shape)}.")
        if tuple(parents.shape) != (image.shape[0], self.causal_graph.width):
            raise ValueError(
                f"parents must have shape ({len(image)}, {self.causal_graph.width}), got {tuple(parents.shape)}."
            )
