from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from softcft.data.dicom import read_dicom
from tests.data.picture_files import bare_dicom, dicom, saved

RNG = np.random.default_rng(0)
RAMP = np.arange(4096).reshape(64, 64)  # every value of 12 bits


def read(content: bytes) -> np.ndarray:
    return np.asarray(read_dicom(content)).astype(float)


def shown(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return 255 * ((values - black) / (white - black)).clip(0, 1)


def table(values: np.ndarray, bits: int) -> Sequence:
    """A look-up table from 0 on."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), 0, bits], values.astype("<u2").tobytes()
    item.ModalityLUTType = "US"
    return Sequence([item])


@pytest.mark.parametrize(
    ("elements", "black", "white"),
    [
        ({"WindowCenter": 2048, "WindowWidth": 4096}, 0, 4095),
        ({"WindowCenter": 1000.5, "WindowWidth": 501}, 750, 1250),
        ({"WindowCenter": [1000.5, 3000], "WindowWidth": [501, 10]}, 750, 1250),
        ({"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "LINEAR_EXACT"}, 750, 1250),
        ({"WindowCenter": "", "WindowWidth": ""}, 20.475, 4074.525),
        ({"WindowCenter": 1000, "WindowWidth": 0}, 20.475, 4074.525),
        ({}, 20.475, 4074.525),
        ({"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 0.5, "WindowWidth": 1001}, 250, 750),
        ({"RescaleSlope": 2, "RescaleIntercept": -1000}, 20.475, 4074.525),
        ({"ModalityLUTSequence": table(RAMP.ravel() // 2, 16), "WindowCenter": 0.5, "WindowWidth": 1001}, -1000, 1000),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_black_and_white(elements: dict, black: float, white: float, photometric: str) -> None:
    expected = shown(RAMP, black, white)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    assert abs(read(dicom(RAMP, photometric=photometric, **elements)) - expected).max() <= 1


def test_a_table_goes_before_a_window() -> None:
    root = (4095 * np.sqrt(RAMP.ravel() / 4095)).round().astype(int)
    content = dicom(RAMP, VOILUTSequence=table(root, 12), WindowCenter=10, WindowWidth=10)
    assert abs(read(content) - 255 * np.sqrt(RAMP / 4095)).max() <= 1
    content = dicom(RAMP, VOILUTSequence=table(root, 12), RescaleSlope=1, RescaleIntercept=0)
    assert abs(read(content) - 255 * np.sqrt(RAMP / 4095)).max() <= 1


@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "8 bits in 16"])
@pytest.mark.parametrize("first", [0, 100])
def test_a_table_of_eight_bits(wide: bool, first: int) -> None:
    shades = np.sqrt(RAMP.ravel() / 4095) * 255
    item = Dataset()
    item.LUTDescriptor = [4096, first, 8]
    item.LUTData = shades.round().astype("<u2" if wide else "u1").tobytes()
    expected = shades[(RAMP - first).clip(0)]
    assert abs(read(dicom(RAMP, VOILUTSequence=Sequence([item]))) - expected).max() <= 1


def test_a_sigmoid() -> None:
    content = dicom(RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    assert abs(read(content) - 255 / (1 + np.exp(-4 * (RAMP - 2000) / 1000))).max() <= 1


def test_values_may_be_negative() -> None:
    assert (
        abs(read(dicom(RAMP - 2000, bits=16, WindowCenter=0.5, WindowWidth=1001)) - shown(RAMP, 1500, 2500)).max() <= 1
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_no_percentile(photometric: str) -> None:
    padded = RAMP.copy()
    padded[:, :20] = 0
    padded[:, 20:] = padded[:, 20:] // 8 + 1000
    pixels = read(dicom(padded, photometric=photometric, PixelPaddingValue=0))
    assert (pixels[:, :20] == 0).all()
    inside = pixels[:, 20:] if photometric == "MONOCHROME2" else 255 - pixels[:, 20:]
    low, high = np.percentile(padded[:, 20:], (0.5, 99.5))
    assert abs(inside - shown(padded[:, 20:], low, high)).max() <= 1


def test_padding_may_be_written_without_the_sign_of_the_pixels() -> None:
    padded = RAMP - 2000
    padded[:, :20] = -2000
    data = pydicom.dcmread(BytesIO(dicom(padded, bits=16)))
    data.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    file = BytesIO()
    pydicom.dcmwrite(file, data)
    assert (read(file.getvalue()) == read(dicom(padded, bits=16, PixelPaddingValue=-2000))).all()
    low, high = np.percentile(padded[:, 20:], (0.5, 99.5))
    assert abs(read(file.getvalue())[:, 20:] - shown(padded[:, 20:], low, high)).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [1, 6, 8])
def test_eight_bits_without_a_window_are_as_in_a_png(bits: int, photometric: str) -> None:
    """They are not stretched: two files of one device would have another brightness each."""
    most = 2**bits - 1
    values = np.linspace(0.3 * most, 0.6 * most, 64).round().astype(int).reshape(8, 8)
    expected = 255 * (most - values if photometric == "MONOCHROME1" else values) / most
    for rescaled in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}):
        assert (
            abs(read(dicom(values, bits=8, BitsStored=bits, photometric=photometric, **rescaled)) - expected).max() < 1
        )


def test_eight_bits_of_a_quantity_are_stretched() -> None:
    values = np.arange(100, 164).reshape(8, 8)
    quantity = read(dicom(values, bits=8, RescaleSlope=10, RescaleIntercept=-1000))
    assert (quantity.min(), quantity.max()) == (0, 255)


def test_colour() -> None:
    pixels = RNG.integers(0, 256, (9, 8, 3))
    assert (read(dicom(pixels, bits=8, photometric="RGB")) == pixels).all()
    assert (read(dicom(pixels * 257, bits=16, photometric="RGB")) == pixels).all()
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    ybr = np.dstack([grey[..., 0], np.full((9, 8), 128), np.full((9, 8), 128)])
    assert abs(read(dicom(ybr, bits=8, photometric="YBR_FULL")) - grey).max() <= 1


def test_a_palette() -> None:
    index = RNG.integers(0, 256, (8, 8))
    colours = RNG.integers(0, 256, (256, 3))
    tables = {}
    for i, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (colours[:, i] * 257).astype("<u2").tobytes()
    assert (read(dicom(index, bits=8, photometric="PALETTE COLOR", **tables)) == colours[index]).all()


def compressed(syntax: str) -> bytes:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    if syntax == JPEGBaseline8Bit:
        stored = saved(Image.fromarray((RAMP >> 4).astype(np.uint8)), "jpeg", quality=100)
        window = {"WindowCenter": 128, "WindowWidth": 256}
        data = pydicom.dcmread(BytesIO(dicom(RAMP >> 4, bits=8, PixelData=encapsulate([stored]), **window)))
        data.file_meta.TransferSyntaxUID = syntax
        data["PixelData"].is_undefined_length = True
    else:
        data = pydicom.dcmread(BytesIO(dicom(RAMP, **window)))
        data.compress(syntax)
    file = BytesIO()
    pydicom.dcmwrite(file, data)
    return file.getvalue()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGBaseline8Bit], ids=["RLE", "JPEG 2000", "JPEG"])
def test_compressed_pixels(syntax: str) -> None:
    assert abs(read(compressed(syntax)) - shown(RAMP, 0, 4095)).max() <= (4 if syntax == JPEGBaseline8Bit else 1)


@pytest.mark.parametrize("head", [True, False])
def test_files_by_hand(head: bool) -> None:
    assert abs(read(bare_dicom(RAMP, head=head)) - shown(RAMP, 20.475, 4074.525)).max() <= 1


def deflated() -> bytes:
    data = pydicom.dcmread(BytesIO(dicom(RAMP)))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = BytesIO()
    pydicom.dcmwrite(file, data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dicom(RAMP, NumberOfFrames=2), "2 pictures"),
        (dicom(RAMP, Rows=65_000, Columns=65_000), "65,000 x 65,000"),
        (dicom(np.full((8, 8), 7)), "single shade; its pixels are 7 to 7"),
        (dicom(RAMP, WindowCenter=-2000, WindowWidth=10), "single shade; its pixels are 0 to 4095"),
        (
            dicom(RAMP, VOILUTSequence=table(RAMP.ravel()[:100], 12)).replace(b"d\0\0\0\x0c\0", b"\0\x10\0\0\x0c\0"),
            "4,096",
        ),
        (dicom(RAMP)[:-100], "bytes"),
        (dicom(RAMP)[:400], "rows and columns"),
        (deflated(), "deflated"),
        (dicom(RAMP, PixelData=b""), "without pixels"),
        (b"no picture", "rows and columns"),
    ],
    ids=["frames", "bomb", "constant", "window", "table", "cut short", "cut shorter", "deflated", "empty", "text"],
)
def test_what_cannot_be_read_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_dicom(content)
