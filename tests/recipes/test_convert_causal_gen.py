"""The conversion recipe, run in a process of its own on a tiny checkpoint of causal-gen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softcft import CausalGraph, HVAEModel
from softcft.convert import Checkpoint
from tests.test_convert import GOLDEN, read, save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint() -> Checkpoint:
    return read(next(path for path in GOLDEN if path.stem == "mimic192"))[0]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "convert_causal_gen.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_checkpoint_becomes_a_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    result = run(save(tmp_path / "checkpoint.pt", checkpoint), tmp_path / "hvae")
    assert result.returncode == 0, result.stderr
    assert "finding (binary)" in result.stdout
    assert "Not converted" not in result.stdout
    model = HVAEModel.from_pretrained(tmp_path / "hvae")
    assert model.causal_graph.names == ("age", "race", "sex", "finding")
    assert torch.equal(model.x_loc.weight, checkpoint.state["likelihood.x_loc.weight"])


def test_a_fine_tuned_checkpoint_takes_the_architecture_of_another(checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = {f"vae.{name}": tensor for name, tensor in checkpoint.state.items()}
    state |= {"pgm.sex_logit": torch.zeros(1), "predictor.encoder.weight": torch.zeros(1)}
    fine_tuned = save(tmp_path / "cft.pt", Checkpoint(state, {"vae_path": "vae.pt"}, []))
    image_model = save(tmp_path / "vae.pt", checkpoint)
    result = run(fine_tuned, tmp_path / "hvae", "--architecture", image_model)
    assert result.returncode == 0, result.stderr
    assert "Not converted: 1 tensors of pgm, attribute mechanisms" in result.stdout
    assert "Not converted: 1 tensors of predictor" in result.stdout
    assert HVAEModel.from_pretrained(tmp_path / "hvae").config.sample_size == 8


def test_an_own_graph_is_read_from_yaml(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = CausalGraph(
        [
            {"name": "weight", "kind": "continuous", "low": 1, "high": 9, "log": True},
            {"name": "breed", "kind": "categorical", "categories": ["tabby", "manx", "siamese"]},
            {"name": "collar", "kind": "binary", "categories": ["no", "yes"]},
            {"name": "asleep", "kind": "binary", "categories": ["no", "yes"]},
        ]
    )
    lines = "\n".join(f"  - {variable}" for variable in graph.to_list()).replace("True", "true")
    (tmp_path / "cats.yaml").write_text(f"graph:\n{lines}\n")
    result = run(save(tmp_path / "checkpoint.pt", checkpoint), tmp_path / "hvae", "--graph", tmp_path / "cats.yaml")
    assert result.returncode == 0, result.stderr
    assert HVAEModel.from_pretrained(tmp_path / "hvae").causal_graph == graph


def test_what_cannot_be_converted_is_said_in_a_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint.pt", checkpoint)
    for arguments, message in (
        ((tmp_path / "absent.pt", tmp_path / "hvae"), "There is no checkpoint"),
        ((path, tmp_path / "hvae", "--architecture", tmp_path / "absent.pt"), "There is no checkpoint"),
    ):
        result = run(*arguments)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    result = run(path, tmp_path / "full")
    assert result.returncode == 1
    assert "holds a model already" in result.stderr
    assert (tmp_path / "full" / "config.json").read_text() == "{}"
