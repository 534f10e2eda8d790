"""Pictures that are negatives of the others: dark where these are bright, and bright where they are dark.

So are X-ray images that were exported without a look at their tag: ``MONOCHROME1`` among ``MONOCHROME2``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["find_negatives", "thumbnail"]

SIDE = 16
FEW = 20  # pictures of which nothing can be said
CLEAR = 0.3  # correlation with the pattern that is common to all, and at least half of the median
MOST = 0.95  # share of the pictures that must have so clear a one, of either sign
AS_CLEAR = 0.75  # that of negatives to that of the others
FLAT = 2.0  # grey levels, of all of them
COLOUR = 8.0  # grey levels between the channels


def thumbnail(pixels: np.ndarray) -> np.ndarray | None:
    """The coarse pattern of a grey picture.

    Args:
        pixels: uint8 of shape (H, W) or (H, W, 3).

    Returns:
        uint8 of shape (16, 16); None of a picture in colour.
    """
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    if small.ndim == 3:
        if np.ptp(small.astype(float), axis=2).mean() > COLOUR:
            return None
        small = small[..., 1]
    return small


def find_negatives(thumbnails: Sequence[np.ndarray | None]) -> list[int]:
    """Which pictures of a set are negatives of the others.

    The first principal component of the patterns, each without its mean and of unit length, is what pictures of one
    thing in one position have in common. Where nearly all pictures correlate with it clearly, some of them with the
    other sign and as clearly, these are negatives. Pictures of many things have no such pattern: nothing is said of
    them.

    Args:
        thumbnails: Of :func:`thumbnail`.

    Returns:
        The places of those that are fewer; empty if all are alike or nothing can be said.
    """
    known = {i: small for i, small in enumerate(thumbnails) if small is not None and small.std() > FLAT}
    if len(known) < FEW:
        return []
    patterns = np.stack(list(known.values())).reshape(len(known), -1).astype(float)
    patterns -= patterns.mean(axis=1, keepdims=True)
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    common = np.linalg.eigh(patterns.T @ patterns)[1][:, -1]
    alike = patterns @ common
    alike = alike if (alike > 0).sum() >= len(alike) / 2 else -alike
    found = alike < 0
    size = np.abs(alike)
    if found.sum() < 2 or (size > max(CLEAR, np.median(size) / 2)).mean() < MOST:
        return []
    if np.median(size[found]) < AS_CLEAR * np.median(size[~found]):
        return []  # the lower end of one distribution
    return [i for i, is_negative in zip(known, found, strict=True) if is_negative]
