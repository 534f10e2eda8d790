"""The recipe of the VAE, on a data set and a model of toy size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from softcft.data.config import DataConfig
from softcft.models.vae import image_posterior
from softcft.training.config import PatchConfig, TrainingConfig
from softcft.training.parsing import model_arguments, parse_config
from tests.recipes.small_pipeline import RECIPES, TINY, run_recipe


def test_the_vae_is_trained_and_loads(tmp_path: Path) -> None:
    assert "Saved to runs/vae" in run_recipe(tmp_path, "train_vae")
    vae = AutoencoderKL.from_pretrained(tmp_path / "runs" / "vae")
    assert (vae.config["in_channels"], vae.config["sample_size"]) == (4, 8)
    with torch.no_grad():
        loc, log_scale = image_posterior(vae, torch.rand(3, 1, 16, 16) * 2 - 1)
    assert loc.shape == log_scale.shape == (3, 2 * 4 * 4)
    lines = [json.loads(line) for line in (tmp_path / "runs/vae/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all({"loss", "nll", "kl"} <= line.keys() and np.isfinite(list(line.values())).all() for line in lines)


@pytest.mark.parametrize(
    "name", ["phantom", "morphomnist", "mimic_cxr_224", "mimic_cxr_224_diffusion", "nih_64", "own_data"]
)
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
