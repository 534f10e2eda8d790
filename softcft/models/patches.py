"""Patches of pixels folded into channels, for networks whose cost is nearly all at full resolution.

The number of channels that a network takes tells the side of its patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fold_patches", "overlap_patches", "patch_size_of", "unfold_patches"]


def fold_patches(image: Tensor, channels: int) -> Tensor:
    """Fold patches of p x p pixels into channels.

    Args:
        image: Shape (B, C, H, W).
        channels: As many as the network takes, ``C * p**2``.

    Returns:
        The same pixels, shape (B, C * p**2, H / p, W / p).

    Raises:
        ValueError: If ``channels`` are not a square number for each channel of the image, or the side of these squares
            does not divide the image.
    """
    own, height, width = image.shape[1:]
    patch_size = math.isqrt(channels // own)
    if own * patch_size**2 != channels or height % patch_size or width % patch_size:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, but the network takes {channels} channels: it must have C channels "
            f"and sides that p divides, with C * p**2 = {channels}. Pass images as the network was trained on."
        )
    return F.pixel_unshuffle(image, patch_size)


def unfold_patches(patches: Tensor, channels: int) -> Tensor:
    """The inverse of :func:`fold_patches`: patches (B, C * p**2, H / p, W / p) to images of C channels."""
    return F.pixel_shuffle(patches, math.isqrt(patches.shape[1] // channels))


def overlap_patches(patches: Tensor, patch_size: int) -> Tensor:
    """The image of patches that are twice as large as the distance between them and fade into their neighbours.

    Weights are a squared sine across each patch and add up to 1 at each pixel. The outermost patches are repeated
    beyond the border.

    Args:
        patches: Shape (B, C * (2 * p)**2, R, R).
        patch_size: The distance p, an even number of pixels.

    Returns:
        Shape (B, C, R * p, R * p).
    """
    width, side = 2 * patch_size, patches.shape[-1] * patch_size
    fade = torch.sin((torch.arange(width, device=patches.device) + 0.5) * (math.pi / width)).square().to(patches.dtype)
    patches = F.pad(patches, (1, 1, 1, 1), mode="replicate")
    weighted = patches.unflatten(1, (-1, width * width)) * torch.outer(fade, fade).flatten()[:, None, None]
    return F.fold(
        weighted.flatten(1, 2).flatten(2), (side, side), width, padding=3 * patch_size // 2, stride=patch_size
    )


def patch_size_of(channels: int, of: tuple[int, ...] = (1, 3)) -> tuple[int, int]:
    """The image channels and the side of the patches of a network that takes ``channels``.

    Args:
        channels: Of the network.
        of: The channels that images may have: 1 (grey) or 3 (RGB), or those of latents.

    Raises:
        ValueError: If these are no square patches of such images.
    """
    for own in of:
        if own * (patch_size := math.isqrt(channels // own)) ** 2 == channels:
            return own, patch_size
    images = "grey or RGB images" if of == (1, 3) else f"latents of {of[0]} channels"
    raise ValueError(f"The network takes {channels} channels, which are no square patches of {images}.")
