"""The filter and the split of CheXpert, on made-up trees of its layouts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.utils import shuffle

from softcft.data.chest_xrays.chexpert import select
from softcft.data.chest_xrays.prepared import read_pictures
from tests.data.chest_xrays.chexpert_tree import ChexpertTree, make_chexpert_tree
from tests.data.chest_xrays.funnels import lost, split_of
from tests.data.chest_xrays.mimic_cxr_tree import split_sizes

KEPT = [f"patient{number:05d}" for number in range(101, 111)]  # enough for three splits
OTHER = "patient00007"


@pytest.fixture
def tree(tmp_path: Path) -> ChexpertTree:
    """Ten patients that every rule keeps."""
    tree = ChexpertTree(tmp_path / "CheXpert-v1.0-small")
    for i, patient in enumerate(KEPT):
        tree.add(patient, labels={("No Finding", "Pleural Effusion")[i % 2]: 1.0})
    return tree


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 40 patients, which no test changes."""
    return make_chexpert_tree(tmp_path_factory.mktemp("complete") / "CheXpert-v1.0-small", 40)


def test_columns_and_values(complete: Path, tmp_path: Path) -> None:
    splits = read_pictures(select(complete), 16, cache_dir=tmp_path).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == split_sizes(40)
    for rows in splits.values():
        assert rows[0]["image"].size == (16, 16)
        assert rows[0]["image"].mode == "L"
        assert set(rows["sex"]) == {"male", "female"}
        assert set(rows["race"]) == {"White", "Asian", "Black"}
        assert set(rows["disease"]) == {"no finding", "pleural effusion"}
        assert all(isinstance(age, float) and 25 <= age < 85 for age in rows["age"])
        assert rows[0]["study_id"] == f"{rows[0]['subject_id']}_study1"


def test_the_published_split(complete: Path) -> None:
    """Its list is drawn so: in the order of train.csv, by seed 2021. Checked once against all its 42,884 patients."""
    patients = [f"patient{number:05d}" for number in range(1, 41)]
    order = shuffle(np.array(patients), random_state=2021)
    train, validation, test = split_sizes(40)
    expected = np.repeat(["train", "validation", "test"], [train, validation, test])
    assert split_of(select(complete)) == dict(zip(order, expected, strict=True))


def test_damage_and_disease_move_nobody_into_another_split(tree: ChexpertTree) -> None:
    before = split_of(select(tree.write()))
    train = [i for i, patient in enumerate(KEPT) if before[patient] == "train"]
    tree.train[train[0]]["Age"] = "old"
    tree.train[train[1]] |= {"No Finding": None, "Pleural Effusion": None}
    (tree.root / "train" / KEPT[train[2]] / "study1" / "view1_frontal.jpg").unlink()
    after = split_of(select(tree.write()))
    assert set(before) - set(after) == {KEPT[i] for i in train[:3]}
    assert after == {patient: before[patient] for patient in after}


# ---- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        ("in train.csv", {"split": "valid"}),
        ("White, Asian or Black", {"race": "Other"}),
        ("White, Asian or Black", {"race": "Native Hawaiian or Other Pacific Islander"}),
        ("White, Asian or Black", {"race": "Race and Ethnicity Unknown"}),
        ("White, Asian or Black", {"race": None}),
        ("not Hispanic", {"ethnicity": "Hispanic/Latino"}),
        ("not Hispanic", {"ethnicity": "Unknown"}),
        ("not Hispanic", {"ethnicity": "Patient Refused"}),
        ("not Hispanic", {"ethnicity": None}),
        ("frontal view", {"views": ("lateral",)}),
        ("view AP or PA", {"views": ("LL",)}),
        ("view AP or PA", {"views": ("RL",)}),
        ("sex is known", {"sex": "Unknown"}),
        ("age is not 0, which means unknown", {"age": 0}),
        ("pleural effusion is not uncertain", {"labels": {"Pleural Effusion": -1.0}}),
        ("no finding or pleural effusion", {"labels": {}}),
        ("no finding or pleural effusion", {"labels": {"Pleural Effusion": 0.0, "No Finding": 0.0}}),
        ("no finding or pleural effusion", {"labels": {"Edema": 1.0}}),
        ("no finding or pleural effusion", {"labels": {"No Finding": -1.0}}),
    ],
)
def test_a_rule_drops(tree: ChexpertTree, step: str, changes: dict[str, Any]) -> None:
    tree.add(OTHER, **changes)
    selection = select(tree.write())
    assert set(selection.rows["subject_id"]) == set(KEPT)
    assert lost(selection) == {step: 1}
    assert list(selection.left_out["step"]) == [step]
    assert OTHER in selection.left_out["path"][0]
    assert not selection.problems


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ({"race": "White"}, {"race": "White, non-Hispanic"}),
        ({"race": "Asian"}, {"race": "Asian - Historical Conv", "ethnicity": "Not Hispanic"}),
        ({"race": "Black"}, {"race": "Black or African American"}),
        ({"race": "Black"}, {"race": "White and Black"}),  # as the notebook: it looks for Black, White, Asian
        ({"race": "White"}, {"race": "Asian and White"}),
        ({"disease": "pleural effusion"}, {"labels": {"Pleural Effusion": 1.0, "Edema": -1.0}}),
        ({"disease": "pleural effusion"}, {"labels": {"Pleural Effusion": 1, "No Finding": 1}}),
        ({"disease": "no finding"}, {"labels": {"No Finding": 1.0, "Support Devices": 1.0}}),
        ({"disease": "no finding"}, {"labels": {"No Finding": 1.0, "Pleural Effusion": -1.0}}),
        ({"view": "AP", "age": 90.0}, {"views": ("AP",), "age": 90}),
    ],
)
def test_a_rule_keeps(tree: ChexpertTree, expected: dict[str, Any], changes: dict[str, Any]) -> None:
    tree.add(OTHER, **changes)
    selection = select(tree.write())
    row = selection.rows.set_index("subject_id").loc[OTHER]
    assert {name: row[name] for name in expected} == expected
    assert not lost(selection)


def test_the_funnel_row_by_row(tree: ChexpertTree) -> None:
    tree.add("patient00001", views=("AP", "lateral", "PA", "LL"))  # two of four
    tree.add("patient00002", race="Unknown", views=("AP", "lateral"))
    tree.add("patient00003", ethnicity="Hispanic/Latino")
    tree.add("patient00004", sex="Unknown")
    tree.add("patient00005", age=0)
    tree.add("patient00006", labels={"Pleural Effusion": -1.0}, views=("AP", "PA"))
    tree.add("patient00008", labels={"Cardiomegaly": 1.0})
    tree.add("patient00009")
    del tree.demo[-1]
    tree.add("patient64541", split="valid")
    selection = select(tree.write())
    assert [tuple(row) for row in selection.funnel.itertuples(index=False)] == [
        ("images in the tables", 24, 19),
        ("path is complete", 24, 19),
        ("one row per image", 24, 19),
        ("in train.csv", 23, 18),
        ("patient is in the demographics", 22, 17),
        ("White, Asian or Black", 20, 16),
        ("not Hispanic", 19, 15),
        ("frontal view", 18, 15),
        ("view AP or PA", 17, 15),
        ("sex is known", 16, 14),
        ("age is not 0, which means unknown", 15, 13),
        ("age is a number", 15, 13),
        ("labels are blank, -1, 0 or 1", 15, 13),
        ("pleural effusion is not uncertain", 13, 12),
        ("no finding or pleural effusion", 12, 11),
        ("image is there", 12, 11),
    ]
    assert len(selection.left_out) == 24 - 12
    assert not selection.problems


# ---- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("age is a number", {"Age": None}),
        ("age is a number", {"Age": "sixty"}),
        ("age is a number", {"Age": -1}),
        ("labels are blank, -1, 0 or 1", {"No Finding": 2.0}),
        ("labels are blank, -1, 0 or 1", {"Pleural Effusion": "yes"}),
        ("path is complete", {"Path": None}),
        ("path is complete", {"Path": "CheXpert-v1.0-small/train/patient00007/view1_frontal.jpg"}),
        (
            "path is complete",
            {"Path": "CheXpert-v1.0-small/train/patient00007/../patient00101/study1/view1_frontal.jpg"},
        ),
        ("path is complete", {"Path": "../train/patient00007/study1/view1_frontal.jpg"}),
        ("path is complete", {"Path": "/train/patient00007/study1/view1_frontal.jpg"}),
        ("one row per image", {"Path": "CheXpert-v1.0-small/train/patient00101/study1/view1_frontal.jpg"}),
    ],
)
def test_a_damaged_row_is_named(tree: ChexpertTree, step: str, change: dict[str, Any]) -> None:
    tree.add(OTHER)
    tree.train[-1] |= change
    selection = select(tree.write())
    assert lost(selection) == {step: 1}
    assert set(selection.rows["subject_id"]) == set(KEPT)
    assert len(selection.problems) == 1
    assert "train.csv, line 12" in selection.problems[0]
    with pytest.raises(ValueError, match="line 12"):
        select(tree.root, on_error="raise")


def test_a_missing_picture_is_named(tree: ChexpertTree) -> None:
    tree.add(OTHER).unlink()
    selection = select(tree.write())
    assert lost(selection) == {"image is there": 1}
    assert OTHER in selection.problems[0]


def test_without_pictures(tree: ChexpertTree) -> None:
    shutil.rmtree(tree.write() / "train")
    with pytest.raises(FileNotFoundError, match="view1_frontal"):
        select(tree.root)


def test_a_patient_twice_in_the_demographics(tree: ChexpertTree) -> None:
    tree.demo.append(tree.demo[0] | {"PRIMARY_RACE": "Asian"})
    selection = select(tree.write())
    assert len(selection.rows) == len(KEPT)  # a join would have two rows for the picture
    assert KEPT[0] in selection.problems[0]


# ---- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "demo"),
    [
        ("CheXpert-v1.0-small", "CHEXPERT DEMO.xlsx"),
        ("CheXpert-v1.0", "CHEXPERT DEMO.csv"),
        ("any name", "CHEXPERT_DEMO.csv"),
    ],
)
def test_the_root_is_the_folder_or_the_one_around_it(tmp_path: Path, prefix: str, demo: str) -> None:
    tree = ChexpertTree(tmp_path / "parent" / "data", prefix)
    for patient in KEPT:
        tree.add(patient)
    tree.write(demo)
    for root in (tree.root, tree.root.parent):
        rows = select(root).rows
        assert len(rows) == len(KEPT)
        assert all(Path(path).is_file() for path in rows["image"])


def test_archives_in_folders_of_their_own(tree: ChexpertTree) -> None:
    root = tree.write().parent
    for folder, patients in (
        ("CheXpert-v1.0 batch 2 (train 1)", KEPT[:4]),
        ("CheXpert-v1.0 batch 3 (train 2)", KEPT[4:]),
    ):
        for patient in patients:
            shutil.move(tree.root / "train" / patient, root / folder / patient)
    assert set(select(root).rows["subject_id"]) == set(KEPT)
    shutil.copytree(root / folder / KEPT[-1], tree.root / "train" / KEPT[-1])
    with pytest.raises(ValueError, match=KEPT[-1]):
        select(root)


def test_no_demographics(tree: ChexpertTree) -> None:
    (tree.write() / "CHEXPERT DEMO.xlsx").unlink()
    with pytest.raises(FileNotFoundError, match=r"CHEXPERT DEMO\.xlsx"):
        select(tree.root)


@pytest.mark.parametrize("missing", ["Path", "Sex", "Pleural Effusion", "AP/PA"])
def test_a_missing_column_is_named(tree: ChexpertTree, missing: str) -> None:
    table = pd.read_csv(tree.write() / "train.csv").drop(columns=missing)
    table.to_csv(tree.root / "train.csv", index=False)
    with pytest.raises(ValueError, match=missing):
        select(tree.root)


# ---- the published lists ------------------------------------------------------------------------------------------


def write_list(folder: Path, splits: dict[int, str]) -> Path:
    """chexpert_split_2021_08_20.csv: numbers of rows of train.csv, with its split names."""
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame({"index": list(splits), "split": list(splits.values())})
    table.to_csv(folder / "chexpert_split_2021_08_20.csv")
    return folder


def test_the_list_of_the_repository(tree: ChexpertTree, tmp_path: Path) -> None:
    tree.train.insert(0, tree.train[0] | {"Path": f"CheXpert-v1.0-small/train/{OTHER}/study1/view2_lateral.jpg"})
    tree.train[0] |= {"Frontal/Lateral": "Lateral", "AP/PA": None}
    lists = write_list(tmp_path / "lists", {1: "train", 2: "test", 3: "validate", 5: "test"})
    selection = select(tree.write(), sample_csv_dir=lists)
    assert split_of(selection) == {KEPT[0]: "train", KEPT[1]: "test", KEPT[2]: "validation", KEPT[4]: "test"}
    assert lost(selection) == {"in the published split": 7}
    assert lists / "chexpert_split_2021_08_20.csv" in selection.tables  # which the prepared folder tells


def test_the_lists_of_the_notebook(complete: Path, tmp_path: Path) -> None:
    expected = {}
    for i, name in enumerate(("train", "val", "test")):
        paths = [f"CheXpert-v1.0/train/patient{1 + number:05d}/study1/view1_frontal.jpg" for number in range(i, 30, 3)]
        pd.DataFrame({"patient_id": "", "Path": paths, "split": name}).to_csv(tmp_path / f"chexpert.sample.{name}.csv")
        expected |= dict.fromkeys((path.split("/")[2] for path in paths), name.replace("val", "validation"))
    assert split_of(select(complete, sample_csv_dir=tmp_path)) == expected


@pytest.mark.parametrize(
    "splits",
    [
        {0: "train", 1: "test", 2: "validate", 10: "test"},  # there is no row 10
        {0: "train", 1: "test", 2: "validate", 3: "other"},
        {0: "train", 1: "test", 2: "validate", 9: "test"},  # row 9 is lateral
        {"a": "train"},
    ],
)
def test_a_list_of_another_table(tree: ChexpertTree, tmp_path: Path, splits: dict[Any, str]) -> None:
    tree.train[9] |= {"Frontal/Lateral": "Lateral", "AP/PA": None}
    lists = write_list(tmp_path / "lists", splits)
    with pytest.raises(ValueError, match="chexpert_split_2021_08_20"):
        select(tree.write(), sample_csv_dir=lists)


def test_a_list_with_a_patient_in_two_splits(tree: ChexpertTree, tmp_path: Path) -> None:
    tree.add(OTHER, views=("AP", "PA"))
    lists = write_list(tmp_path / "lists", {0: "validate", 10: "train", 11: "test"})
    with pytest.raises(ValueError, match=OTHER):
        select(tree.write(), sample_csv_dir=lists)


def test_an_empty_folder_of_lists(tree: ChexpertTree, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sample_csv_dir"):
        select(tree.write(), sample_csv_dir=tmp_path)
