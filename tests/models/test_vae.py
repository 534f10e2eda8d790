import pytest
import torch
from diffusers import AutoencoderKL
from torch.distributions import Normal, kl_divergence

from softcft.models.vae import fold_patches, image_posterior


def make_vae(channels: int) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        latent_channels=3,
        norm_num_groups=4,
    )


@pytest.mark.parametrize(("channels", "patch_size"), [(1, 1), (1, 4), (3, 1), (3, 2)])
def test_the_vae_says_how_large_patches_are(channels: int, patch_size: int) -> None:
    image = torch.randn(2, channels, 16, 16)
    folded = fold_patches(make_vae(channels * patch_size**2), image)
    assert folded.shape == (2, channels * patch_size**2, 16 // patch_size, 16 // patch_size)
    assert torch.equal(torch.nn.functional.pixel_shuffle(folded, patch_size), image)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 15, 16), (2, 3, 16, 15), (2, 16, 16, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="but the VAE takes 12 channels"):
        fold_patches(make_vae(12), torch.zeros(shape))


@torch.no_grad()
def test_the_posterior_is_that_of_the_vae_with_standard_deviations() -> None:
    vae, image = make_vae(4), torch.rand(3, 1, 16, 16) * 2 - 1
    loc, log_scale = image_posterior(vae, image)
    assert loc.shape == log_scale.shape == (3, 3 * 4 * 4)
    expected = vae.encode(torch.nn.functional.pixel_unshuffle(image, 2)).latent_dist
    divergence = kl_divergence(Normal(loc, log_scale.exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(divergence, expected.kl())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert image_posterior(vae, image)[1].dtype == torch.float32
