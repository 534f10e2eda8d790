"""Pipelines of diffusers, each saved and adopted: the same as before at the start, and then it learns."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.data import default_collate

import softcft
from softcft import AttributeClassifier, CausalGraph, ConditionalDenoiser, DiffusionDSCMPipeline, Variable
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.pixels import prepare_images
from softcft.data.schema import ImageAttributeDataset
from softcft.models.adoption import DiffusionParts
from softcft.training.lora import adapters
from softcft.training.objectives import DiffusionObjective
from tests.small_models import TRUNK, make_classifier, make_scm
from tests.stock_pipelines import STOCK, make_stock

PROMPT = "a chest x ray"
KINDS = [kind if kind in ("dit", "pixart") else pytest.param(kind, marks=pytest.mark.slow) for kind in STOCK]
PARENTS = {"age": 50, "sex": "male", "race": "White", "disease": "no finding"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved pipeline of each kind."""
    folder = tmp_path_factory.mktemp("stock")
    for kind in STOCK:
        make_stock(kind).save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_phantom(16, 16, 1, 1, cache_dir=str(tmp_path_factory.mktemp("data")))["train"]


def adopt(folder: Path, kind: str) -> DiffusionParts:
    reads_text = kind not in ("ddpm", "classes", "dit")
    return softcft.adopt(
        folder / kind, PHANTOM_GRAPH, PROMPT if reads_text else "", sample_size=16 if kind == "flux" else None
    )


def own_call(folder: Path, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """What the network of a pipeline takes and predicts in its own call: noisy images or latents, times, prediction."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder / kind)
    pipeline.set_progress_bar_config(disable=True)
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        noisy = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        seen.append((noisy, time.expand(len(noisy)), output[0]))

    network.register_forward_hook(record, with_kwargs=True)
    call: dict[str, Any] = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(1)}
    if kind == "dit":
        call |= {"class_labels": [3], "guidance_scale": 1.0}  # no class
    elif hasattr(pipeline, "encode_prompt"):
        call |= {"prompt": PROMPT, "guidance_scale": 1.0, "height": 16, "width": 16}
        call |= {"use_resolution_binning": False} if kind == "pixart" else {}
    if kind == "classes":
        x = torch.randn(1, 1, 16, 16)
        network(x, torch.tensor([400]), class_labels=torch.tensor([0]))
    else:
        pipeline(**call)
    noisy, time, prediction = seen[-1]
    if kind == "flux":
        noisy, prediction = (pipeline._unpack_latents(x, 16, 16, 2) for x in (noisy, prediction))
        time = time * 1000
    return noisy, time, prediction[:, : noisy.shape[1]]


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of their schedulers
@torch.no_grad()
def test_it_predicts_what_it_did(folder: Path, kind: str) -> None:
    noisy, time, expected = own_call(folder, kind)
    network, encoder, scheduler, prompt, _ = adopt(folder, kind)
    denoiser = ConditionalDenoiser(network, encoder, scheduler, prompt).eval()
    graph = PHANTOM_GRAPH
    parents = graph.encode(PARENTS)
    torch.testing.assert_close(denoiser(noisy, time, parents), expected, rtol=1e-4, atol=1e-5)
    if kind != "classes":  # these are now the races
        other = graph.encode({"age": 80, "sex": "female", "race": "Black", "disease": "pleural effusion"})
        present = torch.tensor([[True, False, True, False]])
        torch.testing.assert_close(denoiser(noisy, time, other, present), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_answers(folder: Path, rows: Dataset, kind: str, tmp_path: Path) -> None:
    """By adapters and gradient checkpoints; then it is fine-tuned, by adapters or all weights, saved and loaded."""
    parts, scm, guide = adopt(folder, kind), make_scm(PHANTOM_GRAPH.to_list()), make_classifier(PHANTOM_GRAPH.to_list())
    if parts.vae is not None and parts.vae.config["in_channels"] == 3:
        guide = AttributeClassifier(PHANTOM_GRAPH.to_list(), {**TRUNK, "num_channels": 3})
    pipe = DiffusionDSCMPipeline(**parts.components, attribute_scm=scm.eval(), classifier=guide.eval())
    pipe.set_progress_bar_config(disable=True)
    channels, size = pipe.image_format
    images, _ = prepare_images(rows, size, channels, cache_dir=tmp_path)
    batch: dict[str, Any] = default_collate([ImageAttributeDataset(images, PHANTOM_GRAPH)[i] for i in range(8)])
    batch["seeds"] = list(range(8))

    denoiser = ConditionalDenoiser(*parts[:4])
    objective = DiffusionObjective(denoiser, parts.vae)
    denoiser.network.enable_gradient_checkpointing()
    with adapters(denoiser.network, 4):
        learned = [p for p in objective.parameters() if p.requires_grad]
        assert sum(p.numel() for p in learned) < sum(p.numel() for p in objective.parameters())
        optimizer, losses = torch.optim.Adam(learned, lr=3e-3), []
        for _ in range(50):
            optimizer.zero_grad()
            loss = objective(batch)["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in denoiser.parent_encoder.parameters())

    steps = {"num_inference_steps": 2}
    before = {name: value.clone() for name, value in pipe.network.state_dict().items()}
    settings = {"max_train_steps": 2, "train_batch_size": 4, "slack_images": 4, "checkpointing_steps": 0}
    softcft.fine_tune(
        pipe,
        images,
        tmp_path / "soft",
        cft="soft",
        lora_rank=2 if kind in ("dit", "sd", "flux") else None,
        lr_warmup_steps=0,
        backbone_settings={**steps, "gradient_steps": 1},
        **settings,
    )
    assert any((before[name] != value).any() for name, value in pipe.network.state_dict().items())

    pipe.save_pretrained(tmp_path / "saved")
    loaded: Any = DiffusionDSCMPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    answers = [
        one(images[0]["image"], parents=PARENTS, do={"race": race}, output_type="pt", **steps).images
        for one in (pipe, loaded)
        for race in ("White", "Black")
    ]
    for ours, theirs in zip(answers[:2], answers[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert not torch.equal(answers[0], answers[1])
    if parts.vae is None:
        original = torch.as_tensor(batch["image"][:1]) / 255
        torch.testing.assert_close(answers[0].float(), original, rtol=0, atol=1e-3 / 255)


def break_index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def break_config(folder: Path, part: str, **changes: Any) -> None:
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "class": (lambda f: break_index(f, _class_name="MyPipeline"), "MyPipeline"),
    "code": (lambda f: break_index(f, _class_name=["my", "MyPipeline"]), "MyPipeline"),
    "part": (lambda f: break_index(f, controlnet=["diffusers", "ControlNetModel"]), "controlnet"),
    "network": (lambda f: break_index(f, unet=["diffusers", "UNet3DConditionModel"]), "UNet3DConditionModel"),
    "no network": (lambda f: break_index(f, unet=[None, None]), "unet"),
    "inpainting": (lambda f: break_config(f, "unet", in_channels=9), "9"),
    "distilled": (lambda f: break_config(f, "unet", time_cond_proj_dim=8), "time_cond_proj_dim"),
    "no text encoder": (lambda f: break_index(f, text_encoder=[None, None]), "text encoder"),
    "vae": (lambda f: break_index(f, vae=["diffusers", "VQModel"]), "VQModel"),
    "latents": (lambda f: break_config(f, "vae", latent_channels=3), "3"),
    "scaling": (lambda f: break_config(f, "vae", latents_mean=[0.0] * 4, latents_std=[2.0] * 4), "latents_mean"),
    "scheduler": (lambda f: break_config(f, "scheduler", _class_name="EDMEulerScheduler"), "EDMEulerScheduler"),
    "prediction": (lambda f: break_config(f, "scheduler", prediction_type="sample"), "sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_before_weights_are_read(case: str, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "sd"
    shutil.copytree(folder / "sd", broken)
    for weights in broken.rglob("*.safetensors"):
        weights.unlink()
    change, named = REFUSED[case]
    change(broken)
    with pytest.raises(ValueError, match=f"pipeline_dir .*{named}"):
        softcft.adopt(broken, PHANTOM_GRAPH, PROMPT)


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        ("dit", {"prompt": PROMPT}, "prompt"),
        ("sd", {"prompt": 3}, "prompt"),
        ("sd", {"sample_size": 24}, "sample_size .*16.*24"),
        ("flux", {}, "sample_size"),
        ("flux", {"sample_size": 18}, "sample_size"),
        ("ddpm", {"sample_size": 8}, "sample_size"),
        ("nowhere", {}, "pipeline_dir .*nowhere"),
        ("ddpm", {"graph": PHANTOM_GRAPH.to_list()}, "graph"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kind: str, arguments: Any, named: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=named):
        softcft.adopt(folder / kind, **{"graph": PHANTOM_GRAPH, **arguments})


def test_classes_that_no_variable_has_are_refused(folder: Path) -> None:
    graph = CausalGraph([Variable(name="sex", kind="binary", categories=("male", "female"))])
    with pytest.raises(ValueError, match=r"pipeline_dir .* 3 classes"):
        softcft.adopt(folder / "classes", graph)


def test_pickles_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "sd", tmp_path / "sd")
    weights = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        softcft.adopt(tmp_path / "sd", PHANTOM_GRAPH, PROMPT)
    with pytest.raises(OSError, match=r"model_index\.json"):
        softcft.adopt(tmp_path, PHANTOM_GRAPH)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_weights_of_half_precision_are_trained_in_whole(kind: str, folder: Path, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(folder / kind, dtype=torch.float16).save_pretrained(tmp_path)
    parts = softcft.adopt(tmp_path, PHANTOM_GRAPH, PROMPT)
    models = [parts.network, parts.parent_encoder, parts.vae, parts.prompt]
    assert {tensor.dtype for model in models for tensor in model.state_dict().values()} <= {torch.float32, torch.bool}
