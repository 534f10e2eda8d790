"""Effect maps, counterfactual minus factual image, as pictures."""

from __future__ import annotations

import numpy as np

__all__ = ["EFFECT_COLOURS", "EFFECT_LIMIT", "effect_colours"]

EFFECT_LIMIT = 0.3  # of the full grey range: fixed, so that effect maps can be compared
# Red is brighter, blue darker, white unchanged: ColorBrewer's RdBu, reversed, as in the report's figures, but for its
# middle, which is white here.
EFFECT_COLOURS = np.array(
    [
        [5, 48, 97],
        [33, 102, 172],
        [67, 147, 195],
        [146, 197, 222],
        [209, 229, 240],
        [255, 255, 255],
        [253, 219, 199],
        [244, 165, 130],
        [214, 96, 77],
        [178, 24, 43],
        [103, 0, 31],
    ]
)


def effect_colours(effect: np.ndarray) -> np.ndarray:
    """Colour the change of pixels (H, W, C) in [-1, 1] by its mean over channels, as uint8 of shape (H, W, 3).

    Brighter is red, darker blue, unchanged white, clamped at :data:`EFFECT_LIMIT` of the grey range.
    """
    place = (effect.mean(axis=2) / EFFECT_LIMIT + 1) / 2
    stops = np.linspace(0, 1, len(EFFECT_COLOURS))
    return np.stack([np.interp(place, stops, c) for c in EFFECT_COLOURS.T], axis=2).round().astype(np.uint8)
