"""A conditional hierarchical VAE as an image mechanism: the architecture of De Sousa Ribeiro et al. (ICML 2023).

The encoder is a residual network whose activations at every resolution feed the posterior. The decoder climbs from
1x1 to full resolution through blocks that each hold a *prior*, a *posterior* and a *residual* part::

    p_loc, p_log_scale, features = prior(state)             # exogenous: state is a function of the latents above only
    q_loc, q_log_scale           = posterior(h, parents, encoder activation)
    z      ~ N(q_loc, q_scale)  (abduction)   or   N(p_loc, p_scale)  (sampling)
    h      = conv(h + features + z_proj(z, parents))
    state  = z_feat_proj(z, features)

Parents are spatially constant, so they never become maps: a convolution of a constant map is a bias per sample
(:class:`ParentBias`). The prior never sees the parents, so ``features + z_proj(z)`` of every block, here called the
*injections*, carries over from the factual posterior pass to the counterfactual decode unchanged; only ``h`` is run
again.

Likelihood and KL are in float32 whatever the compute type. Reference: "High Fidelity Image Counterfactuals with
Probabilistic Causal Models", section 3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn import functional as F

from softcft.graph import CausalGraph
from softcft.models.likelihoods import discretised_gaussian_log_prob

__all__ = ["HVAEModel", "HVAEOutput"]

Generator = torch.Generator | list[torch.Generator] | None
# Log scales beyond these bounds mean exp() out of float32's comfort; trained models stay far inside.
MIN_LOG_SCALE, MAX_LOG_SCALE = -9.0, 9.0


@dataclass
class HVAEOutput(BaseOutput):
    """What one encoder and one posterior pass tell about images.

    Attributes:
        nelbo: Negative evidence lower bound ``nll + beta * kl`` in nats per dimension, shape (B,); lower is better.
        nll: Negative log likelihood in nats per dimension, shape (B,).
        kl: Kullback-Leibler divergence of posterior and prior in nats per dimension, shape (B,).
        loc: Mean of the pixels given latents and parents, shape (B, C, H, W).
        log_scale: Log standard deviation of the pixels, shape (B, C, H, W).
        latents: One latent (B, z_dim, r, r) per stochastic block, from 1x1 up.
        injections: For every block what the latents add to the decoder's state, (B, channels, r, r), from 1x1 up.
    """

    nelbo: Tensor
    nll: Tensor
    kl: Tensor
    loc: Tensor
    log_scale: Tensor
    latents: list[Tensor]
    injections: list[Tensor]


class ParentBias(nn.Module):
    """Convolution of spatially constant parent maps, computed without the maps.

    With a 1x1 kernel it is one bias per sample and channel. With a zero-padded 3x3 kernel a constant map gives only
    nine different outputs (corners, edges, interior), so a 3x3 canvas is convolved and its middle stretched: exact,
    borders included.
    """

    def __init__(self, parents_dim: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(parents_dim, out_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, parents: Tensor, resolution: int) -> Tensor:
        """Map parents (B, P) to a bias of shape (B, out_channels, 1 or resolution, 1 or resolution)."""
        if self.conv.kernel_size[0] == 1:
            return F.linear(parents, self.conv.weight[:, :, 0, 0])[:, :, None, None]
        canvas = self.conv(parents[:, :, None, None].expand(-1, -1, 3, 3))
        stretch = torch.ones(resolution, dtype=torch.long, device=parents.device)
        stretch[0], stretch[-1] = 0, 2
        return canvas[:, :, stretch][:, :, :, stretch]


class ConvBlock(nn.Module):
    """Pre-activation convolutions of one or several maps and, optionally, of the parents.

    ``bottleneck``: 1x1, 3x3, 3x3, 1x1 with GELU; ``light``: 3x3, 3x3 with ReLU. Several inputs are convolved one by
    one and added, which equals convolving their concatenation.
    """

    def __init__(
        self,
        in_channels: list[int],
        hidden_channels: int,
        out_channels: int,
        kernel_size: int,
        block_type: str,
        parents_dim: int = 0,
    ) -> None:
        super().__init__()
        self.light = block_type == "light"
        first = kernel_size if self.light else 1

        def conv(cin: int, cout: int, kernel: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=bias)

        self.inputs = nn.ModuleList(conv(c, hidden_channels, first, bias=i == 0) for i, c in enumerate(in_channels))
        self.parents = ParentBias(parents_dim, hidden_channels, first) if parents_dim else None
        self.middle = nn.ModuleList(
            conv(hidden_channels, hidden_channels, kernel_size) for _ in range(0 if self.light else 2)
        )
        self.last = conv(hidden_channels, out_channels, kernel_size if self.light else 1)

    def forward(self, *maps: Tensor, parents: Tensor | None = None) -> Tensor:
        activation = F.relu if self.light else F.gelu
        h = self.inputs[0](activation(maps[0]))
        for conv, other in zip(self.inputs[1:], maps[1:], strict=True):
            h = h + conv(activation(other))
        if self.parents is not None and parents is not None:
            h = h + self.parents(activation(parents), maps[0].shape[-1])
        for conv in self.middle:
            h = conv(activation(h))
        return self.last(activation(h))


class ResidualBlock(nn.Module):
    """``x + block(x)``, with a 1x1 projection where the width changes and average pooling afterwards."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        kernel_size: int,
        block_type: str,
        downsample: int = 1,
    ) -> None:
        super().__init__()
        self.block = ConvBlock([in_channels], hidden_channels, out_channels, kernel_size, block_type)
        self.width_proj = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.width_proj is None else self.width_proj(x)
        h = skip + self.block(x)
        return h if self.downsample == 1 else F.avg_pool2d(h, self.downsample)


class DecoderBlock(nn.Module):
    """One step of the decoder: prior, posterior and residual part at one resolution (see the module docstring)."""

    def __init__(
        self,
        resolution: int,
        channels: int,
        out_channels: int,
        z_dim: int,
        parents_dim: int,
        block_type: str,
        stochastic: bool,
        last: bool,
    ) -> None:
        super().__init__()
        kernel = 3 if resolution > 2 else 1
        hidden = channels // 4
        self.resolution, self.z_dim = resolution, z_dim
        self.prior = ConvBlock([channels], hidden, 2 * z_dim + channels, kernel, block_type)
        self.posterior = (
            ConvBlock([channels, channels], hidden, 2 * z_dim, kernel, block_type, parents_dim) if stochastic else None
        )
        self.z_proj = nn.Conv2d(z_dim, channels, 1)
        self.z_parents = ParentBias(parents_dim, channels)
        self.z_feat_proj = None if last else nn.Conv2d(z_dim + channels, out_channels, 1)
        self.conv = ResidualBlock(channels, hidden, out_channels, kernel, block_type)

    def run_prior(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prior mean, prior log scale (float32) and features from the exogenous state."""
        loc, log_scale, features = self.prior(state).split([self.z_dim, self.z_dim, state.shape[1]], dim=1)
        return loc.float(), log_scale.float().clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), features

    def run_posterior(self, h: Tensor, activation: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log scale, float32."""
        assert self.posterior is not None
        loc, log_scale = self.posterior(h, activation, parents=parents).float().chunk(2, dim=1)
        return loc, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)

    def inject(self, z: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a latent adds to the state ``h``, and the exogenous state of the next block (None after the last)."""
        z = z.to(features.dtype)
        state = None if self.z_feat_proj is None else self.z_feat_proj(torch.cat([z, features], dim=1))
        return features + self.z_proj(z), state

    def forward(self, h: Tensor, injection: Tensor, parents: Tensor) -> Tensor:
        return self.conv(h + injection + self.z_parents(parents, self.resolution))


def _kl(q_loc: Tensor, q_log_scale: Tensor, p_loc: Tensor, p_log_scale: Tensor) -> Tensor:
    """KL(q || p) of diagonal normals in nats, summed over all but the batch: shape (B,)."""
    ratio = 2 * (q_log_scale - p_log_scale)
    kl = 0.5 * (ratio.exp() - 1 - ratio + (q_loc - p_loc).square() * (-2 * p_log_scale).exp())
    return kl.flatten(1).sum(dim=1)


class HVAEModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers declares config_name twice
    """Conditional hierarchical VAE with an exogenous prior and a discretised Gaussian likelihood.

    Args:
        graph: The causal graph as plain data (:meth:`CausalGraph.to_list`). All its variables condition the image.
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
        beta: Weight of the KL in the NELBO; 1 is the evidence lower bound, more makes the model obey its parents more.

    Raises:
        ValueError: If the lists differ in length, sizes do not divide, or a value is out of range.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock", "ResidualBlock"]  # type: ignore[assignment]  # noqa: RUF012

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
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        # Without a bias at 1x1 the decoder would start from nothing, without a latent there would be no abduction.
        for name, value in {
            "in_channels": in_channels,
            "patch_size": patch_size,
            "z_dim": z_dim,
            "z_max_resolution": z_max_resolution,
            "bias_max_resolution": bias_max_resolution,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        _check_config(sample_size, patch_size, resolutions, channels, encoder_blocks, decoder_blocks, block_type, beta)
        self.causal_graph = CausalGraph(graph)
        parents_dim = self.causal_graph.width
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
                stochastic=resolution <= z_max_resolution,
                last=i + 1 == len(layout),
            )
            for i, (resolution, width) in enumerate(layout)
        )
        self.biases = nn.ParameterDict(
            {str(r): nn.Parameter(torch.zeros(1, c, r, r)) for r, c, _ in stages if r <= bias_max_resolution}
        )
        self.x_loc = nn.Conv2d(channels[0], patch_channels, 1)
        self.x_log_scale = nn.Conv2d(channels[0], patch_channels, 1)
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

    # ---- the two halves -----------------------------------------------------------------------------------------

    def _run(self, block: Callable[..., Any], *inputs: Tensor) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _encode(self, image: Tensor) -> dict[int, Tensor]:
        """Encoder activations by resolution: the last one at each."""
        patches = F.pixel_unshuffle(image.to(self.dtype), self.config["patch_size"])
        h = self.stem(patches.to(memory_format=torch.channels_last))
        activations = {h.shape[-1]: h}
        for block in self.encoder:
            h = self._run(block, h)
            activations[h.shape[-1]] = h
        return activations

    def _lift(self, h: Tensor | None, resolution: int, batch_size: int) -> Tensor:
        """Bring a state to a resolution: nearest upsampling plus the learned bias; from nothing at the start."""
        bias = self.biases.get(str(resolution))
        if h is None:
            assert bias is not None
            return bias.expand(batch_size, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        if h.shape[-1] == resolution:
            return h
        h = F.interpolate(h, size=(resolution, resolution), mode="nearest")
        return h if bias is None else h + bias

    def _likelihood(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of the pixels, float32 of shape (B, C, H, W)."""
        loc, log_scale = (
            F.pixel_shuffle(head(h).float().contiguous(), self.config["patch_size"])
            for head in (self.x_loc, self.x_log_scale)
        )
        return loc, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)

    @apply_forward_hook
    def decode(self, injections: list[Tensor], parents: Tensor) -> tuple[Tensor, Tensor]:
        """Run the decoder with given latents and (counterfactual) parents.

        Args:
            injections: From :meth:`forward` or :meth:`sample_injections`.
            parents: Encoded parents, shape (B, K).

        Returns:
            Mean and log standard deviation of the pixels, each (B, C, H, W).
        """
        h = None
        for block, injection in zip(self.decoder, injections, strict=True):
            h = self._run(block, self._lift(h, block.resolution, len(parents)), injection, parents.to(injection.dtype))
        assert h is not None
        return self._likelihood(h)

    @apply_forward_hook
    def sample_injections(self, batch_size: int, generator: Generator = None) -> list[Tensor]:
        """Draw latents from the prior, as injections for :meth:`decode`."""
        state, injections = None, []
        for block in self.decoder:
            lifted = self._lift(state, block.resolution, batch_size)
            z, log_scale, features = block.run_prior(lifted)
            if block.posterior is not None:
                z = z + log_scale.exp() * randn_tensor(z.shape, generator, z.device, z.dtype)
            injection, state = block.inject(z, features)
            injections.append(injection)
        return injections

    def forward(
        self, image: Tensor, parents: Tensor, generator: Generator = None, return_dict: bool = True
    ) -> HVAEOutput | tuple[Tensor, ...]:
        """Abduct the latents of images and evaluate the evidence lower bound.

        Args:
            image: Factual images in [-1, 1], shape (B, C, H, W).
            parents: Encoded factual parents, shape (B, K).
            generator: Makes the posterior draw reproducible; one for the batch or a list with one per image.
            return_dict: Whether to return an :class:`HVAEOutput` or a plain tuple with ``nelbo`` first.

        Returns:
            The bound, the pixel distribution given the factual parents, the latents and injections.

        Raises:
            ValueError: If image or parents have the wrong shape.
        """
        self._check_inputs(image, parents)
        activations = self._encode(image)
        h, state = None, None
        kl = torch.zeros(len(image), device=image.device)
        latents, injections = [], []
        for block in self.decoder:
            h = self._lift(h, block.resolution, len(image))
            z, p_log_scale, features = self._run(block.run_prior, self._lift(state, block.resolution, len(image)))
            given = parents.to(features.dtype)
            if block.posterior is not None:
                q_loc, q_log_scale = self._run(block.run_posterior, h, activations[block.resolution], given)
                kl = kl + _kl(q_loc, q_log_scale, z, p_log_scale)
                # Drawn outside the checkpointed parts: their recomputation would draw anew from a generator.
                z = q_loc + q_log_scale.exp() * randn_tensor(q_loc.shape, generator, q_loc.device, q_loc.dtype)
                latents.append(z)
            injection, state = block.inject(z, features)
            injections.append(injection)
            h = self._run(block, h, injection, given)
        assert h is not None
        loc, log_scale = self._likelihood(h)
        nll = -discretised_gaussian_log_prob(image, loc, log_scale).flatten(1).mean(dim=1)
        kl = kl / image[0].numel()
        output = HVAEOutput(
            nelbo=nll + self.config["beta"] * kl,
            nll=nll,
            kl=kl,
            loc=loc,
            log_scale=log_scale,
            latents=latents,
            injections=injections,
        )
        return output if return_dict else output.to_tuple()

    def _check_inputs(self, image: Tensor, parents: Tensor) -> None:
        size = (self.config["in_channels"], self.config["sample_size"], self.config["sample_size"])
        if image.ndim != 4 or tuple(image.shape[1:]) != size:
            raise ValueError(f"image must have shape (B, {', '.join(map(str, size))}), got {tuple(image.shape)}.")
        if tuple(parents.shape) != (len(image), self.causal_graph.width):
            raise ValueError(
                f"parents must have shape ({len(image)}, {self.causal_graph.width}), got {tuple(parents.shape)}."
            )


def _check_config(
    sample_size: int,
    patch_size: int,
    resolutions: list[int],
    channels: list[int],
    encoder_blocks: list[int],
    decoder_blocks: list[int],
    block_type: str,
    beta: float,
) -> None:
    lists = {
        "resolutions": resolutions,
        "channels": channels,
        "encoder_blocks": encoder_blocks,
        "decoder_blocks": decoder_blocks,
    }
    if len({len(values) for values in lists.values()}) != 1:
        raise ValueError(f"One entry per resolution is needed in each of {lists}.")
    if resolutions[0] * patch_size != sample_size:
        raise ValueError(
            f"resolutions[0] must be sample_size / patch_size = {sample_size}/{patch_size}, got {resolutions[0]}."
        )
    if resolutions[-1] != 1:
        raise ValueError(f"resolutions must end at 1, got {resolutions}.")
    for large, small in pairwise(resolutions):
        if large <= small or large % small:
            raise ValueError(f"Each entry of resolutions must divide the one before, got {resolutions}.")
    if any(width < 4 or width % 4 for width in channels):
        raise ValueError(f"channels must be multiples of 4, got {channels}.")
    if min(encoder_blocks) < 0 or min(decoder_blocks) < 1:
        raise ValueError(f"Need encoder_blocks >= 0 and decoder_blocks >= 1, got {encoder_blocks}, {decoder_blocks}.")
    if block_type not in ("bottleneck", "light"):
        raise ValueError(f"block_type must be 'bottleneck' or 'light', got {block_type!r}.")
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}.")
