"""What must not change does not, bit for bit, in the pipelines of all image models."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softcft import BackboneOutput, CounterfactualPipeline, DSCMPipeline, example_model
from softcft.data.pictures import read_picture
from softcft.pipelines.masks import FEATHER
from tests.own_models import Additive
from tests.pipelines import test_counterfactual, test_diffusion_dscm, test_dscm

KINDS = ["hvae", "diffusion", "ddim", "latents", "own"]


def disc(size: int) -> np.ndarray:
    """A mask in the left half."""
    y, x = np.mgrid[:size, :size]
    return (y - size / 2) ** 2 + (x - size / 4) ** 2 < (0.22 * size) ** 2


@pytest.fixture(scope="module")
def pipelines() -> dict[str, tuple[Any, int, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each with the size of its images, attributes of one, an intervention, and further arguments."""
    parents, do = test_dscm.row(0), {"sex": "female", "race": "White"}
    other, change, steps = {"size": 2.0, "state": "off", "site": "a"}, {"size": 9.0}, {"num_inference_steps": 10}
    pixels, latents = test_diffusion_dscm.build(), test_diffusion_dscm.build(vae=test_diffusion_dscm.make_vae())
    return {
        "hvae": (test_dscm.build(), test_dscm.SIZE, parents, do, {}),
        "diffusion": (pixels, 8, other, change, steps),
        "ddim": (pixels, 8, other, change, {**steps, "abduction": "ddim"}),
        "latents": (latents, latents.image_format.size, other, change, steps),
        "own": (test_counterfactual.make(Additive()), test_dscm.SIZE, parents, do, {}),
    }


def pictures(number: int, size: int) -> np.ndarray:
    return np.random.default_rng(number).random((number, size, size)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_of_the_mask_nothing_changes_bit_for_bit(kind: str, pipelines: Any) -> None:
    """Dark floats, too, of which [-1, 1] would lose the last bits."""
    pipe, size, parents, do, settings = pipelines[kind]
    mask, (image,) = disc(size), pictures(1, size)
    eight_bits = (255 * image).astype(np.uint8)
    for given in (image**8, eight_bits, Image.fromarray(eight_bits)):
        expected = (
            given if isinstance(given, np.ndarray) and given.dtype == np.float32 else eight_bits / np.float32(255)
        )
        for form in ("np", "pt"):
            output = pipe(given, parents, do, mask=mask, output_type=form, **settings)
            changed, effect = (np.asarray(x).reshape(size, size) for x in (output.images, output.effects))
            assert np.array_equal(changed[~mask], expected[~mask])
            assert not effect[~mask].any()
            assert np.abs(effect[mask]).max() > 1e-4
            np.testing.assert_allclose(changed - expected, effect, atol=1e-6)
        (picture,) = pipe(given, parents, do, mask=mask, **settings).images
        assert np.array_equal(np.asarray(picture)[~mask], (255 * expected[~mask]).round())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("ddim", "latents")])
def test_a_null_intervention_returns_the_image_within_a_mask_too(kind: str, pipelines: Any) -> None:
    pipe, size, parents, _, settings = pipelines[kind]
    (image,) = pictures(1, size)
    output = pipe(image, parents, mask=disc(size), output_type="np", **settings)
    np.testing.assert_allclose(output.images[0, ..., 0], image, atol=1e-5)


class Brighter:
    """Makes every image brighter by a constant."""

    in_channels, sample_size = 1, 64

    def counterfactual(self, image: Any, parents: Any, others: Any, generator: Any = None) -> BackboneOutput:
        return BackboneOutput(image=image + 0.8)


def test_a_change_grows_smoothly_from_the_border_and_is_whole_inside() -> None:
    pipe = CounterfactualPipeline(Brighter(), test_dscm.build().attribute_scm, None)
    image, mask = np.full((64, 64), 0.25, np.float32), np.zeros((64, 64), bool)
    mask[20:, :40] = True  # two of its sides are edges of the image
    effect = pipe(image, test_dscm.row(0), mask=mask, output_type="np").effects[0, ..., 0]
    width = round(64 * FEATHER)
    assert effect[20 + width :, : 40 - width] == pytest.approx(0.4, abs=1e-6)
    steps = [np.abs(np.diff(effect, axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < 1.6 * 0.4 / (width + 1)
    assert (np.diff(effect[:, 0]) >= -1e-6).all()
    half = pipe(image, test_dscm.row(0), mask=0.5 * mask, output_type="np").effects[0, ..., 0]
    assert half.max() == pytest.approx(0.2, abs=1e-6)


def test_there_is_no_seam_in_an_image() -> None:
    """Across the border pixels differ as in the image itself. Without a blend they do by twice as much."""
    pipe = DSCMPipeline.from_pretrained(example_model())
    image = np.asarray(Image.open(example_model() / "examples" / "0.png"))
    y, x = np.mgrid[:64, :64]
    mask = (y - 32) ** 2 + (x - 32) ** 2 < 18**2
    parents = {"age": 44.6, "sex": "male", "race": "White", "disease": "no finding"}

    def across(picture: np.ndarray) -> float:
        steps = [np.abs(np.diff(picture.astype(float), axis=a))[np.diff(mask, axis=a)] for a in (0, 1)]
        return np.concatenate(steps).mean()

    for do in ({"sex": "female"}, {"disease": "pleural effusion"}):
        whole, blended = (np.asarray(pipe(image, parents, do, mask=m).images[0]) for m in (None, mask))
        assert across(blended) < 1.1 * across(image)
        assert across(np.where(mask, whole, image)) > 1.5 * across(image)


def test_masks_of_each_image_and_of_each_intervention(pipelines: Any) -> None:
    pipe, size, parents, do, _ = pipelines["hvae"]
    images, mask = pictures(3, size), disc(size)
    masks = [mask, mask[:, ::-1], mask.T]
    together = pipe(list(images), [parents] * 3, do, mask=masks, output_type="np").images
    shared = pipe(list(images), [parents] * 3, do, mask=mask, output_type="np").images
    for i in range(3):
        alone = pipe(images[i], parents, do, mask=masks[i], output_type="np").images[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-5)
        assert np.array_equal(shared[i, ..., 0][~mask], images[i][~mask])
    ages = pipe(images[0], parents, {"age": [20, 50, 90]}, mask=masks, output_type="np").images
    for i in range(3):
        assert np.array_equal(ages[i, ..., 0][~masks[i]], images[0][~masks[i]])
        assert not np.array_equal(ages[i, ..., 0][masks[i]], images[0][masks[i]])
    for wrong, given in ((masks[:2], list(images)), (masks[:2], images[0]), ([], images[0])):
        with pytest.raises(ValueError, match="mask"):
            pipe(given, parents, do, mask=wrong)


def test_the_same_mask_in_any_form(pipelines: Any, tmp_path: Path) -> None:
    pipe, size, parents, do, _ = pipelines["own"]
    mask, (image,) = disc(size), pictures(1, size)
    eight_bits = 255 * mask.astype(np.uint8)
    Image.fromarray(eight_bits).convert("RGB").save(tmp_path / "mask.png")
    forms = [
        mask.astype(np.uint8),
        eight_bits,
        65535 * mask.astype(np.uint16),
        mask.astype(np.float64),
        mask[..., None],
    ]
    forms += [mask[None], mask[None, ..., None], torch.tensor(mask), torch.tensor(mask)[None, None].half()]
    forms += [[mask], Image.fromarray(mask), Image.fromarray(eight_bits), tmp_path / "mask.png", 255.0 * mask]
    expected = pipe(image, parents, do, mask=mask, output_type="np").images
    for form in forms:
        assert np.array_equal(pipe(image, parents, do, mask=form, output_type="np").images, expected)


def test_a_mask_is_fitted_with_its_image(pipelines: Any, tmp_path: Path) -> None:
    """Scaled and cut alike. A pixel may change if any part of it may, and 16 bits are read as 8."""
    pipe, size, parents, do, _ = pipelines["own"]
    deep = np.random.default_rng(0).integers(0, 65536, (3 * size, 4 * size), np.uint16)
    Image.fromarray(deep).save(tmp_path / "scan.png")
    mask = np.zeros(deep.shape, bool)
    mask[3 * 4 : 3 * 9 + 1, size // 2 + 3 * 2 : size // 2 + 3 * 7] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inside = np.zeros((size, size), bool)
    inside[4:10, 2:7] = True
    seen = np.asarray(read_picture(tmp_path / "scan.png", 1, size))
    for image in (tmp_path / "scan.png", deep, Image.open(tmp_path / "scan.png")):
        for form in (mask, tmp_path / "mask.png"):
            output = pipe(image, parents, do, mask=form, fit=True)
            assert np.array_equal(np.asarray(output.images[0])[~inside], seen[~inside])
            assert (output.effects[0, ..., 0] != 0).sum() > 0.9 * inside.sum()
    edge = np.zeros(deep.shape, bool)
    edge[:, :3] = True  # cut off
    for wrong in (edge, mask.T, mask[:, :-1], disc(size)):
        with pytest.raises(ValueError, match="mask"):
            pipe(tmp_path / "scan.png", parents, do, mask=wrong, fit=True)
    pair = [deep, deep[:, : 3 * size]]
    with pytest.raises(ValueError, match="mask"):
        pipe(pair, parents, do, mask=mask, fit=True)
    pipe(pair, parents, do, mask=[mask, mask[:, : 3 * size]], fit=True)


def test_bad_masks_are_refused_and_a_mask_of_all_is_told(
    pipelines: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, size, parents, do, _ = pipelines["own"]
    mask, (image,) = disc(size), pictures(1, size)
    drawing = Image.new("RGBA", (size, size))
    (tmp_path / "text.png").write_text("no picture")
    bad = [
        ~mask & mask,
        mask[1:],
        2 * mask.astype(np.uint8),
        -mask.astype(int),
        1.5 * mask,
        np.where(mask, np.nan, 0.0),
    ]
    bad += [
        np.stack([mask] * 3, axis=2),
        torch.tensor(mask)[None, None, None],
        mask * 1j,
        torch.empty(1, device="meta"),
    ]
    bad += [drawing, "nowhere.png", tmp_path / "text.png", True, 1, {}, "", object(), [None], np.zeros((0, 0)), b"x"]
    for wrong in bad:
        with pytest.raises(ValueError, match="mask"):
            pipe(image, parents, do, mask=wrong)
    with caplog.at_level(logging.WARNING):
        everywhere = pipe(image, parents, do, mask=np.ones((size, size)), output_type="np")
    assert "mask" in caplog.text
    np.testing.assert_allclose(everywhere.images, pipe(image, parents, do, output_type="np").images, atol=1e-6)
