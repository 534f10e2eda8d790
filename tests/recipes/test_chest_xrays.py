"""Each source of chest X-rays from downloaded files to an evaluation, with small models."""

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from softcft import AttributeSCM, CausalGraph, DSCMPipeline
from softcft.data.chest_xrays import SOURCES
from softcft.data.config import CHEST_XRAYS
from softcft.training.parsing import read_config
from tests.data.chest_xrays.chexpert_tree import make_chexpert_tree
from tests.data.chest_xrays.mimic_cxr_tree import make_mimic_tree
from tests.data.chest_xrays.nih_tree import make_nih_tree
from tests.data.chest_xrays.padchest_tree import make_padchest_tree
from tests.processes import python, run_command
from tests.recipes.small_pipeline import RECIPES, TINY, load_recipe, run_recipe

TREES: dict[str, Callable[[Path], Path]] = {
    "mimic_cxr": make_mimic_tree,
    "nih": make_nih_tree,
    "chexpert": make_chexpert_tree,
    "padchest": make_padchest_tree,
}


def prepare(source: str, folder: Path) -> Path:
    """Make a tree, prepare it in this process, and write settings for it: those of tiny.yaml with the shipped graph."""
    root = TREES[source](folder / "tree")
    flags = ["--source", source, "--root", root, "--output_dir", folder / "prepared", "--resolution", "16"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        monkeypatch.setattr(sys, "argv", ["prepare_chest_xrays.py", *map(str, flags)])
        load_recipe("prepare_chest_xrays").main()
    shipped = read_config(RECIPES / "configs" / f"{source}_64.yaml")
    data = {"dataset_name": source, "data_dir": str(folder / "prepared"), "data_seed": 0}
    data |= dict.fromkeys(("num_train", "num_validation", "num_test"))
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({"base": str(TINY), "data": data, "graph": shipped["graph"]}))
    return path


def test_every_source_is_tried() -> None:
    assert set(TREES) == set(SOURCES) == set(CHEST_XRAYS)


@pytest.mark.parametrize("source", TREES)
def test_what_is_prepared_has_no_problems_and_trains(source: str, tmp_path: Path) -> None:
    settings = prepare(source, tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_recipe(tmp_path, "check_data", "--output_dir", "checked", config=settings)
    assert exit_.value.code == 0
    run_recipe(tmp_path, "train_scm", config=settings)
    graph = AttributeSCM.from_pretrained(tmp_path / "runs" / "scm").causal_graph
    assert graph == CausalGraph(read_config(settings)["graph"])


@pytest.mark.slow
@pytest.mark.parametrize("source", TREES)
def test_every_step_runs(source: str, tmp_path: Path) -> None:
    settings = prepare(source, tmp_path)
    flags = ["--config", settings, "--max_train_steps", "2"]
    result = run_command(*python(RECIPES / "run_all.py", *flags), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    table = pd.read_csv(tmp_path / "runs" / "metrics.csv", keep_default_na=False)
    pipeline = DSCMPipeline.from_pretrained(tmp_path / "runs" / "none")
    assert set(table["intervention"]) == {"none", *pipeline.causal_graph.names}
