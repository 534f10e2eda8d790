"""Tables of any name, whose pictures are named in any column; rows, splits and patients by columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Image

from softcft.data.config import DataConfig
from softcft.data.own import read_own
from softcft.data.sources import load_data
from softcft.data.unused_files import left_out
from softcft.graph import CausalGraph
from tests.data.picture_files import png

GRAPH = CausalGraph([{"name": "size", "kind": "continuous", "low": 0, "high": 255}])
# datasets leaves files open when it reads a folder.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def make(folder: Path, files: list[str], table: str = "labels.csv", **columns: list[Any]) -> Path:
    """Pictures, whose grey is their number, and a table."""
    for i, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png(i))
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(folder / table, index=False)
    return folder


def config(folder: Path, table: str | None = "labels.csv", **others: Any) -> DataConfig:
    tables = None if table is None else [table]
    return DataConfig(**{"dataset_name": str(folder), "sample_size": 8, "table_file": tables} | others)


def read(folder: Path, columns: dict[str, Any] | None = None, **settings: Any) -> tuple[dict[str, Dataset], Any]:
    return read_own(str(folder), config(folder, **settings), columns)


def shades(rows: Dataset) -> list[int]:
    return [int(np.asarray(image)[0, 0]) for image in rows["image"]]


DEEP = [f"images_{1 + i // 2:03d}/images/{i:03d}.png" for i in range(6)]
FLAT = [f"{i:03d}.png" for i in range(6)]


@pytest.mark.parametrize("column", ["Image Index", "Path", "image", "file_name", "image_id"])
@pytest.mark.parametrize(
    ("files", "name"),
    [
        (FLAT, lambda file: file),
        (FLAT, lambda file: file[:-4]),  # without an ending
        (FLAT, lambda file: f"./{file}"),
        (FLAT, lambda file: f"the_set/{file}"),  # from the folder above
        (DEEP, lambda file: file),
        (DEEP, lambda file: file.replace("/", "\\")),
        (DEEP, lambda file: Path(file).name),
        (DEEP, lambda file: Path(file).stem),
        (DEEP, lambda file: f"images/{Path(file).name}"),
        (DEEP, lambda file: f"the_set-small/{file}"),
        (DEEP, lambda file: "D:\\data\\the_set\\" + file.replace("/", "\\")),
        (DEEP, lambda file: f"home/me/the_set/{file}"),
        (["masks/x.png", *FLAT[1:]], lambda file: Path(file).name),
        (FLAT, str.upper),
        (FLAT, lambda file: f" {file} "),
        (DEEP, lambda file: file.title()[:-4]),
    ],
    ids=range(16),
)
def test_pictures_are_found_by_what_a_column_calls_them(
    column: str, files: list[str], name: Callable[[str], str], tmp_path: Path
) -> None:
    order = [3, 0, 5, 1, 4, 2]
    folder = make(tmp_path / "mine", files, **{column: [name(files[i]) for i in order], "size": order})
    splits, columns = read(folder, {"image": column, "size": "size"})
    assert columns == {"size": "size"}
    assert shades(splits["train"]) == splits["train"]["size"][:] == order
    assert not [note for note in left_out(str(folder), splits, ["labels.csv"]) if "labels.csv" in note]
    if column != "file_name":
        assert shades(read(folder)[0]["train"]) == order  # the column is found, too


def test_capitals_tell_pictures_apart_where_nothing_else_does(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", ["x/a.png", "y/A.png"], name=["A.png", "a.png"], size=[1, 0])
    rows = read(folder, {"image": "name"})[0]["train"]
    assert shades(rows) == rows["size"][:]


def test_a_pattern_takes_the_name_out_of_a_text(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, what=[f"scan {i:03d} of 6" for i in range(6)], size=range(6))
    assert shades(read(folder, {"image": {"column": "what", "pattern": r"scan (\d+)"}})[0]["train"]) == list(range(6))
    with pytest.raises(ValueError, match="pattern of image"):
        read(folder, {"image": {"column": "what", "pattern": r"scan (0[1-9]\d) "}})


@pytest.mark.parametrize(
    ("files", "names", "named"),
    [
        (["a/0.png", "b/0.png"], ["0.png", "0.png"], "a/0.png, b/0.png"),
        (["0.png", "0.jpg"], ["0", "0"], "0.jpg, 0.png"),
        (["a.png", "A.png"], ["a.PNG", "a.png"], "A.png, a.png"),
        (["a/0.png", "1.png"], ["a/0.png", "0.png"], "twice"),
        (["0.png"], ["1.png"], "none of the pictures"),
        (["0.png"], ["../0.png"], "not in the folder"),
        (["0.png"], ["/etc/0.png"], "not in the folder"),
        (["0.png"], ["https://x/0.png"], "not in the folder"),
        (["0.png"], ["a\\..\\..\\0.png"], "not in the folder"),
    ],
)
def test_names_that_leave_it_open_or_lead_out_are_refused(files, names, named, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", files, name=names, size=list(range(len(names))))
    with pytest.raises(ValueError, match=named):
        read(folder, {"image": "name"})


@pytest.mark.parametrize("table", ["labels.csv", "metadata.csv"])
def test_a_table_without_names_of_columns_is_refused(table: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, table, **{"000.png": FLAT[1:], "7": range(5)})
    with pytest.raises(ValueError, match=r"000\.png"):
        read(folder, table=None if table == "metadata.csv" else table)


def test_why_a_column_does_not_name_the_pictures_is_said(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, path=[f"/home/me/{file}" for file in FLAT], size=range(6))
    with pytest.raises(ValueError, match=r"path.*/home/me/000\.png"):
        read(folder)


def test_tables_that_lack_columns_are_named(tmp_path: Path, caplog) -> None:
    folder = make(tmp_path / "mine", ["a/0.png"], "a/metadata.csv", file_name=["0.png"], sex=["F"])
    make(folder, ["b/0.png"], "b/metadata.csv", file_name=["0.png"], gender=["F"])
    read(folder, table=None)
    assert "a/metadata.csv ['gender'], b/metadata.csv ['sex']" in caplog.text


def test_pictures_of_another_folder_are_not_taken_for_those_that_are_missing(tmp_path: Path, caplog) -> None:
    folder = make(tmp_path / "mine", ["a/0.png", "b/1.png"], name=["a/0.png", "a/1.png"], size=[0, 1])
    rows = read(folder, {"image": "name"})[0]["train"].cast_column("image", Image(decode=False))
    assert [Path(image["path"]).relative_to(folder).as_posix() for image in rows["image"]] == ["a/0.png", "a/1.png"]
    assert "1 of 2 pictures" in caplog.text


def test_metadata_names_only_what_is_below_its_own_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", ["train/0.png", "test/1.png"], "train/metadata.csv", file_name=["0.png", "1.png"])
    rows = read(folder, table=None)[0]["train"].cast_column("image", Image(decode=False))
    assert [Path(image["path"]).parent.name for image in rows["image"]] == ["train", "train"]


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, image=FLAT)
    with pytest.raises(ValueError, match=r"other\.csv.*labels\.csv"):
        read(folder, table="other.csv")
    with pytest.raises(ValueError, match="table_file"):
        DataConfig(dataset_name="phantom", sample_size=16, table_file=["labels.csv"])


def test_tables_that_are_named_for_splits(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "mine", [f"all/{name}" for name in FLAT], "train.csv", Path=[f"set/all/{f}" for f in FLAT[:4]]
    )
    make(folder, [], "valid.csv", Path=[f"set/all/{f}" for f in FLAT[4:]])
    splits = read_own(str(folder), config(folder, None, table_file=["train.csv", "valid.csv"]))[0]
    assert {split: shades(rows) for split, rows in splits.items()} == {"train": [0, 1, 2, 3], "validation": [4, 5]}


# ---- rows, splits, patients -----------------------------------------------------------------------------------------

FOLDS = {0: "train", 1: "train", 2: "validation", 3: "test", 4: None}


@pytest.mark.parametrize(
    ("values", "entry"),
    [
        (["training", "Train", "val", "test", "", "train"], {}),
        ([0, 1, 2, 3, 4, 0], {"values": FOLDS}),
        (["f0", "f1", "f2", "f3", "none", "f0"], {"pattern": r"f(\d)", "values": FOLDS, "default": None}),
    ],
)
def test_splits_by_a_column(values: list[Any], entry: dict[str, Any], tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, image=FLAT, part=values, size=range(6))
    columns = {"fold": {"column": "part", **entry}, "size": {"column": "size"}}
    splits, left = read(folder, columns, split_column="fold")
    assert {split: shades(rows) for split, rows in splits.items()} == {
        "train": [0, 1, 5],
        "validation": [2],
        "test": [3],
    }
    assert left == {"size": {"column": "size"}}


@pytest.mark.parametrize(("values", "named"), [([0, 1, 2, 3, 4, 5], "'0'"), (["test"] * 6, "train")])
def test_columns_that_name_no_splits(values: list[Any], named: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, image=FLAT, part=values)
    with pytest.raises(ValueError, match=f"split_column.*{named}"):
        read(folder, split_column="part")
    with pytest.raises(ValueError, match=r"split_column.*'other'"):
        read(folder, split_column="other")


def test_patients_out_of_paths_stay_in_one_split(tmp_path: Path) -> None:
    files = [f"set/patient{i // 3:02d}/view{i}.png" for i in range(60)]
    folder = make(tmp_path / "mine", files, Path=files, size=range(60))
    columns = {"image": "Path", "patient": {"column": "Path", "pattern": r"(patient\d+)"}}
    splits = load_data(config(folder, group_column="patient", data_dir=str(tmp_path / "out")), GRAPH, columns)
    patients = [{*rows["patient"]} for rows in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
    assert all(
        rows["patient"][i] == f"patient{int(rows['size'][i]) // 3:02d}" for rows in splits.values() for i in (0, 1)
    )


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"view": ["PA", "AP"]}, [0, 1, 3, 4]),
        ({"view": "PA", "n": 1}, [0]),
        ({"n": [1, None]}, [0, 2, 5]),
        ({"n": ""}, [5]),
    ],
)
def test_rows_with_certain_values(wanted: dict[str, Any], kept: list[int], tmp_path: Path, caplog) -> None:
    view = ["PA", "AP", "L", "PA", "AP", "L"]
    folder = make(tmp_path / "mine", FLAT, image=FLAT, view=view, n=[1, 2, 1, 2, 2, None], size=range(6))
    splits, left = read(folder, {"rows": wanted, "size": "size"})
    assert (shades(splits["train"]), left) == (kept, {"size": "size"})
    assert f"{6 - len(kept)} of 6 rows" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "named"),
    [({"view": "LL"}, "'PA'"), ({"other": "PA"}, "'other'"), ({"view": []}, "view"), ({"view": {}}, "view")],
)
def test_rows_that_are_not_there_are_named(wanted: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, image=FLAT, view=["PA"] * 6)
    with pytest.raises(ValueError, match=f"rows: .*{named}"):
        read(folder, {"rows": wanted})


def test_a_label_that_no_cell_has_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", FLAT, image=FLAT, found=["Mass|Effusion", "Mass"] * 3)
    read(folder, {"ill": {"column": "found", "contains": ["Effusion"]}})
    with pytest.raises(ValueError, match=r"ill.*'effusions'.*'Effusion'"):
        read(folder, {"ill": {"column": "found", "contains": ["Mass", "effusions"]}})
