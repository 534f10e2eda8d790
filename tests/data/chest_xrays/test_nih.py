"""The rules for NIH ChestX-ray14, on made-up trees of its layout and on the thousand real pictures where they are."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import load_from_disk
from PIL import Image

from softcft.data.chest_xrays.common import Selection
from softcft.data.chest_xrays.nih import OLDEST, select
from softcft.data.chest_xrays.prepared import read_pictures, save_prepared
from softcft.graph import CausalGraph
from softcft.training.parsing import read_config
from tests.data.chest_xrays.nih_tree import NIHTree, make_nih_tree

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "data" / "nih1000"


@pytest.fixture(params=["first", "v2020"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> NIHTree:
    """Twelve patients with lists of splits, which every rule keeps, of each release."""
    tree = NIHTree(tmp_path / "tree", request.param)
    for number in range(1, 13):
        split = "train_val" if number <= 8 else "test"
        tree.add(str(number), findings=("No Finding", "Effusion")[number % 2], split=split)
    return tree


def lost(selection: Selection) -> dict[str, int]:
    """How many images each step of the funnel left out; these are the ones that are named."""
    lost = -selection.funnel["images"].diff().fillna(0).astype(int)
    steps = {step: number for step, number in zip(selection.funnel["step"], lost, strict=True) if number}
    assert selection.left_out["step"].value_counts().to_dict() == steps
    return steps


def test_the_funnel_of_one_row_for_each_rule(tree: NIHTree, tmp_path: Path) -> None:
    first = tree.release == "first"
    tree.add("20", findings="Mass|Nodule", split="test")
    tree.add("21", age="411Y" if first else "411", split="test")
    tree.add("22", view="LL", split="test")
    tree.add("23", sex="U", split="train_val")
    tree.add("24")  # in no list
    tree.add("25", split="test").unlink()
    broken = tree.add("26", split="test")
    broken.write_bytes(broken.read_bytes()[:100])
    tree.rows.append(dict(tree.rows[0]))
    tree.rows.append(dict(tree.rows[0]) | {"Image Index": "../../secret.png"})
    tree.rows.append(dict(tree.rows[0]) | {"Image Index": "none.png", "Patient ID": ""})
    selection = select(tree.write())
    assert [tuple(step) for step in selection.funnel.itertuples(index=False)] == [
        ("images in the table", 22, 19),
        ("ids are complete", 20, 19),
        ("one row per image", 19, 19),
        ("in one of the lists", 18, 18),
        ("patient is in one of the lists only", 18, 18),
        ("view PA or AP", 17, 17),
        ("no finding or pleural effusion", 16, 16),
        ("sex is known", 15, 15),
        ("age is known", 14, 14),
        ("image is there", 13, 13),
    ]
    named = dict(zip(selection.left_out["path"], selection.left_out["reason"], strict=True))
    assert set(named) > {"00000020_000.png", "00000021_000.png", "00000024_000.png", "00000025_000.png"}
    assert "411" in named["00000021_000.png"]
    assert named["00000020_000.png"] == ""  # the step says it
    assert len(selection.problems) == 6
    prepared = read_pictures(selection, 16, cache_dir=tmp_path / "cache")
    assert tuple(prepared.funnel.iloc[-1]) == ("image can be read", 12, 12)
    assert prepared.left_out["path"].iloc[-1] == str(broken)
    with pytest.raises(ValueError, match=r"Image Index .*secret.png"):
        select(tree.root, on_error="raise")


@pytest.mark.parametrize(
    ("written", "years"),
    [
        ("058Y", 58),
        ("003M", 0.25),
        ("026W", 0.498),
        ("001D", 0.0027),
        ("58", 58),
        ("0", 0),
        ("120", 120),
        ("121", None),
        ("411Y", None),
        ("411", None),
        ("-3", None),
        ("", None),
        ("58X", None),
        ("Y", None),
    ],
)
def test_ages(tmp_path: Path, caplog: pytest.LogCaptureFixture, written: str, years: float | None) -> None:
    tree = NIHTree(tmp_path, "first")
    for number in range(1, 13):
        tree.add(str(number), split="train_val" if number <= 8 else "test")
    tree.add("20", age=written, split="test")
    selection = select(tree.write())
    ages = selection.rows.set_index("subject_id")["age"]
    assert ages.get("20") == (None if years is None else pytest.approx(years, rel=0.02))
    assert len(selection.problems) == (years is None)
    assert (ages <= OLDEST).all()
    assert ("became years" in caplog.text) == (written[-1:] in ("M", "W", "D"))


@pytest.mark.parametrize(
    ("findings", "disease"),
    [
        ("No Finding", "no finding"),
        ("Effusion", "pleural effusion"),
        ("Cardiomegaly|Effusion", "pleural effusion"),
        ("Effusion|Infiltration|Mass", "pleural effusion"),
        ("Mass", None),
        ("Pleural_Thickening|Hernia", None),
        ("", None),
    ],
)
def test_the_disease_of_findings(tree: NIHTree, findings: str, disease: str | None) -> None:
    tree.add("20", findings=findings, split="test")
    selection = select(tree.write())
    assert selection.rows.set_index("subject_id")["disease"].get("20") == disease
    assert lost(selection) == ({} if disease else {"no finding or pleural effusion": 1})


def test_columns_and_values(tree: NIHTree, tmp_path: Path) -> None:
    tree.add("3", sex="M", view="AP", age="063Y" if tree.release == "first" else "63", split="train_val")
    rows = select(tree.write()).rows
    assert list(rows) == ["image", "age", "sex", "disease", "subject_id", "image_id", "view", "split"]
    row = rows.set_index("image_id").loc["00000003_001.png"]
    assert (row["age"], row["sex"], row["view"], row["subject_id"]) == (63, "male", "AP", "3")
    assert all(Path(image).name == name for image, name in zip(rows["image"], rows["image_id"], strict=True))


@pytest.mark.parametrize("size", [224, 64])
def test_the_shipped_graph_holds_all_that_the_rules_let_through(tree: NIHTree, size: int) -> None:
    config = read_config(ROOT / "recipes" / "configs" / f"nih_{size}.yaml")
    tree.add("20", age="000Y" if tree.release == "first" else "0", split="test")
    tree.add("21", sex="M", age=f"{OLDEST}Y" if tree.release == "first" else f"{OLDEST}", split="test")
    graph, rows = CausalGraph(config["graph"]), select(tree.write()).rows
    encoded = graph.encode({name: rows[name].tolist() for name in graph.names})
    assert len(encoded) == len(rows) == 14
    assert "race" not in graph.names


# ---- splits --------------------------------------------------------------------------------------------------------


def test_the_official_lists_and_an_eighth_of_the_patients(tmp_path: Path) -> None:
    rows = select(make_nih_tree(tmp_path)).rows
    patients = rows.groupby("split")["subject_id"].nunique()
    assert patients.to_dict() == {"train": 28, "validation": 4, "test": 8}
    assert (rows.groupby("subject_id")["split"].nunique() == 1).all()
    assert set(rows["subject_id"][rows["split"] == "test"]) == {str(number) for number in range(33, 41)}


@pytest.mark.parametrize("listed", [True, False])
def test_what_is_not_downloaded_damaged_or_in_another_order_moves_nobody(tmp_path: Path, listed: bool) -> None:
    splits = {}
    for release in ("first", "v2020"):
        make_nih_tree(tmp_path / release, release)
        for path in [] if listed else (tmp_path / release).glob("*.txt"):
            path.unlink()
        splits[release] = select(tmp_path / release).rows.set_index("image_id")["split"]
    pd.testing.assert_series_equal(splits["first"], splits["v2020"])
    root = tmp_path / "v2020"
    for path in (root / "images_003" / "images").iterdir():
        path.unlink()
    header, *lines = (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()
    lines[0] = lines[0].replace(",F,", ",U,").replace(",M,", ",U,")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *lines[::-1]]) + "\n")
    after = select(root).rows.set_index("image_id")["split"]
    assert 40 < len(after) < 70
    assert (after == splits["first"][after.index]).all()


def test_without_lists_patients_are_split_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_nih_tree(tmp_path)
    for path in root.glob("*.txt"):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        rows = select(root).rows
    assert "train_val_list.txt" in caplog.text
    patients = rows.groupby("split")["subject_id"].nunique()
    assert patients.to_dict() == {"train": 24, "validation": 8, "test": 8}
    assert (rows.groupby("subject_id")["split"].nunique() == 1).all()


def test_a_patient_of_both_lists_is_only_tested(tree: NIHTree) -> None:
    before = select(tree.write()).rows
    (learned,) = before["image_id"][before["split"] == "train"].iloc[:1]
    patient = before.set_index("image_id")["subject_id"][learned]
    tree.add(patient, split="test")
    selection = select(tree.write())
    assert set(selection.rows["split"][selection.rows["subject_id"] == patient]) == {"test"}
    assert learned in set(selection.left_out["path"])


def test_one_list_only_is_an_error(tree: NIHTree) -> None:
    (tree.write() / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no test_list.txt"):
        select(tree.root)


def test_a_list_that_names_more_than_the_table(tree: NIHTree, caplog: pytest.LogCaptureFixture) -> None:
    tree.lists["test"] += ["00000099_000.png", "00000099_001.png"]
    with caplog.at_level(logging.WARNING):
        assert lost(select(tree.write())) == {}
    assert "2 names of the lists" in caplog.text


# ---- where the files are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["images", ".", "CXR8/images/images_01"])
def test_pictures_are_found_by_name_wherever_they_are(tree: NIHTree, place: str) -> None:
    tree.write()
    target = tree.root / place
    target.mkdir(parents=True, exist_ok=True)
    for path in list(tree.root.rglob("images_0*/images/*.png")):
        path.rename(target / path.name)
    rows = select(tree.root).rows
    assert len(rows) == 12
    assert all(Path(path).parent == target for path in rows["image"])


def test_files_with_other_line_ends_and_a_byte_order_mark(tree: NIHTree) -> None:
    expected = select(tree.write()).rows
    tree.line_end = "\r\n"
    tree.write()
    tree.table.write_bytes(b"\xef\xbb\xbf" + tree.table.read_bytes())
    for path in tree.root.glob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    pd.testing.assert_frame_equal(select(tree.root).rows, expected)


def test_a_picture_in_two_folders_is_an_error(tree: NIHTree) -> None:
    path = next(tree.write().rglob("*.png"))
    (tree.root / "images_224").mkdir()
    (tree.root / "images_224" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=path.name):
        select(tree.root)


def test_no_picture_at_all_is_an_error(tree: NIHTree) -> None:
    for path in tree.write().rglob("*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 12 pictures"):
        select(tree.root)


def test_both_releases_or_none_is_an_error(tree: NIHTree) -> None:
    other = {"first": "Data_Entry_2017_v2020.csv", "v2020": "Data_Entry_2017.csv"}[tree.release]
    (tree.write() / other).write_bytes(tree.table.read_bytes())
    with pytest.raises(ValueError, match=r"Data_Entry_2017.*keep one"):
        select(tree.root)
    for path in tree.root.glob("*.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Data_Entry_2017.csv .*Data_Entry_2017_v2020.csv"):
        select(tree.root)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("Patient Age", "Age"),
        lambda text: text.replace("No Finding", "No Finding, clear", 1),  # all that follows is one column late
        lambda text: text[: text.rindex(",2500")],
        lambda text: text.splitlines()[0] + "\n",
        lambda text: "",
        lambda text: "<html>403 Forbidden</html>\n",
    ],
)
def test_a_damaged_table_is_an_error(tree: NIHTree, change: Any) -> None:
    tree.write()
    tree.table.write_text(change(tree.table.read_text()))
    with pytest.raises(ValueError, match=tree.table.name):
        select(tree.root)


# ---- the thousand real pictures ------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the thousand pictures of NIH ChestX-ray14 are not in {REAL}")
def test_the_thousand_real_pictures(tmp_path: Path) -> None:
    selection = select(REAL)
    assert lost(selection) == {"no finding or pleural effusion": 331}
    assert selection.problems == []
    rows = selection.rows
    assert rows["disease"].value_counts().to_dict() == {"no finding": 499, "pleural effusion": 170}
    assert rows["age"].between(24, 94).all()
    prepared = read_pictures(selection, 64, cache_dir=tmp_path / "cache")
    save_prepared(selection, prepared, tmp_path / "out")
    splits = load_from_disk(tmp_path / "out")
    assert sum(map(len, splits.values())) == 669
    row = splits["test"][0]
    with Image.open(REAL / "images" / row["image_id"]) as picture:
        assert row["image"].tobytes() == picture.convert("L").tobytes()
