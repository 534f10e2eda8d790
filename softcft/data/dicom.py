"""Read DICOM files as pictures of 8 bits, by pydicom.

What is black and white in a grey one is, in this order: the first VOI LUT of the file; its first window; 0 and
``2**BitsStored - 1``, if that is at most 8 bits, which are ready to be shown, as in a PNG; the percentiles 0.5 and 99.5
of its pixels. All are taken after the modality LUT (or rescale slope and intercept), and pixels that it changes are not
ready to be shown. ``MONOCHROME1`` is then inverted, so that what is to be seen bright is bright in all. Padding (Pixel
Padding Value) counts for no percentile and becomes black. In a colour file black is 0 and white ``2**BitsStored - 1``.
"""

from __future__ import annotations

import io
import os
from collections.abc import MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["ENDINGS", "is_dicom", "is_named_dicom", "read_dicom"]

ENDINGS = (".dcm", ".dicom")
DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax
PERCENTILES = (0.5, 99.5)


def is_dicom(head: bytes) -> bool:
    """Whether a file is DICOM, by its first 132 bytes."""
    return head[128:132] == b"DICM"


def is_named_dicom(name: str) -> bool:
    """Whether a file is DICOM, by its name."""
    return name.lower().endswith(ENDINGS)


def read_dicom(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Read a DICOM file of one picture.

    Args:
        source: A path, or the content of a file.

    Returns:
        A picture of mode L or RGB. Its ``info`` has ``photometric``, the file's Photometric Interpretation, and
        ``white``: what was black and white, in words.

    Raises:
        ImportError: If pydicom, or what it needs to decompress the pixels, is not installed.
        OSError: If there is no such file.
        ValueError: If it has no pixels or several pictures, is deflated as a whole, shows a single shade, or is larger
            than Pillow takes for harmless.
        Exception: Of other kinds, which pydicom does not list, if it is damaged or compressed in a way unknown to it.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
    except ImportError as error:
        raise ImportError("it is DICOM, which needs another package: pip install 'softcft[dicom]'") from error

    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if DEFLATED in content:  # pydicom would inflate it, to whatever size
        raise ValueError("it is DICOM that is deflated as a whole; save it with another transfer syntax")
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    _check(dataset)
    if "TransferSyntaxUID" not in dataset.file_meta:  # a file without a head, whose syntax pydicom has found out
        implicit = dataset.original_encoding[0]
        syntaxes = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntaxes[0] if implicit else syntaxes[1]
    stored = pixel_array(dataset)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        stored, bits = apply_color_lut(stored, dataset), int(dataset.RedPaletteColorLookupTableDescriptor[2])
    else:
        bits = int(dataset.BitsStored)
    if stored.ndim == 3:
        shown = stored / (2**bits - 1)
        white = f"DICOM in colour, {bits} bits: white is {2**bits - 1:,}"
    else:
        padding = _padding(dataset, stored)
        shown, white = _show(dataset, stored, apply_modality_lut(stored, dataset), padding)
        if shown.min() == shown.max():
            raise ValueError(
                f"it is DICOM of a single shade; its pixels are {stored.min():g} to {stored.max():g} ({white})"
            )
        if photometric == "MONOCHROME1":
            shown = 1 - shown
        shown[padding] = 0
    picture = Image.fromarray((255 * shown.clip(0, 1)).round().astype(np.uint8))
    picture.info.update(photometric=photometric, white=white)
    return picture


def _check(dataset: Dataset) -> None:
    """Raise ValueError if a file has not one picture of a size that can be read; nothing is decoded."""
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ValueError("it is damaged, or DICOM without a picture: it has no number of rows and columns")
    if not any(dataset.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError("it is DICOM without pixels")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise ValueError(f"it is DICOM of {frames:,} pictures (frames) and one is needed; save each as a file")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"it claims to have {rows:,} x {columns:,} pixels, and may be made to fill the memory")


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which pixels are no part of the picture, as the file says; bool of shape (H, W)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    # As the pixels are, with a sign or without: files may give the one for the other.
    low, high = np.sort(np.array([value, value if limit is None else limit]).astype(stored.dtype))
    return (stored >= low) & (stored <= high)


def _show(dataset: Dataset, stored: np.ndarray, values: np.ndarray, padding: np.ndarray) -> tuple[np.ndarray, str]:
    """Grey values, before and after the modality LUT, from 0 (black) to 1 (white), and what was these, in words."""
    table = (dataset.get("VOILUTSequence") or [None])[0]
    if table is not None and "LUTDescriptor" in table and "LUTData" in table:
        return _look_up(dataset, table, values), "DICOM: as its first VOI LUT says"
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    values = values.astype(np.float32)
    if centre is not None and width is not None and width > 0:
        # DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        if function == "SIGMOID":
            shown = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80)))
        elif function == "LINEAR_EXACT":
            shown = (values - centre) / width + 0.5
        else:
            shown = (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
        return shown.clip(0, 1), "DICOM: black and white are the ends of its first window"
    if (bits := int(dataset.BitsStored)) <= 8 and stored.dtype.kind == "u" and (values == stored).all():
        return values / (2**bits - 1), f"{bits} bits: white is {2**bits - 1}"
    seen = values[~padding] if not padding.all() else values
    low, high = np.percentile(seen, PERCENTILES)
    if low == high:
        low, high = seen.min(), seen.max()
    return ((values - low) / max(high - low, 1e-6)).clip(0, 1), (
        f"DICOM without a window: black and white are the percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"
    )


def _look_up(dataset: Dataset, table: Dataset, values: np.ndarray) -> np.ndarray:
    """Grey values by a VOI LUT, from 0 to 1. pydicom's own takes no table of 8 bits that has more than 256 entries."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries or 2**16
    shades = table.LUTData
    if isinstance(shades, bytes):  # 8 bits may lie in 16: DICOM PS3.3, C.11.1.1.1
        order = ">" if dataset.original_encoding[1] is False else "<"
        shades = np.frombuffer(shades, "u1" if bits <= 8 and len(shades) < 2 * entries else f"{order}u2")
    if len(shades) < entries:
        raise ValueError(f"it is damaged: its VOI LUT has {len(shades):,} of {entries:,} entries")
    places = np.round(values).astype(np.int64) - first
    return np.asarray(shades)[places.clip(0, entries - 1)] / (2.0**bits - 1)


def _first(dataset: Dataset, name: str) -> float | None:
    """The first number of an element, None if there is none."""
    value: Any = dataset.get(name)
    values = [] if value is None else value if isinstance(value, MutableSequence) else [value]
    return float(values[0]) if values and values[0] not in (None, "") else None
