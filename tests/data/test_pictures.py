"""How pictures are read, and that all who read them read the same."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image, ImageOps

from softcft import DSCMPipeline
from softcft.app.models import fit_upload
from softcft.cli import main
from softcft.data.pictures import (
    BITS,
    eight_bits,
    fit_file,
    fit_picture,
    is_grey,
    open_file,
    plain_picture,
    read_picture,
    scale_to_eight_bits,
    white_of,
)
from softcft.data.pixels import prepare_images
from tests.data.picture_files import bare_dicom, deep_png, dicom, saved, tiff
from tests.pipelines.test_dscm import build, row

RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 1) -> np.ndarray:
    """8 bits, of which both ends occur."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


# ---- what is white --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("type_", ["u2", ">u2", "i4", "u4", "i8", "f4", "f8"])
def test_white_is_the_largest_value_of_as_many_bits_as_are_used(type_: str, bits: int) -> None:
    holds = {"u2": 16, ">u2": 16, "i4": 31, "f4": 24}.get(type_, 64)
    if bits > holds:
        pytest.skip("it cannot hold so many")
    pixels = noise(6, 5)
    deep = (pixels.astype(np.int64) << (bits - 8)).astype(type_)
    scaled, white = scale_to_eight_bits(deep)
    assert scaled.dtype == np.uint8
    assert (scaled == pixels).all()
    assert f"white is {2**bits - 1:,}" in white


def test_floats_up_to_1_have_white_at_1() -> None:
    pixels = noise(6, 5)
    for type_ in ("f2", "f4", "f8"):
        assert (scale_to_eight_bits((pixels / 255).astype(type_))[0] == pixels).all()
    assert (scale_to_eight_bits(np.full((2, 2), 0.5))[0] == 128).all()


@pytest.mark.parametrize(
    "values", [[-1, 5], [-0.5, 0.5], [0.5, 1.5], [0, np.nan], [0, np.inf], [0.0, 2**33], [0, 2**40], [True], [1j], []]
)
def test_what_has_no_white_is_refused(values: list) -> None:
    with pytest.raises(ValueError, match=r"values|pixels"):
        scale_to_eight_bits(np.array([values]))


DEEP: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG, grey": lambda deep: deep_png(deep[..., 0]),
    "PNG, grey and alpha": lambda deep: deep_png(np.dstack([deep[..., 0], np.full_like(deep[..., 0], 65_535)])),
    "PNG, colour": deep_png,
    "PNG, colour and alpha": lambda deep: deep_png(np.dstack([deep, np.full_like(deep[..., 0], 65_535)])),
    "TIFF, grey": lambda deep: tiff(deep[..., 0]),
    "TIFF, grey, compressed": lambda deep: tiff(deep[..., 0], compression="zlib"),
    "TIFF, colour": lambda deep: tiff(deep, photometric="rgb"),
    "TIFF, colour, the other order": lambda deep: tiff(deep, photometric="rgb", byteorder=">"),
    "TIFF, colour, compressed": lambda deep: tiff(deep, photometric="rgb", compression="zlib"),
    "TIFF, colour, in tiles": lambda deep: tiff(deep, photometric="rgb", tile=(16, 16), compression="zlib"),
    "PPM, colour": lambda deep: b"P6 20 16 65535\n" + deep.astype(">u2").tobytes(),
    "PGM": lambda deep: b"P5 20 16 65535\n" + deep[..., 0].astype(">u2").tobytes(),
}


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", DEEP)
def test_all_bits_are_read(kind: str, bits: int) -> None:
    """12 bits in 16, as X-rays are often stored, would be black by their upper 8 bits."""
    pixels = noise(16, 20, 3)
    pixels = pixels if "colour" in kind else pixels[..., :1].repeat(3, axis=2)
    content = DEEP[kind](pixels.astype(np.uint16) << (bits - 8))
    with open_file(content) as picture:
        assert f"white is {2**bits - 1:,}" in white_of(eight_bits(picture))
        assert is_grey(picture) == ("colour" not in kind)
    for size in (None, 16):
        read = read_picture(content, channels=3, size=size)
        assert (np.asarray(read) == (pixels[:, 2:18] if size else pixels)).all()
    assert read_picture(content).mode == ("RGB" if "colour" in kind else "L")


def test_what_cannot_be_read_in_full_is_refused_and_not_black() -> None:
    deep = noise(16, 16, 3).astype(np.uint16) << 4
    planes = tiff(np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate")
    inks = tiff(np.dstack([deep, deep[..., 0]]), photometric="separated")
    for content in (planes, inks, tiff(deep.astype(np.int16) - 100, photometric="rgb")):
        with pytest.raises((ValueError, OSError)):
            read_picture(content)


def test_hidden_pixels_do_not_decide_what_is_white() -> None:
    pixels = noise(8, 8)
    alpha = np.where(np.arange(8) < 5, 65_535, 0)[None].repeat(8, 0)
    deep = np.where(alpha > 0, pixels.astype(np.uint16) << 4, 65_535)
    for content in (deep_png(np.dstack([deep, alpha])), deep_png(np.dstack([deep, deep, deep, alpha]))):
        read = np.asarray(read_picture(content, channels=1))
        assert (read[:, :5] == pixels[:, :5]).all()
        assert (read[:, 5:] == 255).all()


@pytest.mark.parametrize("most", [1023, 4095, 65_535])
def test_what_is_opaque_follows_the_same_rule(most: int) -> None:
    """12 bits in 16 have an alpha of 12 bits, if the same program wrote it."""
    pixels = noise(8, 8, 3)
    alpha = np.full((8, 8), most)
    deep = np.dstack([pixels.astype(np.uint16) << 4, alpha])
    assert (np.asarray(read_picture(deep_png(deep))) == pixels).all()
    assert (np.asarray(read_picture(deep_png(deep[..., 2:]))) == pixels[..., 2]).all()


@pytest.mark.parametrize(("type_", "shift"), [("u1", 0), ("u2", 8), ("u2", 4), ("u2", 2)])
def test_a_tiff_whose_white_is_zero_is_not_seen_as_a_negative(type_: str, shift: int) -> None:
    pixels = noise(8, 8)
    largest = 2 ** (8 + shift) - 1
    stored = (largest - (pixels.astype(np.int64) << shift)).astype(type_)
    read = np.asarray(read_picture(tiff(stored, photometric="miniswhite"))).astype(int)
    assert abs(read - pixels).max() <= 1


@pytest.mark.parametrize("type_", ["i1", "i2", "i4", "u4"])
def test_a_tiff_has_the_sign_that_it_says(type_: str) -> None:
    """Pillow overlooks that of 8 bits, and gives one to 32 bits without."""
    pixels = noise(8, 8)
    if type_ == "u4":
        assert (np.asarray(read_picture(tiff(pixels.astype(type_) << 24))) == pixels).all()
        return
    assert (np.asarray(read_picture(tiff((pixels // 2).astype(type_)))) == pixels // 2).all()
    with pytest.raises(ValueError, match="-128"):
        read_picture(tiff((pixels.astype(int) - 128).astype(type_)))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "PNG, deep", "TIFF, deep", "TIFF, deep colour"])
def test_pictures_are_put_upright(kind: str, orientation: int) -> None:
    pixels = np.asarray(Image.fromarray(noise(3, 4)).resize((32, 24))) // 2 + 60
    pixels = pixels if kind in ("jpeg", "PNG, deep", "TIFF, deep") else pixels[..., None].repeat(3, axis=2)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if "deep" in kind:
        turned = np.asarray(Image.fromarray(pixels).transpose(Image.Transpose(turn))).astype(np.uint16) << 4
        if kind == "PNG, deep":
            content = saved(Image.fromarray(turned), "png", exif=exif)
        else:
            tags = [(0x0112, "H", 1, orientation, True)]
            content = tiff(turned, photometric="rgb" if "colour" in kind else "minisblack", extratags=tags)
    else:
        options = {"quality": 100} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}
        content = saved(Image.fromarray(pixels).transpose(Image.Transpose(turn)), kind, exif=exif, **options)
    read = np.asarray(read_picture(content)).astype(int)
    assert read.shape == pixels.shape
    assert abs(read - pixels).max() <= 4


@pytest.mark.parametrize("form", ["webp", "gif", "tiff", "png"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_is_read_as_its_content_is(form: str, frames: int, tmp_path: Path) -> None:
    """Those of several frames by their first one. Not all of Pillow's readers say how they will decode."""
    pages = [Image.fromarray(page) for page in np.random.default_rng(0).integers(0, 256, (frames, 16, 16, 3), "u1")]
    path = tmp_path / f"picture.{form}"
    pages[0].save(path, form, **({"save_all": True, "append_images": pages[1:]} if frames > 1 else {}))
    expected = plain_picture(Image.open(io.BytesIO(path.read_bytes())))
    with Image.open(path) as opened:
        for source in (path, path.read_bytes(), opened):
            assert np.array_equal(read_picture(source), expected)
    assert ("3 pictures" in fit_file(path, 3, 16)[1]) == (frames == 3)


@pytest.mark.parametrize("kind", ["PNG, colour", "PNG, grey and alpha", "TIFF, colour, compressed"])
def test_an_opened_picture_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    """And one that was decoded, of which 8 bits are left, is refused."""
    pixels = noise(16, 20)
    (tmp_path / "scan").write_bytes(DEEP[kind](pixels[..., None].repeat(3, axis=2).astype(np.uint16) << 4))
    with Image.open(tmp_path / "scan") as picture:
        for _ in range(2):
            assert (np.asarray(read_picture(picture, channels=1)) == pixels).all()
    with Image.open(tmp_path / "scan") as picture:
        picture.load()
        with pytest.raises(ValueError, match="decoded before"):
            read_picture(picture)


# ---- size, position, colours ----------------------------------------------------------------------------------------


def test_a_picture_that_fits_is_not_changed() -> None:
    for channels in (1, 3):
        image = noise(12, 12, channels)
        np.testing.assert_array_equal(fit_picture(Image.fromarray(image), 12, channels), image)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40)])
def test_the_middle_square_is_kept(shape: tuple[int, int]) -> None:
    """White outside the middle square; inside, a dark left and a bright right half."""
    image = np.full(shape, 255, np.uint8)
    top, left = (shape[0] - 40) // 2, (shape[1] - 40) // 2
    image[top : top + 40, left : left + 40] = 60
    image[top : top + 40, left + 20 : left + 40] = 120
    fitted = fit_picture(Image.fromarray(image), 20, 1).astype(int)
    assert abs(fitted[2:-2, 2:8] - 60).max() <= 1
    assert abs(fitted[2:-2, 12:18] - 120).max() <= 1


def test_shrinking_averages_and_does_not_pick() -> None:
    image = np.indices((128, 128)).sum(axis=0) % 2 * 255  # a chess board of single pixels
    fitted = fit_picture(Image.fromarray(image.astype(np.uint8)), 16, 1).astype(float)
    assert abs(fitted[1:-1, 1:-1] - 127.5).max() < 3


@pytest.mark.parametrize("shape", [(600, 600), (613, 887), (599, 601)])
@pytest.mark.parametrize("size", [64, 150, 200])
def test_what_is_averaged_first_looks_as_if_it_were_not(shape: tuple[int, int], size: int) -> None:
    picture = Image.fromarray(noise(12, 15)).resize(shape, Image.Resampling.BICUBIC)
    direct = np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)).astype(int)
    difference = abs(fit_picture(picture, size, 1).astype(int) - direct)
    assert difference.max() <= (2 if 4 * size <= min(shape) else 0)


def test_a_large_jpeg_looks_as_if_it_were_not() -> None:
    smooth = Image.fromarray(noise(12, 15)).resize((750, 600), Image.Resampling.BICUBIC)
    stored = saved(smooth, "jpeg", quality=95)
    quick = fit_picture(Image.open(io.BytesIO(stored)), 48, 1).astype(int)
    slow = fit_picture(Image.open(io.BytesIO(stored)).copy(), 48, 1).astype(int)
    assert abs(quick - slow).mean() < 2
    assert abs(quick - slow).max() < 12


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "RGB", "P"])
def test_what_is_transparent_is_white_and_not_what_is_below(mode: str) -> None:
    left = np.arange(10) < 5
    if mode in ("L", "RGB", "P"):  # one colour stands for nothing
        shown = Image.fromarray(np.where(left, 40, 90)[None].repeat(10, 0).astype(np.uint8)).convert(mode)
        picture = Image.open(io.BytesIO(saved(shown, transparency=(90, 90, 90) if mode == "RGB" else 90)))
    else:
        below = np.where(left, 40, RNG.integers(0, 256, (10, 10))).astype(np.uint8)
        alpha = Image.fromarray((255 * left[None].repeat(10, 0)).astype(np.uint8))
        grey = Image.fromarray(below)
        picture = Image.merge(mode, [grey] * (len(mode) - 1) + [alpha])
    for channels in (1, 3):
        pixels = fit_picture(picture, 10, channels).reshape(10, 10, channels)
        assert (pixels[:, left] == 40).all()
        assert (pixels[:, ~left] == 255).all()


def test_a_palette_of_greys_is_grey() -> None:
    grey = Image.fromarray(noise(9, 9))
    for picture, channels in ((grey.convert("P"), 1), (Image.fromarray(noise(9, 9, 3)).convert("P"), 3)):
        assert is_grey(Image.open(io.BytesIO(saved(picture)))) == (channels == 1)
    np.testing.assert_array_equal(fit_picture(grey.convert("P"), 9, 1), np.asarray(grey))


def test_four_colours_of_print_are_seen_as_on_a_screen() -> None:
    colours = Image.fromarray(np.full((8, 8, 3), (220, 160, 140), np.uint8))
    stored = saved(colours.convert("CMYK"), "jpeg", quality=95)
    with Image.open(io.BytesIO(stored)) as picture:
        np.testing.assert_allclose(fit_picture(picture, 8, 3), np.asarray(colours), atol=3)


# ---- the same everywhere --------------------------------------------------------------------------------------------


def turned(picture: Image.Image, form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture.transpose(Image.Transpose.ROTATE_90), form, exif=exif)


GREY, COLOUR = Image.fromarray(noise(16, 16)), Image.fromarray(noise(16, 16, 3))
DEEP_GREY, DEEP_COLOUR = np.asarray(GREY).astype(np.uint16) << 4, np.asarray(COLOUR).astype(np.uint16) << 4
KINDS: dict[str, bytes] = {
    "grey": saved(GREY),
    "black and white": saved(GREY.convert("1")),
    "colour": saved(COLOUR),
    "colour jpeg": saved(COLOUR, "jpeg"),
    "large jpeg": saved(COLOUR.resize((150, 110)), "jpeg"),
    "transparent": saved(Image.merge("RGBA", [*COLOUR.split(), GREY])),
    "transparent grey": saved(Image.merge("LA", [GREY, GREY.rotate(90)])),
    "palette": saved(COLOUR.convert("P")),
    "palette of greys": saved(GREY.convert("P")),
    "inks": saved(COLOUR.convert("CMYK"), "jpeg"),
    "turned": turned(GREY, "png"),
    "turned jpeg": turned(COLOUR.resize((40, 30)), "jpeg"),
    "png of 16 bits": deep_png(DEEP_GREY),
    "png of 16 bits, colour": deep_png(DEEP_COLOUR),
    "png of 16 bits, grey and alpha": deep_png(np.dstack([DEEP_GREY, DEEP_GREY << 4])),
    "png of 16 bits, colour and alpha": deep_png(np.dstack([DEEP_COLOUR, DEEP_GREY << 4])),
    "tiff of 16 bits": tiff(DEEP_GREY),
    "tiff of 16 bits, colour": tiff(DEEP_COLOUR, photometric="rgb"),
    "tiff of 32 bits": tiff(DEEP_GREY.astype(np.int32)),
    "tiff of floats": tiff((np.asarray(GREY) / 255).astype(np.float32)),
    "pgm of 12 bits": b"P5 16 16 4095\n" + DEEP_GREY.astype(">u2").tobytes(),
    "dicom": dicom(DEEP_GREY, WindowCenter=2000, WindowWidth=1000),
    "dicom, inverted": dicom(DEEP_GREY, photometric="MONOCHROME1"),
    "dicom, colour": dicom(np.asarray(COLOUR), bits=8, photometric="RGB"),
    "dicom, large": dicom(np.asarray(GREY.resize((50, 40))), bits=8),
    "dicom, by hand": bare_dicom(DEEP_GREY),
    "dicom without a head": bare_dicom(DEEP_GREY, head=False),
}


@pytest.fixture(scope="module", params=[1, 3], ids=["grey model", "colour model"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    build(channels=request.param).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_all_read_the_same_pixels(model: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, a pipeline, the command and the app."""
    path = tmp_path / ("scan.dcm" if kind.startswith("dicom") else "scan")
    path.write_bytes(KINDS[kind])
    pipe = DSCMPipeline.from_pretrained(model)
    channels, size = pipe.image_format
    for rows in ({"image": [str(path)]}, {"image": [{"bytes": KINDS[kind], "path": path.name}]}):
        prepared, _ = prepare_images(Dataset.from_dict(rows), size, channels, cache_dir=tmp_path / "cache")
        expected = np.asarray(prepared[0]["image"])
        assert (np.asarray(read_picture(path, *pipe.image_format)) == expected).all()
    assert np.ptp(expected) > 50  # it is not black

    monkeypatch.setattr("softcft.cli._load", lambda model, modules: pipe)
    parents = row(0)
    known = ["--parents", *(f"{name}={value}" for name, value in parents.items()), "--do", f"sex={parents['sex']}"]
    main(["counterfactual", str(path), "--model", model, *known, "-o", str(tmp_path / "out.png")])
    assert (np.asarray(Image.open(tmp_path / "out.png")) == expected).all()  # nothing was changed by do()

    if kind != "dicom without a head":  # of which only the name says what it is
        assert (fit_upload(KINDS[kind], pipe.image_format)[0] == expected).all()
    if not kind.startswith("dicom") and "large" not in kind and kind != "turned jpeg":
        with Image.open(path) as picture:
            assert (np.asarray(pipe(picture, parents).images[0]) == expected).all()
    with open_file(path) as picture:
        before = picture.size, picture.mode
        images = pipe([picture, picture], [parents] * 2, fit=True).images + pipe(path, parents, fit=True).images
        assert (picture.size, picture.mode) == before
    assert all((np.asarray(image) == expected).all() for image in images)
    assert (np.asarray(pipe(read_picture(path, channels, size), parents).images[0]) == expected).all()


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_the_content_says_what_a_file_is_and_not_its_name(kind: str, tmp_path: Path) -> None:
    content = saved(GREY) if kind == "png" else dicom(np.asarray(GREY), bits=8, WindowCenter=128, WindowWidth=256)
    for name in ("a.png", "a.dcm", "a.jpg", "a"):
        (tmp_path / name).write_bytes(content)
        assert (np.asarray(read_picture(tmp_path / name)) == np.asarray(GREY)).all()


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"softcft\[dicom\]"):
        read_picture(KINDS["dicom"])
