from pathlib import Path

import pytest
from PIL import Image

from softcft.data.columns import translate
from softcft.data.draft import draft_graph
from softcft.data.own import read_table
from softcft.data.splits import make_splits
from softcft.data.unused_files import left_out, naming_unread, unread_tables
from softcft.graph import CausalGraph

PLACES = {
    "classes": "{label}/{i}.png",
    "classes of splits": "train/{label}/{i}.png",
    "patients and visits": "train/patient{i}/{label}/view.png",
}


def folder(root: Path, place: str) -> str:
    for i in range(6):
        path = root / place.format(i=i, label="ab"[i % 2])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * i).save(path)
    return str(root)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    "file", ["train.csv", "labels.CSV", "a.tsv", "list.xlsx", "attributes.json", "info/meta.jsonl", "x.ods", "y.csv.gz"]
)
def test_names_of_folders_are_no_attributes_while_a_table_is_unread(place: str, file: str, tmp_path: Path) -> None:
    name = folder(tmp_path, place)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("path,age\na/0.png,3\n")
    table = read_table(name)
    assert unread_tables(name, table) == [file]
    with pytest.raises(ValueError, match=f"label: .*{file}"):
        draft_graph(table, unread_tables(name, table))
    with pytest.raises(ValueError, match=f"group_column patient.*table_file {file}"), naming_unread(name, table):
        make_splits(table, group_column="patient")
    # whoever names it has it, and is told
    label = CausalGraph([{"name": "label", "kind": "binary", "categories": ["a", "b"]}])
    assert sorted(translate(table["train"], label)["label"]) == ["a"] * 3 + ["b"] * 3
    assert any(file in note for note in left_out(name, table))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("file", ["train_val_list.txt", "splits/test.txt", "README.txt", "original.zip", None])
def test_names_of_folders_are_attributes_beside_lists_which_are_named(
    place: str, file: str | None, tmp_path: Path
) -> None:
    name = folder(tmp_path, place)
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("a/0.png\n")
    table = read_table(name)
    assert unread_tables(name, table) == []
    assert "name: label" in draft_graph(table, unread_tables(name, table))
    is_named = any(file in note for note in left_out(name, table)) if file else False
    assert is_named == (file not in (None, "README.txt"))


@pytest.mark.parametrize(("name", "is_split"), [("test", True), ("val", True), ("masks", False)])
def test_a_split_without_rows_is_told(name: str, is_split: bool, tmp_path: Path) -> None:
    folder(tmp_path / "train", "{i}.png")
    folder(tmp_path / name, "{i}.png")
    rows = "".join(f"{i}.png,{i}\n" for i in range(6))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,age\n" + rows)
    notes = left_out(str(tmp_path), read_table(str(tmp_path)))
    assert any(f"6 in {name}" in note for note in notes)
    assert any(f"folder {name} has the name of a split" in note for note in notes) == is_split


def test_a_table_that_is_read_is_enough(tmp_path: Path) -> None:
    name = folder(tmp_path, PLACES["classes"])
    (tmp_path / "metadata.csv").write_text(
        "file_name,sex\n" + "".join(f"{'ab'[i % 2]}/{i}.png,{i}\n" for i in range(6))
    )
    (tmp_path / "labels.csv").write_text("a,b\n")
    table = read_table(name)
    assert unread_tables(name, table) == []
    with pytest.raises(ValueError, match="group_column") as refused, naming_unread(name, table):
        make_splits(table, group_column="patient")
    assert "table_file" not in str(refused.value)


@pytest.mark.parametrize("file", ["train_list.txt", "splits/test.txt", "official-val.txt"])
def test_lists_of_splits_beside_a_table_are_named(file: str, tmp_path: Path) -> None:
    folder(tmp_path, "{i}.png")
    (tmp_path / "metadata.csv").write_text("file_name,age\n" + "".join(f"{i}.png,{i}\n" for i in range(6)))
    assert left_out(str(tmp_path), read_table(str(tmp_path))) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("0.png\n")
    assert any(file in note for note in left_out(str(tmp_path), read_table(str(tmp_path))))


@pytest.mark.parametrize(
    ("places", "masks"),
    [
        (["{label}/{i}.png", "{label}/{i}_mask.png"], 6),
        (["{label}/x ({i}).png", "{label}/x ({i})_mask_1.png"], 6),
        (["images/{i}.png", "masks/{i}.png"], 6),
        (["images/{i}.png", "Segmentations/{i}_seg.png"], 6),
        (["{label}/{i}.png"], 0),
        (["with_mask/a{i}.png", "without_mask/b{i}.png"], 0),
        (["masks/a{i}.png", "faces/b{i}.png"], 0),
    ],
)
def test_masks_among_pictures_of_classes_are_counted(places: list[str], masks: int, tmp_path: Path) -> None:
    for place in places:
        folder(tmp_path / "set", place)
    notes = left_out(str(tmp_path / "set"), read_table(str(tmp_path / "set")))
    assert [note.startswith(f"{masks} ") for note in notes] == [True] * (masks > 0)


def test_a_table_above_the_pictures_is_named(tmp_path: Path) -> None:
    name = folder(tmp_path / "images", "{i}.png")
    assert left_out(name, read_table(name)) == []
    (tmp_path / "labels.csv").write_text("image_id,age\n0,3\n")
    assert any("labels.csv" in note and str(tmp_path) in note for note in left_out(name, read_table(name)))
