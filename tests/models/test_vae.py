import torch
from diffusers import AutoencoderKL
from torch.distributions import Normal, kl_divergence

from softcft.models.vae import image_posterior


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
