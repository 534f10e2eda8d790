"""How a picture is read: by training, evaluation, pipelines, the command ``softcft`` and the app.

What is white, in pictures of any kind:

- 8 bits per channel: 255.
- Integers of more bits, as in PNG, TIFF and PGM: ``2**b - 1``, where b is the smallest of 8, 10, 12, 14, 16, 24 and
  32 that holds the picture's largest value. So 12 bits that lie in 16 have white at 4,095, and each of the 256 shades
  that remain stands for 16 values.
- Floats: 1. Floats above 1 are read as integers, if all of them are whole.
- TIFF with ``WhiteIsZero``: these values are inverted.
- DICOM: what the file says, see :mod:`softcft.data.dicom`.

Black is 0 in all others. What is opaque has the largest value of as many bits likewise. What fits none of this
(negative values, floats above 1 that are not whole) is refused.
"""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from softcft.data.dicom import is_dicom, is_named_dicom, read_dicom

__all__ = [
    "count_frames",
    "eight_bits",
    "fit_file",
    "fit_picture",
    "is_grey",
    "middle_square",
    "open_file",
    "plain_picture",
    "read_picture",
    "scale_to_eight_bits",
    "white_of",
    "why_unread",
]

BITS = (8, 10, 12, 14, 16, 24, 32)
HEAD = 132  # bytes that tell DICOM
MODES = {1: "L", 3: "RGB"}
COLOURS = {1: "grey", 3: "colour (RGB)"}
ORIENTATION = 0x0112  # tag of EXIF
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, (1,), (2,)  # their values
DEEP = re.compile(r"(LA|RGB|RGBA);16([BLN])")  # raw modes of which Pillow keeps the upper 8 bits

File = str | os.PathLike[str] | bytes


# ---- files ----------------------------------------------------------------------------------------------------------


def read_picture(
    source: File | Image.Image | np.ndarray, channels: int | None = None, size: int | None = None
) -> Image.Image:
    """Read a picture of any kind as training does.

    Args:
        source: A path, the content of a file, a picture of Pillow, or an array (H, W), (H, W, 1) or (H, W, 3).
        channels: 1 (grey) or 3 (RGB); as the picture is, if left out.
        size: Height and width of the result, whose middle square is then cut out and resized; as the picture is, if
            left out. ``pipe("scan.dcm", ..., fit=True)`` does this with the format of its model.

    Returns:
        8 bits per channel, of mode L or RGB: upright, on white where it was transparent.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If its values have no white point (see above), or it is a DICOM file of several pictures.
        Exception: Of other kinds, which Pillow does not list, if it is damaged.
    """
    if isinstance(source, np.ndarray):
        scaled, _ = scale_to_eight_bits(source)
        source = Image.fromarray(scaled[..., 0] if scaled.ndim == 3 and scaled.shape[2] == 1 else scaled)
    with nullcontext(source) if isinstance(source, Image.Image) else open_file(source) as picture:
        if size is None:
            return plain_picture(picture, channels)
        if picture is source and isinstance(picture, JpegImageFile) and picture.tile:
            # To decode it at part of its size would shrink the caller's picture, too.
            picture = _open_again(picture, _content_of(picture))
        return Image.fromarray(fit_picture(picture, size, channels or (1 if is_grey(picture) else 3)))


def fit_file(source: File, channels: int, size: int) -> tuple[np.ndarray, str]:
    """Read a picture and fit it to a model, see :func:`fit_picture`.

    Returns:
        uint8 of shape (H, W) or (H, W, 3), and a text about what was done to it, empty if it fits.

    Raises:
        Exception: As :func:`read_picture`.
    """
    with open_file(source) as opened:
        had, frames = COLOURS[1 if is_grey(opened) else 3], count_frames(opened)
        picture = eight_bits(opened)
        (width, height), white = picture.size, picture.info.get("white")
        pixels = fit_picture(picture, size, channels)
    done = [] if white is None else [f"{white[0].upper()}{white[1:]}."]
    if frames > 1:
        done.append(f"It has {frames} pictures (pages, frames), of which the first was taken.")
    if (width, height) != (size, size):
        cut = "its middle square was cut out and scaled" if width != height else "it was scaled"
        done.append(f"It has {width} x {height} pixels and the model takes {size} x {size}: {cut}.")
    if had != COLOURS[channels]:
        done.append(f"It was {had} and is now {COLOURS[channels]}.")
    return pixels, " ".join(done)


def open_file(source: File, name: str | None = None) -> Image.Image:
    """Open a picture, by its content and not by its name.

    Args:
        source: A path, or the content of a file.
        name: Of the file that the content is from, if known. One that ends in .dcm may be DICOM without a preamble.

    Returns:
        A picture that is not decoded yet; one of DICOM is, to 8 bits.

    Raises:
        Exception: As :func:`read_picture`.
    """
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnidentifiedImageError:
        named = str(name or "") if isinstance(source, bytes) else os.fspath(source)
        if is_dicom(_head(source)) or is_named_dicom(named):
            return read_dicom(source)
        raise
    if picture.fp is not None and is_dicom(_content_of(picture, HEAD)):  # of DICOM that Pillow takes for TIFF
        picture.close()
        return read_dicom(source)
    return picture


def count_frames(picture: Image.Image) -> int:
    """How many pictures (pages, frames) a file has that is not decoded yet, of which the first is read.

    A photograph with a smaller one of itself is one.
    """
    return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


def _head(source: File) -> bytes:
    """The first bytes of a file; none of what is no file, as a pipe, which can be read only once."""
    if isinstance(source, bytes):
        return source[:HEAD]
    if not os.path.isfile(source):
        return b""
    with open(source, "rb") as file:
        return file.read(HEAD)


def why_unread(error: Exception) -> str:
    """What is wrong with a picture, without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture of a kind that can be read"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__  # in a single line


# ---- what is white --------------------------------------------------------------------------------------------------


def white_of(picture: Image.Image) -> str:
    """What is white in a picture that :func:`eight_bits` gave, in words."""
    return picture.info.get("white", "8 bits: white is 255")


def scale_to_eight_bits(values: np.ndarray, visible: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """Values of any type to 8 bits, by the rule of this module.

    Args:
        values: Of any shape.
        visible: Which of them are to be seen, of the same shape: the others may be anything. All, if left out.

    Returns:
        uint8 of the same shape, and what was white, in words.

    Raises:
        ValueError: If values are negative, not finite, or above 1 and not whole.
    """
    if values.dtype.kind not in "iuf" or values.size == 0:
        raise ValueError(f"it has {values.size} values of type {values.dtype}; pixels must be integers or floats")
    if values.dtype == np.uint8:
        return values, "8 bits: white is 255"
    seen = values if visible is None else np.where(visible, values, 0)
    if values.dtype.kind == "f" and not (finite := np.isfinite(seen)).all():
        raise ValueError(f"it has {int((~finite).sum())} pixels that are NaN or infinite")
    low, high = seen.min().item(), seen.max().item()
    if low < 0:
        raise ValueError(f"it has values from {low:,g} to {high:,g}, and black is 0; shift or scale them")
    if values.dtype.kind == "f":
        if high <= 1:
            return (255 * seen.astype(np.float32)).round().astype(np.uint8), "floats: white is 1"
        if high >= 2 ** BITS[-1] or (seen != seen.round()).any():
            raise ValueError(
                f"it has values from {low:,g} to {high:,g}; floats must lie in [0, 1] or be whole numbers below 2**32"
            )
        seen = seen.astype(np.uint32)
    bits = next((bits for bits in BITS if high < 2**bits), None)
    if bits is None:
        raise ValueError(f"it has values from {low:,} to {high:,}; pixels must be below 2**{BITS[-1]}")
    stored = "floats" if values.dtype.kind == "f" else str(8 * values.dtype.itemsize)
    within = "" if stored == str(bits) else f" in {stored}"
    return (seen >> (bits - 8)).astype(np.uint8), f"{bits} bits{within}: white is {2**bits - 1:,}"


def eight_bits(picture: Image.Image) -> Image.Image:
    """Bring a picture of more than 8 bits per channel to 8, by the rule of this module; others stay as they are.

    Colours of 16 bits, of which Pillow keeps the upper 8, are read in full from their file.

    Raises:
        ValueError: If its values have no white point, are of a kind that Pillow reads wrongly, or colours of 16 bits
            were decoded before.
    """
    tags = getattr(picture, "tag_v2", {})
    sign = tuple(tags.get(SAMPLE_FORMAT, UNSIGNED))
    if picture.mode == "L" and sign == SIGNED:
        values = np.asarray(picture).view(np.int8)  # Pillow overlooks the sign
    elif picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.mode == "I" and tags and sign == UNSIGNED:
            values = values.view(np.uint32)  # Pillow adds a sign
    elif isinstance(picture, ImageFile.ImageFile) and _is_deep(picture):
        picture, values = _deep_colours(picture)
    else:
        return picture
    alpha = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values, (alpha, _) = values[..., :-1], scale_to_eight_bits(values[..., -1:])
    elif "transparency" in picture.info and picture.mode != "F":  # one value or colour stands for nothing
        hidden = np.atleast_3d(values) == np.asarray(picture.info["transparency"])
        alpha = np.where(hidden.all(axis=2, keepdims=True), 0, 255).astype(np.uint8)
    values = np.atleast_3d(values)
    scaled, white = scale_to_eight_bits(values, None if alpha is None else np.broadcast_to(alpha > 0, values.shape))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow inverts in 8 bits, and overlooks in more
        scaled, white = 255 - scaled, f"{white.partition(':')[0]}, inverted: white is 0"
    pixels = scaled if alpha is None else np.concatenate([scaled, alpha], axis=2)
    result = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if (turn := picture.getexif().get(ORIENTATION)) is not None:
        result.getexif()[ORIENTATION] = turn
    result.info["white"] = white
    return result


def _tiles(picture: ImageFile.ImageFile) -> list[Any]:
    """How Pillow reads the parts of a picture that is not decoded yet; PPM of 16 bits as it is, and not scaled to 8."""
    tiles: list[Any] = [*picture.tile]
    if picture.mode == "RGB" and tiles and tiles[0].codec_name == "ppm" and tiles[0].args[1] > 255:
        return [tile._replace(codec_name="raw", args=("RGB;16B", 0, 1)) for tile in tiles]
    return tiles


def _raw_modes(picture: ImageFile.ImageFile) -> list[str]:
    """The orders of bits and bytes in these parts."""
    return [str((tile.args if isinstance(tile.args, tuple) else (tile.args,))[0]) for tile in _tiles(picture)]


def _is_deep(picture: ImageFile.ImageFile) -> bool:
    """Whether a picture's file has more than 8 bits per channel, of which Pillow keeps 8.

    Raises:
        ValueError: If it has, and was decoded already.
    """
    if picture.tile:
        tagged = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
        return max(tagged) > 8 or any(";16" in mode for mode in _raw_modes(picture))
    if isinstance(picture.filename, str) and os.path.isfile(picture.filename):
        with suppress(UnidentifiedImageError), Image.open(picture.filename) as again:
            # WebP and AVIF have no tiles before they are decoded, either.
            if again.tile and again.size == picture.size and again.mode == picture.mode and _is_deep(again):
                raise ValueError("it was decoded before, to 8 of its 16 bits; open it anew, or by read_picture(path)")
    return False


def _deep_colours(picture: ImageFile.ImageFile) -> tuple[Image.Image, np.ndarray]:
    """All 16 bits of a picture that is not decoded yet: two bytes, read one after the other.

    What Pillow takes for the upper byte depends on the order of bytes that its raw mode names.

    Returns:
        The picture, opened and decoded another time so that this one stays as it is, and uint16 of shape (H, W, C).
    """
    raw = _raw_modes(picture)[0]
    if any(DEEP.fullmatch(mode) is None for mode in _raw_modes(picture)):
        raise ValueError(
            f"it has more than 8 bits per channel in a form that Pillow reads wrongly (mode {picture.mode}, {raw}); "
            "save it as PNG, or scale it to 8 bits"
        )
    content = _content_of(picture)

    def read(mode: str) -> tuple[Image.Image, np.ndarray]:
        again = _open_again(picture, content)
        again.tile = [
            tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
            for tile in _tiles(again)
        ]
        return again, np.asarray(again).astype(np.uint16)  # a TIFF is put upright here, and its tag removed

    form, order = raw.split(";16")
    if form == "LA":  # four bytes, which fill the four channels that Pillow has for it
        again, both = read("RGBA")
        first, second = both[..., 0::2], both[..., 1::2]
    else:
        (again, first), (_, second) = read(f"{form};16B"), read(f"{form};16L")
    is_big = order == "B" or (order == "N" and sys.byteorder == "big")
    return again, 256 * first + second if is_big else 256 * second + first


def _content_of(picture: ImageFile.ImageFile, size: int = -1) -> bytes:
    """The file of a picture that is not decoded yet, which stays as it is, or its first bytes."""
    if picture.fp is None:
        raise ValueError("its file was closed too early")
    place = picture.fp.tell()
    picture.fp.seek(0)
    content = picture.fp.read(size)
    picture.fp.seek(place)
    return content


def _open_again(picture: ImageFile.ImageFile, content: bytes) -> Any:
    """A picture another time, from the content of its file, at the same of its frames."""
    again = Image.open(io.BytesIO(content))
    again.seek(picture.tell())
    return again


# ---- colours, position, size ----------------------------------------------------------------------------------------


def is_grey(picture: Image.Image) -> bool:
    """Whether a picture has a single channel, or a palette of greys, transparency aside."""
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGBA"))[..., :3]  # Pillow warns of transparency on the way to RGB
        return bool((colours == colours[..., :1]).all())
    tiles = getattr(picture, "tile", None) or [(None, None, None, "")]
    if str(tiles[0][3]).startswith("LA;16"):  # which Pillow opens as RGBA
        return True
    return picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")


def plain_picture(picture: Image.Image, channels: int | None = None) -> Image.Image:
    """Turn as its EXIF tag says, put on white where transparent, bring to 8 bits, and make grey or colour.

    Args:
        picture: Of any kind.
        channels: 1 (mode L) or 3 (mode RGB); as the picture is, if left out.

    Raises:
        ValueError: See :func:`eight_bits`.
    """
    own = MODES[1 if is_grey(picture) else 3]
    picture = ImageOps.exif_transpose(eight_bits(picture))
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:  # the pixels below may be of any colour
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    for mode in (own, MODES[channels] if channels else own):  # in two steps, so that it does not matter who does which
        picture = picture if picture.mode == mode else picture.convert(mode)
    return picture


def fit_picture(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """Resize so that the shorter side has ``size`` pixels, with antialiasing, and cut out the middle square.

    Args:
        picture: Of any kind, not decoded yet; see :func:`plain_picture`.
        size: Height and width of the result.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 of shape (size, size) or (size, size, 3); the same pixels if the picture has this size and mode.

    Raises:
        ValueError: See :func:`eight_bits`.
    """
    # A large JPEG is decoded at a half or a quarter; in its own colours, as another decoder would turn into grey.
    picture.draft(None, (2 * size, 2 * size))
    picture = plain_picture(picture, channels)
    if picture.size != (size, size):
        # From four times the size on, blocks of whole pixels are averaged first, down to no less than twice the size.
        box, bicubic = middle_square(picture.size), Image.Resampling.BICUBIC
        picture = picture.resize((size, size), bicubic, box=box, reducing_gap=2.0)
    return np.asarray(picture)


def middle_square(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the middle square of a picture of this width and height."""
    side, (left, top) = min(size), ((length - min(size)) / 2 for length in size)
    return left, top, left + side, top + side
