"""The conversion recipe on a tiny checkpoint of causal-gen."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from softcft import CausalGraph, HVAEModel
from softcft.convert import Checkpoint
from tests.recipes.small_pipeline import load_recipe
from tests.test_convert import GOLDEN, read, save

Run = Callable[..., str]


@pytest.fixture
def checkpoint() -> Checkpoint:
    return read(next(path for path in GOLDEN if path.stem == "mimic192"))[0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the recipe; returns what it printed."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["convert_causal_gen.py", *map(str, arguments)])
        load_recipe("convert_causal_gen").main()
        return capsys.readouterr().out

    return run


def test_a_checkpoint_becomes_a_folder(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    printed = run(save(tmp_path / "checkpoint.pt", checkpoint), tmp_path / "hvae")
    assert "finding (binary)" in printed
    assert "Not converted" not in printed
    model = HVAEModel.from_pretrained(tmp_path / "hvae")
    assert model.causal_graph.names == ("age", "race", "sex", "finding")
    assert torch.equal(model.x_loc.weight, checkpoint.state["likelihood.x_loc.weight"])


def test_a_fine_tuned_checkpoint_takes_the_architecture_of_another(
    run: Run, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    state = {f"vae.{name}": tensor for name, tensor in checkpoint.state.items()}
    state |= {"pgm.sex_logit": torch.zeros(1), "predictor.encoder.weight": torch.zeros(1)}
    fine_tuned = save(tmp_path / "cft.pt", Checkpoint(state, {"vae_path": "vae.pt"}, []))
    image_model = save(tmp_path / "vae.pt", checkpoint)
    printed = run(fine_tuned, tmp_path / "hvae", "--architecture", image_model)
    assert "Not converted: 1 tensors of pgm, attribute mechanisms" in printed
    assert "Not converted: 1 tensors of predictor" in printed
    assert HVAEModel.from_pretrained(tmp_path / "hvae").config.sample_size == 8


def test_an_own_graph_is_read_from_yaml(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
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
    run(save(tmp_path / "checkpoint.pt", checkpoint), tmp_path / "hvae", "--graph", tmp_path / "cats.yaml")
    assert HVAEModel.from_pretrained(tmp_path / "hvae").causal_graph == graph


def test_what_cannot_be_converted_is_said_and_nothing_is_written(
    run: Run, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path, absent = save(tmp_path / "checkpoint.pt", checkpoint), tmp_path / "absent.pt"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    for arguments, message in (
        ((absent, tmp_path / "hvae"), str(absent)),
        ((path, tmp_path / "hvae", "--architecture", absent), str(absent)),
        ((path, tmp_path / "full"), "holds a model already"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*arguments)
    assert not (tmp_path / "hvae").exists()
    assert (tmp_path / "full" / "config.json").read_text() == "{}"
