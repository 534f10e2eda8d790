"""Folding patches into channels: what networks of diffusers see, and how large images are told from it."""

import pytest
import torch

from softcft.models.patches import fold_patches, overlap_patches, patch_size_of, unfold_patches


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


@pytest.mark.parametrize("patch_size", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_overlapping_patches_of_one_colour_are_an_image_of_it(patch_size: int, channels: int) -> None:
    patches = torch.full((2, channels * 4 * patch_size**2, 3, 3), 0.7)
    image = overlap_patches(patches, patch_size)
    assert image.shape == (2, channels, 3 * patch_size, 3 * patch_size)
    assert torch.allclose(image, torch.tensor(0.7))


def test_a_patch_fades_into_its_neighbours() -> None:
    """From one patch to the next no pixel differs from the one beside it by more than a smooth ramp does."""
    patches = torch.zeros(1, 4 * 8**2, 5, 5)
    patches[..., 2, 2] = 1
    image = overlap_patches(patches, 8)[0, 0]
    assert image.max() == pytest.approx(1, abs=0.03)
    assert image.diff(dim=0).abs().max() < 0.2
    assert image[:12].abs().max() == 0  # half a patch beyond its own eight pixels it is gone
