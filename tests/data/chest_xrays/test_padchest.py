"""The filter and the split of PadChest, on made-up trees of its layouts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.utils import shuffle

from softcft.data.chest_xrays.padchest import select
from softcft.data.chest_xrays.prepared import read_pictures
from tests.data.chest_xrays.funnels import lost, split_of
from tests.data.chest_xrays.mimic_cxr_tree import split_sizes
from tests.data.chest_xrays.padchest_tree import PATIENT, TABLE, PadchestTree, make_padchest_tree

KEPT = [str(PATIENT + number) for number in range(10)]  # enough for three splits
OTHER = 77


@pytest.fixture
def tree(tmp_path: Path) -> PadchestTree:
    """Ten patients that every rule keeps."""
    tree = PadchestTree(tmp_path / "tree")
    for number in range(10):
        tree.add(number, labels=("['normal']", "['pleural effusion']")[number % 2])
    return tree


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 40 patients, which no test changes."""
    return make_padchest_tree(tmp_path_factory.mktemp("complete"), 40)


def test_columns_and_values(complete: Path, tmp_path: Path) -> None:
    splits = read_pictures(select(complete), 16, cache_dir=tmp_path).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == split_sizes(40)
    for rows in splits.values():
        assert rows[0]["image"].size == (16, 16)
        assert rows[0]["image"].mode == "L"
        assert set(rows["sex"]) == {"male", "female"}
        assert set(rows["disease"]) == {"no finding", "pleural effusion"}
        assert all(len(patient) == 36 and patient.isdigit() for patient in rows["subject_id"])
        assert all(2014 - 1990 < age <= 2014 - 1930 for age in rows["age"])


def test_sixteen_bits_become_eight(complete: Path, tmp_path: Path) -> None:
    """65,535 is white, though no picture reaches it: the window has been applied already."""
    row = read_pictures(select(complete), 20, cache_dir=tmp_path).splits["train"][0]
    with Image.open(next(complete.rglob(row["image_id"]))) as picture:  # 20 high and 24 wide: its middle as it is
        expected = np.asarray(picture)[:, 2:22] / 65_535 * 255
    np.testing.assert_allclose(np.asarray(row["image"]), expected, atol=1)


def test_split_by_patient(complete: Path) -> None:
    patients = np.array([str(PATIENT + number) for number in range(40)])
    expected = np.repeat(["train", "validation", "test"], split_sizes(40))
    assert split_of(select(complete)) == dict(zip(shuffle(patients, random_state=42), expected, strict=True))


def test_nobody_moves_into_another_split(tree: PadchestTree) -> None:
    before = split_of(select(tree.write()))
    train = [i for i, patient in enumerate(KEPT) if before[patient] == "train"]
    tree.rows[train[0]]["PatientSex_DICOM"] = "O"
    tree.rows[train[1]]["Labels"] = "['nodule']"
    next(tree.root.rglob(tree.rows[train[2]]["ImageID"])).unlink()
    tree.rows.reverse()
    after = split_of(select(tree.write()))
    assert set(before) - set(after) == {KEPT[i] for i in train[:3]}
    assert after == {patient: before[patient] for patient in after}


# ---- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        *[("view PA or AP", {"projections": (name,)}) for name in ("L", "AP_horizontal", "COSTAL", "EXCLUDE", "UNK")],
        ("has labels", {"labels": None}),
        ("has labels", {"labels": "nan"}),
        *[
            ("no finding or pleural effusion", {"labels": labels})
            for labels in (
                "[]",
                "['unchanged']",
                "['normal', 'scoliosis']",
                "['loculated pleural effusion']",
                "['pleural thickening', 'cardiomegaly']",
                "['exclude']",
                "[nan]",
            )
        ],
        ("sex is M or F", {"sex": "O"}),
        ("sex is M or F", {"sex": None}),
        ("year of birth is known", {"birth": None}),
    ],
)
def test_a_rule_drops(tree: PadchestTree, step: str, changes: dict[str, Any]) -> None:
    tree.add(OTHER, **changes)
    selection = select(tree.write())
    assert set(selection.rows["subject_id"]) == set(KEPT)
    assert lost(selection) == {step: 1}
    assert list(selection.left_out["step"]) == [step]
    assert not selection.problems


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ({"disease": "pleural effusion"}, {"labels": "['pleural effusion']"}),
        ({"disease": "pleural effusion"}, {"labels": "['cardiomegaly', ' pleural effusion']"}),  # as the real table
        ({"disease": "pleural effusion"}, {"labels": "[ 'pleural effusion ' ,'COPD signs', nan, '']"}),
        ({"disease": "pleural effusion"}, {"labels": '["normal", "pleural effusion"]'}),
        ({"disease": "no finding"}, {"labels": "['normal ']"}),
        ({"disease": "no finding"}, {"labels": "['normal', '']"}),
        ({"age": 4.0, "sex": "male"}, {"birth": 2010.0, "sex": "M"}),
        ({"age": 0.0, "view": "AP"}, {"birth": 2014.0, "projections": ("AP",)}),
        ({"age": 120.0}, {"birth": 1894.0}),
    ],
)
def test_a_rule_keeps(tree: PadchestTree, expected: dict[str, Any], changes: dict[str, Any]) -> None:
    tree.add(OTHER, **changes)
    selection = select(tree.write())
    row = selection.rows.set_index("subject_id").loc[str(PATIENT + OTHER)]
    assert {name: row[name] for name in expected} == expected
    assert not lost(selection)


def test_the_funnel_row_by_row(tree: PadchestTree) -> None:
    tree.add(20, projections=("PA", "L", "AP"))  # two of three
    tree.add(21, projections=("AP_horizontal", "COSTAL"))
    tree.add(22, labels=None)
    tree.add(23, labels="['scoliosis']")
    tree.add(24, sex="O", projections=("PA", "AP"))
    tree.add(25, birth=None)
    tree.add(26, birth=2052.0)
    tree.add(27).unlink()
    selection = select(tree.write())
    assert [tuple(row) for row in selection.funnel.itertuples(index=False)] == [
        ("images in the table", 22, 18),
        ("ids are complete", 22, 18),
        ("one row per image", 22, 18),
        ("view PA or AP", 19, 17),
        ("has labels", 18, 16),
        ("labels are a list", 18, 16),
        ("no finding or pleural effusion", 17, 15),
        ("sex is M or F", 15, 14),
        ("year of birth is known", 14, 13),
        ("age is known", 13, 12),
        ("image is there", 12, 11),
    ]
    assert len(selection.left_out) == 22 - 12
    assert len(selection.problems) == 2  # the birth in the future and the missing picture


# ---- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("age is known", {"PatientBirth": 2052.0}),
        ("age is known", {"PatientBirth": 1850.0}),
        ("age is known", {"PatientBirth": "unknown"}),
        ("age is known", {"StudyDate_DICOM": None}),
        ("age is known", {"StudyDate_DICOM": "15.09.2014"}),
        ("labels are a list", {"Labels": "normal"}),
        ("labels are a list", {"Labels": "['normal'"}),
        ("labels are a list", {"Labels": "{'normal'}"}),
        ("ids are complete", {"PatientID": None}),
        ("ids are complete", {"PatientID": "8.39860488694292E+35"}),  # as a spreadsheet writes it
        ("ids are complete", {"ImageID": None}),
        ("ids are complete", {"ImageID": "../0/some.png"}),
    ],
)
def test_a_damaged_row_is_named(tree: PadchestTree, step: str, change: dict[str, Any]) -> None:
    tree.add(OTHER)
    tree.rows[-1] |= change
    selection = select(tree.write())
    assert lost(selection) == {step: 1}
    assert set(selection.rows["subject_id"]) == set(KEPT)
    assert len(selection.problems) == 1
    assert "row 11" in selection.problems[0]
    with pytest.raises(ValueError, match="row 11"):
        select(tree.root, on_error="raise")


def test_the_same_picture_twice_in_the_table(tree: PadchestTree) -> None:
    tree.rows.append(tree.rows[3] | {"Labels": "['normal']"})
    selection = select(tree.write())
    assert lost(selection) == {"one row per image": 1}
    assert tree.rows[3]["ImageID"] in selection.problems[0]
    assert selection.rows["image_id"].is_unique


# ---- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TABLE, f"{TABLE}.gz"])
@pytest.mark.parametrize("flat", [None, "images-224", "BIMCV/images/all", "."])
def test_pictures_are_found_by_name(tmp_path: Path, name: str, flat: str | None) -> None:
    tree = PadchestTree(tmp_path, flat)
    for number in range(10):
        tree.add(number)
    rows = select(tree.write(name)).rows
    assert len(rows) == 10
    assert all(Path(path).is_file() for path in rows["image"])


def test_a_picture_in_two_folders(tree: PadchestTree) -> None:
    (tree.write() / "images-224").mkdir()
    shutil.copy(next(tree.root.rglob(tree.rows[0]["ImageID"])), tree.root / "images-224")
    with pytest.raises(ValueError, match=tree.rows[0]["ImageID"]):
        select(tree.root)


def test_without_pictures(tree: PadchestTree) -> None:
    for path in list(tree.write().rglob("*.png")):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=tree.rows[0]["ImageID"]):
        select(tree.root)


def test_without_the_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="PADCHEST"):
        select(tmp_path)


def test_monochrome1_is_told(tree: PadchestTree, caplog: pytest.LogCaptureFixture) -> None:
    select(tree.write())
    assert "MONOCHROME1" not in caplog.text
    tree.rows[2]["PhotometricInterpretation_DICOM"] = "MONOCHROME1"
    selection = select(tree.write())
    assert "MONOCHROME1 for 1 of 10" in caplog.text
    assert not lost(selection)
