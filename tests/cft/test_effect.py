import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.cft.effect import EffectConstraint
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
    ]
)
SITE, AGE, ILL = (GRAPH.slices[name] for name in GRAPH.names)
EFFECTS = 0.2 * torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
"""What each attribute adds to an image."""


def attributes(size: int, seed: int = 1) -> Tensor:
    """Encoded as site x y z, age, ill; the old are ill more often."""
    generator = torch.Generator().manual_seed(seed)
    site = F.one_hot(torch.randint(3, (size,), generator=generator), 3).float()
    age = torch.rand(size, 1, generator=generator) * 2 - 1
    ill = (torch.rand(size, 1, generator=generator) < (age + 1) / 2).float()
    return torch.cat([site, age, ill], dim=1)


def images(parents: Tensor, noise: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return render(parents) + noise * torch.randn(len(parents), 1, 4, 4, generator=generator)


def render(parents: Tensor) -> Tensor:
    return torch.einsum("bk,kchw->bchw", parents, EFFECTS)


def constraint(weight: float = 0.05) -> EffectConstraint:
    effect = EffectConstraint(GRAPH, weight)
    for parents in attributes(6_000).split(1_000):
        effect.observe(images(parents), parents)
    effect.fit()
    return effect


def interventions(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Counterfactual attributes and masks: a third of the images each has another site, age, and illness."""
    counterfactual = parents.clone()
    which = torch.arange(len(parents)) % 3
    counterfactual[which == 0, SITE] = parents[which == 0, SITE].roll(1, dims=1)
    counterfactual[which == 1, AGE] = -parents[which == 1, AGE]
    counterfactual[which == 2, ILL] = 1 - parents[which == 2, ILL]
    return counterfactual, F.one_hot(which, 3).bool()


def excess(effect: EffectConstraint, change: Tensor, parents: Tensor, counterfactual: Tensor, mask: Tensor) -> Tensor:
    """Mean picture of each category, of one step, in grey levels."""
    _, metrics = effect(change, parents, counterfactual, mask)
    return metrics["effect/excess"] / metrics["effect/share"][:, None, None, None]


def test_effects_are_adjusted_for_what_goes_together() -> None:
    effect = constraint()
    assert effect.effects is not None
    assert (effect.effects[AGE] - EFFECTS[AGE]).abs().max() < 0.02
    assert (effect.effects[ILL] - EFFECTS[ILL]).abs().max() < 0.02
    contrasts = [sites[[1, 2]] - sites[[0]] for sites in (effect.effects[SITE], EFFECTS[SITE])]
    assert (contrasts[0] - contrasts[1]).abs().max() < 0.02
    # The ill are older; an estimate that did not know would be far off.
    parents = attributes(6_000)
    ill = parents[:, ILL][:, 0] > 0
    crude = images(parents)[ill].mean(dim=0) - images(parents)[~ill].mean(dim=0)
    assert (crude - EFFECTS[ILL]).abs().max() > 0.1


def test_true_counterfactuals_have_nothing_in_excess_and_half_ones_lack_half() -> None:
    effect, parents = constraint(), attributes(900, seed=3)
    counterfactual, mask = interventions(parents)
    true = render(counterfactual) - render(parents)
    assert excess(effect, true, parents, counterfactual, mask).abs().max() < 3
    half = excess(effect, true / 2, parents, counterfactual, mask)
    made_ill = half[4]  # sites x, y, z; healthy, ill
    torch.testing.assert_close(made_ill, -127.5 * EFFECTS[ILL][0] / 2, atol=3, rtol=0)
    torch.testing.assert_close(half[3], -made_ill, atol=3, rtol=0)


def test_the_gradient_takes_away_the_mean_excess_of_the_category() -> None:
    effect, parents = constraint(), attributes(900, seed=4)
    counterfactual, mask = interventions(parents)
    change = ((render(counterfactual) - render(parents)) / 2).requires_grad_()
    pictures = excess(effect, change.detach(), parents, counterfactual, mask)
    metrics = effect(change.detach(), parents, counterfactual, mask)[1]
    effect.follow(metrics)
    loss, _ = effect(change, parents, counterfactual, mask)
    loss.backward()
    assert change.grad is not None
    expected_loss = 0.05 * (pictures.square().mean(dim=(1, 2, 3)) * metrics["effect/share"]).sum().item()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-4)
    made_ill = mask[:, 2] & (counterfactual[:, ILL][:, 0] > 0)
    expected = 0.05 * 127.5 * pictures[4] / 16 / len(parents)
    torch.testing.assert_close(change.grad[made_ill], expected.expand(int(made_ill.sum()), 1, 4, 4))
    assert not change.grad[mask[:, 1]].any()  # of another age


def test_what_no_guide_looks_at_is_changed_in_full() -> None:
    """The least change takes away what nobody asks for; the penalty asks for it."""

    def learned(weight: float) -> Tensor:
        effect, parents = constraint(weight), attributes(300, seed=5)
        counterfactual, mask = interventions(parents)
        pictures = torch.zeros_like(EFFECTS).requires_grad_()
        optimizer = torch.optim.SGD([pictures], lr=0.005)
        for _ in range(300):
            change = torch.einsum("bk,kchw->bchw", counterfactual - parents, pictures)
            penalty, metrics = effect(change, parents, counterfactual, mask)
            optimizer.zero_grad()
            (penalty + 0.02 * 127.5 * change.abs().mean()).backward()
            optimizer.step()
            effect.follow(metrics)
        return (pictures[ILL] - EFFECTS[ILL]).detach()

    assert learned(0.05).abs().max() < 0.03 < EFFECTS[ILL].abs().mean()
    assert learned(0.0).abs().max() > 0.1


def test_a_picture_is_kept_until_the_next_one() -> None:
    effect, parents = constraint(), attributes(90, seed=8)
    counterfactual, mask = interventions(parents)
    change = (render(counterfactual) - render(parents)) / 2
    effect.follow(effect(change, parents, counterfactual, mask)[1])
    assert effect.excess is not None
    before = effect.excess.clone()
    effect.follow(effect(change[::3] * 0, parents[::3], counterfactual[::3], mask[::3])[1])  # only other sites
    assert torch.equal(effect.excess[3:], before[3:])
    assert not torch.equal(effect.excess[:3], before[:3])


def test_halves_of_a_step_have_its_mean() -> None:
    effect, parents = constraint(), attributes(60, seed=6)
    counterfactual, mask = interventions(parents)
    change = (render(counterfactual) - render(parents)) / 3
    whole = effect(change, parents, counterfactual, mask)[1]
    halves = [
        effect(*(x[rows] for x in (change, parents, counterfactual, mask)))[1] for rows in (slice(30), slice(30, 60))
    ]
    for key, value in whole.items():
        torch.testing.assert_close((halves[0][key] + halves[1][key]) / 2, value)


def test_effects_must_be_measured() -> None:
    parents = attributes(6)
    counterfactual, mask = interventions(parents)
    with pytest.raises(ValueError, match=r"Average effects must be measured first: observe\(\) real images"):
        EffectConstraint(GRAPH)(render(parents), parents, counterfactual, mask)


def test_a_graph_of_continuous_attributes_has_nothing_to_hold() -> None:
    graph = CausalGraph([{"name": "age", "kind": "continuous", "low": 20, "high": 90}])
    effect, parents = EffectConstraint(graph), torch.rand(8, 1) * 2 - 1
    effect.observe(torch.zeros(8, 1, 4, 4), parents)
    effect.fit()
    loss, metrics = effect(torch.zeros(8, 1, 4, 4), parents, -parents, torch.ones(8, 1, dtype=torch.bool))
    effect.follow(metrics)
    assert loss == 0


def test_precision_does_not_follow_autocast() -> None:
    effect, parents = constraint(), attributes(90, seed=7)
    counterfactual, mask = interventions(parents)
    change = render(counterfactual) - render(parents)
    full = excess(effect, change, parents, counterfactual, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(excess(effect, change, parents, counterfactual, mask), full)
