import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

from softcft.data.chest_xrays import mimic_cxr
from softcft.data.chest_xrays.prepared import read_pictures, save_prepared
from softcft.data.config import DataConfig
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.data.schema import ImageAttributeDataset
from softcft.data.sources import load_data, subjects_of, training_images
from softcft.graph import CausalGraph
from tests.data.chest_xrays.mimic_cxr_tree import make_mimic_tree

ROOT = Path(__file__).parents[2]

PHANTOM = {"dataset_name": "phantom", "sample_size": 16, "num_train": 6, "num_validation": 4, "num_test": 5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_train": 0}, "num_train"),
        ({"num_validation": -2}, "num_validation"),
        ({"num_test": 0}, "num_test"),
        ({"data_seed": -1}, "data_seed"),
        ({"sample_size": 8}, "sample_size"),
        ({"dataset_name": "morphomnist", "data_dir": "x"}, "sample_size"),
        ({"dataset_name": "morphomnist", "sample_size": 32}, "data_dir"),
    ],
)
def test_bad_values_name_the_flag(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**{**PHANTOM, **values})


def test_the_phantom_is_made_as_asked(tmp_path: Path) -> None:
    config = DataConfig(**PHANTOM, data_dir=str(tmp_path / "cache"), data_seed=3)
    splits = load_data(config, PHANTOM_GRAPH)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "validation": 4, "test": 5}
    assert any((tmp_path / "cache").iterdir())
    assert ImageAttributeDataset(splits["test"], PHANTOM_GRAPH)[0]["image"].shape == (1, 16, 16)
    other = load_data(DataConfig(**PHANTOM, data_dir=str(tmp_path / "cache")), PHANTOM_GRAPH)
    assert list(splits["train"]["age"]) != list(other["train"]["age"])


@pytest.mark.parametrize("dataset", ["phantom", "morphomnist"])
def test_a_graph_of_other_variables_is_refused_before_anything_is_made(dataset: str, tmp_path: Path) -> None:
    config = DataConfig(dataset_name=dataset, sample_size=32, data_dir=str(tmp_path / "cache"))
    graph = CausalGraph([{"name": "height", "kind": "binary", "categories": ["a", "b"]}])
    with pytest.raises(ValueError, match=rf"variables \['{graph.names[0]}'\], but the data set '{dataset}' has"):
        load_data(config, graph)
    assert not (tmp_path / "cache").exists()


def test_subjects_are_those_of_the_group_column_or_the_images(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"sex": ["male"] * 5, "patient": [7.0, 8.0, None, 7.0, None]})
    config = DataConfig(dataset_name="folder", sample_size=16, group_column="patient")
    assert subjects_of(rows, config) == ["7", "8", "none 2", "7", "none 4"]
    assert len(set(subjects_of(rows, DataConfig(dataset_name="folder", sample_size=16)))) == 5

    # What load_data returns has the column, also for the splits that it makes, where no subject is in two of them.
    made = load_data(DataConfig(**PHANTOM, data_dir=str(tmp_path / "cache")), PHANTOM_GRAPH)["train"]
    made = made.select([0, 1, 2, 3, 4, 5] * 4).add_column("patient", [f"p{i // 2}" for i in range(24)])
    made.save_to_disk(tmp_path / "mine")
    config = DataConfig(dataset_name=str(tmp_path / "mine"), sample_size=16, group_column="patient")
    splits = load_data(config, PHANTOM_GRAPH)
    subjects = {name: subjects_of(split, config) for name, split in splits.items()}
    assert sorted(name for names in subjects.values() for name in names) == sorted(f"p{i // 2}" for i in range(24))
    assert not set(subjects["train"]) & set(subjects["test"])


MIMIC_GRAPH = CausalGraph(yaml.safe_load((ROOT / "recipes" / "configs" / "mimic_cxr_224.yaml").read_text())["graph"])


@pytest.fixture
def mimic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> datasets.DatasetDict:
    """The rows of a tree of MIMIC-CXR, prepared in the folder ``prepared``."""
    make_mimic_tree(tmp_path / "tree", num_subjects=30, size=(40, 30))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    selection = mimic_cxr.select(tmp_path / "tree")
    prepared = read_pictures(selection, 24)
    save_prepared(selection, prepared, tmp_path / "prepared")
    return prepared.splits


def test_chest_xrays_are_what_was_prepared(mimic: datasets.DatasetDict, tmp_path: Path) -> None:
    for size in (24, 16):
        config = DataConfig(dataset_name="mimic_cxr", sample_size=size, data_dir=str(tmp_path / "prepared"))
        splits = load_data(config, MIMIC_GRAPH)
        for name, rows in splits.items():
            assert subjects_of(rows, config) == mimic[name]["subject_id"][:]
        images = ImageAttributeDataset(splits["train"], MIMIC_GRAPH)
        assert (images.image_channels, images.sample_size) == (1, size)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"sample_size": 32}, ValueError, "sample_size .*24.*32"),  # pictures are never enlarged unasked
        ({"dataset_name": "nih"}, ValueError, "dataset_name nih.*mimic_cxr"),
        ({"data_dir": "tree"}, FileNotFoundError, "data_dir .*tree .*prepare_chest_xrays.py"),
        ({"data_dir": "nowhere"}, FileNotFoundError, "data_dir .*nowhere .*prepare_chest_xrays.py"),
    ],
)
def test_what_is_not_the_prepared_source_is_refused(
    mimic: datasets.DatasetDict, tmp_path: Path, changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    settings: dict[str, Any] = {"dataset_name": "mimic_cxr", "sample_size": 24, "data_dir": "prepared", **changes}
    settings["data_dir"] = str(tmp_path / settings["data_dir"])
    graph = CausalGraph([variable for variable in MIMIC_GRAPH.to_list() if variable["name"] != "race"])
    with pytest.raises(error, match=named):
        load_data(DataConfig(**settings), graph)


@pytest.mark.parametrize("order", ["together", "scattered"])
@pytest.mark.parametrize("kind", ["folder", "mimic"])
def test_halves_share_no_subject(kind: str, order: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The judge must not know the patients of the guide."""
    if kind == "mimic":
        graph, made = MIMIC_GRAPH, request.getfixturevalue("mimic")
        made["train"] = datasets.concatenate_datasets([made["train"]] * 3)  # several images of each
        if order == "together":
            made["train"] = made["train"].select(np.argsort(made["train"]["subject_id"][:], kind="stable"))
        made.save_to_disk(tmp_path / "more")
        shutil.copy(tmp_path / "prepared" / "provenance.json", tmp_path / "more")
        config = DataConfig(dataset_name="mimic_cxr", sample_size=24, data_dir=str(tmp_path / "more"))
    else:
        graph = PHANTOM_GRAPH
        made = load_data(DataConfig(**PHANTOM, data_dir=str(tmp_path / "cache")), graph)["train"]
        subjects = [f"p{i // 5 if order == 'together' else i % 9}" for i in range(48)]
        made.select([0, 1, 2, 3, 4, 5] * 8).add_column("patient", subjects).save_to_disk(tmp_path / "mine")
        config = DataConfig(dataset_name=str(tmp_path / "mine"), sample_size=16, group_column="patient")
    rows = load_data(config, graph)["train"]
    images, subjects = training_images(rows, config, graph), subjects_of(rows, config)
    halves = {half: images.subset(half).indices for half in ("even", "odd", "all")}
    seen = {half: {subjects[row] for row in rows} for half, rows in halves.items()}
    assert sorted([*halves["even"], *halves["odd"]]) == halves["all"] == list(range(len(rows)))
    assert not seen["even"] & seen["odd"]
    assert abs(len(seen["even"]) - len(seen["odd"])) <= 1


def test_one_subject_has_no_halves(tmp_path: Path) -> None:
    rows = load_data(DataConfig(**PHANTOM, data_dir=str(tmp_path)), PHANTOM_GRAPH)["train"]
    with pytest.raises(ValueError, match="'odd'"):
        ImageAttributeDataset(rows, PHANTOM_GRAPH, ["a"] * len(rows)).subset("odd")
    with pytest.raises(ValueError, match="subjects"):
        ImageAttributeDataset(rows, PHANTOM_GRAPH, ["a"])
