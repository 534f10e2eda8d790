"""A diffusion model through the same recipes, from training to the report; and one that diffusers has saved."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import load_dataset
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from softcft import DiffusionDSCMPipeline
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.models.vae import encode_latents
from tests.recipes.small_pipeline import TINY, make_pipeline, run_recipe
from tests.stock_pipelines import make_stock

STEPS = ["--num_inference_steps", "4"]
PARENTS = {"age": 50, "sex": "male", "race": "White", "disease": "no finding"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything but an HVAE, fine-tuned."""
    folder = tmp_path_factory.mktemp("diffusion")
    run_recipe(folder, "train_scm")
    for role in ("guide", "judge", "watcher"):
        run_recipe(folder, "train_classifier", "--role", role)
    run_recipe(folder, "train_vae")
    run_recipe(folder, "train_diffusion")
    for cft in ("none", "soft"):
        told = run_recipe(folder, "soft_cft", "--cft", cft, "--gradient_steps", "1", "--watch", "false", *STEPS)
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
    *("evaluate", "--pipelines", "runs/none", "runs/soft"),
    *("--axiom_images", "3", "--num_resamples", "20", "--eval_batch_size", "7", "--mixed_precision", "no", *STEPS),
)


@pytest.fixture(scope="module")
def metrics(folder: Path) -> pd.DataFrame:
    run_recipe(folder, *EVALUATION)
    return pd.read_csv(folder / "runs" / "metrics.csv")


@pytest.mark.slow
def test_the_evaluation_has_the_tables_of_an_hvae(folder: Path, metrics: pd.DataFrame) -> None:
    """But for the reconstruction without a residual, which a diffusion model has not."""
    assert set(metrics["cft"]) == {"real", "none", "soft", "truth"}
    assert {"effectiveness", "shift", "axioms", "truth"} <= set(metrics["table"])
    assert not metrics["metric"].str.startswith("reconstruction").any()
    composition = metrics[metrics["metric"].str.startswith("composition")]
    assert composition["value"].max() < 0.5  # grey levels
    assert (folder / "runs" / "figures" / "comparison.png").is_file()
    assert not list(folder.glob("runs/*/examples"))  # nobody asked for pictures


def test_counterfactuals_are_generated(folder: Path) -> None:
    run_recipe(folder, "generate_counterfactuals", "--pipelines", "runs/soft", "--num_images", "10", *STEPS)
    rows = load_dataset(str(folder / "runs/counterfactuals/soft/race"), split="train")
    assert len(rows) == 20


def test_guidance_is_a_setting_of_fine_tuning(folder: Path) -> None:
    guided = ["--guidance_scale", "2", "--invariant_guidance_scale", "1", "--abduction", "ddim"]
    run_recipe(folder, "soft_cft", "--cft", "hard", "--lora_rank", "2", "--watch", "false", *guided, *STEPS)
    pretrained, adapted = (
        DiffusionDSCMPipeline.from_pretrained(folder / "runs" / cft).unet.state_dict() for cft in ("none", "hard")
    )
    assert list(adapted) == list(pretrained)
    weights, before = adapted["conv_in.weight"], pretrained["conv_in.weight"]
    assert 1 <= torch.linalg.matrix_rank((weights - before).flatten(1), rtol=1e-4) <= 2


def test_the_latents_of_the_vae_can_be_modelled(folder: Path) -> None:
    run_recipe(
        folder,
        "train_diffusion",
        "--output_dir",
        "latent",
        "--patch_size",
        "1",
        "--latents",
        "--vae_dir",
        "runs/vae",
    )
    parts = ["--scm_dir", "runs/scm", "--guide_dir", "runs/guide"]
    told = run_recipe(folder, "soft_cft", "--output_dir", "latent", "--watcher_dir", "runs/watcher", *parts, *STEPS)
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


def adopt(folder: Path, kind: str, *flags: str) -> DiffusionDSCMPipeline:
    """A stock pipeline through the recipes, from its folder to a counterfactual."""
    make_stock(kind).save_pretrained(folder / "stock" / kind)
    told = run_recipe(
        folder, "train_diffusion", "--output_dir", kind, "--pipeline_dir", f"stock/{kind}", "--lora_rank", "2", *flags
    )
    assert re.search(r"Trains [\d,]+ of [\d,]+ parameters", told)
    parts = ["--scm_dir", "runs/scm", "--guide_dir", "runs/guide", "--lora_rank", "2"]
    run_recipe(folder, "soft_cft", "--output_dir", kind, "--watch", "false", *parts, *STEPS)
    return DiffusionDSCMPipeline.from_pretrained(folder / kind / "soft")


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("sd", ["--prompt", "a scan"]), *(pytest.param(kind, [], marks=pytest.mark.slow) for kind in ("classes", "dit"))],
)
def test_a_pipeline_of_diffusers_is_fine_tuned(folder: Path, kind: str, flags: list[str]) -> None:
    """Saved with no softcft in it."""
    pipe = adopt(folder, kind, *flags, "--gradient_checkpointing", "true")
    assert pipe.scheduler.config["prediction_type"] == "epsilon"
    assert (pipe.vae is None) == (kind == "classes")
    assert (pipe.prompt is None) == (kind != "sd")
    image = load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["train"][0]["image"]
    result = pipe(image, parents=PARENTS, do={"race": "Black"}, num_inference_steps=4)
    assert result.parents["race"] == ["Black"]


@pytest.mark.slow
def test_a_small_transformer_from_training_to_the_report(folder: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(TINY.read_text())
    model = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 4}
    network = {"network": "DiTTransformer2DModel", "prediction_type": "flow", "patch_size": 1}
    config["diffusion"] |= {**network, "model": {**model, "num_embeds_ada_norm": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run_recipe(folder, "train_diffusion", "--output_dir", "dit")  # a UNet, of which nothing must be left
    parts = ["--output_dir", "dit", "--scm_dir", "runs/scm", "--guide_dir", "runs/guide"]
    for recipe, flags in (
        ("train_diffusion", ["--output_dir", "dit", "--gradient_checkpointing", "true"]),
        ("soft_cft", [*parts, "--watch", "false", "--gradient_steps", "1", *STEPS]),
    ):
        run_recipe(folder, recipe, *flags, config=tmp_path / "config.yaml")
    assert (folder / "dit/diffusion/transformer/config.json").is_file()
    assert not (folder / "dit/diffusion/unet").exists()
    parts = ["--output_dir", "dit", "--judge_dir", "runs/judge", "--vae_dir", "runs/vae"]
    run_recipe(
        folder, EVALUATION[0], "--pipelines", "dit/soft", *EVALUATION[4:], *parts, config=tmp_path / "config.yaml"
    )
    metrics = pd.read_csv(folder / "dit" / "metrics.csv")
    assert metrics.loc[metrics["metric"].str.startswith("composition"), "value"].max() < 1e-3


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Callable[..., None]:
    """Starts a recipe, with some settings changed."""

    def start(name: str, *flags: str, **changes: Any) -> None:
        config = yaml.safe_load(TINY.read_text())
        for section, settings in changes.items():
            config[section] |= settings
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        run_recipe(folder, name, *flags, config=tmp_path / "config.yaml")

    return start


def test_a_transformer_learns_flow_matching(folder: Path, start: Callable[..., None]) -> None:
    """At any number of levels, and with noise by optimal transport."""
    dit = {"patch_size": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    changes = {"network": "DiTTransformer2DModel", "prediction_type": "flow", "patch_size": 1, "model": dit}
    start("train_diffusion", "--output_dir", "flow", "--coupling", "optimal_transport", diffusion=changes)
    parts = ["--scm_dir", "runs/scm", "--guide_dir", "runs/guide", "--watch", "false"]
    run_recipe(folder, "soft_cft", "--output_dir", "flow", *parts, "--num_inference_steps", "3")
    pipe = DiffusionDSCMPipeline.from_pretrained(folder / "flow" / "soft")
    assert (pipe.unet is None, type(pipe.transformer).__name__) == (True, "DiTTransformer2DModel")
    image = load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["train"][0]["image"]
    for steps in (3, 7):
        same = pipe(image, parents=PARENTS, do={}, num_inference_steps=steps)
        assert np.array_equal(np.asarray(same.images[0]), np.asarray(image))
    other = pipe(image, parents=PARENTS, do={"race": "Black"}, num_inference_steps=7)
    assert other.parents["race"] == ["Black"]
    assert pipe.sample(2, num_inference_steps=3).images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--condition_dropout", "1.5"], r"--condition_dropout .*1\.5"),
        (["--min_snr_gamma", "0"], "--min_snr_gamma .*0"),
        (["--prompt", "a scan"], "--prompt .*--pipeline_dir"),
        (["--lora_rank", "2"], "lora_rank 2 .*pipeline_dir"),
        (["--pipeline_dir", "runs/soft"], "pipeline_dir runs/soft holds a DiffusionDSCMPipeline"),
        (["--pipeline_dir", "sd", "--latents", "--patch_size", "1"], "--latents .*--pipeline_dir"),
        (["--latents", "--patch_size", "1", "--vae_dir", "nowhere"], "--vae_dir nowhere"),
        (["--patch_size", "0"], "--patch_size .*0"),
        (["--patch_size", "3"], "patch_size 3 .*16"),
        (["--vae_dir", "runs/vae"], "--vae_dir .*--latents"),
        (["--latents"], "--patch_size 2 is not for models of latents"),
    ],
)
def test_mistakes_of_a_training(start: Callable[..., None], flags: list[str], message: str) -> None:
    with pytest.raises((ValueError, SystemExit), match=message):
        start("train_diffusion", *flags)


def test_images_of_another_kind_are_refused(start: Callable[..., None], folder: Path) -> None:
    for kind in ("sd", "sdxl"):
        make_stock(kind).save_pretrained(folder / "stock" / kind)
    with pytest.raises(ValueError, match=r"sample_size must be 16.* 24"):
        start("train_diffusion", "--pipeline_dir", "stock/sd", "--sample_size", "24")
    with pytest.raises(ValueError, match="--image_channels must be 3"):
        start("train_diffusion", "--pipeline_dir", "stock/sdxl", "--prompt", "a scan")


def test_settings_of_diffusion_are_refused_for_an_hvae(start: Callable[..., None], tmp_path: Path) -> None:
    """Before the data are read: there are none."""
    hvae = str(make_pipeline(tmp_path / "soft"))
    for name in ("generate_counterfactuals", "evaluate"):
        with pytest.raises(ValueError, match="num_inference_steps is for diffusion models"):
            start(name, "--pipelines", hvae, *STEPS, "--data_dir", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    unet = UNet2DModel(8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "hard")
    with pytest.raises(ValueError, match=r"hard .*DDPMPipeline"):
        start("generate_counterfactuals", "--pipelines", str(tmp_path / "hard"))


def test_mistakes_of_fine_tuning(start: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="num_inference_steps"):
        start("soft_cft", "--num_inference_steps", "7")
    with pytest.raises(ValueError, match="--hvae_dir and --diffusion_dir"):
        start("soft_cft", "--hvae_dir", "a", "--diffusion_dir", "b")
    with pytest.raises(ValueError, match="--sample_size is 24, but runs/diffusion was trained with 16"):
        start("soft_cft", "--sample_size", "24")
    with pytest.raises(ValueError, match=r"diffusion\.model: UNet2DModel takes no 'channels'"):
        start("train_diffusion", diffusion={"model": {"channels": [8]}})
