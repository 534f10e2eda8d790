import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features
from PIL import Image as PILImage

from softcft.data import pixels as module
from softcft.data.pictures import fit_picture
from softcft.data.pixels import encode_pixels, open_picture, picture_shape, prepare_images, read_pixels

RNG = np.random.default_rng(0)
MODES = {1: "L", 3: "RGB"}


def noise(height: int, width: int, channels: int = 1) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: PILImage.Image, format_: str = "png", **options: object) -> dict[str, object]:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def table(images: list, **columns: list) -> Dataset:
    return Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())


# ---- pixels of prepared images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_stored_is_read_back_in_any_order(channels: int) -> None:
    images = [noise(6, 5, channels) for _ in range(9)]
    rows = table([encode_pixels(image) for image in images])
    expected = np.stack(images).reshape(9, 6, 5, channels)
    shape = (channels, 6, 5)
    assert picture_shape(rows) == shape
    for indices in ([4], [8, 0, 3, 3], range(2, 7)):
        np.testing.assert_array_equal(read_pixels(rows, indices, shape), expected[list(indices)])
    shuffled = rows.shuffle(seed=1)
    order = [
        int(np.flatnonzero([np.array_equal(image, np.asarray(row["image"])) for image in images])[0])
        for row in shuffled
    ]
    np.testing.assert_array_equal(read_pixels(shuffled, [1, 2], shape), expected[order[1:3]])


def test_anybody_can_look_at_prepared_images() -> None:
    for channels in (1, 3):
        image = noise(7, 7, channels)
        picture = table([encode_pixels(image)])[0]["image"]
        assert picture.mode == MODES[channels]
        np.testing.assert_array_equal(np.asarray(picture), image)


@pytest.mark.parametrize(
    "image",
    [encode_pixels(noise(8, 4)), encode_pixels(noise(3, 8, 3)), encoded(PILImage.new("L", (8, 8))), None],
    ids=["other shape", "other length", "png", "none"],
)
def test_images_that_are_not_prepared_are_refused(image: dict | None) -> None:
    rows = table([encode_pixels(noise(4, 8)), image])
    read_pixels(rows, [0], (1, 4, 8))
    with pytest.raises(ValueError, match="rows must"):
        read_pixels(rows, [0, 1], (1, 4, 8))


# ---- resizing -----------------------------------------------------------------------------------------------------


def test_a_picture_that_fits_is_not_changed() -> None:
    for channels in (1, 3):
        image = noise(12, 12, channels)
        np.testing.assert_array_equal(fit_picture(PILImage.fromarray(image), 12, channels), image)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40)])
def test_the_middle_square_is_kept(shape: tuple[int, int]) -> None:
    """White outside the middle square; inside, a dark left and a bright right half."""
    image = np.full(shape, 255, np.uint8)
    top, left = (shape[0] - 40) // 2, (shape[1] - 40) // 2
    image[top : top + 40, left : left + 40] = 60
    image[top : top + 40, left + 20 : left + 40] = 120
    fitted = fit_picture(PILImage.fromarray(image), 20, 1).astype(int)
    assert abs(fitted[2:-2, 2:8] - 60).max() <= 1
    assert abs(fitted[2:-2, 12:18] - 120).max() <= 1


def test_shrinking_averages_and_does_not_pick() -> None:
    image = np.indices((128, 128)).sum(axis=0) % 2 * 255  # a chess board of single pixels
    fitted = fit_picture(PILImage.fromarray(image.astype(np.uint8)), 16, 1).astype(float)
    assert abs(fitted[1:-1, 1:-1] - 127.5).max() < 3


def test_a_large_jpeg_looks_as_if_it_were_not() -> None:
    smooth = PILImage.fromarray(noise(12, 15)).resize((750, 600), PILImage.Resampling.BICUBIC)
    stored = encoded(smooth, "jpeg", quality=95)["bytes"]
    quick = fit_picture(PILImage.open(io.BytesIO(stored)), 48, 1).astype(int)
    slow = fit_picture(PILImage.open(io.BytesIO(stored)).copy(), 48, 1).astype(int)
    assert abs(quick - slow).mean() < 2
    assert abs(quick - slow).max() < 12


def test_a_turned_photograph_is_put_upright() -> None:
    picture = PILImage.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = PILImage.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = PILImage.open(io.BytesIO(encoded(picture, exif=exif)["bytes"]))
    np.testing.assert_array_equal(fit_picture(turned, 8, 1), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_of_eight_bits_are_converted(mode: str) -> None:
    picture = PILImage.fromarray(noise(9, 9, 3)).convert(mode)
    assert fit_picture(picture, 6, 1).shape == (6, 6)
    assert fit_picture(picture, 6, 3).shape == (6, 6, 3)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_bits_are_refused_and_not_clipped(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"more than 8 bits per channel \(PIL mode '{mode}'\)"):
        fit_picture(PILImage.new(mode, (8, 8)), 8, 1)


def deep_png(pixels: np.ndarray) -> dict[str, object]:
    """A PNG of 16 bits, (H, W) or (H, W, C) of 2 to 4 channels, most of which Pillow reads but cannot write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)),)
    parts += ((b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return {"bytes": b"\x89PNG\r\n\x1a\n" + b"".join(packed), "path": None}


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey and alpha", "colour", "colour and alpha"])
def test_sixteen_bits_are_refused_in_grey_and_colour(channels: int) -> None:
    """Pictures of 12 bits in 16, as of X-rays, whose upper 8 bits are all but black."""
    pixels = RNG.integers(0, 4096, (8, 8) if channels == 1 else (8, 8, channels))
    with open_picture(deep_png(pixels)) as picture, pytest.raises(ValueError, match="more than 8 bits per channel"):
        fit_picture(picture, 8, 1)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "RGB", "P"])
def test_what_is_transparent_is_white_and_not_what_is_below(mode: str) -> None:
    left = np.arange(10) < 5
    if mode in ("L", "RGB", "P"):  # one colour stands for nothing
        shown = PILImage.fromarray(np.where(left, 40, 90)[None].repeat(10, 0).astype(np.uint8)).convert(mode)
        picture = PILImage.open(io.BytesIO(encoded(shown, transparency=(90, 90, 90) if mode == "RGB" else 90)["bytes"]))
    else:
        below = np.where(left, 40, RNG.integers(0, 256, (10, 10))).astype(np.uint8)
        alpha = PILImage.fromarray((255 * left[None].repeat(10, 0)).astype(np.uint8))
        grey = PILImage.fromarray(below)
        picture = PILImage.merge(mode, [grey] * (len(mode) - 1) + [alpha])
    for channels in (1, 3):
        pixels = fit_picture(picture, 10, channels).reshape(10, 10, channels)
        assert (pixels[:, left] == 40).all()
        assert (pixels[:, ~left] == 255).all()


def test_a_palette_of_greys_is_grey() -> None:
    grey = PILImage.fromarray(noise(9, 9))
    for picture, channels in ((grey.convert("P"), 1), (PILImage.fromarray(noise(9, 9, 3)).convert("P"), 3)):
        assert picture_shape(table([encoded(picture)])) == (channels, 9, 9)
    np.testing.assert_array_equal(fit_picture(grey.convert("P"), 9, 1), np.asarray(grey))


def test_four_colours_of_print_are_seen_as_on_a_screen() -> None:
    colours = PILImage.fromarray(np.full((8, 8, 3), (220, 160, 140), np.uint8))
    stored = encoded(colours.convert("CMYK"), "jpeg", quality=95)["bytes"]
    with PILImage.open(io.BytesIO(stored)) as picture:
        np.testing.assert_allclose(fit_picture(picture, 8, 3), np.asarray(colours), atol=3)


def test_shape_is_that_of_the_first_picture_that_can_be_read() -> None:
    pictures = [None, {"bytes": b"no picture", "path": None}, encoded(PILImage.new("RGB", (5, 4)))]
    assert picture_shape(table(pictures)) == (3, 4, 5)
    with pytest.raises(ValueError, match="None of the 2 images can be read"):
        picture_shape(table(pictures[:2]))


# ---- a whole data set ---------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.png") for i in range(7)]
    for path in paths:
        PILImage.fromarray(noise(10, 14)).save(path)
    return paths


def test_rows_keep_their_order_and_their_columns(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    expected = [fit_picture(PILImage.open(path), 8, 1) for path in paths]
    stored = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    for images in (paths, stored):
        rows = Dataset.from_dict({"image": images, "age": list(range(7))})
        prepared, problems = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
        assert problems == []
        assert prepared["age"][:] == list(range(7))
        np.testing.assert_array_equal(read_pixels(prepared, range(7), (1, 8, 8))[..., 0], expected)


def test_grey_becomes_colour_and_colour_grey(paths: list[str], tmp_path: Path) -> None:
    colour, _ = prepare_images(Dataset.from_dict({"image": paths}), 8, 3, cache_dir=tmp_path / "cache")
    three = read_pixels(colour, [2], (3, 8, 8))
    assert (three[..., 0] == three[..., 2]).all()
    grey, _ = prepare_images(colour, 8, 1, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(read_pixels(grey, [2], (1, 8, 8))[..., 0], three[..., 0])


def damaged(paths: list[str]) -> list[str]:
    if os.path.exists(paths[2]):
        Path(paths[1]).write_bytes(b"no picture")
        Path(paths[4]).write_bytes(Path(paths[4]).read_bytes()[:-40])
        PILImage.new("I;16", (10, 10)).save(paths[5])
        os.remove(paths[2])
    return paths


def test_damaged_pictures_are_left_out_and_named(paths: list[str], tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": damaged(paths), "age": list(range(7))})
    for _ in range(2):  # the second time from the cache
        prepared, problems = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
        assert prepared["age"][:] == [0, 3, 6]
        assert [Path(problem.partition(": ")[0]).name for problem in problems] == ["1.png", "2.png", "4.png", "5.png"]
        assert read_pixels(prepared, [0, 1, 2], (1, 8, 8)).shape == (3, 8, 8, 1)


def test_damaged_pictures_may_end_it(paths: list[str], tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": damaged(paths)})
    with pytest.raises(ValueError, match=r"1\.png: it is no picture .* leave out such rows by on_error='skip'"):
        prepare_images(rows, 8, 1, on_error="raise", cache_dir=tmp_path / "cache")


def test_the_first_picture_may_be_the_missing_one(paths: list[str], tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": [None, *paths]})
    prepared, problems = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
    assert (len(prepared), problems) == (7, ["row 0: it has no image"])


def test_no_picture_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"None of the 0 images can be read\.$"):
        prepare_images(table([encode_pixels(noise(8, 8))]).select([]), 8, 1, cache_dir=tmp_path / "cache")
    rows = Dataset.from_dict({"image": [str(tmp_path / "gone.png")] * 2})
    with pytest.raises(ValueError, match=r"None of the 2 images can be read; the first: .*gone\.png: "):
        prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")


def test_channels(paths: list[str]) -> None:
    with pytest.raises(ValueError, match="channels must"):
        prepare_images(Dataset.from_dict({"image": paths}), 8, 2)


def test_a_picture_that_breaks_the_decoder_is_damaged(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(picture: PILImage.Image, size: int, channels: int) -> np.ndarray:
        if picture.filename == paths[3]:
            raise struct.error("odd EXIF")
        return fit_picture(picture, size, channels)

    monkeypatch.setattr(module, "fit_picture", fit)
    prepared, problems = prepare_images(Dataset.from_dict({"image": paths}), 8, 1, cache_dir=tmp_path / "cache")
    assert len(prepared) == 6
    assert problems == [f"{paths[3]}: odd EXIF"]


def test_pictures_in_an_archive(paths: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in paths:
            archive.write(path, Path(path).name)
    inside = [f"zip://{Path(path).name}::{tmp_path / 'all.zip'}" for path in paths]
    packed, problems = prepare_images(Dataset.from_dict({"image": inside}), 8, 1, cache_dir=tmp_path / "cache")
    assert problems == []
    plain, _ = prepare_images(Dataset.from_dict({"image": paths}), 8, 1, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(read_pixels(packed, range(7), (1, 8, 8)), read_pixels(plain, range(7), (1, 8, 8)))


def test_other_columns_have_any_name_and_are_not_cached(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = count_pictures(monkeypatch)
    for columns in ({"problem": list("abcdefg")}, {"path": list(range(7)), "bytes": [0.5] * 7}, {}):
        table = Dataset.from_dict({"image": damaged(paths), **columns})
        prepared, _ = prepare_images(table, 8, 1, cache_dir=tmp_path / "cache")
        assert prepared.column_names == ["image", *columns]
        for name, values in columns.items():
            assert prepared[name][:] == [values[i] for i in (0, 3, 6)]
    assert len(counted) < 2 * 7  # another graph finds the same images


def count_pictures(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Counts the pictures that are fitted, and raises at one of them as an interruption would."""
    counted: list[int] = []

    def fit(*arguments: object) -> np.ndarray:
        counted.append(1)
        if len(counted) == fail_at:
            raise KeyboardInterrupt
        return fit_picture(*arguments)

    monkeypatch.setattr(module, "fit_picture", fit)
    return counted


def test_each_picture_is_prepared_once_and_again_if_it_changes(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    rows = Dataset.from_dict({"image": paths})
    counted = count_pictures(monkeypatch)
    first, _ = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
    again, _ = prepare_images(Dataset.from_dict({"image": paths}), 8, 1, cache_dir=tmp_path / "cache")
    assert len(counted) == 7
    np.testing.assert_array_equal(read_pixels(first, range(7), (1, 8, 8)), read_pixels(again, range(7), (1, 8, 8)))
    prepare_images(rows, 6, 1, cache_dir=tmp_path / "cache")
    assert len(counted) == 14
    PILImage.new("L", (20, 20), 9).save(paths[6])
    changed, _ = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
    assert len(counted) == 15  # the chunk of one
    assert (read_pixels(changed, [6], (1, 8, 8)) == 9).all()


def test_what_is_prepared_already_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_pictures(monkeypatch)
    images = [noise(8, 8) for _ in range(3)]
    rows = Dataset.from_dict(
        {"image": [encode_pixels(image) for image in images]}, features=Features({"image": datasets.Image()})
    )
    prepared, problems = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
    assert (len(counted), problems) == (0, [])
    np.testing.assert_array_equal(read_pixels(prepared, range(3), (1, 8, 8))[..., 0], images)
    assert prepare_images(rows, 8, 3, cache_dir=tmp_path / "cache")[0][0]["image"].mode == "RGB"
    assert len(counted) == 3


def test_an_interrupted_run_goes_on_where_it_was(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    rows = Dataset.from_dict({"image": paths})
    counted = count_pictures(monkeypatch, fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        prepare_images(rows, 8, 1, num_workers=1, cache_dir=tmp_path / "cache")
    monkeypatch.undo()
    monkeypatch.setattr(module, "CHUNK", 3)
    counted = count_pictures(monkeypatch)
    prepared, _ = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
    assert len(counted) == 4  # the first three were kept, the chunk that was cut short was not
    expected = [fit_picture(PILImage.open(path), 8, 1) for path in paths]
    np.testing.assert_array_equal(read_pixels(prepared, range(7), (1, 8, 8))[..., 0], expected)
