"""The folder of prepared chest X-rays: what it says of itself."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import load_from_disk

from softcft.data.chest_xrays import nih
from softcft.data.chest_xrays.prepared import check_prepared, read_pictures, save_prepared
from tests.data.chest_xrays.nih_tree import NIHTree


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of NIH in ``tree`` and what was made of it in ``out``, without one missing and one damaged picture."""
    folder = tmp_path_factory.mktemp("prepared")
    tree = NIHTree(folder / "tree")
    for number in range(1, 13):
        tree.add(str(number), split="train_val" if number <= 8 else "test", size=(30, 40))
    tree.add("9", findings="Mass", split="test")
    tree.add("10", split="test").unlink()
    tree.add("11", split="test").write_bytes(b"<html>404</html>")
    selection = nih.select(tree.write())
    save_prepared(selection, read_pictures(selection, 16, cache_dir=folder / "cache"), folder / "out")
    return folder


def test_the_files_agree_on_what_was_left_out(prepared: Path) -> None:
    funnel = pd.read_csv(prepared / "out" / "funnel.csv")
    left_out = pd.read_csv(prepared / "out" / "left_out.csv", keep_default_na=False)
    lost = (-funnel.set_index("step")["images"].diff().fillna(0)).astype(int)
    assert left_out["step"].value_counts().to_dict() == lost[lost > 0].to_dict()
    assert list(left_out["path"].map(lambda path: Path(path).name)) == [
        "00000009_001.png",
        "00000010_001.png",
        "00000011_001.png",
    ]
    assert [bool(reason) for reason in left_out["reason"]] == [False, True, True]
    kept = sum(map(len, load_from_disk(prepared / "out").values()))
    assert kept == funnel["images"].iloc[-1] == 12


def test_the_provenance_identifies_the_tables_and_the_rules(prepared: Path) -> None:
    provenance = json.loads((prepared / "out" / "provenance.json").read_text())
    assert (provenance["source"], provenance["rules"], provenance["resolution"]) == ("nih", nih.RULES, 16)
    checksums = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (prepared / "tree").iterdir()
        if path.is_file()
    }
    assert {table["name"]: (table["bytes"], table["sha256"]) for table in provenance["tables"]} == checksums
    splits = load_from_disk(prepared / "out")
    assert {split: numbers["images"] for split, numbers in provenance["numbers"].items()} == {
        split: len(rows) for split, rows in splits.items()
    }
    assert str(prepared) not in json.dumps(provenance)  # a path is nobody's business


def test_a_damaged_provenance_is_an_error(prepared: Path, tmp_path: Path) -> None:
    check_prepared(prepared / "out", "nih", 16)
    (tmp_path / "dataset_dict.json").write_text("{}")
    for text in ("", "[]", "{}", '{"source": "nih", "resolution": "large"}'):
        (tmp_path / "provenance.json").write_text(text)
        with pytest.raises(ValueError, match=r"provenance.json"):
            check_prepared(tmp_path, "nih", 16)
