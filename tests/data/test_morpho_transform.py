import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from softcft.data.morpho_transform import (
    _bicubic,
    _dilate,
    _footprint,
    measure_thickness,
    redraw_digit,
    stroke_mask,
)
from softcft.data.morphomnist import find_files, read_files, read_idx

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = Path(os.environ.get("MORPHOMNIST_DIR", SHARED / "morphomnist"))
MNIST = Path(os.environ.get("MNIST_DIR", SHARED / "mnist"))


def hook(width: float = 2.5) -> np.ndarray:
    """Something like a 7, with a stroke of this many pixels."""
    large = Image.new("L", (280, 280))
    points = [(80, 80), (190, 80), (120, 215)]
    ImageDraw.Draw(large).line(points, fill=255, width=round(10 * width), joint="curve")
    return np.asarray(large.resize((28, 28), Image.Resampling.BOX))


def bar(height: int) -> np.ndarray:
    """A stroke at 16 times the resolution of a digit."""
    mask = np.zeros((448, 448), bool)
    mask[100 : 100 + height, 24:424] = True
    return mask


def median(image: np.ndarray) -> float:
    return float(np.median(image[image >= (int(image.min()) + int(image.max())) / 2]))


def test_the_published_images_byte_for_byte() -> None:
    if not (REAL.is_dir() and MNIST.is_dir()):
        pytest.skip("the files of Morpho-MNIST and MNIST are not here; MORPHOMNIST_DIR and MNIST_DIR may name them")
    images, columns = read_files(*find_files(REAL, "t10k"))
    digits = read_idx(MNIST / "t10k-images-idx3-ubyte.gz", 3)
    for row in [*range(20), 25, 1140, 1415]:  # the last three need the radius whose footprint rounding decides
        redrawn = redraw_digit(digits[row], columns["thickness"][row], columns["intensity"][row])
        np.testing.assert_array_equal(redrawn, images[row], err_msg=f"image {row}")


@pytest.mark.parametrize("thickness", [1.2, 2.5, 4.0, 6.0])
def test_a_redrawn_stroke_has_the_thickness_asked_for(thickness: float) -> None:
    redrawn = redraw_digit(hook(), thickness, 255)
    # Not exactly: blur widens a thin stroke, and a dilated corner is rounded. On the data set the mean error is 0.13.
    assert measure_thickness(stroke_mask(redrawn)) == pytest.approx(thickness, abs=0.3, rel=0.1)


@pytest.mark.parametrize("intensity", [67.3, 128, 254.9])
def test_a_redrawn_stroke_has_the_intensity_asked_for(intensity: float) -> None:
    assert intensity - 1 <= median(redraw_digit(hook(), 3, intensity)) <= intensity


def test_a_thicker_stroke_covers_a_thinner_one() -> None:
    thin, middle, thick = (redraw_digit(hook(), t, 255) > 127 for t in (1.5, 2.5, 4))
    assert (middle | thin == middle).all()
    assert (thick | middle == thick).all()
    assert thin.sum() < middle.sum() < thick.sum()


def test_a_stroke_that_has_its_thickness_stays_as_it_is() -> None:
    measured = measure_thickness(stroke_mask(hook()))
    redrawn = redraw_digit(hook(), measured, 255)
    np.testing.assert_array_equal(redrawn, redraw_digit(hook(), measured + 0.12, 255))  # less than a 16th on each side
    shared = (redrawn > 127) & (hook() > 127)
    assert shared.sum() > 0.9 * (hook() > 127).sum()


def test_a_known_thickness_need_not_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure_thickness(stroke_mask(hook()))
    expected = redraw_digit(hook(), 3, 200)
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    np.testing.assert_array_equal(redraw_digit(hook(), 3, 200, measured), expected)
    with pytest.raises(ImportError, match=r"pip install 'softcft\[morphomnist\]'"):
        redraw_digit(hook(), 3, 200)


def test_erosion_may_leave_nothing() -> None:
    assert not redraw_digit(hook(1.5), 0.01, 200, measured=6.0).any()


@pytest.mark.parametrize("height", [20, 41, 64])
def test_the_thickness_of_a_bar(height: int) -> None:
    # The axis of a bar 400 long is a line of 400 - h pixels at the distance h / 2, and four arms of h / 2 pixels into
    # the corners at h / 4 on average: (h / 2) 400 / (400 + h) in all.
    assert measure_thickness(bar(height)) == pytest.approx(height / 16 * 400 / (400 + height), rel=0.03)


def test_thickness_does_not_depend_on_the_place_or_on_chance() -> None:
    np.random.seed(1)  # noqa: NPY002  # the old generator's global state must not matter
    first = measure_thickness(bar(40))
    np.random.seed(2)  # noqa: NPY002
    assert measure_thickness(np.roll(bar(40), (50, -10), (0, 1))) == first
    assert measure_thickness(np.roll(bar(40), (-100, 0), (0, 1))) > 1.2 * first  # at the border there is no background


def test_dilation_is_the_maximum_over_the_footprint() -> None:
    mask = np.random.default_rng(0).random((60, 50)) > 0.995
    mask[0, 3] = mask[59, 49] = True  # the border is mirrored
    for radius in (1, 4, 9):
        expected = ndimage.maximum_filter(mask.astype(np.uint8), footprint=_footprint(radius), mode="reflect")
        np.testing.assert_array_equal(_dilate(mask, radius), expected.astype(bool))


@pytest.mark.parametrize("radius", [1, 5, 19, 30])
def test_footprints_hold_the_disc_and_little_more(radius: int) -> None:
    footprint = _footprint(radius)
    assert footprint.shape == (2 * radius + 1, 2 * radius + 1)
    offsets = np.arange(-radius, radius + 1)
    distance = np.hypot(offsets[:, None], offsets)
    assert footprint[distance <= radius].all()
    assert not footprint[distance > radius + 3].any()


@pytest.mark.parametrize(("size", "old_size"), [(448, 28), (112, 28)])
def test_upscaling_is_bicubic(size: int, old_size: int) -> None:
    pixels = np.random.default_rng(0).random((old_size, old_size)).astype(np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    weights = _bicubic(size, old_size)
    inside = slice(2 * size // old_size, -2 * size // old_size)  # borders are treated in another way
    np.testing.assert_allclose((weights @ pixels @ weights.T)[inside, inside], expected[inside, inside], atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("digit", "message"),
    [
        (np.zeros((32, 32), np.uint8), r"digit must"),
        (np.zeros((28, 28)), r"digit must"),
        (np.full((28, 28), 7, np.uint8), "digit must"),
    ],
)
def test_what_is_no_digit_is_refused(digit: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        redraw_digit(digit, 2, 200)
