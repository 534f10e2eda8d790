"""The building blocks of the hierarchical VAE; :mod:`softcft.models.hvae` says how they fit together.

Parents are no maps: a convolution of a spatially constant map is a bias per sample (:class:`ParentBias`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "MAX_LOG_SCALE",
    "MIN_LOG_SCALE",
    "ConvBlock",
    "DecoderBlock",
    "ParentBias",
    "ResidualBlock",
    "convolve_shared",
]

# Beyond these bounds exp() of log scales loses float32's precision; trained models stay far inside.
MIN_LOG_SCALE, MAX_LOG_SCALE = -9.0, 9.0


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
            return F.linear(parents, self.conv.weight.flatten(1))[:, :, None, None]
        canvas = self.conv(parents[:, :, None, None].expand(-1, -1, 3, 3))
        stretch = torch.ones(resolution, dtype=torch.long, device=parents.device)
        stretch[0], stretch[-1] = 0, 2
        return canvas[:, :, stretch][:, :, :, stretch]


class ConvBlock(nn.Module):
    """Pre-activation convolutions of one map or two and, optionally, of the parents.

    ``bottleneck``: 1x1, 3x3, 3x3, 1x1 with GELU; ``light``: 3x3, 3x3 with ReLU. Inputs are convolved one by one and
    added, which equals convolving their concatenation. The last convolution is left to the caller: ``last``.
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
        light = block_type == "light"
        self.activation = F.relu if light else F.gelu
        first = kernel_size if light else 1

        def conv(cin: int, cout: int, kernel: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=bias)

        self.inputs = nn.ModuleList(conv(c, hidden_channels, first, bias=i == 0) for i, c in enumerate(in_channels))
        self.parents = ParentBias(parents_dim, hidden_channels, first) if parents_dim else None
        self.middle = nn.ModuleList(
            conv(hidden_channels, hidden_channels, kernel_size) for _ in range(0 if light else 2)
        )
        self.last = conv(hidden_channels, out_channels, kernel_size if light else 1)

    def hidden(self, x: Tensor, parents: Tensor | None = None, convolved: Tensor | None = None) -> Tensor:
        """The input of the last convolution, shape (B, hidden_channels, R, R).

        Args:
            x: The first input, shape (B, in_channels[0], R, R).
            parents: Encoded parents, shape (B, P).
            convolved: The second input, convolved by :func:`convolve_shared`, shape (B, hidden_channels, R, R).
        """
        h = self.inputs[0](self.activation(x))
        if convolved is not None:
            h = h + convolved
        if self.parents is not None and parents is not None:
            h = h + self.parents(self.activation(parents), x.shape[-1])
        for conv in self.middle:
            h = conv(self.activation(h))
        return self.activation(h)


def convolve_shared(blocks: list[ConvBlock], x: Tensor) -> tuple[Tensor, ...]:
    """Convolve the second input (B, in_channels[1], R, R) that blocks of one resolution and equal widths share, once.

    Returns:
        For each block what its :meth:`ConvBlock.hidden` takes as ``convolved``.
    """
    weight = torch.cat([block.inputs[1].weight for block in blocks])  # type: ignore[misc]
    h = F.conv2d(blocks[0].activation(x), weight, padding=weight.shape[-1] // 2)
    return h.chunk(len(blocks), dim=1)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """A 1x1 convolution (P, N, 1, 1) after another (N, M, 1, 1), or after its bias (N): one (P, M, 1, 1), or (P)."""
    with torch.autocast(outer.device.type, enabled=False):  # the product is rounded once, when it convolves
        return torch.tensordot(outer.flatten(1), inner, dims=1)


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
        """Map (B, in_channels, R, R) to (B, out_channels, R / downsample, R / downsample)."""
        skip = x if self.width_proj is None else self.width_proj(x)
        h = skip + self.block.last(self.block.hidden(x))
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
        conditional_prior: bool,
        stochastic: bool,
        last: bool,
    ) -> None:
        super().__init__()
        kernel = 3 if resolution > 2 else 1
        hidden = channels // 4
        self.resolution, self.z_dim = resolution, z_dim
        self.prior = ConvBlock(
            [channels], hidden, 2 * z_dim + channels, kernel, block_type, parents_dim if conditional_prior else 0
        )
        self.posterior = (
            ConvBlock([channels, channels], hidden, 2 * z_dim, kernel, block_type, parents_dim) if stochastic else None
        )
        self.z_proj = nn.Conv2d(z_dim, channels, 1)
        self.z_parents = ParentBias(parents_dim, channels)
        self.z_feat_proj = None if last else nn.Conv2d(z_dim + channels, out_channels, 1)
        self.conv = ResidualBlock(channels, hidden, out_channels, kernel, block_type)

    def run_prior(self, state: Tensor, parents: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The prior given the state of the latents above (B, channels, R, R) and encoded parents (B, P).

        Returns:
            The input of its last convolution, shape (B, channels / 4, R, R); mean and log scale of the latent, float32
            of shape (B, z_dim, R, R), or None where the block is deterministic.
        """
        hidden = self.prior.hidden(state, parents)
        if self.posterior is None:
            return hidden, None, None
        return hidden, *self._normal(self.prior.last, hidden)

    def run_posterior(self, h: Tensor, convolved: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log scale of the latent, float32 of shape (B, z_dim, R, R).

        Args:
            h: The decoder's state, shape (B, channels, R, R).
            convolved: The encoder's activation, convolved by :func:`convolve_shared`, shape (B, channels / 4, R, R).
            parents: Encoded parents, shape (B, P).
        """
        assert self.posterior is not None
        return self._normal(self.posterior.last, self.posterior.hidden(h, parents, convolved))

    def _normal(self, last: nn.Conv2d, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale, the first outputs of a last convolution, as two maps: halves of one would be strided."""
        assert last.bias is not None
        parts = [self.z_dim, self.z_dim, last.out_channels - 2 * self.z_dim]
        weights, biases = (part.split(parts)[:2] for part in (last.weight, last.bias))
        loc, log_scale = (
            F.conv2d(hidden, weight, bias, padding=last.padding).float()
            for weight, bias in zip(weights, biases, strict=True)
        )
        return loc, F.hardtanh(log_scale, MIN_LOG_SCALE, MAX_LOG_SCALE)

    def inject(self, hidden: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What a latent adds to the state ``h``, and the prior's state at the next block.

        Args:
            hidden: From :meth:`run_prior`, shape (B, channels / 4, R, R).
            z: The latent, shape (B, z_dim, R, R); None for the prior's mean, where the block is deterministic.

        Returns:
            The injection, shape (B, channels, R, R), and the state, shape (B, out_channels, R, R), None after the last
            block.
        """
        if self.prior.last.kernel_size == (1, 1):
            return self._inject_composed(hidden, z)
        loc, _, features = self.prior.last(hidden).split([self.z_dim, self.z_dim, self.z_proj.out_channels], dim=1)
        z = loc if z is None else z.to(hidden.dtype)
        state = None if self.z_feat_proj is None else self.z_feat_proj(torch.cat([z, features], dim=1))
        return features + self.z_proj(z), state

    def _inject_composed(self, hidden: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same, if all convolutions are 1x1, by their product: features, four times as wide, are not computed."""
        last, parts = self.prior.last, [self.z_dim, self.z_dim, self.z_proj.out_channels]
        assert last.bias is not None and self.z_proj.bias is not None
        loc_weight, _, features_weight = last.weight.split(parts)
        loc_bias, _, features_bias = last.bias.split(parts)
        inputs = hidden if z is None else torch.cat([hidden, z.to(hidden.dtype)], dim=1)

        def convolve(z_weight: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            """The sum of a 1x1 convolution of z and one of ``hidden``."""
            if z is None:
                weight, bias = weight + _compose(z_weight, loc_weight), bias + _compose(z_weight, loc_bias)
            else:
                weight = torch.cat([weight, z_weight], dim=1)
            return F.conv2d(inputs, weight, bias)

        injection = convolve(self.z_proj.weight, features_weight, self.z_proj.bias + features_bias)
        if self.z_feat_proj is None:
            return injection, None
        assert self.z_feat_proj.bias is not None
        z_weight, mix = self.z_feat_proj.weight.split([self.z_dim, len(features_weight)], dim=1)
        bias = self.z_feat_proj.bias + _compose(mix, features_bias)
        return injection, convolve(z_weight, _compose(mix, features_weight), bias)

    def forward(self, h: Tensor, injection: Tensor, parents: Tensor) -> Tensor:
        """Move the decoder's state (B, channels, R, R) on, given the latents' injection and parents (B, P)."""
        return self.conv(h + injection + self.z_parents(parents, self.resolution))
