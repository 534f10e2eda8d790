"""A diffusion model through the same recipes, from training to the report; and one that diffusers has saved."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from datasets import load_dataset
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from softcft import DiffusionDSCMPipeline
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.models.vae import encode_latents
from tests.recipes.small_pipeline import RECIPES, TINY, load_recipe, make_pipeline

STEPS = ["--num_inference_steps", "4"]
PARENTS = {"age": 50, "sex": "male", "race": "White", "disease": "no finding"}


def run(cwd: Path, script: str, *flags: str, processes: int = 1) -> str:
    environment = {"ACCELERATE_USE_CPU": "true", "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    start = several if processes > 1 else ()
    command = [sys.executable, *start, str(RECIPES / script), "--config", str(TINY), *flags]
    result = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment | {"PYTHONPATH": str(RECIPES.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything but an HVAE, fine-tuned."""
    folder = tmp_path_factory.mktemp("diffusion")
    run(folder, "train_scm.py")
    for role in ("guide", "judge", "watcher"):
        run(folder, "train_classifier.py", "--role", role)
    run(folder, "train_vae.py")
    run(folder, "train_diffusion.py")
    for cft in ("none", "soft"):
        told = run(folder, "soft_cft.py", "--cft", cft, "--gradient_steps", "1", "--watch", "false", *STEPS)
        assert f'DiffusionDSCMPipeline.from_pretrained("runs/{cft}")' in told
    return folder


def test_fine_tuning_moves_the_network_and_its_tokens_and_nothing_else(folder: Path) -> None:
    before, after = (DiffusionDSCMPipeline.from_pretrained(folder / "runs" / cft) for cft in ("none", "soft"))
    for name in ("unet", "parent_encoder", "attribute_scm", "classifier"):
        ours, theirs = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        same = all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert same == (name not in ("unet", "parent_encoder"))
    lines = [json.loads(line) for line in (folder / "runs/soft/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert {"guidance", "fidelity", "multiplier"} <= set(lines[0])
    assert all(np.isfinite(list(line.values())).all() for line in lines)


EVALUATION = (
    *("evaluate.py", "--pipelines", "runs/none", "runs/soft"),
    *("--axiom_images", "3", "--num_resamples", "20", "--eval_batch_size", "7", "--mixed_precision", "no", *STEPS),
)


@pytest.fixture(scope="module")
def metrics(folder: Path) -> pd.DataFrame:
    run(folder, *EVALUATION)
    return pd.read_csv(folder / "runs" / "metrics.csv")


def test_the_evaluation_has_the_tables_of_an_hvae(folder: Path, metrics: pd.DataFrame) -> None:
    """But for the reconstruction without a residual, which a diffusion model has not."""
    assert set(metrics["cft"]) == {"real", "none", "soft", "truth"}
    assert {"effectiveness", "shift", "axioms", "truth"} <= set(metrics["table"])
    assert not metrics["metric"].str.startswith("reconstruction").any()
    composition = metrics[metrics["metric"].str.startswith("composition")]
    assert composition["value"].max() < 0.5  # grey levels
    assert (folder / "runs" / "figures" / "comparison.png").is_file()


def test_two_processes_measure_the_same(folder: Path, metrics: pd.DataFrame) -> None:
    (folder / "runs" / "metrics.csv").unlink()
    run(folder, *EVALUATION, processes=2)
    two, numbers = pd.read_csv(folder / "runs" / "metrics.csv"), ["value", "low", "high"]
    pd.testing.assert_frame_equal(metrics.drop(columns=numbers), two.drop(columns=numbers))
    stable = ~metrics["metric"].str.contains("_p")  # a tie more or less, and a p-value moves by a thousandth
    np.testing.assert_allclose(metrics.loc[stable, numbers], two.loc[stable, numbers], rtol=1e-5, atol=1e-5)


def test_counterfactuals_are_generated(folder: Path) -> None:
    run(folder, "generate_counterfactuals.py", "--pipelines", "runs/soft", "--num_images", "10", *STEPS)
    rows = load_dataset(str(folder / "runs/counterfactuals/soft/race"), split="train")
    assert len(rows) == 20


def test_guidance_is_a_setting_of_fine_tuning(folder: Path) -> None:
    guided = ["--guidance_scale", "2", "--invariant_guidance_scale", "1", "--abduction", "ddim"]
    run(folder, "soft_cft.py", "--cft", "hard", "--lora_rank", "2", "--watch", "false", *guided, *STEPS)
    pretrained, adapted = (
        DiffusionDSCMPipeline.from_pretrained(folder / "runs" / cft).unet.state_dict() for cft in ("none", "hard")
    )
    assert list(adapted) == list(pretrained)
    weights, before = adapted["conv_in.weight"], pretrained["conv_in.weight"]
    assert 1 <= torch.linalg.matrix_rank((weights - before).flatten(1), rtol=1e-4) <= 2


def test_the_latents_of_the_vae_can_be_modelled(folder: Path) -> None:
    run(
        folder,
        "train_diffusion.py",
        "--output_dir",
        "latent",
        "--patch_size",
        "1",
        "--latents",
        "--vae_dir",
        "runs/vae",
    )
    parts = ["--scm_dir", "runs/scm", "--guide_dir", "runs/guide"]
    told = run(folder, "soft_cft.py", "--output_dir", "latent", "--watcher_dir", "runs/watcher", *parts, *STEPS)
    assert json.loads((folder / "latent" / "soft" / "watch.json").read_text())["sentence"] in told
    pipe = DiffusionDSCMPipeline.from_pretrained(folder / "latent" / "soft")
    assert pipe.unet.config["in_channels"] == pipe.vae.config["latent_channels"]
    rows = load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["train"]
    images = scale_pixels(
        torch.stack([torch.as_tensor(row["image"]) for row in ImageAttributeDataset(rows, PHANTOM_GRAPH)])
    )
    latents = encode_latents(pipe.vae, images)  # of the images that it was trained on
    assert latents.mean().abs() < 0.01
    torch.testing.assert_close(latents.std(), torch.tensor(1.0), rtol=0.01, atol=0)
    result = pipe((images[0] + 1) / 2, parents=PARENTS, do={"race": "Black"}, num_inference_steps=4)
    assert result.images[0].size == (16, 16)


def test_a_network_of_diffusers_is_fine_tuned(folder: Path) -> None:
    """Trained with classes, saved by a stock pipeline, no softcft in it."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=3,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "stock")
    parts = ["--unet_dir", "stock/unet", "--scheduler_dir", "stock/scheduler"]
    run(folder, "train_diffusion.py", "--output_dir", "adopted", *parts)
    parts = ["--scm_dir", "runs/scm", "--guide_dir", "runs/guide"]
    run(folder, "soft_cft.py", "--output_dir", "adopted", "--watch", "false", *parts, *STEPS)
    pipe = DiffusionDSCMPipeline.from_pretrained(folder / "adopted" / "soft")
    assert pipe.scheduler.config["prediction_type"] == "epsilon"
    image = load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["train"][0]["image"]
    result = pipe(image, parents=PARENTS, do={"race": "Black"}, num_inference_steps=4)
    assert result.parents["race"] == ["Black"]


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Starts a recipe in this process, with some settings changed."""

    def start(name: str, *flags: str, **changes: Any) -> None:
        config = yaml.safe_load(TINY.read_text())
        for section, settings in changes.items():
            config[section] |= settings
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(tmp_path / "config.yaml"), *flags])
        load_recipe(name).main()

    monkeypatch.chdir(folder)
    yield start
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--condition_dropout", "1.5"], r"--condition_dropout must be in \[0, 1\], got 1.5"),
        (["--min_snr_gamma", "0"], "--min_snr_gamma must be > 0, got 0"),
        (["--unet_dir", "stock/unet"], "--unet_dir and --scheduler_dir go together"),
        (["--unet_dir", "runs/diffusion/parent_encoder", "--scheduler_dir", "x"], "holds a ParentEncoder"),
        (["--unet_dir", "runs/diffusion/unet", "--scheduler_dir", "x", "--sample_size", "24"], "size 8, but .* 24"),
        (["--latents", "--patch_size", "1", "--vae_dir", "nowhere"], "There is no VAE in --vae_dir nowhere"),
        (["--patch_size", "0"], "--patch_size must be at least 1, got 0"),
        (["--patch_size", "3"], "--patch_size 3 must divide the images' side, 16"),
        (["--vae_dir", "runs/vae"], "--vae_dir is for models of its latents; add --latents"),
        (["--latents"], "--patch_size 2 is not for --latents; set it to 1"),
    ],
)
def test_mistakes_of_a_training(start: Callable[..., None], flags: list[str], message: str) -> None:
    with pytest.raises((ValueError, SystemExit), match=message):
        start("train_diffusion", *flags)


def test_a_scheduler_of_another_kind_of_noise_is_refused(start: Callable[..., None], tmp_path: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a FlowMatchEulerDiscreteScheduler, and not one of"):
        start("train_diffusion", "--unet_dir", "runs/diffusion/unet", "--scheduler_dir", str(tmp_path))


def test_settings_of_diffusion_are_refused_for_an_hvae(start: Callable[..., None], tmp_path: Path) -> None:
    """Before the data are read: there are none."""
    hvae = str(make_pipeline(tmp_path / "soft"))
    told = "--num_inference_steps is for diffusion models, but the image model is an HVAE; leave it out"
    with pytest.raises(ValueError, match=told):
        start("generate_counterfactuals", "--pipelines", hvae, *STEPS, "--data_dir", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=told):
        start("evaluate", "--pipelines", hvae, *STEPS, "--data_dir", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    unet = UNet2DModel(8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "hard")
    with pytest.raises(ValueError, match="hard holds a DDPMPipeline, and no pipeline of softcft"):
        start("generate_counterfactuals", "--pipelines", str(tmp_path / "hard"))


def test_mistakes_of_fine_tuning(start: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be at least 2 and divide the 1000 training steps"):
        start("soft_cft", "--num_inference_steps", "7")
    with pytest.raises(ValueError, match="--hvae_dir and --diffusion_dir are both image mechanisms"):
        start("soft_cft", "--hvae_dir", "a", "--diffusion_dir", "b")
    with pytest.raises(ValueError, match="--sample_size is 24, but runs/diffusion was trained with 16"):
        start("soft_cft", "--sample_size", "24")
    with pytest.raises(ValueError, match=r"diffusion\.model: UNet2DModel takes no 'channels'"):
        start("train_diffusion", diffusion={"model": {"channels": [8]}})
