"""Folding patches into channels: what networks of diffusers see, and how large images are told from it."""

import pytest
import torch

from softcft.models.patches import fold_patches, patch_size_of, unfold_patches


@pytest.mark.parametrize(("channels", "patch_size"), [(1, 1), (1, 4), (3, 1), (3, 2)])
def test_the_number_of_channels_says_how_large_patches_are(channels: int, patch_size: int) -> None:
    image, folded_channels = torch.randn(2, channels, 16, 16), channels * patch_size**2
    folded = fold_patches(image, folded_channels)
    assert folded.shape == (2, folded_channels, 16 // patch_size, 16 // patch_size)
    # Any channel of a patch is one of its pixels.
    assert torch.equal(folded[:, :, 0, 0].sort().values, image[:, :, :patch_size, :patch_size].flatten(1).sort().values)
    assert torch.equal(unfold_patches(folded, channels), image)
    assert patch_size_of(folded_channels) == (channels, patch_size)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 15, 16), (2, 3, 16, 15), (2, 16, 16, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="but the network takes 12 channels"):
        fold_patches(torch.zeros(shape), 12)


def test_channels_of_no_image_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 5 channels"):
        patch_size_of(5)
