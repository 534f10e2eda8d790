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

__all__ = ["decode_latents", "encode_latents", "fold_patches", "image_channels", "image_posterior"]


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


def encode_latents(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """What a latent diffusion model sees of images: the means of their posteriors, scaled; float32.

    Args:
        vae: Whose ``shift_factor`` and ``scaling_factor`` give latents the mean 0 and the standard deviation 1.
        image: Images in [-1, 1], shape (B, C, H, W).

    Raises:
        ValueError: See :func:`fold_patches`.
    """
    latents = vae.encode(fold_patches(vae, image.to(vae.dtype))).latent_dist.mode().float()
    return (latents - (vae.config["shift_factor"] or 0)) * vae.config["scaling_factor"]


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The images of latents of :func:`encode_latents`, float32."""
    latents = latents / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0)
    patches = vae.decode(latents.to(vae.dtype)).sample.float()
    return F.pixel_shuffle(patches, math.isqrt(patches.shape[1] // image_channels(vae)))


def image_channels(vae: AutoencoderKL) -> int:
    """Channels of the images that a VAE takes: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: If the VAE's channels are those of no square patches of such images.
    """
    channels = vae.config["in_channels"]
    for own in (1, 3):
        if own * math.isqrt(channels // own) ** 2 == channels:
            return own
    raise ValueError(f"vae takes {channels} channels, which are no square patches of grey or RGB images.")


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
