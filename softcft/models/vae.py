"""An unconditional VAE of images, diffusers' ``AutoencoderKL``, for latent diffusion and for distances between images.

It may see patches of pixels, see :mod:`softcft.models.patches`.
"""

from __future__ import annotations

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from softcft.models.patches import fold_patches, patch_size_of, unfold_patches

__all__ = ["decode_latents", "encode_latents", "image_posterior", "latent_stride"]


def encode_latents(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """The latents of images for a latent diffusion model: the means of their posteriors, scaled; float32.

    Args:
        vae: Whose ``shift_factor`` and ``scaling_factor`` give latents the mean 0 and the standard deviation 1.
        image: Images in [-1, 1], shape (B, C, H, W).

    Raises:
        ValueError: See :func:`~softcft.models.patches.fold_patches`.
    """
    latents = vae.encode(fold_patches(image.to(vae.dtype), vae.config["in_channels"])).latent_dist.mode().float()
    return (latents - (vae.config["shift_factor"] or 0)) * vae.config["scaling_factor"]


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The images of latents of :func:`encode_latents`, float32."""
    latents = latents / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0)
    patches = vae.decode(latents.to(vae.dtype)).sample.float()
    channels, _ = patch_size_of(vae.config["in_channels"])
    return unfold_patches(patches, channels)


def latent_stride(vae: AutoencoderKL) -> int:
    """Pixels of the image along each side of a latent."""
    _, patch_size = patch_size_of(vae.config["in_channels"])
    return patch_size * 2 ** (len(vae.config["block_out_channels"]) - 1)


def image_posterior(vae: AutoencoderKL, image: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log standard deviations of the D latents of images (B, C, H, W) in [-1, 1], each float32 (B, D).

    Raises:
        ValueError: See :func:`~softcft.models.patches.fold_patches`.
    """
    posterior = vae.encode(fold_patches(image, vae.config["in_channels"])).latent_dist
    return posterior.mean.float().flatten(1), 0.5 * posterior.logvar.float().flatten(1)
