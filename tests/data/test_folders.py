"""Folders as people have them: which files are which split, one type for a column, and names of any letters."""

import csv
import gc
import io
import json
import logging
import os
import re
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Image

from softcft.data.config import DataConfig
from softcft.data.folders import list_files, read_folder
from softcft.data.own import read_table
from softcft.data.pixels import prepare_images
from softcft.data.report import check_data
from softcft.data.sources import load_data
from softcft.data.unused_files import left_out
from softcft.graph import CausalGraph
from tests.data.picture_files import dicom, png

GRAPH = CausalGraph([{"name": "size", "kind": "continuous", "low": 0, "high": 255}])
# datasets leaves files open when it reads a folder.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # here, where it may warn


def put(folder: Path, names: list[str], first: int = 0) -> Path:
    for i, name in enumerate(names, start=first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i))
    return folder


def write_csv(path: Path, rows: list[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pictures(folder: Path, n: int, first: int = 0, names: list[str] | None = None) -> Path:
    """Pictures of different grey, and a table that has the grey of each as its size."""
    names = names or [f"{i}.png" for i in range(n)]
    put(folder, names, first)
    write_csv(folder / "metadata.csv", [{"file_name": name, "size": first + i} for i, name in enumerate(names)])
    return folder


def config(folder: Path, **others: Any) -> DataConfig:
    return DataConfig(
        **{"dataset_name": str(folder), "data_dir": str(folder.parent / "cache"), "sample_size": 8} | others
    )


def sizes(folder: Path) -> dict[str, int]:
    return {split: len(rows) for split, rows in read_table(str(folder)).items()}


def shades(rows: Dataset) -> list[int]:
    return [int(np.asarray(image)[0, 0]) for image in rows["image"]]


def write_readme(folder: Path, **splits: str) -> None:
    """A README that says which files are which split."""
    files = "".join(f"  - {{split: {split}, path: '{path}'}}\n" for split, path in splits.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")


# ---- splits ---------------------------------------------------------------------------------------------------------

THREE = {"train": 6, "validation": 2, "test": 3}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "Valid", "Testing"),
        ("trainset", "dev_set", "test-set"),
        ("Training data", "validate", "evaluation"),
        ("train_split", "development", "eval"),
    ],
)
@pytest.mark.parametrize("kind", ["tables", "one table", "classes", "parquet", "parquet in folders"])
def test_names_of_splits(names: tuple[str, str, str], kind: str, tmp_path: Path) -> None:
    folder, rows = tmp_path / "mine", []
    for i, (name, n) in enumerate(zip(names, THREE.values(), strict=True)):
        if kind == "tables":
            pictures(folder / name, n, 10 * i)
        elif kind.startswith("parquet"):
            path = folder / name / "0000.parquet" if kind.endswith("folders") else folder / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict({"size": range(n)}).to_parquet(path)
        else:
            put(folder / name, [f"{('a', 'b')[j % 2]}/{j}.png" for j in range(n)], 10 * i)
            rows += [{"file_name": f"{name}/{('a', 'b')[j % 2]}/{j}.png", "size": j} for j in range(n)]
    if kind == "one table":
        write_csv(folder / "metadata.csv", rows)
    assert sizes(folder) == THREE
    if kind == "classes":
        assert {
            rows.features["label"].int2str(label)
            for rows in read_table(str(folder)).values()
            for label in rows["label"]
        } == {"a", "b"}
    (tmp_path / "deeper").mkdir()
    folder.rename(tmp_path / "deeper" / "images")
    assert sizes(tmp_path / "deeper") == THREE
    streamed = read_table(str(tmp_path / "deeper"), streaming=True)
    assert {split: len(list(rows)) for split, rows in streamed.items()} == THREE


@pytest.mark.parametrize(
    "name", ["site_c", "test_site", "train_station", "2021-eval", "Testa", "device", "validated", "pretest", "trained"]
)
@pytest.mark.parametrize("has_tables", [False, True])
def test_a_word_within_a_name_makes_no_split(name: str, has_tables: bool, tmp_path: Path) -> None:
    for i, site in enumerate(("site_a", "site_b", name)):
        pictures(tmp_path / "mine" / site, 4, 10 * i)
        if not has_tables:
            (tmp_path / "mine" / site / "metadata.csv").unlink()
    splits = read_table(str(tmp_path / "mine"))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 12}
    assert left_out(str(tmp_path / "mine"), splits) == []
    if not has_tables:
        assert splits["train"].features["label"].names == sorted(["site_a", "site_b", name])


@pytest.mark.parametrize("folder", [None, "site_a", "train"])
def test_files_beside_the_pictures_decide_nothing(folder: str | None, tmp_path: Path) -> None:
    names = ["train.png", "test.png", "my_test.png", "val-1.png", "dev.png"]
    where = pictures(tmp_path / "mine" / (folder or "."), 0, names=names)
    for name in ("train.log", "test_ids.txt", "eval.py", "val.yaml", ".test"):
        (tmp_path / "mine" / name).write_text("1\n2\n")
        (where / name).write_text("1\n2\n")
    assert sizes(tmp_path / "mine") == {"train": 5}


@pytest.mark.parametrize("name", ["train_val", "trainval", "Train+Val", "training_validation", "train-dev"])
def test_validation_is_drawn_from_what_is_both(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path / "mine" / name, 20)
    pictures(tmp_path / "mine" / "test", 5, 100)
    with caplog.at_level(logging.WARNING):
        splits = load_data(config(tmp_path / "mine"), GRAPH)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 18, "validation": 2, "test": 5}
    assert not set(splits["train"]["size"]) & set(splits["validation"]["size"])
    assert "validation drawn at random" in caplog.text


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("train", "training", "test"), "training"),
        (("train_val", "train", "test"), "train_val"),
        (("val", "dev", "train"), "dev"),
        (("test", "eval", "train"), "eval"),
        (("site_a", "site_b", "test"), "test"),
        (("car", "bus", "train"), "train"),
        (("trainA", "trainB", "testA", "testB"), "testA"),
        (("images_train", "images_test"), "images_test"),
        (("my.train", "my.test"), "my.test"),
        (("1_train", "2_val", "3_test"), "3_test"),
        (("ISIC_Task3_Training_Input", "ISIC_Task3_Test_Input"), "ISIC_Task3_Test_Input"),
        (("VOCtrainval_06-Nov", "VOCtest_06-Nov"), "VOCtest_06-Nov"),
        (("hospital training", "hospital-test"), "hospital-test"),
        (("a/train", "a/test", "b/train", "b/test"), "train"),
    ],
)
@pytest.mark.parametrize("kind", ["pictures", "parquet"])
def test_names_that_leave_it_open_are_refused(names: tuple[str, ...], named: str, kind: str, tmp_path: Path) -> None:
    for name in names:
        if kind == "pictures":
            pictures(tmp_path / "mine" / name, 3)
        else:
            (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict({"size": range(3)}).to_parquet(tmp_path / "mine" / f"{name}.parquet")
    with pytest.raises(ValueError, match=f"'{named}'"):
        read_table(str(tmp_path / "mine"))


@pytest.mark.parametrize("names", [("train2017", "val2017"), ("train_2019", "test_2020"), ("2019 dev", "2020-train")])
def test_years_belong_to_names_of_folders(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        pictures(tmp_path / "mine" / name, 3)
    with pytest.raises(ValueError, match=names[0]):
        read_table(str(tmp_path / "mine"))


def test_a_class_may_be_called_train_in_a_folder_train(tmp_path: Path) -> None:
    put(tmp_path / "mine" / "train", [f"{name}/{i}.png" for name in ("car", "train", "bus") for i in range(2)])
    rows = read_table(str(tmp_path / "mine"))
    assert list(rows) == ["train"]
    assert rows["train"].features["label"].names == ["bus", "car", "train"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_readme_may_say_which_pictures_are_which_split(
    kind: str, is_link: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, write = tmp_path / "mine", {"csv": write_csv, "jsonl": write_jsonl}[kind]
    for i, name in enumerate(("a", "b")):
        put(folder / name, [f"{j}.png" for j in range(4)], 10 * i)
        rows = [{"file_name": f"{j}.png", "size": 10 * i + j if (i, j) != (1, 1) else None} for j in range(4)]
        write(folder / name / f"metadata.{kind}", [*rows, {"file_name": "lost.png", "size": 7}])
    write_readme(folder, train="a/*", test="b/*")
    if is_link:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    splits = read_table(str(folder))
    assert [rows["size"][:] for rows in splits.values()] == [[0, 1, 2, 3], [10, None, 12, 13]]
    assert {split: shades(rows) for split, rows in splits.items()} == {"train": [0, 1, 2, 3], "test": [10, 11, 12, 13]}
    assert "a/lost.png" in caplog.text
    streamed = read_table(str(folder), streaming=True)
    assert {split: len(list(rows)) for split, rows in streamed.items()} == {"train": 4, "test": 4}


def test_a_readme_with_a_picture_in_two_splits_is_refused_but_all_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for i, name in enumerate(("a", "b")):
        pictures(folder / name, 4, 10 * i)
    write_readme(folder, train="a/*", test="*/*")
    with pytest.raises(ValueError, match=r"README\.md has some files in several"):
        read_table(str(folder))
    write_readme(folder, train="a/*", test="b/*", all="*/*")
    assert sizes(folder) == {"train": 4, "test": 4}


@pytest.mark.parametrize("name", ["__none__", "_b", "@b", "__"])
def test_a_class_may_have_any_name(name: str, tmp_path: Path) -> None:
    put(tmp_path / "mine", [f"{folder}/{i}.png" for folder in ("a", name) for i in range(2)])
    put(tmp_path / "mine", ["__MACOSX/0.png"])
    assert read_table(str(tmp_path / "mine"))["train"].features["label"].names == sorted(["a", name])


@pytest.mark.parametrize("text", [b"Gr\xf6\xdfe", b"---\na: [1\n---\n", b"---\n- a\n---\n"])
def test_a_readme_that_cannot_be_read_is_named(text: bytes, tmp_path: Path) -> None:
    (pictures(tmp_path / "mine", 3) / "README.md").write_bytes(text)
    with pytest.raises(ValueError, match=r"README\.md"):
        read_table(str(tmp_path / "mine"))


def test_a_readme_with_splits_counts(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, n in (("a", 4), ("b", 2)):
        Dataset.from_dict({"size": range(n)}).to_parquet(folder / f"{name}.parquet")
    write_readme(folder, train="a.parquet", test="b.parquet")
    assert sizes(folder) == {"train": 4, "test": 2}
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert sizes(folder) == {"train": 6}
    with pytest.raises(ValueError, match="dataset_config_name other"):
        read_table(str(folder), "other")


@pytest.mark.parametrize("names", [("0.png", "1.png"), ("a/0.png", "b/1.png"), ("train/0.png", "test/1.png")])
@pytest.mark.parametrize("has_table", [False, True])
def test_an_archive_is_read_or_to_be_unpacked(names: tuple[str, ...], has_table: bool, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with zipfile.ZipFile(tmp_path / "mine" / "images.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(i))
        if has_table:
            rows = [{"file_name": name, "size": i} for i, name in enumerate(names)]
            archive.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if names[0].startswith("train") or (names[0].startswith("a") and not has_table):
        with pytest.raises(ValueError, match=r"images\.zip"):
            read_table(str(tmp_path / "mine"))
    else:
        rows = read_table(str(tmp_path / "mine"))["train"]
        assert sorted(shades(rows)) == [0, 1]
        assert ("size" in rows.column_names) == has_table


@pytest.mark.parametrize("rows", [10, 7])
@pytest.mark.parametrize("below", ["", "images/"])
def test_pictures_in_an_archive_without_a_row_are_counted(rows: int, below: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with zipfile.ZipFile(tmp_path / "mine" / "images.zip", "w") as archive:
        for i in range(10):
            archive.writestr(f"{below}{i}.png", png(i))
            archive.writestr(f"__MACOSX/{below}._{i}.png", b"\0")
        table = [{"file_name": f"{below}{i}.png", "size": i} for i in range(rows)]
        archive.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in table))
    splits = read_table(str(tmp_path / "mine"))
    assert len(splits["train"]) == rows
    notes = left_out(str(tmp_path / "mine"), splits)
    assert len(notes) == (rows < 10)
    assert all("3 of 10" in note and f"images.zip/{below}7.png" in note for note in notes)


@pytest.mark.parametrize("other", ["classes.csv", "extra.parquet"])
def test_data_files_of_another_kind_or_no_split_are_named(
    other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    rows = Dataset.from_dict({"size": range(3)})
    for name in ("train", "test"):
        rows.to_parquet(tmp_path / "mine" / f"{name}.parquet")
    getattr(rows, f"to_{other.partition('.')[2]}")(tmp_path / "mine" / other)
    assert sizes(tmp_path / "mine") == {"train": 3, "test": 3}
    assert other in caplog.text


def test_parts_of_files_are_one_split(tmp_path: Path) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test_0", "test_1", "test_10"):
        Dataset.from_dict({"size": [1, 2]}).to_parquet(tmp_path / "mine" / "data" / f"{name}.parquet")
    assert sizes(tmp_path / "mine") == {"train": 4, "test": 6}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["train", "validate", "test"], {"train": 2, "validation": 2, "test": 2}),
        (["Training", "Test", "Test"], {"train": 2, "test": 4}),
        (["train", "test", "holdout"], {"train": 2, "test": 2}),
        (["train", "test", ""], {"train": 2, "test": 2}),
        (["train", "train", "train"], {"train": 6}),
        (["0", "1", "2"], {"train": 6}),
        (["north", "south", "test"], {"train": 6}),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_of_splits(
    values: list[str], expected: dict[str, int], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"file_name": f"{i}.png", "size": i, "Split": value} for i, value in enumerate(values * 2)]
    if kind == "csv":
        put(tmp_path / "mine", [f"{i}.png" for i in range(6)])
        write_csv(tmp_path / "mine" / "metadata.csv", rows)
    else:
        (tmp_path / "mine").mkdir()
        Dataset.from_list(rows).to_parquet(tmp_path / "mine" / "0.parquet")
    splits = read_table(str(tmp_path / "mine"))
    assert {split: len(rows) for split, rows in splits.items()} == expected
    assert sum(sum(rows["size"]) for rows in splits.values()) in (15, 8)  # 8: without the last of three
    is_used = len(expected) > 1
    assert is_used == ("column 'Split'" in caplog.text) == ("Split" not in splits["train"].column_names)
    if is_used and "holdout" in values:
        assert "holdout" in caplog.text


def test_a_column_of_splits_with_two_names_for_one_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "mine", ["0.png", "1.png", "2.png"])
    rows = [{"file_name": f"{i}.png", "split": name} for i, name in enumerate(("train", "val", "dev"))]
    write_csv(tmp_path / "mine" / "metadata.csv", rows)
    with pytest.raises(ValueError, match="'dev', 'val'"):
        read_table(str(tmp_path / "mine"))


# ---- what is left out -----------------------------------------------------------------------------------------------


def test_pictures_without_a_row_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pictures(tmp_path / "mine", 40)
    put(folder, [f"masks/{i}.png" for i in range(23)], 100)
    (note,) = left_out(str(folder), read_table(str(folder)))
    assert "23 of 63" in note
    assert "masks/0.png" in note
    assert note in check_data(read_table(str(folder)), config(folder), GRAPH).warnings
    for is_streamed in (False, True):
        caplog.clear()
        load_data(config(folder, streaming=is_streamed, num_validation=4, num_test=4), GRAPH)
        assert note in caplog.text
        assert "test" in caplog.text


def test_rows_of_no_split_and_no_picture_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)]
    put(tmp_path / "mine", names)
    lost = ["", "other/lost.png", "lost.png"]
    write_csv(tmp_path / "mine" / "metadata.csv", [{"file_name": name, "size": 1} for name in [*names, *lost]])
    assert sizes(tmp_path / "mine") == {"train": 4, "test": 4}
    assert "3 rows" in caplog.text
    assert "other/lost.png" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_picture_has_its_rows_in_one_table(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path / "mine" / "train", 4)
    pictures(tmp_path / "mine" / "test", 2, 10)
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(2)]
    write = {"csv": write_csv, "jsonl": write_jsonl}[kind]
    write(tmp_path / "mine" / f"metadata.{kind}", [{"file_name": name, "size": 1} for name in names])
    with pytest.raises(ValueError, match=rf"metadata\.{kind}"):
        read_table(str(tmp_path / "mine"))


@pytest.mark.parametrize("times", [1, 3])
def test_a_picture_of_several_rows_is_told_in_training(
    times: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "mine", [f"{i}.png" for i in range(20)])
    rows = [{"file_name": f"{i}.png", "size": i} for i in range(20) for _ in range(times)]
    write_csv(tmp_path / "mine" / "metadata.csv", rows)
    load_data(config(tmp_path / "mine"), GRAPH)
    assert ("20 pictures are in more than one row" in caplog.text) == (times > 1)


def test_pictures_of_different_depths_have_no_labels_which_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "mine", ["cat/0.png", "dog/0.png", "dog/poodle/0.png"])
    assert read_table(str(tmp_path / "mine"))["train"].column_names == ["image"]
    assert "no labels" in caplog.text


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_a_column_is_named(split: str, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        pictures(tmp_path / "mine" / name, 3)
    write_csv(tmp_path / "mine" / split / "metadata.csv", [{"file_name": "0.png", "other": 1}])
    with pytest.raises(ValueError, match=f"{split} split.*size"):
        load_data(config(tmp_path / "mine"), GRAPH)


@pytest.mark.parametrize("cells", [(1, 2.0, "3", None), (1.0, float("nan"), "2"), ("1", 2, 3.0)])
def test_numbers_among_texts_are_what_people_write(cells: tuple[Any, ...], tmp_path: Path) -> None:
    put(tmp_path / "mine", [f"{i}.png" for i in range(len(cells))])
    rows = [{"file_name": f"{i}.png", "grade": cell} for i, cell in enumerate(cells)]
    write_jsonl(tmp_path / "mine" / "metadata.jsonl", rows)
    read = read_table(str(tmp_path / "mine"))["train"]["grade"][:]
    assert read == [None if cell is None or cell != cell else str(int(cell)) for cell in cells]


@pytest.mark.parametrize("word", ["None", "NA", "null"])
def test_words_that_are_read_as_missing_are_told(word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "mine", ["0.png", "1.png", "2.png"])
    rows = [{"file_name": f"{i}.png", "grade": grade} for i, grade in enumerate(("mild", word, ""))]
    write_csv(tmp_path / "mine" / "metadata.csv", rows)
    assert read_table(str(tmp_path / "mine"))["train"]["grade"][:] == ["mild", None, None]
    assert f"'{word}' in 1 cells of 'grade'" in caplog.text


def test_a_folder_that_is_no_split_is_left_out_beside_splits_and_counted(tmp_path: Path) -> None:
    for i, (name, n) in enumerate({"train": 20, "test": 4, "holdout": 5}.items()):
        pictures(tmp_path / "mine" / name, n, 30 * i)
    assert sizes(tmp_path / "mine") == {"train": 20, "test": 4}
    (note,) = left_out(str(tmp_path / "mine"), read_table(str(tmp_path / "mine")))
    assert "5 of 29" in note


def test_a_split_without_a_table_is_told(tmp_path: Path) -> None:
    """As in competitions."""
    pictures(tmp_path / "mine" / "train", 20)
    put(tmp_path / "mine" / "test", [f"{i}.png" for i in range(7)], 50)
    note, of_split = left_out(str(tmp_path / "mine"), read_table(str(tmp_path / "mine")))
    assert "folder test" in of_split
    assert "7 in test" in note


@pytest.mark.parametrize("name", ["list_attr.txt", "attributes.dat", "imagelabels.mat"])
@pytest.mark.parametrize("has_table", [False, True])
def test_texts_may_be_the_table_where_there_is_none(name: str, has_table: bool, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine", 3)
    if not has_table:
        (folder / "metadata.csv").unlink()
    (folder / name).write_text("0.png 1\n")
    assert [name in note for note in left_out(str(folder), read_table(str(folder)))] == [True] * (not has_table)


@pytest.mark.parametrize(("first", "values"), [(1, {}), (0, {}), (1, {1: "a", 2: "b"})])
def test_codes_that_may_count_from_one_are_refused(first: int, values: dict[int, str], tmp_path: Path) -> None:
    put(tmp_path / "mine", [f"{i}.png" for i in range(20)])
    rows = [{"file_name": f"{i}.png", "grade": first + i % 2} for i in range(20)]
    write_csv(tmp_path / "mine" / "metadata.csv", rows)
    graph = CausalGraph([{"name": "grade", "kind": "categorical", "categories": ["a", "b", "c"]}])
    columns = {"grade": {"values": values}} if values else None
    if first == 1 and not values:
        with pytest.raises(ValueError, match="grade"):
            load_data(config(tmp_path / "mine"), graph, columns)
    else:
        assert {*load_data(config(tmp_path / "mine"), graph, columns)["train"]["grade"]} == {"a", "b"}


# ---- one type for a column ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "data files"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_cell_in_one_split_changes_no_other(split: str, kind: str, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        folder = put(tmp_path / "mine" / name, [f"{i}.png" for i in range(4)])
        rows = [{"file_name": f"{i}.png", "size": None if name == split and i == 1 else i} for i in range(4)]
        if kind == "csv":
            write_csv(folder / "metadata.csv", rows)
        elif kind == "jsonl":
            write_jsonl(folder / "metadata.jsonl", rows)
        else:
            import pandas as pd  # which makes numbers of whole numbers with a gap

            for file in folder.glob("*.png") if kind == "data files" else ():
                file.unlink()
            pd.DataFrame(rows).to_parquet(folder / ("0.parquet" if kind == "data files" else "metadata.parquet"))
    splits = read_table(str(tmp_path / "mine"))
    assert len({str(rows.features) for rows in splits.values()}) == 1
    for name, rows in splits.items():
        assert rows["size"][:] == [0, None if name == split else 1, 2, 3]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "", "3"], [1, None, 3]),
        (["1", "2.5", "NA"], [1.0, 2.5, None]),
        (["True", "false", ""], [True, False, None]),
        (["1", "x", "None"], ["1", "x", None]),
        (["1", "1_000", "3"], ["1", "1_000", "3"]),
        (["9" * 20, "1", "2"], ["9" * 20, "1", "2"]),
        (["", "nan", "N/A"], [None, None, None]),
        (["2020-01-02", "2020-01-03", ""], ["2020-01-02", "2020-01-03", None]),
    ],
)
def test_cells_of_a_csv_file(cells: list[str], values: list[Any], tmp_path: Path) -> None:
    """Types are those that all cells of all files allow: each row is in a file of its own here."""
    for i, cell in enumerate(cells):
        put(tmp_path / "mine" / f"site_{i}", ["NA"])  # a picture may be called so
        write_csv(tmp_path / "mine" / f"site_{i}" / "metadata.csv", [{"file_name": "NA", "size": cell}])
    rows = read_table(str(tmp_path / "mine"))["train"]
    assert rows["size"][:] == values
    assert shades(rows) == [0, 0, 0]


def test_a_column_that_one_table_lacks_is_missing_there(tmp_path: Path) -> None:
    pictures(tmp_path / "mine" / "site_a", 2)
    put(tmp_path / "mine" / "site_b", ["0.png"])
    write_csv(tmp_path / "mine" / "site_b" / "metadata.csv", [{"file_name": "0.png", "other": "x"}])
    rows = read_table(str(tmp_path / "mine"))["train"]
    assert (rows["size"][:], rows["other"][:]) == ([0, 1, None], [None, None, "x"])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("file_name,town\n0.png,K\u00f6ln\n1.png,".encode() + "K\u00f6ln\n".encode("latin-1"), "UTF-8"),
        (b"file_name,size\n0.png,\x00\n", "no text"),
        ("file_name,size\n0.png,1\n".encode("utf-16")[:-1], "UTF-16"),
        (b"file_name,a;b\n0.png,1;2\n", "commas or semicolons"),
        (b"file_name,size\n0.png,1,2\n", "line 2"),
        (b'file_name,size\n0.png,"1\n', "damaged"),
        (b"file_name,size,size\n0.png,1,2\n", "size"),
        (b"filename,size\n1.png,1\n", "file_name"),
        (b"one,other\n0.png,0\n", "one"),
        (b"file_name,image\n0.png,1\n", "image"),
        (b"file_name,size\n", "no rows"),
        (b"", "no rows"),
    ],
)
def test_tables_that_cannot_be_read_are_named(content: bytes, named: str, tmp_path: Path) -> None:
    put(tmp_path / "mine", ["0.png"])
    (tmp_path / "mine" / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"metadata\.csv") as error:
        read_table(str(tmp_path / "mine"))
    assert named in str(error.value)


# ---- what has changed -----------------------------------------------------------------------------------------------


def rewrite(path: Path, content: bytes) -> None:
    """Write a file of the same size, and set back its times, as copying tools do."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("what", ["table", "picture", "both"])
def test_a_change_is_seen_whatever_the_time_of_the_file(what: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine", 30, 10)
    before = load_data(config(folder), GRAPH)
    assert shades(before["train"]) == before["train"]["size"][:]
    del before
    if what != "picture":
        lines = [f"{i}.png,{i + 50}" for i in range(30)]
        rewrite(folder / "metadata.csv", "\r\n".join(["file_name,size", *lines, ""]).encode())
    if what != "table":
        for i in range(30):
            rewrite(folder / f"{i}.png", png(i + 50))
    after = load_data(config(folder), GRAPH)["train"]
    added = {"table": 40, "picture": -40, "both": 0}[what]
    assert [size - shade for size, shade in zip(after["size"], shades(after), strict=True)] == [added] * len(after)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_change_of_data_files_is_seen(kind: str, tmp_path: Path) -> None:
    def content(first: int) -> bytes:
        rows = Dataset.from_dict({"size": range(first, first + 20)})
        if kind == "parquet":
            rows.to_parquet(tmp_path / "saved")
            return (tmp_path / "saved").read_bytes()
        rows.save_to_disk(tmp_path / f"saved{first}")
        return next((tmp_path / f"saved{first}").glob("*.arrow")).read_bytes()

    path = tmp_path / "mine" / f"train.{kind}"
    path.parent.mkdir()
    path.write_bytes(content(0))
    assert read_table(str(path.parent))["train"]["size"][:] == list(range(20))
    before = path.stat()
    path.write_bytes(content(100))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_table(str(path.parent))["train"]["size"][:] == list(range(100, 120))


# ---- names ----------------------------------------------------------------------------------------------------------

LETTERS = ["[v1]", "[!a]", "a?", "a*", "**", "{a,b}", "a b", "~", "~a", "100%", "%20", "#1", "a::b", "a=b&c", "a'b\"c",
           "K\u00f6ln", "\u75c5", "a\\b", "a;b,c", "$HOME", "-a", "a:b", "a@b", "a\nb"]  # fmt: skip


FOLDERS = ["[v1] [!a]", "a? {a,b} **", "~ 100% %20 #1", "a::b", "K\u00f6ln \u75c5 $HOME", "a\\b\n"]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("has_table", [False, True])
def test_any_letters_are_letters(name: str, has_table: bool, tmp_path: Path) -> None:
    """In the name of the data set, of folders and of pictures."""
    folder = tmp_path / name / name
    names = [f"{letters}/{letters}.png" for letters in LETTERS]
    pictures(folder, len(names), names=names)
    if not has_table:
        (folder / "metadata.csv").unlink()
        rows = read_table(str(folder))
        assert sorted(shades(rows["train"])) == list(range(len(names)))
        assert left_out(str(folder), rows) == []
        return
    splits = load_data(config(folder, data_dir=str(tmp_path / "cache")), GRAPH)
    assert sum(len(rows) for rows in splits.values()) == len(names)
    for rows in splits.values():
        assert shades(rows) == rows["size"][:]
    report = check_data(read_table(str(folder)), config(folder), GRAPH)
    assert not any("left out" in text or "not there" in text for text in [*report.warnings, *report.errors])


@pytest.mark.parametrize("name", FOLDERS)
def test_any_letters_of_data_files_are_letters_or_refused(name: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Dataset.from_dict({"size": range(12)}).to_parquet(file)
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.parquet").write_bytes(file.getvalue())
    if "::" in name or "$" in name:  # for which datasets has another use
        with pytest.raises(ValueError, match=re.escape(f"{name}.parquet")):
            read_table(str(folder))
        return
    assert read_table(str(folder))["train"]["size"][:] == list(range(12))
    assert len(list(read_table(str(folder), streaming=True)["train"])) == 12


@pytest.mark.parametrize("name", FOLDERS)
def test_any_letters_of_what_save_to_disk_made_are_letters_or_refused(name: str, tmp_path: Path) -> None:
    Dataset.from_dict({"size": range(3)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / name)
    if "::" in name:
        with pytest.raises(ValueError, match="'::'"):
            read_table(str(tmp_path / name))
    else:
        assert sizes(tmp_path / name) == {"train": 3}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_cache_may_have_any_letters_but_those_of_archives(name: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine", 10)
    settings = config(folder, data_dir=str(tmp_path / name))
    if "::" in name:
        with pytest.raises(ValueError, match="data_dir"):
            load_data(settings, GRAPH)
    else:
        assert sum(len(rows) for rows in load_data(settings, GRAPH).values()) == 10


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_accents_may_be_letters_of_their_own(on_disk: str, in_table: str, tmp_path: Path) -> None:
    """As those are that come from a Mac."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / unicodedata.normalize(on_disk, "K\u00f6ln.png")).write_bytes(png(7))
    name = unicodedata.normalize(in_table, "K\u00f6ln.png")
    write_csv(tmp_path / "mine" / "metadata.csv", [{"file_name": name, "size": 7}])
    splits = read_table(str(tmp_path / "mine"))
    assert shades(splits["train"]) == [7]
    assert left_out(str(tmp_path / "mine"), splits) == []


def test_slashes_of_windows_are_slashes(tmp_path: Path) -> None:
    put(tmp_path / "mine", ["images/0.png"], 7)
    write_csv(tmp_path / "mine" / "metadata.csv", [{"file_name": "images\\0.png", "size": 7}])
    assert shades(read_table(str(tmp_path / "mine"))["train"]) == [7]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "mine", 2)
    bad = os.path.join(os.fsencode(tmp_path), b"mine", b"\xff.png")
    try:
        with open(bad, "wb") as file:
            file.write(png(1))
    except OSError:
        pytest.skip("the file system has no such names")
    with pytest.raises(ValueError, match=r"\\xff\.png"):
        read_table(str(tmp_path / "mine"))


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    put(tmp_path / "mine", ["a/0.png", "b/1.png"])
    (tmp_path / "mine" / "a" / "up").symlink_to(tmp_path / "mine")
    put(tmp_path / "store", ["2.png"])
    (tmp_path / "mine" / "c").symlink_to(tmp_path / "store")
    assert list_files(tmp_path / "mine") == ["a/0.png", "b/1.png", "c/2.png"]


def test_rows_are_in_the_order_of_names_and_tables(tmp_path: Path) -> None:
    for i, site in enumerate(("b", "a", "c")):
        pictures(tmp_path / "mine" / site, 3, 10 * i)
    rows = read_table(str(tmp_path / "mine"))["train"].cast_column("image", Image(decode=False))
    assert rows["size"][:] == [10, 11, 12, 0, 1, 2, 20, 21, 22]


@pytest.mark.parametrize(
    "text",
    [
        "file_name, age, sex\n{rows}",
        "file_name , age , sex\n{rows}",
        "\ufefffile_name, age, sex\n{rows}",
        ' file_name, age, "sex"\n{rows}',
    ],
)
def test_spaces_after_commas_are_no_part_of_names_and_cells(text: str, tmp_path: Path) -> None:
    put(tmp_path, [f"{i}.png" for i in range(4)])
    rows = "".join(f'{i}.png, {i}, "{"ab"[i % 2]}"\n' for i in range(4))
    (tmp_path / "metadata.csv").write_text(text.format(rows=rows), encoding="utf-8")
    table = read_table(str(tmp_path))["train"]
    assert table.column_names == ["image", "age", "sex"]
    assert table["age"][:] == [0, 1, 2, 3]
    assert table["sex"][:] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("cell", ["../x.png", "/x.png"])
def test_no_space_leads_out_of_the_folder(cell: str, tmp_path: Path) -> None:
    put(tmp_path, ["0.png"])
    (tmp_path / "metadata.csv").write_text(f'age, file_name\n1, "{cell}"\n')
    with pytest.raises(ValueError, match=r"x\.png"):
        read_table(str(tmp_path))


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    settings = DataConfig(sample_size=64, dataset_name="~/pictures", data_dir="~/cache")
    assert (settings.dataset_name, settings.data_dir) == (str(tmp_path / "pictures"), str(tmp_path / "cache"))


@pytest.mark.parametrize("has_table", [False, True])
def test_dicom_files_count_as_pictures(has_table: bool, tmp_path: Path) -> None:
    """In folders of classes those with their endings, in a table those of any name."""
    names = ["ill/a.dcm", "ill/b.DCM", "well/c.dicom", *(["well/d", "well/e.png"] if has_table else [])]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(dicom(np.arange(64).reshape(8, 8)))
    if has_table:
        write_csv(tmp_path / "metadata.csv", [{"file_name": name, "label": name.split("/")[0]} for name in names])
    rows = read_folder(tmp_path)["train"]
    if not has_table:
        assert rows.features["label"].names == ["ill", "well"]
    prepared, problems = prepare_images(rows, 8, 1, cache_dir=tmp_path / "cache")
    assert (len(prepared), problems) == (len(names), [])
