"""The settings for MIMIC-CXR at 224x224, from a made-up tree of PhysioNet's files to Table 1, with small models."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from softcft import DSCMPipeline
from softcft.training.parsing import read_config
from tests.data.chest_xrays.mimic_cxr_tree import make_mimic_tree
from tests.processes import python, run_command

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The shipped file with narrower and shallower networks, and batches of 2."""
    config = read_config(RECIPES / "configs" / "mimic_cxr_224.yaml")
    for section in ("scm", "guide", "judge", "watcher", "hvae", "vae", "cft"):
        config[section] |= {"train_batch_size": 2, "gradient_accumulation_steps": 1, "checkpointing_steps": 0}
    stages = len(config["hvae"]["model"]["resolutions"])
    config["hvae"]["model"] |= {
        "channels": [4] * stages,
        "encoder_blocks": [1] * stages,
        "decoder_blocks": [1] * stages,
    }
    config["guide"]["model"]["backbone"] |= {"embedding_size": 4, "hidden_sizes": [4] * 4, "depths": [1] * 4}
    config["judge"]["model"]["backbone"] |= {"embedding_size": 4, "hidden_sizes": [16] * 4, "depths": [1] * 4}
    config["watcher"]["model"]["backbone"] |= {"embedding_size": 4, "hidden_sizes": [8] * 4, "depths": [1] * 4}
    config["evaluate"]["axiom_images"] = 2  # of which each is decoded 80 times
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_every_recipe_runs_on_the_tree(config: Path, tmp_path: Path) -> None:
    make_mimic_tree(tmp_path / "tree", num_subjects=30, size=(90, 70))
    outputs = tmp_path / "outputs" / "mimic_cxr_224"

    prepare = ["--source", "mimic_cxr", "--root", str(tmp_path / "tree"), "--output_dir", str(tmp_path / "prepared")]
    result = run_command(*python(RECIPES / "prepare_chest_xrays.py", *prepare), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]

    def start(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
        settings = ["--config", str(config), "--data_dir", str(tmp_path / "prepared"), "--max_train_steps", "1"]
        return run_command(*python(RECIPES / script, *settings, *flags), cwd=tmp_path)

    result = start("run_all.py", "--cft", "none")
    assert result.returncode == 0, result.stderr[-4000:]
    result = start("soft_cft.py", "--watch", "false")  # a guide of one step sees nothing
    assert result.returncode != 0
    assert "cft none" in result.stderr
    path = outputs / "guide" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"sees": None})
    )  # as of a version that did not measure it
    result = start("soft_cft.py", "--watch", "false")
    assert result.returncode == 0, result.stderr[-4000:]
    table = pd.read_csv(outputs / "metrics.csv", keep_default_na=False)
    assert set(table["intervention"]) == {"none", "race", "sex", "disease"}
    assert {"guide", "judge"} < set(table["predictor"])
    pipeline = DSCMPipeline.from_pretrained(outputs / "soft")
    assert pipeline.hvae.config["sample_size"] == 224
