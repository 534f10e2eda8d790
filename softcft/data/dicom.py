"""Read DICOM files as pictures of 8 bits, by pydicom.

What is black and white in a grey one is, in this order: the first VOI LUT of the file; its first window; the
percentiles 0.5 and 99.5 of its pixels. All are taken after the modality LUT (or rescale slope and intercept).
``MONOCHROME1`` is then inverted, so that what is to be seen bright is bright in all. Padding (Pixel Padding Value)
counts for no percentile and becomes black. In a colour file black is 0 and white ``2**BitsStored - 1``.
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
        ValueError: If it has no pixels or several pictures, is deflated as a whole, has all pixels alike, or is larger
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
        shown, white = _show(dataset, apply_modality_lut(stored, dataset), padding)
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
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _show(dataset: Dataset, values: np.ndarray, padding: np.ndarray) -> tuple[np.ndarray, str]:
    """Grey values, after the modality LUT, from 0 (black) to 1 (white), and what was black and white, in words."""
    from pydicom.pixels import apply_voi

    table = (dataset.get("VOILUTSequence") or [None])[0]
    if table is not None and "LUTDescriptor" in table and "LUTData" in table:
        looked_up = apply_voi(np.round(values).astype(np.int64), dataset)
        return looked_up / (2.0 ** int(table.LUTDescriptor[2]) - 1), "DICOM: as its first VOI LUT says"
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
    seen = values[~padding] if not padding.all() else values
    low, high = np.percentile(seen, PERCENTILES)
    if low == high:
        low, high = seen.min(), seen.max()
    if low == high:
        raise ValueError(f"it is DICOM without a window, and all of its pixels are {low:g}")
    return ((values - low) / (high - low)).clip(0, 1), (
        f"DICOM without a window: black and white are the percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"
    )


def _first(dataset: Dataset, name: str) -> float | None:
    """The first number of an element, None if there is none."""
    value: Any = dataset.get(name)
    values = [] if value is None else value if isinstance(value, MutableSequence) else [value]
    return float(values[0]) if values and values[0] not in (None, "") else None
