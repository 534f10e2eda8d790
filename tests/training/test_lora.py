"""Adapters of a diffusion model of toy size: nothing at first, all that learns, and gone in the end."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.parent_encoder import ParentEncoder
from softcft.training.config import AdapterConfig
from softcft.training.footprint import footprint
from softcft.training.lora import adapters
from tests.models.test_denoiser import GRAPH, draw_parents, make_denoiser


@pytest.mark.parametrize("attention", [False, True])
def test_adapters_learn_in_place_of_the_network_and_end_in_its_weights(attention: bool) -> None:
    denoiser: ConditionalDenoiser = make_denoiser(attention)
    image, timestep, parents = torch.randn(2, 1, 8, 8), torch.tensor([3, 600]), draw_parents(2)
    names, start = list(denoiser.state_dict()), {k: v.clone() for k, v in denoiser.network.state_dict().items()}
    before = denoiser(image, timestep, parents)
    with adapters(denoiser.network, rank=2):
        torch.testing.assert_close(denoiser(image, timestep, parents), before, rtol=0, atol=1e-5)
        trained = {name: p for name, p in denoiser.network.named_parameters() if p.requires_grad}
        assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
        for parameter in trained.values():
            nn.init.normal_(parameter, std=0.1)
        denoiser.loss(image, parents).mean().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained.values())
        learned = denoiser(image, timestep, parents)
    assert list(denoiser.state_dict()) == names
    torch.testing.assert_close(denoiser(image, timestep, parents), learned, rtol=0, atol=1e-5)
    for name, weights in denoiser.network.state_dict().items():
        rank = torch.linalg.matrix_rank((weights - start[name]).flatten(1), rtol=1e-4) if weights.ndim > 1 else 0
        assert rank <= 2
    assert all(parameter.requires_grad for parameter in denoiser.network.parameters())


def test_without_a_rank_all_weights_learn() -> None:
    denoiser = make_denoiser()
    with adapters(denoiser.network, rank=None):
        assert all(parameter.requires_grad for parameter in denoiser.network.parameters())


def test_a_rank_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="lora_rank"):
        AdapterConfig(lora_rank=0)


STABLE_DIFFUSION = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}
"""The network of Stable Diffusion 1.5."""


def test_adapters_of_stable_diffusion_are_few() -> None:
    with torch.device("meta"):
        network, encoder = UNet2DConditionModel(**STABLE_DIFFUSION), ParentEncoder(GRAPH.to_list(), 768)
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert whole == 859_520_964  # as published
    with adapters(network, rank=8):
        told = footprint(nn.ModuleList([network, encoder]), averaged=True)
        trained = [p.numel() for p in [*network.parameters(), *encoder.parameters()] if p.requires_grad]
    assert 0 < sum(trained) < 0.02 * whole
    learned, total = (int(number.replace(",", "")) for number in re.findall(r"[\d,]{4,}", told)[:2])
    assert (learned, total) == (sum(trained), whole + sum(trained))
    gigabytes = float(re.search(r"([\d.]+) GB", told)[1])  # type: ignore[index]
    assert gigabytes == pytest.approx((4 * total + 16 * learned) / 1e9, abs=0.01)
