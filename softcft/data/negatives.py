"""Find pictures that are negatives of the others, such as X-ray images with the DICOM tag ``MONOCHROME1``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["find_negatives", "thumbnail"]

SIDE = 16
FEW = 20  # pictures are the fewest to judge by
CLEAR = 0.3  # correlation with the common pattern, of either sign; it must also exceed half of the median
MOST = 0.95  # share of the pictures that must be as clear
AS_CLEAR = 0.75  # least ratio of the median correlation of negatives to that of the others
FLAT = 2.0  # standard deviation in grey levels below which a picture has no pattern
COLOUR = 8.0  # grey levels between the channels, from which a picture is in colour


def thumbnail(pixels: np.ndarray) -> np.ndarray | None:
    """A grey picture (H, W) or (H, W, 3) at 16 x 16 pixels, all uint8; None if it is in colour."""
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    if small.ndim == 3:
        if np.ptp(small.astype(float), axis=2).mean() > COLOUR:
            return None
        small = small[..., 1]
    return small


def find_negatives(thumbnails: Sequence[np.ndarray | None]) -> list[int]:
    """Which pictures of a set are negatives of the others.

    The first principal component of the centred and normalised thumbnails is what pictures of one thing in one position
    have in common. If nearly all pictures correlate with it clearly, and a minority does so with the other sign, this
    minority are negatives. Pictures of many things have no such pattern.

    Args:
        thumbnails: From :func:`thumbnail`.

    Returns:
        The places of the negatives; empty if there are none or there is no common pattern.
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
