import gc
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image

from softcft.data.columns import translate
from softcft.data.own import read_table
from softcft.data.splits import make_splits
from softcft.graph import CausalGraph
from tests.data.picture_files import png, table

# datasets leaves files open when it reads a folder.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    yield
    if any(tmp_path.iterdir()):
        gc.collect()  # here, where it may warn


# ---- reading ------------------------------------------------------------------------------------------------------


def pictures_in(folder: Path, n: int = 3) -> Path:
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{i}.png").write_bytes(png(i))
    return folder


def test_a_single_split_is_the_training_split_and_others_are_left_out(tmp_path: Path) -> None:
    numbered(4).to_parquet(tmp_path / "one" / "test.parquet")
    assert list(read_table(str(tmp_path / "one"))) == ["train"]
    three = {"train": numbered(3), "test": numbered(2), "unlabelled": numbered(1)}
    DatasetDict(three).save_to_disk(tmp_path / "three")
    assert list(read_table(str(tmp_path / "three"))) == ["train", "test"]
    DatasetDict({"a": numbered(3), "b": numbered(2)}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"The data set has the splits \['a', 'b'\], but none is called 'train'"):
        read_table(str(tmp_path / "two"))


def test_a_picture_that_is_named_but_not_there_stays_a_row(tmp_path: Path) -> None:
    """It is left out when images are prepared, and named then."""
    folder = pictures_in(tmp_path / "mine")
    (folder / "metadata.csv").write_text("file_name,age\n0.png,1\ngone.png,2\n")
    rows = read_table(str(folder))["train"].cast_column("image", Image(decode=False))
    assert rows["age"][:] == [1, 2]
    assert rows[1]["image"]["path"].endswith("gone.png")


def write_parquet(rows: Dataset, folder: Path) -> None:
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")


def write_tar(rows: Dataset, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "shard-0.tar", "w") as tar:
        for i, age in enumerate(rows["age"]):
            for ending, data in ((".png", png(i)), (".json", json.dumps({"age": age}).encode())):
                info = tarfile.TarInfo(f"{i}{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("write", "columns"),
    [
        (write_parquet, {}),
        (lambda rows, folder: rows.save_to_disk(folder), {}),
        (lambda rows, folder: rows.with_format("torch").save_to_disk(folder), {}),
        (lambda rows, folder: DatasetDict({"train": rows}).save_to_disk(folder), {}),
        (write_tar, {"age": "json.age", "image": "png"}),
    ],
    ids=["parquet", "save_to_disk", "with a format", "splits", "webdataset"],
)
def test_other_kinds_of_files(write: Callable[[Dataset, Path], None], columns: dict[str, str], tmp_path: Path) -> None:
    write(table(4, age=[1, 2, 3, 4]), tmp_path / "mine")
    rows = read_table(str(tmp_path / "mine"))["train"]
    graph = CausalGraph([{"name": "age", "kind": "continuous", "low": 0, "high": 9}])
    translated = translate(rows, graph, columns)
    assert translated["age"][:] == [1, 2, 3, 4]
    assert [np.asarray(image)[0, 0] for image in translated["image"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["", "nowhere", "./no/where", "/no/where", "a/b/c"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^dataset_name {name} "):
        read_table(name)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name in (str(tmp_path), "no/where"):
        with pytest.raises(ValueError, match=f"dataset_name {name} "):
            read_table(name)


# ---- splits -------------------------------------------------------------------------------------------------------


def numbered(n: int, **columns: Any) -> Dataset:
    return Dataset.from_dict({"row": list(range(n)), **columns})


def test_missing_splits_are_drawn_from_the_training_rows() -> None:
    rows = numbered(100)
    splits = make_splits(DatasetDict({"train": rows}))
    assert {name: len(split) for name, split in splits.items()} == {"train": 70, "validation": 10, "test": 20}
    assert sorted(row for split in splits.values() for row in split["row"]) == list(range(100))
    assert splits["test"]["row"][:] == make_splits(DatasetDict({"train": rows}))["test"]["row"][:]
    assert splits["test"]["row"][:] != make_splits(DatasetDict({"train": rows}), seed=1)["test"]["row"][:]
    assert splits["train"]["row"][:] == sorted(splits["train"]["row"])  # half even and odd stay what they were


def test_rows_without_a_group_are_on_their_own() -> None:
    patients = [None] * 30 + ["a"] * 5 + ["b"] * 5
    splits = make_splits(DatasetDict({"train": numbered(40, patient=patients)}), group_column="patient")
    assert [len(split) for split in splits.values()] == pytest.approx([28, 4, 8], abs=4)


def test_splits_that_are_there_stay() -> None:
    splits = make_splits(DatasetDict({"test": numbered(3), "train": numbered(20), "extra": numbered(1)}))
    assert list(splits) == ["train", "validation", "test"]
    assert splits["test"]["row"][:] == [0, 1, 2]
    assert (len(splits["train"]), len(splits["validation"])) == (18, 2)


def test_numbers_of_rows() -> None:
    numbers = {"train": 10, "validation": 7, "test": 3}
    splits = make_splits(DatasetDict({"train": numbered(50), "test": numbered(9)}), numbers)
    assert {name: len(split) for name, split in splits.items()} == numbers
    assert not set(splits["train"]["row"]) & set(splits["validation"]["row"])


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed: int) -> None:
    patients = [f"P{i % 17}" for i in range(100)]
    splits = make_splits(DatasetDict({"train": numbered(100, patient=patients)}), group_column="patient", seed=seed)
    groups = [set(split["patient"]) for split in splits.values()]
    assert sum(len(group) for group in groups) == 17
    assert sum(len(split) for split in splits.values()) == 100
    assert len(splits["test"]) >= 20
    assert len(splits["validation"]) >= 10


@pytest.mark.parametrize(
    ("splits", "arguments", "named"),
    [
        ({"train": 5}, {"group_column": "patient"}, "group_column patient"),
        ({"train": 2}, {}, "too few to draw 1 for validation"),
        ({"train": 5}, {"numbers": {"test": 5}}, "too few to draw 5 for test"),
        ({"train": 5}, {"group_column": "same"}, "too few to draw 1 for test from, if rows of one same"),
        ({"train": 9}, {"numbers": {"train": 9}}, "num_train is 9"),
        ({"train": 9, "test": 2}, {"numbers": {"test": 3}}, "num_test is 3"),
    ],
)
def test_splits_that_cannot_be_made(splits: dict[str, int], arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_splits(DatasetDict({name: numbered(n, same=[0] * n) for name, n in splits.items()}), **arguments)


@pytest.mark.parametrize("lacking", ["train", "validation", "test"])
def test_all_splits_have_the_column_of_subjects(lacking: str) -> None:
    names = ("train", "validation", "test")
    splits = {name: numbered(4, **({} if name == lacking else {"patient": [0, 0, 1, 1]})) for name in names}
    with pytest.raises(ValueError, match=f"group_column patient: {lacking} "):
        make_splits(DatasetDict(splits), group_column="patient")
