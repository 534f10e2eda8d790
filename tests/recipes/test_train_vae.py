"""The recipe of the VAE, on a data set and a model of toy size."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL

from softcft.data.sources import DataConfig
from softcft.models.vae import image_posterior
from softcft.training.config import PatchConfig, TrainingConfig
from softcft.training.parsing import model_arguments, parse_config

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = Path(__file__).with_name("tiny.yaml")

Start = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Runs the recipe in a temporary folder."""
    spec = importlib.util.spec_from_file_location("train_vae", RECIPES / "train_vae.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def start(*flags: str, **model: Any) -> None:
        config = yaml.safe_load(TINY.read_text())
        config["vae"]["model"] |= model
        Path("config.yaml").write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", ["train_vae.py", "--config", "config.yaml", *flags])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        recipe.main()

    yield start
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_the_vae_is_trained_and_loads(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    assert "Saved to runs/vae" in capsys.readouterr().out
    vae = AutoencoderKL.from_pretrained("runs/vae")
    assert (vae.config["in_channels"], vae.config["sample_size"]) == (4, 8)
    with torch.no_grad():
        loc, log_scale = image_posterior(vae, torch.rand(3, 1, 16, 16) * 2 - 1)
    assert loc.shape == log_scale.shape == (3, 2 * 4 * 4)
    lines = [json.loads(line) for line in Path("runs/vae/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all({"loss", "nll", "kl"} <= line.keys() and np.isfinite(list(line.values())).all() for line in lines)

    start("--output_dir", "stopped", "--max_train_steps", "1")
    start("--output_dir", "stopped", "--resume_from_checkpoint", "latest")
    resumed = AutoencoderKL.from_pretrained("stopped/vae").state_dict()
    assert all(torch.equal(resumed[key], values) for key, values in vae.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "model", "message"),
    [
        (["--patch_size", "0"], {}, r"^--patch_size must be at least 1, got 0\.$"),
        (["--patch_size", "3"], {}, r"^--sample_size must be a multiple of 6, got 16: patches of 3 pixels, halved 1 "),
        ([], {"latents": 4}, r"vae.model: AutoencoderKL takes no 'latents'"),
    ],
)
def test_mistakes_end_the_training_before_it_starts(
    start: Start, flags: list[str], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start(*flags, **model)
    assert not Path("runs").exists()


def test_help_teaches(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        start("--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for words in ("accelerate launch recipes/train_vae.py", "--patch_size", "--max_train_steps", "minimality"):
        assert words in text


@pytest.mark.parametrize("name", ["phantom", "morphomnist", "mimic_cxr_224", "mimic_cxr_224_diffusion", "own_data"])
def test_the_shipped_models_can_be_built(name: str) -> None:
    shipped = RECIPES / "configs" / f"{name}.yaml"
    own = ["--dataset_name", "folder", "--graph", str(TINY.with_name("graph.yaml"))]
    argv = ["--config", str(shipped), "--data_dir", "data", *(own if name == "own_data" else [])]
    config, data, _, patches = parse_config(
        "vae", DataConfig, TrainingConfig, PatchConfig, default_config=shipped, argv=argv
    )
    arguments = model_arguments(config, "vae", AutoencoderKL)
    stages = len(arguments["block_out_channels"])
    side = data.sample_size // patches.patch_size // 2 ** (stages - 1)
    assert side * patches.patch_size * 2 ** (stages - 1) == data.sample_size
    # Few dimensions measure minimality; those that are modelled must hold the image.
    fewest, most = (3136, 3136) if name.endswith("diffusion") else (64, 256)
    assert fewest <= arguments["latent_channels"] * side**2 <= most
    with torch.device("meta"):
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * stages, up_block_types=["UpDecoderBlock2D"] * stages, **arguments
        )
