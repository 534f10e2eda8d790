from collections.abc import Callable

import numpy as np
import pytest

from softcft.data.negatives import find_negatives, thumbnail

N = 90
Y, X = np.mgrid[:48, :48] / 47

Shape = Callable[[np.random.Generator], np.ndarray]


def chest(rng: np.random.Generator) -> np.ndarray:
    """Two dark lungs in a bright body, differently large and placed."""
    a, b = 0.05 * rng.standard_normal(2)
    lungs = sum(np.exp(-(((X - c - a) / 0.13) ** 4) - ((Y - 0.45 - b) / 0.3) ** 4) for c in (0.3, 0.7))
    return 0.7 - rng.uniform(0.2, 0.5) * lungs + 0.05 * rng.standard_normal(X.shape)


def stroke(rng: np.random.Generator) -> np.ndarray:
    """A thin bright line on black, of any slope, as of digits."""
    slope = rng.uniform(-0.5, 0.5)
    return np.exp(-(((X - 0.5 - slope * (Y - 0.5)) / 0.1) ** 2)) * (np.abs(Y - 0.5) < 0.35)


def shade(rng: np.random.Generator) -> np.ndarray:
    """Nothing but a level of grey."""
    return np.full(X.shape, rng.uniform()) + 0.01 * rng.standard_normal(X.shape)


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(size=X.shape)


def ramp(rng: np.random.Generator) -> np.ndarray:
    """Light from any side."""
    angle = rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.3 * (np.cos(angle) * (X - 0.5) + np.sin(angle) * (Y - 0.5))


def clouds(rng: np.random.Generator) -> np.ndarray:
    """Bright and dark places anywhere."""
    return 0.5 + 0.1 * np.kron(rng.standard_normal((4, 4)), np.ones((12, 12)))


def draw(shape: Shape, inverted: set[int], n: int = N, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    grey = [(255 * np.clip(shape(rng), 0, 1)).astype(np.uint8) for _ in range(n)]
    return [255 - pixels if i in inverted else pixels for i, pixels in enumerate(grey)]


@pytest.mark.parametrize("shape", [chest, stroke])
@pytest.mark.parametrize("inverted", [set(range(0, N, 3)), set(range(0, N, 2)) - {0}, {7, 70}], ids=len)
@pytest.mark.parametrize("channels", [1, 3])
def test_negatives_among_pictures_of_one_thing_are_found(shape: Shape, inverted: set[int], channels: int) -> None:
    pictures = draw(shape, inverted)
    if channels == 3:
        pictures = [np.stack([pixels] * 3, axis=2) for pixels in pictures]
    assert set(find_negatives([thumbnail(pixels) for pixels in pictures])) == inverted


@pytest.mark.parametrize("shape", [chest, stroke, shade, noise, ramp, clouds])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 25, N])
def test_there_are_none_among_pictures_that_are_as_they_should_be(shape: Shape, n: int, seed: int) -> None:
    assert find_negatives([thumbnail(pixels) for pixels in draw(shape, set(), n, seed)]) == []


def test_of_colours_nothing_is_said() -> None:
    pictures = [np.stack([pixels, 255 - pixels, pixels], axis=2) for pixels in draw(chest, set(range(0, N, 3)))]
    assert [thumbnail(pixels) for pixels in pictures] == [None] * N
    assert find_negatives([None] * N) == []
    assert find_negatives([]) == []
