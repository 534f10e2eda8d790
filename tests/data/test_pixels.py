import io
import os
import struct
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features
from PIL import Image as PILImage

from softcft.data import pixels as module
from softcft.data.pictures import fit_picture
from softcft.data.pixels import encode_pixels, picture_shape, prepare_images, read_pixels

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
        PILImage.new("F", (10, 10), -1).save(paths[5], "tiff")  # darker than black
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
