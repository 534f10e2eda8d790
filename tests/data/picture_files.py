"""Files of pictures of every kind, as bytes."""

import io
import struct
import zlib
from typing import Any

import datasets
import numpy as np
import pydicom
import tifffile
from datasets import Dataset, Features
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


def saved(picture: Image.Image, form: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def png(shade: int = 0, size: int = 8) -> bytes:
    """A grey square."""
    return saved(Image.fromarray(np.full((size, size), shade, np.uint8)))


def table(n: int = 4, **columns: Any) -> Dataset:
    """A table of pictures, whose shade is the number of the row, and given columns."""
    pictures = [{"bytes": png(i % 256), "path": None} for i in range(n)]
    rows = Dataset.from_dict({"image": pictures}, features=Features({"image": datasets.Image()}))
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits, (H, W) or (H, W, C) of 2 to 4 channels, most of which Pillow reads but cannot write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)),)
    parts += ((b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """A TIFF of (H, W) or (H, W, C), of any type."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def dicom(pixels: np.ndarray, bits: int = 12, photometric: str = "MONOCHROME2", **elements: Any) -> bytes:
    """A DICOM file, (H, W) or (H, W, 3), written by pydicom, with further elements by their keywords."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = X_RAY, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = X_RAY, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = photometric
    allocated = 8 if bits <= 8 else 16
    file.BitsAllocated, file.BitsStored, file.HighBit = allocated, bits, bits - 1
    file.PixelRepresentation = int(pixels.min() < 0)
    kind = ("<i" if pixels.min() < 0 else "<u") + str(allocated // 8)
    content = pixels.astype(kind).tobytes()
    for keyword, value in elements.items():
        setattr(file, keyword, value)
    if "PixelData" not in elements:
        file.PixelData = content + bytes(len(content) % 2)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file)
    return stream.getvalue()


def bare_dicom(pixels: np.ndarray, bits: int = 12, head: bool = True) -> bytes:
    """A DICOM file with hardly more than its pixels (H, W), written by hand, with or without preamble and meta data."""

    def element(group: int, number: int, kind: str, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        length = struct.pack("<HI" if kind == "OW" else "<H", *([0] if kind == "OW" else []), len(value))
        return struct.pack("<HH2s", group, number, kind.encode()) + length + value

    numbers = {0x02: 1, 0x10: pixels.shape[0], 0x11: pixels.shape[1], 0x100: 16, 0x101: bits, 0x102: bits - 1, 0x103: 0}
    body = {number: element(0x28, number, "US", struct.pack("<H", value)) for number, value in numbers.items()}
    body[0x04] = element(0x28, 4, "CS", b"MONOCHROME2")
    content = b"".join(body[number] for number in sorted(body)) + element(
        0x7FE0, 0x10, "OW", pixels.astype("<u2").tobytes()
    )
    meta = element(2, 0x10, "UI", b"1.2.840.10008.1.2.1\0")
    return bytes(128) + b"DICM" + meta + content if head else content
