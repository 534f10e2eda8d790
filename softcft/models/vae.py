"""An unconditional VAE of images, diffusers' ``AutoencoderKL``, whose posteriors tell how far apart two images are.

It knows no attributes and no causal model, so it can judge all of these. Nearly all that ``AutoencoderKL`` costs it
costs at full resolution: here it sees patches of p x p pixels folded into channels, and the number of channels that it
takes tells p.
"""

from __future__ import annotations

import math

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fold_patches", "image_posterior"]


def fold_patches(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """Fold patches of pixels into channels, as many as the VAE takes.

    Args:
        vae: Takes ``C * p**2`` channels.
        image: Shape (B, C, H, W).

    Returns:
        The same pixels, shape (B, C * p**2, H / p, W / p).

    Raises:
        ValueError: If the VAE's channels are not a square number for each channel of the image, or the side of these
            squares does not divide the image.
    """
    channels, (_, own, height, width) = vae.config["in_channels"], image.shape
    patch_size = math.isqrt(channels // own)
    if own * patch_size**2 != channels or height % patch_size or width % patch_size:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, but the VAE takes {channels} channels: it must have C channels and "
            f"sides that p divides, with C * p**2 = {channels}. Pass images as the VAE was trained on."
        )
    return F.pixel_unshuffle(image, patch_size)


def image_posterior(vae: AutoencoderKL, image: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal normal distribution of the latents of each image.

    Args:
        vae: From ``recipes/train_vae.py``.
        image: Images in [-1, 1], shape (B, C, H, W).

    Returns:
        Means and log standard deviations (half the log variances), float32, each of shape (B, D) for D latent
        dimensions.

    Raises:
        ValueError: See :func:`fold_patches`.
    """
    posterior = vae.encode(fold_patches(vae, image)).latent_dist
    return posterior.mean.float().flatten(1), 0.5 * posterior.logvar.float().flatten(1)
