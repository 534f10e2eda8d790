"""Random changes of the images that a classifier learns from, which keep the attributes.

The gradient of a classifier that overfits a few thousand images is mostly noise, and an image model that is fine-tuned
with it learns to add that noise. Training on moved and noisy images helps (docs/attacks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from softcft.arguments import ProperShare, check_fields
from softcft.noise import Generator, uniform

__all__ = ["AugmentationConfig", "random_change"]


@dataclass(kw_only=True)
class AugmentationConfig:
    """How images are changed at random while a classifier learns, each anew at every step. 0 turns a change off.

    Leave out changes that change an attribute: brightness, if an attribute is the intensity; flips, if left and right
    differ, as in the chest.

    Raises:
        ValueError: If a value is out of range. The message names the flag.
    """

    random_flip: bool = field(
        default=False, metadata={"help": "Mirror half of the images, drawn at random, left to right."}
    )
    random_shift: ProperShare = field(
        default=0.0,
        metadata={"help": "Move images by up to this share of their side, in each direction; the rim is mirrored in."},
    )
    random_zoom: ProperShare = field(
        default=0.0, metadata={"help": "Make what they show larger or smaller by up to this share."}
    )
    random_brightness: ProperShare = field(
        default=0.0,
        metadata={
            "help": "Add up to this share of the range from black to white; change contrast by up to this share."
        },
    )
    random_noise: ProperShare = field(
        default=0.0,
        metadata={"help": "Add noise of up to this share of the standard deviation of the image's pixels."},
    )

    def __post_init__(self) -> None:
        check_fields(self)


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
