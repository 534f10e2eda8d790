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


def constraint(weight: float = 0.025) -> EffectConstraint:
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


@pytest.mark.parametrize("weight", [0.01, 0.3])
def test_the_loss_has_value_and_gradient_of_the_documented_penalty(weight: float) -> None:
    """Of a model that stands still: weight times share times mean square of what a category has in excess."""
    effect, parents = constraint(weight), attributes(300, seed=9)
    counterfactual, mask = interventions(parents)
    change = (render(counterfactual) - render(parents)) / 3
    scale = torch.ones(5, requires_grad=True)

    def changes() -> Tensor:
        return torch.einsum("bk,k->b", counterfactual, scale)[:, None, None, None] * change

    effect.follow({name: value.detach() for name, value in effect(changes(), parents, counterfactual, mask)[1].items()})
    loss, metrics = effect(changes(), parents, counterfactual, mask)
    assert effect.effects is not None
    assert effect.reliability is not None
    off = 127.5 * (changes() - torch.einsum("bk,kchw->bchw", counterfactual - parents, effect.effects))
    site, ill = mask[:, 0], mask[:, 2]
    given = [site & (counterfactual[:, k] > 0) for k in range(3)]
    given += [ill & (counterfactual[:, 4] == k) for k in range(2)]
    squares = torch.stack([off[rows].mean(dim=0).square().mean() for rows in given])
    penalty = weight * (effect.reliability * metrics["effect/share"] * squares).sum()
    torch.testing.assert_close(loss, penalty, rtol=1e-4, atol=0)
    gradients = [torch.autograd.grad(value, scale)[0] for value in (loss, penalty)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spread", [1e4, 1e3, 500, 200, 50])
@pytest.mark.parametrize("middle", [5e5, 9e5])
def test_effects_do_not_depend_on_the_range_that_was_declared(spread: float, middle: float) -> None:
    """Doses that differ by little in a range of a million; what they explain is not the illness's effect."""
    graph = CausalGraph(
        [
            {"name": "dose", "kind": "continuous", "low": 0, "high": 1e6},
            {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["dose"]},
        ]
    )
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5_000, 1, generator=generator)
    ill = (torch.rand(5_000, 1, generator=generator) < torch.sigmoid(2 * z)).float()
    parents = torch.cat([graph.encode({"dose": (middle + spread * z[:, 0]).tolist(), "ill": "no"})[:, :1], ill], dim=1)
    effect = EffectConstraint(graph)
    for rows in torch.arange(5_000).split(500):
        effect.observe((0.1 * z + 0.05 * ill)[rows, :, None, None].expand(-1, 1, 2, 2), parents[rows])
    effect.fit()
    assert effect.effects is not None
    assert effect.effects[1].mean().item() == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("ill", [3, 30, 3_000])
def test_what_is_not_known_of_a_rare_category_is_not_asked_for(ill: int) -> None:
    """Reliability is the share of the measured picture that is not noise: of several draws, about what is true."""
    reliability, error = [], []
    for seed in range(8):
        parents = attributes(6_000, seed)
        parents[:, ILL] = (torch.arange(6_000) % (6_000 // ill) == 0)[:, None].float()
        noise = torch.randn(6_000, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        effect = EffectConstraint(GRAPH)
        effect.observe(render(parents) + noise, parents)
        effect.fit()
        assert effect.effects is not None
        assert effect.reliability is not None
        reliability.append(effect.reliability[4].item())
        error.append((effect.effects[ILL] - EFFECTS[ILL]).square().mean() / effect.effects[ILL].square().mean())
    assert sum(reliability) / 8 == pytest.approx(1 - (sum(error) / 8).item(), abs=0.2)


@pytest.mark.parametrize("known", ["all", "ill if at site z", "nobody ill", "nobody at site z", "all at site z"])
def test_what_cannot_be_told_apart_is_not_asked_for(known: str) -> None:
    """The picture that all attributes together make may be sharp, and nobody knows which one of them makes it."""
    parents = attributes(600)
    if known == "ill if at site z":
        parents[:, ILL] = parents[:, SITE][:, 2:]
    elif known == "nobody ill":
        parents[:, ILL] = 0
    elif known == "nobody at site z":
        parents = parents[parents[:, 2] == 0]
    elif known == "all at site z":
        parents[:, SITE] = torch.tensor([0.0, 0.0, 1.0])
    effect = EffectConstraint(GRAPH)
    effect.observe(images(parents), parents)
    effect.fit()
    not_told = {
        "all": set(),
        "ill if at site z": {"'ill': 'no'", "'ill': 'yes'", "'site': 'z'"},
        "nobody ill": {"'ill': 'no'", "'ill': 'yes'"},
        "nobody at site z": {"'site': 'z'"},
        "all at site z": {"'site': 'x'", "'site': 'y'", "'site': 'z'"},
    }[known]
    zero = {name for name, reliability in effect.reliabilities().items() if reliability == 0}
    assert zero >= not_told
    assert ("'ill': 'yes'" in zero) == ("'ill': 'yes'" in not_told)
    assert ("'site': 'z'" in zero) == ("'site': 'z'" in not_told)


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

    assert learned(0.025).abs().max() < 0.03 < EFFECTS[ILL].abs().mean()
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
