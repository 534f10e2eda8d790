"""Models and their outputs under what accelerate, diffusers and PyTorch do to them."""

import importlib
import pkgutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, cpu_offload
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers.utils import ModelOutput

import softcft
from softcft import AttributeClassifier, AttributeSCM, CausalGraph, HVAEModel, ParentEncoder
from tests.models.test_denoiser import draw_parents, make_denoiser

GRAPH = [
    {"name": "size", "kind": "continuous", "low": 0, "high": 10},
    {"name": "state", "kind": "binary", "categories": ["off", "on"], "parents": ["size"]},
]
TRUNK = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}


def output_classes() -> list[type]:
    """All that softcft has, in whichever module."""
    for module in pkgutil.walk_packages(softcft.__path__, "softcft."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("softcft"):  # and not an extra that is not installed
                raise
    found, left = set(), [BaseOutput, ModelOutput]
    while left:
        below = left.pop().__subclasses__()
        found.update(below)
        left += below
    return sorted((c for c in found if c.__module__.startswith("softcft")), key=lambda c: c.__qualname__)


@pytest.mark.parametrize("output_class", output_classes())
@pytest.mark.parametrize("number", [1, 2, None])
def test_an_output_is_made_again_of_a_dict(output_class: Any, number: int | None) -> None:
    names = [field.name for field in fields(output_class)][:number]
    values = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    output = output_class(**values)
    for again in (output_class(dict(output)), send_to_device(output, "cpu")):
        assert type(again) is output_class
        assert dict(again).keys() == values.keys()
        assert all(torch.equal(again[name], value) and getattr(again, name) is again[name]
                   for name, value in values.items())  # fmt: skip


def make_models() -> dict[str, tuple[torch.nn.Module, tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    image, parents = torch.rand(3, 1, 8, 8), torch.tensor([[0.1, 0.0], [-0.3, 1.0], [0.5, 1.0]])
    sizes = {"resolutions": [8, 4, 1], "channels": [8, 8, 8], "encoder_blocks": [1, 1, 1], "decoder_blocks": [1, 1, 1]}
    return {
        "hvae": (HVAEModel(GRAPH, sample_size=8, z_dim=2, **sizes).eval(), (image, parents)),
        "classifier": (AttributeClassifier(GRAPH, {**TRUNK, "layer_type": "basic"}).eval(), (image,)),
        "scm": (AttributeSCM(GRAPH, num_bins=4, hidden_features=[8]).eval(), (parents,)),
    }


def answer(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(1)
    output = model(*inputs)
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("name", ["hvae", "classifier", "scm"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_models_work_as_an_accelerator_prepares_them(name: str, precision: str) -> None:
    model, inputs = make_models()[name]
    expected = answer(model, inputs)
    AcceleratorState._reset_state(reset_partial_state=True)
    prepared = Accelerator(mixed_precision=precision, cpu=True).prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert type(prepared(*inputs)) is type(model(*inputs))
    output = answer(prepared, inputs)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0.1 if precision == "bf16" else 0)


@torch.no_grad()
def test_what_is_offloaded_layer_by_layer_works_or_is_refused() -> None:
    models, device = make_models(), torch.device("cpu")
    expected = {name: answer(*models[name]) for name in ("classifier", "hvae")}
    model, inputs = models["classifier"]
    assert torch.equal(answer(cpu_offload(model, device), inputs), expected["classifier"])
    model, inputs = models["hvae"]
    whole = cpu_offload(model, device, preload_module_classes=["HVAEModel"])
    assert torch.equal(answer(whole, inputs), expected["hvae"])
    hvae, (image, parents) = make_models()["hvae"]
    cpu_offload(hvae, device)
    scm, _ = models["scm"]
    cpu_offload(scm, device)
    for question in (lambda: hvae(image, parents), lambda: hvae.walk_prior(parents), lambda: hvae.decode([], parents)):
        with pytest.raises(ValueError, match="HVAEModel"):
            question()
    for question in (lambda: scm(parents), lambda: scm.abduct(parents), lambda: scm.sample(2)):
        with pytest.raises(ValueError, match="AttributeSCM"):
            question()


@torch.no_grad()
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_weights_that_lie_in_another_type(storage: torch.dtype) -> None:
    models = make_models()
    with pytest.raises(ValueError, match="HVAEModel"):
        models["hvae"][0].enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    for name, difference in (("classifier", 0.2), ("scm", 0)):  # a rounded mechanism would be a wrong one
        model, inputs = models[name]
        expected = answer(model, inputs)
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        torch.testing.assert_close(answer(model, inputs), expected, rtol=0, atol=difference)


@pytest.mark.parametrize("name", ["hvae", "classifier", "scm", "denoiser"])
def test_an_exported_program_takes_batches_of_any_size(name: str) -> None:
    if name == "denoiser":
        model, inputs = make_denoiser(), (torch.rand(3, 1, 8, 8), torch.tensor([3, 500, 999]), draw_parents(3))
    else:
        model, inputs = make_models()[name]
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    program = torch.export.export(model, inputs, dynamic_shapes=shapes).module()
    for batch in (tuple(x[:1] for x in inputs), tuple(torch.cat([x, x]) for x in inputs)):
        torch.testing.assert_close(answer(program, batch), answer(model, batch))


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor])
def test_models_made_of_other_numbers_are_saved_as_any(number: Any, tmp_path: Path) -> None:
    graph = [{**GRAPH[0], "low": number(0), "high": number(10)}, GRAPH[1]]
    assert CausalGraph(graph) == CausalGraph(GRAPH)
    sizes = {"channels": [number(8), number(8)], "encoder_blocks": [number(1), 1], "decoder_blocks": [1, number(1)]}
    resolutions = [number(8), number(1)]
    models = [
        HVAEModel(graph, sample_size=number(8), z_dim=number(2), resolutions=resolutions, **sizes, beta=number(3)),
        AttributeClassifier(graph, {**TRUNK, "depths": [number(1)]}, scales={"size": number(2), "state": number(1)}),
        AttributeSCM(graph, num_bins=number(4), hidden_features=(number(8),)),
        ParentEncoder(graph, number(16)),
    ]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
        again = type(model).from_pretrained(tmp_path / str(i))
        assert again.causal_graph == CausalGraph(GRAPH)
        assert again.state_dict().keys() == model.state_dict().keys()
