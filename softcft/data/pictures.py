"""How a picture is read: by training, which resizes and crops it, and by a pipeline, which takes it as it is."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image, ImageOps

__all__ = ["check_bits", "fit_picture", "is_grey", "plain_picture"]

MODES = {1: "L", 3: "RGB"}
DEEP = re.compile(r";16[BLN]|^L;16")  # raw modes of 16 bits, of which Pillow keeps the upper 8


def is_grey(picture: Image.Image) -> bool:
    """Whether a picture has a single channel, or a palette of greys, transparency aside."""
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGB"))
        return bool((colours == colours[..., :1]).all())
    return picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16")


def check_bits(picture: Image.Image) -> None:
    """Raise ValueError if a picture, not decoded yet, has more than 8 bits per channel: Pillow would clip them."""
    stored = (tile[3] for tile in getattr(picture, "tile", None) or [])
    raw_modes = [arguments if isinstance(arguments, str) else str((arguments or [""])[0]) for arguments in stored]
    if picture.mode.startswith(("I", "F")) or any(map(DEEP.search, raw_modes)):
        raise ValueError(
            f"more than 8 bits per channel (PIL mode {picture.mode!r}), of unknown white point; scale it to 8 bits"
        )


def plain_picture(picture: Image.Image, channels: int) -> Image.Image:
    """Turn a picture as its EXIF tag says, put it on white where it is transparent, and make it grey or colour.

    Args:
        picture: In any mode of 8 bits per channel.
        channels: 1 (mode L) or 3 (mode RGB).
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:  # the pixels below may be of any colour
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


def fit_picture(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """Resize so that the shorter side has ``size`` pixels, with antialiasing, and cut out the middle square.

    Args:
        picture: In any mode of 8 bits per channel, not decoded yet; see :func:`plain_picture`.
        size: Height and width of the result.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 of shape (size, size) or (size, size, 3); the same pixels if the picture has this size and mode.

    Raises:
        ValueError: If the picture has more than 8 bits per channel.
    """
    check_bits(picture)
    picture.draft(MODES[channels], (2 * size, 2 * size))  # a large JPEG is decoded at a half or a quarter
    picture = plain_picture(picture, channels)
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)
