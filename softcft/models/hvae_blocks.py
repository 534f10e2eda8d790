"""The building blocks of the hierarchical VAE; :mod:`softcft.models.hvae` says how they fit together.

No block ever sees a map of the parents: a convolution of a spatially constant map is a bias per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MAX_LOG_SCALE", "MIN_LOG_SCALE", "ConvBlock", "DecoderBlock", "ParentBias", "ResidualBlock"]

# Log scales beyond these bounds mean exp() out of float32's comfort; trained models stay far inside.
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
        """Map inputs (B, in_channels[i], R, R) and parents (B, P) to (B, out_channels, R, R)."""
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
        """Map (B, in_channels, R, R) to (B, out_channels, R / downsample, R / downsample)."""
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

    def run_prior(self, state: Tensor, parents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prior mean, prior log scale (float32) and features from the state of the latents above."""
        loc, log_scale, features = self.prior(state, parents=parents).split(
            [self.z_dim, self.z_dim, state.shape[1]], dim=1
        )
        return loc.float(), F.hardtanh(log_scale.float(), MIN_LOG_SCALE, MAX_LOG_SCALE), features

    def run_posterior(self, h: Tensor, activation: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log scale, float32."""
        assert self.posterior is not None
        loc, log_scale = self.posterior(h, activation, parents=parents).float().chunk(2, dim=1)
        return loc, F.hardtanh(log_scale, MIN_LOG_SCALE, MAX_LOG_SCALE)

    def inject(self, z: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a latent adds to the state ``h``, and the prior's state at the next block (None after the last)."""
        z = z.to(features.dtype)
        state = None if self.z_feat_proj is None else self.z_feat_proj(torch.cat([z, features], dim=1))
        return features + self.z_proj(z), state

    def forward(self, h: Tensor, injection: Tensor, parents: Tensor) -> Tensor:
        """Move the decoder's state (B, channels, R, R) on, given the latents' injection and parents (B, P)."""
        return self.conv(h + injection + self.z_parents(parents, self.resolution))
