import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from softcft.data.morphomnist import MORPHOMNIST_GRAPH, load_morphomnist
from softcft.data.schema import ImageAttributeDataset

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("MORPHOMNIST_DIR", ROOT.parent / "shared" / "data" / "morphomnist"))
NUM_TRAIN, NUM_TEST = 30, 12
IMAGES, LABELS, TABLE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "train-morpho.csv"


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def images(n: int) -> np.ndarray:
    """Random images whose first pixel is their number."""
    pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    pixels[:, 0, 0] = np.arange(n)
    return pixels


def attributes(n: int) -> str:
    """Attributes that tell their row, too."""
    lines = [f"{i},{1 + i / 100},{100 + i}" for i in range(n)]
    return "\n".join(["index,thickness,intensity", *lines, ""])


def make_files(folder: Path, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST) -> Path:
    """Files as they are downloaded."""
    for prefix, n in (("train", num_train), ("t10k", num_test)):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images(n))))
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
        (folder / f"{prefix}-morpho.csv").write_text(attributes(n))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path)


def numbers(splits: DatasetDict, split: str) -> list[int]:
    """Which images of the file a split holds."""
    return [round(value) - 100 for value in splits[split]["intensity"]]


# ---- what comes out -----------------------------------------------------------------------------------------------


def test_image_label_and_attributes_of_a_row_belong_together(folder: Path) -> None:
    splits = load_morphomnist(folder, num_validation=5)
    for split, n in (("train", NUM_TRAIN), ("validation", NUM_TRAIN), ("test", NUM_TEST)):
        assert splits[split].column_names == ["image", "thickness", "intensity", "digit"]
        for row in splits[split]:
            number = round(row["intensity"]) - 100
            assert row["digit"] == str(number % 10)
            assert row["thickness"] == pytest.approx(1 + number / 100)
            pixels = np.asarray(row["image"])
            assert (pixels.shape, pixels.dtype) == ((32, 32), np.uint8)
            np.testing.assert_array_equal(pixels[2:30, 2:30], images(n)[number])
            assert pixels.astype(int).sum() == images(n)[number].astype(int).sum()  # so the padding is black


def test_train_and_validation_share_out_the_training_files(folder: Path) -> None:
    splits = load_morphomnist(folder, num_validation=5)
    train, validation = numbers(splits, "train"), numbers(splits, "validation")
    assert (len(train), len(validation)) == (25, 5)
    assert sorted(train + validation) == list(range(NUM_TRAIN))
    assert train != sorted(train)
    assert numbers(splits, "test") == list(range(NUM_TEST))


def test_the_seed_decides_the_split(folder: Path) -> None:
    first, again, other = (load_morphomnist(folder, num_validation=5, seed=seed) for seed in (0, 0, 1))
    assert numbers(first, "train") == numbers(again, "train")
    assert numbers(first, "validation") != numbers(other, "validation")


def test_first_images_do_not_depend_on_the_numbers_asked_for(folder: Path) -> None:
    large = load_morphomnist(folder, num_validation=8)
    small = load_morphomnist(folder, num_train=6, num_validation=3, num_test=4)
    for split, n in (("train", 6), ("validation", 3), ("test", 4)):
        assert numbers(small, split) == numbers(large, split)[:n]


def test_uncompressed_files_give_the_same(folder: Path) -> None:
    expected = load_morphomnist(folder, num_validation=5)
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    splits = load_morphomnist(folder, num_validation=5)
    for split in splits:
        assert splits[split].to_dict() == expected[split].to_dict()


def test_the_real_files() -> None:
    if not REAL.is_dir():
        pytest.skip("the Morpho-MNIST files are not here; MORPHOMNIST_DIR may name their folder")
    splits = load_morphomnist(REAL)
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 55_000,
        "validation": 5_000,
        "test": 10_000,
    }
    parents = {}
    for split, rows in splits.items():
        dataset = ImageAttributeDataset(rows, MORPHOMNIST_GRAPH)
        parents[split] = dataset.parents
        # Intensity is the median brightness of the stroke: pixels and rows belong together.
        some = list(range(0, 1000, 5))
        pixels = [(example["image"] + 1) * 127.5 for example in dataset.__getitems__(some)]
        measured = torch.stack([image[image >= image.max() / 2].median() for image in pixels])
        target = torch.tensor([rows[i]["intensity"] for i in some])
        assert torch.corrcoef(torch.stack([measured, target]))[0, 1] > 0.99
    # The ranges are those of the training files. Encoding clips what is out by a hair: test values must be well inside.
    assert (parents["test"][:, :2].abs() < 0.9999).all()
    train_and_validation = torch.cat([parents["train"], parents["validation"]])[:, :2]
    assert torch.equal(train_and_validation.amin(0), torch.tensor([-1.0, -1.0]))
    assert torch.equal(train_and_validation.amax(0), torch.tensor([1.0, 1.0]))


# ---- errors -------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_dir .*nowhere is no folder"):
        load_morphomnist(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [IMAGES, "t10k-labels-idx1-ubyte.gz", "t10k-morpho.csv"])
def test_a_missing_file_is_named_with_all_that_are_needed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    prefix = name.partition("-")[0]
    needed = f"needed are {prefix}-images-idx3-ubyte, {prefix}-labels-idx1-ubyte, {prefix}-morpho.csv"
    with pytest.raises(FileNotFoundError, match=f"has no {name}.*{needed}.*biomedia-mira/deepscm"):
        load_morphomnist(folder)


@pytest.mark.parametrize(
    ("name", "change", "damage"),
    [
        (IMAGES, lambda data: data[: len(data) // 2], "is truncated or no gzip file"),
        (IMAGES, lambda data: data[:200] + bytes(100) + data[300:], "is truncated or no gzip file"),
        (IMAGES, gzip.decompress, "is truncated or no gzip file"),
        (IMAGES, lambda _: gzip.compress(images(NUM_TRAIN).tobytes()), "the bytes 0 0 8 3"),
        (IMAGES, lambda _: gzip.compress(idx(images(NUM_TRAIN))[:-1]), "23519"),
        (IMAGES, lambda _: gzip.compress(bytes([0, 0, 8, 3])), r"\[0, 0, 0\] bytes"),
        (IMAGES, lambda _: gzip.compress(idx(images(NUM_TRAIN)[:, :20])), r"\(20, 28\)"),
        (IMAGES, lambda _: gzip.compress(idx(images(NUM_TRAIN - 1))), "29, 'train-labels-idx1-ubyte.gz': 30"),
        (LABELS, lambda _: gzip.compress(idx(images(NUM_TRAIN - 1))), "the bytes 0 0 8 1"),
        (TABLE, lambda data: data.replace(b"thick", b"thin"), r"no column \['thickness'\]"),
        (TABLE, lambda data: b"\n", r"no column \['index', 'thickness', 'intensity'\]"),
        (TABLE, lambda data: b"", "is cut short"),
        (TABLE, lambda data: data[:-2], "is cut short"),
        (TABLE, lambda data: data.replace(b",1.07,", b",thick,"), "line 9: thickness .*'thick'"),
        (TABLE, lambda data: data.replace(b"1.07,107", b"1.07"), "line 9: intensity .*None"),
        (TABLE, lambda data: data.replace(b"\n7,", b"\n8,"), "line 9: index must be 7, got '8'"),
        (TABLE, lambda data: data[: data.index(b"29,")], ": 29"),
    ],
)
def test_a_damaged_file_is_named_with_the_damage(folder: Path, name: str, change, damage: str) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*{damage}"):
        load_morphomnist(folder, num_validation=5)


@pytest.mark.parametrize("name", [IMAGES, LABELS, TABLE])
@pytest.mark.parametrize("is_packed", [True, False])
def test_no_part_of_a_file_is_taken_for_the_whole(folder: Path, name: str, is_packed: bool) -> None:
    path = folder / name
    if not is_packed and path.suffix == ".gz":
        path = folder / path.stem
        path.write_bytes(gzip.decompress((folder / name).read_bytes()))
        (folder / name).unlink()
    whole = path.read_bytes()
    for size in {0, 1, 10, 18, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=path.name):
            load_morphomnist(folder, num_validation=5)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"num_train": 0}, "num_train"),
        ({"num_validation": 0}, "num_validation"),
        ({"num_test": -1}, "num_test"),
        ({"num_validation": 30}, "num_validation=30"),
        ({"num_train": 20, "num_validation": 11}, "num_train=20 and num_validation=11"),
        ({"num_validation": 5, "num_test": 13}, "num_test=13"),
    ],
)
def test_impossible_sizes(folder: Path, sizes: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_morphomnist(folder, **sizes)
    assert len(load_morphomnist(folder, num_train=20, num_validation=10, num_test=12)["train"]) == 20
