"""Noise that is coupled with images by optimal transport, among equal or near parents only."""

import torch
from torch import Tensor

from softcft.training.coupling import optimal_transport
from tests.models.test_denoiser import GRAPH, draw_parents


def distance(image: Tensor, noise: Tensor) -> Tensor:
    return (image - noise).square().flatten(1).sum(dim=1)


def test_noise_moves_nearer_and_never_across_parents() -> None:
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(256, 1, 4, 4, generator=generator) for _ in range(2))
    parents = draw_parents(256)
    coupled = optimal_transport(image, noise, parents, GRAPH)
    source = (coupled[:, None] == noise).flatten(2).all(dim=2).float().argmax(dim=1)
    assert sorted(source.tolist()) == list(range(256))  # each noise once, and unchanged
    assert (source != torch.arange(256)).sum() > 100
    discrete = [column for name in ("state", "site") for column in range(256)[GRAPH.slices[name]]]
    assert torch.equal(parents[:, discrete], parents[source][:, discrete])
    sizes = parents[:, GRAPH.slices["size"]]
    assert (sizes - sizes[source]).abs().max() <= 2 / 4
    assert distance(image, coupled).mean() < 0.8 * distance(image, noise).mean()
    # Among near parents no pair would gain from a change of places.
    group = torch.cat([((sizes + 1) * 2).floor(), parents[:, discrete]], dim=1)
    pairs = (group[:, None] == group).all(dim=2).triu(1).nonzero()
    assert len(pairs) > 500
    for pair in pairs:
        assert distance(image[pair], coupled[pair]).sum() <= distance(image[pair], coupled[pair.flip(0)]).sum() + 1e-4


def test_noise_stays_where_no_parents_are_near() -> None:
    parents = torch.cat([torch.linspace(-1, 1, 4)[:, None], torch.eye(4)], dim=1)
    image, noise = torch.randn(2, 4, 1, 4, 4)
    assert torch.equal(optimal_transport(image, noise, parents, GRAPH), noise)
