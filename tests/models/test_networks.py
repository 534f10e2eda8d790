"""Each family of networks: adopted, it is called as its own pipeline calls it, and attributes reach it."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, Transformer2DModel
from torch import Tensor, nn

from softcft.counterfactuals.diffusion_backbone import DiffusionBackbone
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.networks import adopt_network, component_of, load_network, new_network
from softcft.models.noise_schedule import new_scheduler
from softcft.models.prompt import PromptEmbedding
from tests.models.test_denoiser import GRAPH, draw_parents
from tests.small_models import perturb
from tests.stock_pipelines import STOCK, make_stock

# Of diffusers' own schedulers, with new versions of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FAMILIES = ["dit", "sd", "sdxl", "pixart", "sd3", "flux", "flux guidance"]
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "sample_size": 8, "num_layers": 2}
TRANSFORMERS = {
    "as DiT": {
        "patch_size": 2,
        "norm_type": "ada_norm_zero",
        "num_embeds_ada_norm": 3,
        "norm_elementwise_affine": False,
    },
    "as PixArt": {
        "patch_size": 2,
        "norm_type": "ada_norm_single",
        "cross_attention_dim": 16,
        "out_channels": 8,
        "num_embeds_ada_norm": 9,
    },
}
"""Kinds of ``Transformer2DModel``."""


def make_pipeline(kind: str) -> Any:
    if kind == "flux guidance":
        torch.manual_seed(0)
        pipeline = STOCK["flux"](guidance=True)
        perturb(pipeline.transformer, 0.05).eval()
        return pipeline
    return make_stock(kind)


def network_of(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or pipeline.unet


@cache
def recorded(kind: str) -> tuple[Any, dict[str, Any], Tensor]:
    """A network, what its pipeline passed in its last step, and the prediction that it got."""
    pipeline, calls = make_pipeline(kind), []
    network = network_of(pipeline)
    network.register_forward_hook(lambda _, args, kwargs, out: calls.append((args, kwargs, out[0])), with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    if kind == "dit":
        pipeline([3], guidance_scale=1.0, num_inference_steps=3, output_type="np")  # 3: no class
    else:
        size = {"use_resolution_binning": False} if kind == "pixart" else {}
        pipeline(
            "ab cd",
            guidance_scale=1.0 if kind != "flux guidance" else 3.5,
            num_inference_steps=3,
            height=16,
            width=16,
            output_type="latent",
            **size,
        )
    args, kwargs, prediction = calls[-1]
    network._forward_hooks.clear()
    names = dict(zip(("hidden_states", "timestep"), args, strict=False))
    return network, {**names, **kwargs}, prediction


def prompt_of(call: dict[str, Any]) -> PromptEmbedding | None:
    if call.get("encoder_hidden_states") is None:
        return None
    pooled, mask = call.get("pooled_projections"), call.get("encoder_attention_mask")
    if "text_embeds" in (added := call.get("added_cond_kwargs") or {}):
        pooled = added["text_embeds"]
    first = [None if x is None else x[0] for x in (call["encoder_hidden_states"], pooled, mask)]
    return PromptEmbedding.of(*first, image_size=16)


def make_denoiser(network: Any, prompt: PromptEmbedding | None, flow: bool = False) -> ConditionalDenoiser:
    torch.manual_seed(2)
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDIMScheduler(clip_sample=False)
    return ConditionalDenoiser(*adopt_network(network, GRAPH, prompt), scheduler, prompt).eval()


def unpacked(sequence: Tensor) -> Tensor:
    """Latents (1, 4, 8, 8) of Flux's sequence."""
    patches = sequence.unflatten(1, (4, 4)).unflatten(-1, (4, 2, 2))
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(sequence), 4, 8, 8)


def denoiser_of(kind: str, flow: bool = False) -> ConditionalDenoiser:
    if kind in TRANSFORMERS:
        torch.manual_seed(0)
        return make_denoiser(Transformer2DModel(**TRANSFORMER, **TRANSFORMERS[kind]).eval(), None, flow)
    network, call, _ = copy.deepcopy(recorded(kind))
    if "flux" in kind:
        network.register_to_config(sample_size=4)
    return make_denoiser(network, prompt_of(call), flow)


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_at_the_start_it_is_called_as_its_own_pipeline_calls_it(kind: str) -> None:
    network, call, expected = copy.deepcopy(recorded(kind))
    noisy, timestep = call.get("hidden_states", call.get("sample")), call["timestep"].reshape(-1)[:1].float()
    if "flux" in kind:
        noisy, expected, timestep = unpacked(noisy), unpacked(expected), 1000 * timestep
    denoiser = make_denoiser(network, prompt_of(call))
    prediction = denoiser(noisy[:1], timestep, draw_parents(1))
    assert torch.equal(prediction, expected[:1, :4])
    # Trained tokens change it, each of them.
    perturb(denoiser.parent_encoder, 1.0)
    told = denoiser(noisy[:1], timestep, draw_parents(1))
    for i in range(3):
        present = torch.arange(3)[None] != i
        assert (denoiser(noisy[:1], timestep, draw_parents(1), present) - told).abs().max() > 1e-5


@pytest.mark.parametrize("kind", [*FAMILIES, *TRANSFORMERS])
@pytest.mark.parametrize("flow", [False, True])
def test_gradients_reach_every_token_with_and_without_checkpointing(kind: str, flow: bool) -> None:
    denoiser = denoiser_of(kind, flow).train()
    perturb(denoiser.parent_encoder, 0.1)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            denoiser.network.enable_gradient_checkpointing()
        denoiser.zero_grad()
        image = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        loss = denoiser.loss(image, draw_parents(16), 0.5, generator=torch.Generator().manual_seed(1))
        loss.mean().backward()
        gradients.append({n: p.grad.clone() for n, p in denoiser.named_parameters() if p.grad is not None})
    encoder = [n for n, _ in denoiser.named_parameters() if n.startswith("parent_encoder")]
    assert not [n for n in encoder if not gradients[0][n].abs().max() > 0]
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*FAMILIES, *TRANSFORMERS])
@pytest.mark.parametrize("flow", [False, True])
def test_nothing_changes_where_nothing_is_changed(kind: str, flow: bool) -> None:
    denoiser = denoiser_of(kind, flow)
    perturb(denoiser.parent_encoder, 0.5)
    image = 0.5 * torch.rand(2, 4, 8, 8) - 0.25
    parents = draw_parents(2)
    for steps in (10, 20) if flow else (50,):
        output = DiffusionBackbone(denoiser, num_inference_steps=steps).counterfactual(image, parents, parents)
        assert (output.image - image).abs().max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("kind", [*FAMILIES, *TRANSFORMERS])
def test_it_is_saved_as_diffusers_saves_it(kind: str, tmp_path: Path) -> None:
    denoiser = denoiser_of(kind)
    perturb(denoiser.parent_encoder, 0.5)
    x, timestep, parents = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), draw_parents(2)
    expected = denoiser(x, timestep, parents)
    for name in ("network", "parent_encoder", "prompt"):
        if getattr(denoiser, name) is not None:
            getattr(denoiser, name).save_pretrained(tmp_path / name)
    network = load_network(tmp_path / "network")
    prompt = None if denoiser.prompt is None else PromptEmbedding.from_pretrained(tmp_path / "prompt")
    again = ConditionalDenoiser(network, denoiser.parent_encoder, denoiser.scheduler, prompt).eval()
    assert torch.equal(again(x, timestep, parents), expected)
    assert torch.equal(copy.deepcopy(again)(x, timestep, parents), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd", "pixart", "sd3", "flux"])
def test_a_network_that_reads_text_can_read_attributes_alone(kind: str) -> None:
    network = network_of(make_stock(kind))
    encoder = adopt_network(network, GRAPH)[1]
    denoiser = ConditionalDenoiser(network, encoder, DDIMScheduler(clip_sample=False))
    x, timestep = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    difference = denoiser(x, timestep, draw_parents(2)) - denoiser(x, timestep, draw_parents(2, seed=1))
    assert difference.abs().amax(dim=(1, 2, 3)).min() > 1e-6


SMALL = {
    "UNet2DModel": {
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "block_out_channels": [8],
        "norm_num_groups": 4,
    },
    "UNet2DConditionModel": {
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "block_out_channels": [8],
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
    },
    "DiTTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "num_embeds_ada_norm": 1},
    "PixArtTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16},
    "SD3Transformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "caption_projection_dim": 16,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
    },
    "FluxTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "num_single_layers": 1,
    },
}
"""Arguments of new networks, those that configs can name."""


@pytest.mark.parametrize("name", SMALL)
def test_a_new_network_of_each_class_learns_from_pixels(name: str) -> None:
    torch.manual_seed(0)
    layers = {} if "UNet" in name else {"num_layers": 1}
    folded = 2 if "Flux" in name else 1  # the others have patches of their own, or none
    network = new_network(name, folded**2, 8 // folded, **SMALL[name], **layers)
    denoiser = ConditionalDenoiser(*adopt_network(network, GRAPH), new_scheduler("flow"))
    assert component_of(denoiser.network) == ("unet" if "UNet" in name else "transformer")
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    image, parents, losses = torch.full((8, 1, 8, 8), 0.5), draw_parents(8), []
    for step in range(40):
        optimizer.zero_grad()
        loss = denoiser.loss(image, parents, generator=torch.Generator().manual_seed(step % 2)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[1]
    assert all(layer.weight.abs().max() > 0 for layer in denoiser.parent_encoder.encoders if hasattr(layer, "weight"))


def test_patches_must_fill_the_image() -> None:
    network = new_network("DiTTransformer2DModel", 1, 8, **SMALL["DiTTransformer2DModel"], num_layers=1, patch_size=3)
    with pytest.raises(ValueError, match="patch_size"):
        ConditionalDenoiser(*adopt_network(network, GRAPH), DDIMScheduler(clip_sample=False))


@pytest.mark.parametrize("seen", [1, 2, 3, 7])
def test_attributes_go_to_the_last_tokens_that_are_seen(seen: int) -> None:
    words, mask = torch.randn(9, 5), torch.arange(9) < seen
    prompt = PromptEmbedding.of(words, mask=mask)
    attributes = torch.randn(2, 3, 5)
    added = prompt(attributes) - words
    assert not added[:, seen:].any()
    torch.testing.assert_close(added.sum(dim=1), attributes.sum(dim=1))
    if seen >= 3:
        torch.testing.assert_close(added[:, seen - 3 : seen], attributes)


@pytest.mark.parametrize(
    ("kind", "prompt", "named"),
    [
        ("dit", PromptEmbedding(4, 16), "prompt"),
        ("sd", PromptEmbedding(4, 8), "prompt .*size 8"),
        ("sd3", PromptEmbedding(4, 32), "prompt .*pooled"),
        ("flux", PromptEmbedding(4, 32, 16, masked=True), "mask"),
    ],
)
def test_a_prompt_of_another_network_is_refused(kind: str, prompt: PromptEmbedding, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        adopt_network(network_of(make_stock(kind)), GRAPH, prompt)


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (nn.Linear(1, 1), "network must be one of .*Linear"),
        (Transformer2DModel(**TRANSFORMER, norm_num_groups=2, cross_attention_dim=16), "norm_type"),
        (
            Transformer2DModel(**TRANSFORMER, norm_num_groups=2, norm_type="ada_norm", num_embeds_ada_norm=9),
            "norm_type",
        ),
    ],
)
def test_networks_that_cannot_be_conditioned_are_refused(network: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        adopt_network(network, GRAPH)


@pytest.mark.parametrize(
    ("tokens", "pooled", "mask", "named"),
    [
        (torch.zeros(3), None, None, "tokens"),
        (torch.zeros(3, 2), torch.zeros(1, 2), None, "pooled"),
        (torch.zeros(3, 2), None, torch.ones(2), "mask"),
        (torch.zeros(3, 2), None, torch.zeros(3), "mask"),
    ],
)
def test_a_prompt_has_one_text(tokens: Tensor, pooled: Tensor | None, mask: Tensor | None, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PromptEmbedding.of(tokens, pooled, mask)
