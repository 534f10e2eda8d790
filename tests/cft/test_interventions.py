import pytest
import torch
from torch import Tensor

from softcft.cft.interventions import draw_interventions, other_values
from softcft.graph import CausalGraph, Intervention

GRAPH = CausalGraph(
    [
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
    ]
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def parents() -> Tensor:
    site = torch.eye(3)[torch.randint(3, (300,), generator=seeded(0))]
    age = 2 * torch.rand(300, 1, generator=seeded(1)) - 1
    ill = (torch.rand(300, 1, generator=seeded(2)) < 0.3).float()
    return torch.cat([site, age, ill], dim=1)


def test_one_variable_of_each_image(parents: Tensor) -> None:
    mask = draw_interventions(GRAPH, parents, parents.roll(1, dims=0)).mask
    assert mask.shape == (300, 3)
    assert mask.dtype == torch.bool
    assert (mask.sum(dim=1) == 1).all()


def test_every_variable_has_its_turn_as_often_as_the_others(parents: Tensor) -> None:
    share = draw_interventions(GRAPH, parents, parents.roll(1, dims=0), seeded(3)).mask.float().mean(dim=0)
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.09)


def test_values_are_new_and_keep_the_distribution(parents: Tensor) -> None:
    values = draw_interventions(GRAPH, parents, parents.roll(1, dims=0), seeded(3)).values
    for name, columns in GRAPH.slices.items():
        assert (values[:, columns] != parents[:, columns]).any(dim=1).all(), name
    assert torch.equal(values[:, 3].sort().values, parents[:, 3].sort().values)  # each age is given away once
    assert torch.equal(values[:, 4], 1 - parents[:, 4])
    assert torch.equal(values[:, :3].sum(dim=1), torch.ones(300))
    share = values[parents[:, 0] == 1][:, 1:3].mean(dim=0)  # from x to y and z alike
    torch.testing.assert_close(share, torch.full((2,), 0.5), rtol=0, atol=0.15)


def test_variable_and_value_are_independent_of_the_image(parents: Tensor) -> None:
    drawn = draw_interventions(GRAPH, parents, parents.roll(1, dims=0), seeded(3))
    correlation = torch.corrcoef(torch.stack([drawn.values[:, 3], parents[:, 3], drawn.mask[:, 1].float()]))
    assert (correlation - torch.eye(3)).abs().max() < 0.2


def test_reproducible_by_generator_or_global_seed(parents: Tensor) -> None:
    def same(first: Intervention, second: Intervention) -> bool:
        return torch.equal(first.values, second.values) and torch.equal(first.mask, second.mask)

    assert same(*(draw_interventions(GRAPH, parents, parents.roll(1, dims=0), seeded(5)) for _ in range(2)))
    assert not same(*(draw_interventions(GRAPH, parents, parents.roll(1, dims=0), seeded(s)) for s in (5, 6)))
    global_draws = []
    for _ in range(2):
        torch.manual_seed(7)
        global_draws.append(draw_interventions(GRAPH, parents, parents.roll(1, dims=0)))
    assert same(*global_draws)


def test_an_image_draws_alone_what_it_draws_among_others(parents: Tensor) -> None:
    others = parents.roll(1, dims=0)
    together = draw_interventions(GRAPH, parents, others, [seeded(i) for i in range(300)])
    for i in (0, 7, 299):
        alone = draw_interventions(GRAPH, parents[[i]], others[[i]], [seeded(i)])
        assert torch.equal(alone.values[0], together.values[i])
        assert torch.equal(alone.mask[0], together.mask[i])


def test_without_anybody_else_images_trade_their_ages(parents: Tensor) -> None:
    values = other_values(GRAPH, "age", parents, seeded(3))
    assert (values != parents[:, 3:4]).all()
    assert torch.equal(values[:, 0].sort().values, parents[:, 3].sort().values)
    with pytest.raises(ValueError, match=r"'age' takes the value of another image, but parents has 1"):
        other_values(GRAPH, "age", parents[:1])
