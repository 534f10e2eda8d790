"""Pipelines of diffusers, each saved and adopted: the same as before at the start, and then it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import softcft
from softcft import ConditionalDenoiser
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.models.adoption import DiffusionParts
from tests.stock_pipelines import STOCK, make_stock

PROMPT = "a chest x ray"
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
    return load_phantom(16, 32, 1, 1, cache_dir=str(tmp_path_factory.mktemp("data")))["train"]


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
