"""Random changes of the images that a classifier learns from, which keep the attributes.

The gradient of a classifier that overfits a few thousand images is mostly noise, and an image model that is fine-tuned
with it learns to add that noise. Training on moved and noisy images helps (docs/attacks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from softcft.data.config import AugmentationConfig
from softcft.noise import Generator, uniform

__all__ = ["random_change"]


def random_change(
    config: AugmentationConfig, shape: Sequence[int], generator: Generator, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Draw a change for each image of a batch, which may be applied to several batches, such as counterfactuals.

    Args:
        config: How large changes are.
        shape: That of the batch, (B, C, H, W).
        generator: One for each image, so that its change does not depend on its batch.
        device: Where the images are.

    Returns:
        A function from images of that shape in [-1, 1] to changed ones in [-1, 1].
    """
    if not any(asdict(config).values()):
        return lambda image: image
    draw = uniform((shape[0], 7), generator, device)
    signed = 2 * draw - 1
    scale = 1 + config.random_zoom * signed[:, 0]
    mirrored = torch.where(draw[:, 1] < 0.5, -scale, scale) if config.random_flip else scale
    x, y = (2 * config.random_shift * signed[:, i] for i in (2, 3))  # a side is 2 long in these coordinates
    zero = torch.zeros_like(x)
    where = torch.stack([torch.stack([mirrored, zero, x], 1), torch.stack([zero, scale, y], 1)], 1)
    grid = F.affine_grid(where, list(shape), align_corners=False)
    contrast, brightness, noisiness = (x[:, None, None, None] for x in (signed[:, 4], signed[:, 5], draw[:, 6]))
    noise = (
        randn_tensor(tuple(shape), generator=generator, device=device)
        if config.random_noise
        else zero.view(-1, 1, 1, 1)
    )

    def change(image: Tensor) -> Tensor:
        if config.random_flip or config.random_shift or config.random_zoom:
            image = F.grid_sample(image, grid.to(image.dtype), padding_mode="reflection", align_corners=False)
        if config.random_brightness:
            mean = image.mean(dim=(1, 2, 3), keepdim=True)
            image = mean + (1 + config.random_brightness * contrast) * (image - mean)
            image = image + 2 * config.random_brightness * brightness  # the range is 2 wide
        if config.random_noise:
            deviation = image.std(dim=(1, 2, 3), keepdim=True)
            image = image + config.random_noise * noisiness * deviation * noise
        return image.clamp(-1, 1)

    return change
