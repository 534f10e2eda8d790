"""Redraw an MNIST digit at another stroke thickness and brightness, byte for byte as Morpho-MNIST was made.

The recipe is that of Pawlowski, Castro, Glocker (NeurIPS 2020) on top of Morpho-MNIST (Castro et al., JMLR 2019), as it
ran with scikit-image 0.16:

1. Upscale the digit 16 times: bicubic, then a Gaussian; quantise; the stroke is what lies above half the range.
2. Its thickness is twice the mean distance to the background along its medial axis.
3. Dilate or erode the stroke by half of what is missing. The footprint is a disc, made 16 times too large, scaled down
   and taken wherever it is not zero, which makes it wider than the disc.
4. Downscale: the same Gaussian, bicubic samples at the centres of the 28 x 28 pixels; truncate to 8 bits.
5. Scale brightness so that the median of the stroke is the intensity.

The medial axis is scikit-image's, the extra ``morphomnist``. It costs about 30 ms a digit, the rest 15 ms.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage, signal

__all__ = ["measure_intensity", "measure_thickness", "redraw_digit", "stroke_mask"]

SIDE = 28
FACTOR = 16
SIGMA = 2 * FACTOR / 6  # of the Gaussian, scikit-image's choice for a pyramid of this factor

# At this radius four pixels of the footprint lie on the edge of the Gaussian's reach, and rounding decides about them.
# The first four were in the footprint that made the published images, the second four were not.
TIED_RADIUS = 19
TIED_IN = ((2, 6), (32, 2), (32, 36), (36, 6))
TIED_OUT = ((2, 32), (6, 2), (6, 36), (36, 32))


def redraw_digit(digit: np.ndarray, thickness: float, intensity: float, measured: float | None = None) -> np.ndarray:
    """The digit of Morpho-MNIST that has this thickness and intensity.

    Args:
        digit: The digit of MNIST, uint8 of shape (28, 28).
        thickness: Mean width of the stroke in pixels.
        intensity: Median brightness of the stroke, 0 to 255.
        measured: Thickness of ``digit``, if known: :func:`measure_thickness` takes most of the time.

    Returns:
        uint8 of shape (28, 28); black where erosion leaves nothing of the stroke.

    Raises:
        ValueError: If the digit has another shape or type, or is blank.
        ImportError: If ``measured`` is left out and scikit-image is missing.
    """
    stroke = stroke_mask(digit)
    measured = measure_thickness(stroke) if measured is None else measured
    image = _downscale(_set_thickness(stroke, measured, thickness))
    if not image.any():
        return image
    scale = float(np.float32(intensity)) / measure_intensity(image)
    return np.clip(image * scale, 0, 255).astype(np.uint8)


def measure_intensity(digit: np.ndarray) -> float:
    """Median brightness of the stroke, 0 to 255: of all pixels (uint8, of any shape) from half of the range up."""
    return float(np.median(digit[digit >= (int(digit.min()) + int(digit.max())) / 2]))


def stroke_mask(digit: np.ndarray) -> np.ndarray:
    """The stroke of a digit (uint8 of shape (28, 28)) at 16 times its resolution, bool of shape (448, 448).

    Raises:
        ValueError: If the digit has another shape or type, or is blank.
    """
    if digit.shape != (SIDE, SIDE) or digit.dtype != np.uint8:
        raise ValueError(f"digit must be uint8 of shape ({SIDE}, {SIDE}), got {digit.dtype} of shape {digit.shape}.")
    if digit.min() == digit.max():
        raise ValueError(f"digit must show a stroke, but all its pixels are {digit.min()}.")
    pixels = digit / 255
    weights = _bicubic(SIDE * FACTOR, SIDE)
    smooth = ndimage.gaussian_filter(np.clip(weights @ pixels @ weights.T, pixels.min(), pixels.max()), SIGMA)
    quantised = _truncate(smooth)
    return quantised >= (int(quantised.min()) + int(quantised.max())) / 2


def measure_thickness(stroke: np.ndarray) -> float:
    """Mean width in pixels of the digit of a stroke from :func:`stroke_mask`.

    Raises:
        ImportError: If scikit-image is missing.
    """
    try:
        from skimage.morphology import medial_axis
    except ImportError as error:
        raise ImportError(
            "Morpho-MNIST's thickness is measured by scikit-image; install it by pip install 'softcft[morphomnist]'."
        ) from error
    # Where pixels tie, their order decides which one stays: a permutation by NumPy's old generator, as the recipe had.
    ties = np.random.default_rng(np.random.RandomState(0))
    axis, distance = medial_axis(_crop(stroke), return_distance=True, rng=ties)
    return 2 * float(distance[axis].mean()) / FACTOR


def _crop(stroke: np.ndarray) -> np.ndarray:
    """The stroke with one pixel of background around it; the whole mask if it touches the border."""
    rows, columns = np.flatnonzero(stroke.any(axis=1)), np.flatnonzero(stroke.any(axis=0))
    box = slice(rows[0] - 1, rows[-1] + 2), slice(columns[0] - 1, columns[-1] + 2)
    return stroke[box] if min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < len(stroke) - 1 else stroke


def _set_thickness(stroke: np.ndarray, measured: float, thickness: float) -> np.ndarray:
    missing = np.float32(thickness) - np.float32(measured)
    radius = int(FACTOR * abs(missing) / 2)
    if radius == 0:
        return stroke
    return _dilate(stroke, radius) if missing > 0 else ~_dilate(~stroke, radius)


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Whether the mask holds anywhere in the footprint around each pixel; beyond its border it is mirrored."""
    padded = np.pad(mask, radius, mode="symmetric").astype(np.float32)
    counts = signal.correlate(padded, _footprint(radius).astype(np.float32), mode="valid", method="fft")
    return counts > 0.5


@cache
def _footprint(radius: int) -> np.ndarray:
    """Bool of shape (2 radius + 1, 2 radius + 1), see step 3 of the recipe."""
    size, large = 2 * radius + 1, radius * FACTOR
    offsets = np.arange(-large, large + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= large**2).astype(float)
    centres = (np.arange(size) + 0.5) * len(offsets) / size - 0.5
    smooth = ndimage.gaussian_filter(disc, SIGMA)
    sampled = ndimage.map_coordinates(smooth, np.meshgrid(centres, centres, indexing="ij"), order=1)
    footprint = sampled > 1e-15  # what is less is zero but for rounding
    if radius == TIED_RADIUS:
        footprint[tuple(zip(*TIED_IN, strict=True))] = True
        footprint[tuple(zip(*TIED_OUT, strict=True))] = False
    footprint.setflags(write=False)
    return footprint


def _downscale(stroke: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(stroke.astype(float), SIGMA)
    weights = _bicubic(SIDE, SIDE * FACTOR)
    return _truncate(np.clip(weights @ smooth @ weights.T, smooth.min(), smooth.max()))


def _truncate(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] to 8 bits, rounded down."""
    return (255 * values).astype(np.uint8)


@cache
def _bicubic(size: int, old_size: int) -> np.ndarray:
    """Catmull-Rom weights of each of ``size`` samples over ``old_size`` pixels; the border is mirrored at pixels."""
    position = (np.arange(size) + 0.5) * old_size / size - 0.5
    start = np.floor(position)
    x = position - start
    taps = (
        x * (-1 + x * (2 - x)) / 2,
        1 + x * x * (-5 + 3 * x) / 2,
        x * (1 + x * (4 - 3 * x)) / 2,
        x * x * (-1 + x) / 2,
    )
    weights = np.zeros((size, old_size))
    for offset, tap in enumerate(taps, start=-1):
        pixel = np.abs(start.astype(int) + offset)
        pixel = np.where(pixel >= old_size, 2 * (old_size - 1) - pixel, pixel)
        weights[np.arange(size), pixel] += tap
    weights.setflags(write=False)
    return weights
