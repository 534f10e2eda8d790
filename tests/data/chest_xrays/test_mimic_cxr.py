"""The filter, the split and the reading of MIMIC-CXR, on made-up trees of its layout."""

import gzip
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict, load_from_disk
from PIL import Image
from sklearn.utils import shuffle

from softcft.data.chest_xrays.common import Selection
from softcft.data.chest_xrays.mimic_cxr import select
from softcft.data.chest_xrays.prepared import read_pictures
from softcft.data.own import read_table
from tests.data.chest_xrays.mimic_cxr_tree import MimicTree, make_mimic_tree, split_sizes, write_table
from tests.killed import run_until_killed
from tests.recipes.small_pipeline import RECIPES, load_recipe

RECIPE = RECIPES / "prepare_chest_xrays.py"
METADATA, LABELS = "mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-chexpert.csv.gz"
ADMISSIONS, PATIENTS = "hosp/admissions.csv.gz", "hosp/patients.csv.gz"
KEPT = [str(40_000_000 + i) for i in range(10)]  # enough subjects for three splits


@pytest.fixture
def tree(tmp_path: Path) -> MimicTree:
    """Ten subjects that every rule keeps."""
    tree = MimicTree(tmp_path / "tree")
    for i, subject_id in enumerate(KEPT):
        tree.add(subject_id, finding=("No Finding", "Pleural Effusion")[i % 2])
    return tree


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 40 subjects, which no test changes."""
    return make_mimic_tree(tmp_path_factory.mktemp("complete"), 40)


def subjects(selection: Selection) -> set[str]:
    return set(selection.rows["subject_id"])


def steps(selection: Selection) -> dict[str, tuple[int, int]]:
    """Images and subjects by step of the funnel."""
    return {step: (images, subjects) for step, images, subjects in selection.funnel.itertuples(index=False)}


def lost(selection: Selection) -> dict[str, int]:
    """How many images each step of the funnel left out."""
    lost = -selection.funnel["images"].diff().fillna(0).astype(int)
    return {step: number for step, number in zip(selection.funnel["step"], lost, strict=True) if number}


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


# ---- what comes out -----------------------------------------------------------------------------------------------


def test_columns_and_values(complete: Path, tmp_path: Path) -> None:
    splits = read_pictures(select(complete), 16, cache_dir=tmp_path).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == split_sizes(40)
    for rows in splits.values():
        assert rows.column_names == ["image", "age", "sex", "race", "disease", "subject_id", "study_id", "dicom_id"]
        assert rows[0]["image"].size == (16, 16)
        assert rows[0]["image"].mode == "L"
        assert all(isinstance(rows[0][name], str) for name in ("subject_id", "study_id", "dicom_id"))
        assert set(rows["sex"]) == {"male", "female"}
        assert set(rows["race"]) == {"White", "Asian", "Black"}
        assert set(rows["disease"]) == {"no finding", "pleural effusion"}


def test_image_and_attributes_of_a_row_belong_together(complete: Path, tmp_path: Path) -> None:
    patients = pd.read_csv(complete / PATIENTS, dtype=str).set_index("subject_id")
    for rows in read_pictures(select(complete), 20, cache_dir=tmp_path).splits.values():
        for row in rows:
            subject, study, dicom = row["subject_id"], row["study_id"], row["dicom_id"]
            path = complete / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg"
            with Image.open(path) as picture:  # 20 high and 24 wide: its middle as it is
                np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(picture)[:, 2:22])
            assert row["sex"] == {"M": "male", "F": "female"}[patients["gender"][subject]]
            assert row["age"] == int(patients["anchor_age"][subject]) + 2


def test_the_published_split(complete: Path) -> None:
    selection = select(complete)
    ids = pd.read_csv(complete / METADATA)["subject_id"].unique().astype(str)
    order = shuffle(ids, random_state=42)  # the notebook has np.random.seed(42) and draws nothing before
    train, validation, _ = split_sizes(40)
    expected = {"train": order[:train], "validation": order[train : train + validation]}
    expected["test"] = order[train + validation :]
    for split, part in expected.items():
        assert set(selection.rows["subject_id"][selection.rows["split"] == split]) == set(part)


def test_damage_and_disease_move_nobody_into_another_split(tree: MimicTree) -> None:
    before = select(tree.write()).rows.set_index("subject_id")["split"]
    staying = [subject for subject in KEPT if (before == before[subject]).sum() > 2][:2]
    tree.patients[KEPT.index(staying[0])]["gender"] = "U"
    tree.chexpert[KEPT.index(staying[1])] = {
        k: tree.chexpert[KEPT.index(staying[1])][k] for k in ("subject_id", "study_id")
    }
    after = select(tree.write()).rows.set_index("subject_id")["split"]
    assert set(before.index) - set(after.index) == set(staying)
    assert (after == before[after.index]).all()


def test_a_subject_is_in_one_split_with_all_its_images(tree: MimicTree) -> None:
    for number in range(30):
        tree.add(str(50_000_000 + number), views=("PA", "AP", "LATERAL", "AP"))
    rows = select(tree.write()).rows
    assert (rows.groupby("subject_id")["split"].nunique() == 1).all()
    assert (rows["subject_id"].value_counts().drop(KEPT) == 3).all()
    assert rows["dicom_id"].is_unique


# ---- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        ("one race at all admissions", {"race": ["WHITE", "ASIAN"]}),
        ("one race at all admissions", {"race": ["WHITE", "UNKNOWN"]}),
        ("one race at all admissions", {"race": ["WHITE", "WHITE - RUSSIAN"]}),
        ("subject has an admission", {"race": []}),
        ("White, Asian or Black", {"race": "HISPANIC/LATINO"}),
        ("White, Asian or Black", {"race": "ASIAN - CHINESE"}),
        ("White, Asian or Black", {"race": "BLACK/CAPE VERDEAN"}),
        ("view AP or PA", {"views": ("LATERAL",)}),
        ("view AP or PA", {"views": ("LL",)}),
        ("view AP or PA", {"views": (None,)}),
        ("no finding or pleural effusion", {"finding": None}),
        ("no finding or pleural effusion", {"finding": "Edema"}),
    ],
)
def test_a_rule_drops(tree: MimicTree, step: str, changes: dict[str, Any]) -> None:
    tree.add("30000000", **changes)
    selection = select(tree.write())
    assert subjects(selection) == set(KEPT)
    assert lost(selection) == {step: 1}
    assert selection.problems == []


@pytest.mark.parametrize(
    ("changes", "column", "value"),
    [
        ({"race": "BLACK/AFRICAN AMERICAN"}, "race", "Black"),
        ({"race": ["ASIAN", "ASIAN", "ASIAN"]}, "race", "Asian"),
        ({"views": ("AP",)}, "race", "White"),
        ({"anchor_age": 15}, "age", 17.0),  # there is no rule on age
        ({"anchor_age": 91}, "age", 93.0),
    ],
)
def test_a_rule_keeps(tree: MimicTree, changes: dict[str, Any], column: str, value: Any) -> None:
    tree.add("30000000", **changes)
    selection = select(tree.write())
    assert subjects(selection) == {*KEPT, "30000000"}
    assert lost(selection) == {}
    assert selection.rows.set_index("subject_id")[column]["30000000"] == value


@pytest.mark.parametrize(
    ("labels", "disease"),
    [
        ({"No Finding": 1.0, "Pleural Effusion": 1.0}, "pleural effusion"),
        ({"Edema": 1.0, "Pleural Effusion": 1.0}, "pleural effusion"),
        ({"No Finding": 1.0, "Pleural Effusion": -1.0}, "no finding"),
        ({"No Finding": 1.0, "Support Devices": 1.0}, "no finding"),
        ({"Pleural Effusion": -1.0}, None),
        ({"Pleural Effusion": 0.0}, None),
        ({"No Finding": 0.0}, None),
    ],
)
def test_the_disease_of_labels(tree: MimicTree, labels: dict[str, float], disease: str | None) -> None:
    tree.add("30000000", finding=None)
    tree.chexpert[-1] |= labels
    rows = select(tree.write()).rows.set_index("subject_id")
    assert rows["disease"].get("30000000") == disease


def test_a_study_without_labels_and_a_subject_without_its_row_are_dropped(tree: MimicTree) -> None:
    for subject_id in ("30000000", "30000001", "30000002"):
        tree.add(subject_id)
    tree.chexpert[-3]["study_id"] = "59999999"
    tree.chexpert[-2]["subject_id"] = "39999999"  # the study of another subject
    tree.patients.pop()
    selection = select(tree.write())
    assert subjects(selection) == set(KEPT)
    assert lost(selection) == {"study has labels": 2, "subject is among the patients": 1}


def test_age_is_that_in_the_year_of_the_image(tree: MimicTree) -> None:
    tree.metadata[0]["StudyDate"] = 21491231  # one year before the anchor
    rows = select(tree.write()).rows.set_index("subject_id")
    assert rows["age"][KEPT[0]] == 59
    assert rows["age"][KEPT[1]] == 62


def test_the_funnel_counts_images_and_subjects(tree: MimicTree, tmp_path: Path) -> None:
    tree.add("30000000", views=("PA", "LATERAL", "AP"))
    tree.add("30000001", views=("PA", "LATERAL"), race="OTHER")
    broken = tree.add("30000002", views=("PA", "AP"))
    broken.unlink()
    selection = select(tree.write())
    funnel = selection.funnel
    assert list(funnel) == ["step", "images", "subjects"]
    assert steps(selection)["images in the metadata"] == (17, 13)
    assert steps(selection)["White, Asian or Black"] == (15, 12)
    assert steps(selection)["view AP or PA"] == (14, 12)
    assert len(selection.rows) == 14
    prepared = read_pictures(selection, 16, cache_dir=tmp_path / "cache")
    splits, funnel = prepared.splits, prepared.funnel
    assert funnel["step"].iloc[-1] == "image can be read"
    assert tuple(funnel[["images", "subjects"]].iloc[-1]) == (13, 12)
    assert sum(map(len, splits.values())) == 13
    assert funnel["images"].is_monotonic_decreasing


# ---- where the files are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hospital", ["", "hosp", "core", "mimiciv/3.1/hosp", "physionet.org/files/mimiciv/1.0/core"])
def test_tables_of_the_hospital_are_found(tmp_path: Path, hospital: str) -> None:
    tree = MimicTree(tmp_path, hospital=hospital)
    for subject_id in KEPT:
        tree.add(subject_id)
    assert subjects(select(tree.write())) == set(KEPT)


def test_a_download_of_both_is_one_root(tree: MimicTree, tmp_path: Path) -> None:
    tree.write()
    root = tmp_path / "physionet.org" / "files"
    (root / "mimiciv" / "3.1").mkdir(parents=True)
    (tree.root / "hosp").rename(root / "mimiciv" / "3.1" / "hosp")
    (root / "mimic-cxr-jpg").mkdir()
    tree.root.rename(root / "mimic-cxr-jpg" / "2.1.0")
    for start in (root, tmp_path):
        rows = select(start).rows
        assert all(Path(path).is_file() for path in rows["image"])
        assert len(rows) == len(KEPT)


def test_unpacked_tables_and_the_column_of_later_versions(tree: MimicTree) -> None:
    expected = select(tree.write())
    tree.race_column = "race"
    for path in tree.write().rglob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    selection = select(tree.root)
    pd.testing.assert_frame_equal(selection.rows, expected.rows)


def test_a_link_to_the_hospital_is_followed(tree: MimicTree, tmp_path: Path) -> None:
    tree.write()
    (tree.root / "hosp").rename(tmp_path / "elsewhere")
    (tree.root / "mimiciv").symlink_to(tmp_path / "elsewhere")
    assert subjects(select(tree.root)) == set(KEPT)


# ---- damaged rows and images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["metadata", "chexpert", "patients"])
def test_a_duplicated_row_yields_one_image(tree: MimicTree, table: str) -> None:
    rows = getattr(tree, table)
    rows += [dict(rows[3]), dict(rows[3])]
    selection = select(tree.write())
    assert len(selection.rows) == len(KEPT)
    assert lost(selection) == ({"one row per image": 2} if table == "metadata" else {})
    assert len(selection.problems) == 2
    assert f"{table}.csv.gz, line 12: " in selection.problems[0]


@pytest.mark.parametrize(
    ("table", "column", "value", "step", "named"),
    [
        ("patients", "gender", "U", "sex is known", f"subject_id {KEPT[3]}: gender"),
        ("patients", "gender", None, "sex is known", "gender"),
        ("patients", "anchor_age", None, "age is known", "nan, 2150, 21520506"),
        ("patients", "anchor_age", "old", "age is known", "old, 2150"),
        ("patients", "anchor_age", "inf", "age is known", "inf"),
        ("patients", "anchor_age", -30, "age is known", "-30"),
        ("patients", "anchor_year", None, "age is known", "60, nan, 21520506"),
        ("metadata", "StudyDate", None, "age is known", "60, 2150, nan"),
        ("metadata", "subject_id", None, "ids are complete", "line 5: subject_id"),
        ("metadata", "study_id", "50..1", "ids are complete", "line 5: subject_id"),
        ("metadata", "dicom_id", None, "ids are complete", "line 5: subject_id"),
    ],
)
def test_a_damaged_row_is_left_out_and_named(
    tree: MimicTree, caplog: pytest.LogCaptureFixture, table: str, column: str, value: Any, step: str, named: str
) -> None:
    getattr(tree, table)[3][column] = value
    with caplog.at_level(logging.WARNING):
        selection = select(tree.write())
    assert subjects(selection) == set(KEPT) - {KEPT[3]}
    assert lost(selection) == {step: 1}
    assert len(selection.problems) == 1
    assert named in selection.problems[0]
    assert selection.problems[0] in caplog.text
    with pytest.raises(ValueError, match=r"on_error='skip'"):
        select(tree.root, on_error="raise")


@pytest.mark.parametrize("value", ["../../../secret", "/data/secret", "a/b", "..\\\\secret"])
@pytest.mark.parametrize("column", ["subject_id", "study_id", "dicom_id"])
def test_an_id_that_is_a_path_is_refused_before_any_image_is_read(tree: MimicTree, column: str, value: str) -> None:
    tree.metadata[3][column] = value
    with pytest.raises(ValueError, match=rf"metadata.csv.gz, line 5: {column} '{re.escape(repr(value)[1:-1])}'"):
        select(tree.write())


def test_missing_ids_of_two_tables_do_not_match(tree: MimicTree) -> None:
    tree.metadata[3]["subject_id"] = tree.patients[3]["subject_id"] = None
    tree.admissions[3]["subject_id"] = tree.chexpert[3]["subject_id"] = None
    assert subjects(select(tree.write())) == set(KEPT) - {KEPT[3]}


def test_many_problems_make_a_short_warning(tree: MimicTree, caplog: pytest.LogCaptureFixture) -> None:
    tree.metadata = [dict(row) for row in tree.metadata for _ in range(4)]
    with caplog.at_level(logging.WARNING):
        selection = select(tree.write())
    assert len(selection.problems) == 30
    assert "one row per image: 30 left out:" in caplog.text
    assert caplog.text.count("again") == 20
    assert "and 10 more" in caplog.text


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "text"])
def test_a_damaged_image_is_left_out_and_named(
    tree: MimicTree, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    for number in range(30):
        path = tree.add(str(50_000_000 + number))
    content = {"cut": path.read_bytes()[:-100], "empty": b"", "text": b"<html>401 Unauthorized</html>"}
    path.write_bytes(content[how]) if how in content else path.unlink()
    selection = select(tree.write())
    with caplog.at_level(logging.WARNING):
        prepared = read_pictures(selection, 16, cache_dir=tmp_path / "cache")
        splits, funnel = prepared.splits, prepared.funnel
    left = {subject for rows in splits.values() for subject in rows["subject_id"]}
    assert subjects(selection) - left == {path.parents[1].name[1:]}
    assert tuple(funnel[["images", "subjects"]].iloc[-1]) == (39, 39)
    assert "images: 1 left out: " in caplog.text
    assert str(path) in caplog.text
    with pytest.raises(ValueError, match=f"{path.name}.*on_error='skip'"):
        read_pictures(selection, 16, on_error="raise", cache_dir=tmp_path / "cache")


def test_a_split_without_a_readable_image(tree: MimicTree, tmp_path: Path) -> None:
    selection = select(tree.write())
    for path in selection.rows["image"][selection.rows["split"] == "validation"]:
        Path(path).unlink()
    with pytest.raises(ValueError, match=r"None of the 1 images can be read"):
        read_pictures(selection, 16, cache_dir=tmp_path / "cache")


# ---- damaged or missing tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [METADATA, LABELS, ADMISSIONS, PATIENTS])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: data[:60] + bytes(20) + data[80:],
        lambda data: b"<html>401 Unauthorized</html>",
        lambda data: b"",
        lambda data: gzip.compress(b""),
        lambda data: gzip.compress(gzip.decompress(data).splitlines(keepends=True)[0]),
    ],
    ids=["half", "end", "zeros", "html", "empty", "nothing", "only names of columns"],
)
def test_a_damaged_table_is_an_error(tree: MimicTree, name: str, change: Callable[[bytes], bytes]) -> None:
    damage(tree.write() / name, change)
    for on_error in ("skip", "raise"):
        with pytest.raises(ValueError, match=Path(name).name):
            select(tree.root, on_error=on_error)


def test_an_unpacked_table_that_is_cut_short(tree: MimicTree) -> None:
    path = tree.write() / ADMISSIONS
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())[:-20])
    path.unlink()
    with pytest.raises(ValueError, match=r"admissions.csv is cut short"):
        select(tree.root)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        (METADATA, "dicom_id"),
        (METADATA, "ViewPosition"),
        (LABELS, "Pleural Effusion"),
        (ADMISSIONS, "ethnicity"),
        (PATIENTS, "anchor_age"),
    ],
)
def test_a_missing_column_is_named_with_its_file(tree: MimicTree, name: str, column: str) -> None:
    damage(tree.write() / name, lambda data: gzip.compress(gzip.decompress(data).replace(column.encode(), b"other", 1)))
    with pytest.raises(ValueError, match=f"{Path(name).name} .*{column}"):
        select(tree.root)


@pytest.mark.parametrize("name", [METADATA, LABELS, ADMISSIONS, PATIENTS])
def test_a_missing_table_is_named_with_all_that_are_needed(tree: MimicTree, name: str) -> None:
    (tree.write() / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{Path(name).name} .*{METADATA}.*patients.csv.gz"):
        select(tree.root)


def test_the_wrong_folder(tree: MimicTree, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root .*nowhere is no folder"):
        select(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no mimic-cxr-2.0.0-metadata.csv.gz"):
        select(tree.write() / "files")
    selection = select(tree.root)
    (tree.root / "files").rename(tree.root / "images")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*files; put the images there"):
        read_pictures(selection, 16, cache_dir=tmp_path / "cache")


def test_two_versions_of_a_table(tree: MimicTree) -> None:
    shutil.copytree(tree.write() / "hosp", tree.root / "mimiciv" / "3.1" / "hosp")
    with pytest.raises(ValueError, match=r"hosp/admissions.csv.gz and .*hosp/admissions.csv.gz; keep one"):
        select(tree.root)


def test_tables_that_do_not_belong_together_leave_nothing(tree: MimicTree) -> None:
    for row in tree.admissions:
        row["subject_id"] = "7"
    with pytest.raises(ValueError, match=r"The split 'train' has no image.*\n.*\n[^$]* subject has an admission +0 +0"):
        select(tree.write())


def test_too_few_subjects_for_three_splits(tmp_path: Path) -> None:
    tree = MimicTree(tmp_path)
    for subject_id in KEPT[:3]:
        tree.add(subject_id)
    with pytest.raises(ValueError, match=r"The split 'validation' has no image.*too few subjects"):
        select(tree.write())
    with pytest.raises(ValueError, match="on_error must"):
        select(tree.root, on_error="ignore")


# ---- the lists of images of chexploration -------------------------------------------------------------------------

SAMPLE_COLUMNS = ["dicom_id", "path", "path_preproc", "age", "sex", "sex_label", "race", "race_label", "disease"]


@pytest.fixture
def samples(tree: MimicTree, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the three files by name, four images each, of subjects that no rule of the tables keeps."""
    files: dict[str, list[dict[str, Any]]] = {}
    for number in range(12):
        subject_id = str(60_000_000 + number)
        tree.add(subject_id, race="OTHER", views=("LATERAL",))
        study_id, dicom_id = (tree.metadata[-1][name] for name in ("study_id", "dicom_id"))
        files.setdefault(("train", "val", "test")[number % 3], []).append(
            {
                "dicom_id": dicom_id,
                "path_preproc": f"preproc_224x224/s{study_id}_{dicom_id}.jpg",
                "age": 50.0 + number,
                "sex_label": number % 2,
                "race_label": number % 3,
                "disease": ("No Finding", "Pleural Effusion", "Other")[number // 3 % 3],
            }
        )
    return files


def write_samples(tree: MimicTree, files: dict[str, list[dict[str, Any]]], folder: Path) -> Path:
    tree.write()
    for name, rows in files.items():
        write_table(folder / f"mimic.sample.{name}.csv", rows, SAMPLE_COLUMNS)
    return folder


def test_lists_of_images_replace_filter_and_split(tree: MimicTree, samples: dict, tmp_path: Path) -> None:
    folder = write_samples(tree, samples, tmp_path / "meta")
    for name in (LABELS, ADMISSIONS, PATIENTS):  # not needed then
        (tree.root / name).unlink()
    selection = select(tree.root, sample_csv_dir=folder)
    assert lost(selection) == {"no finding or pleural effusion": 3}
    rows = selection.rows.set_index("subject_id")
    for number in (*range(6), *range(9, 12)):
        row = rows.loc[str(60_000_000 + number)]
        assert row["split"] == ("train", "validation", "test")[number % 3]
        assert row["age"] == 50 + number
        assert row["sex"] == ("male", "female")[number % 2]
        assert row["race"] == ("White", "Asian", "Black")[number % 3]
        assert row["disease"] == ("no finding", "pleural effusion", None)[number // 3 % 3]
        assert Path(row["image"]).is_file()
    selection = select(tree.root, sample_csv_dir=folder)
    splits = read_pictures(selection, 16, cache_dir=tmp_path / "cache").splits
    assert [len(split) for split in splits.values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("column", "value", "step"),
    [
        ("path_preproc", "preproc_224x224/s1_2.jpg", "image is in the metadata"),
        ("path_preproc", "scan.jpg", "image is in the metadata"),
        ("path_preproc", None, "image is in the metadata"),
        ("sex_label", 2, "sex is known"),
        ("race_label", None, "race is White, Asian or Black"),
        ("age", None, "age is known"),
    ],
)
def test_a_damaged_row_of_a_list(
    tree: MimicTree, samples: dict, tmp_path: Path, column: str, value: Any, step: str
) -> None:
    samples["train"][0][column] = value
    selection = select(tree.root, sample_csv_dir=write_samples(tree, samples, tmp_path / "meta"))
    assert lost(selection) == {step: 1, "no finding or pleural effusion": 3}
    assert len(selection.problems) == 1
    assert "mimic.sample.train.csv: " in selection.problems[0]
    assert column in selection.problems[0]


def test_an_image_listed_twice_is_one_and_a_subject_of_two_lists_an_error(
    tree: MimicTree, samples: dict, tmp_path: Path
) -> None:
    samples["val"].append(dict(samples["val"][0]))
    selection = select(tree.root, sample_csv_dir=write_samples(tree, samples, tmp_path / "meta"))
    assert len(selection.rows) == 9
    samples["val"].append(dict(samples["train"][0]))
    with pytest.raises(ValueError, match=r"subject_id 60000000 is in more than one of mimic.sample.train.csv, "):
        select(tree.root, sample_csv_dir=write_samples(tree, samples, tmp_path / "meta"))


def test_an_id_of_the_metadata_that_is_a_path_is_refused_for_lists_too(
    tree: MimicTree, samples: dict, tmp_path: Path
) -> None:
    tree.metadata[-1]["subject_id"] = "60/../../../secret"
    with pytest.raises(ValueError, match=r"metadata.csv.gz, line \d+: subject_id '60/../../../secret'"):
        select(tree.root, sample_csv_dir=write_samples(tree, samples, tmp_path / "meta"))


def test_missing_lists(tree: MimicTree, samples: dict, tmp_path: Path) -> None:
    folder = write_samples(tree, samples, tmp_path / "meta")
    (folder / "mimic.sample.val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no mimic.sample.val.csv; needed are mimic.sample.train.csv, "):
        select(tree.root, sample_csv_dir=folder)
    write_table(folder / "mimic.sample.val.csv", samples["val"], SAMPLE_COLUMNS[:-1])
    with pytest.raises(ValueError, match=r"mimic.sample.val.csv has no column \['disease'\]"):
        select(tree.root, sample_csv_dir=folder)


# ---- interruptions and the recipe ---------------------------------------------------------------------------------


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The recipe, in this process."""
    module = load_recipe("prepare_chest_xrays")

    def call(*arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [str(RECIPE), "--source", "mimic_cxr", *map(str, arguments)])
        module.main()

    return call


def test_the_recipe(
    recipe: Callable[..., None], complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "out.unfinished").mkdir()  # of a run that was cut off while it wrote
    (tmp_path / "out.unfinished" / "dataset_dict.json").write_text("{")
    recipe("--root", complete, "--output_dir", out, "--resolution", "16")
    printed = capsys.readouterr().out
    splits = load_from_disk(out)
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train", "validation", "test"]
    assert [len(rows) for rows in splits.values()] == split_sizes(40)
    assert splits["train"][0]["image"].size == (16, 16)
    funnel = pd.read_csv(out / "funnel.csv")
    assert list(funnel) == ["step", "images", "subjects"]
    assert funnel["step"].iloc[-1] == "image can be read"
    assert (funnel["images"] == 40).all()
    assert "White, Asian or Black" in printed
    assert "train            24 images of     24 subjects" in printed
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


@pytest.mark.slow
def test_the_recipe_that_is_killed_leaves_no_half_data_set(
    recipe: Callable[..., None], complete: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--root", str(complete), "--output_dir", str(out), "--resolution", "16"]
    run_until_killed(
        RECIPE, ["--source", "mimic_cxr", *arguments], tmp_path, "open", "out.unfinished/validation/state.json"
    )
    assert not out.exists()
    assert (tmp_path / "out.unfinished" / "train" / "state.json").is_file()
    with pytest.raises(ValueError, match=r"out.unfinished cannot be read: .*validation/state.json"):
        read_table(str(tmp_path / "out.unfinished"))
    recipe(*arguments)
    assert [len(rows) for rows in load_from_disk(out).values()] == split_sizes(40)
    assert not (tmp_path / "out.unfinished").exists()


def test_what_the_recipe_refuses_leaves_nothing(recipe: Callable[..., None], tree: MimicTree, tmp_path: Path) -> None:
    out, full, empty = tmp_path / "out", tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    (full / "dataset_dict.json").write_text("{}")
    empty.mkdir()
    tree.metadata.append(dict(tree.metadata[3]))
    with pytest.raises(SystemExit, match=f"--output_dir {full}"):
        recipe("--root", tree.write(), "--output_dir", full)
    with pytest.raises(SystemExit, match=METADATA):
        recipe("--root", empty, "--output_dir", out)
    with pytest.raises(SystemExit, match="line 12: dicom_id"):
        recipe("--root", tree.root, "--output_dir", out, "--on_error", "raise")
    assert not out.exists()
