from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softcft.cft.guides import View
from softcft.cft.matched import expected_targets
from softcft.cft.targets import Hard, Soft
from softcft.cft.transport import Reference, matched_targets
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
        {"name": "sex", "kind": "binary", "categories": ["m", "f"]},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
    ]
)
# Encoded as site x y z, age, sex, ill.
COUNTERFACTUAL = torch.tensor([[0.0, 1.0, 0.0, 0.5, 1.0, 1.0]])
FACTUAL = torch.tensor([[1.0, 0.0, 0.0, -0.1, 0.0, 0.0]])
PREDICTION = torch.tensor([[0.2, 0.7, 0.1, -0.3, 0.9, 0.65]])


def intervened(*names: str) -> Tensor:
    return torch.tensor([[name in names for name in GRAPH.names]])


def counterfactual_targets(
    graph: CausalGraph,
    mask: Tensor,
    parents: Tensor,
    counterfactual: Tensor,
    prediction: Tensor,
    mode: str,
    reference: Reference | None = None,
    published: bool = False,
) -> Tensor:
    first = torch.zeros(len(parents), dtype=torch.long)
    rest = torch.zeros_like(prediction), torch.ones_like(prediction), first, torch.ones_like(mask)
    seen = View(parents, counterfactual, mask, prediction, *rest)
    if mode == "matched":
        assert reference is not None
        return expected_targets(graph, seen, reference, published)
    return Hard()(seen) if mode == "hard" else Soft(graph, published)(seen)


def reference_of(parents: Tensor, predictions: Tensor) -> Reference:
    """What one guide says of real images."""
    return Reference(parents, predictions[None])


def targets_of(
    graph: CausalGraph, parents: Tensor, counterfactual: Tensor, prediction: Tensor, reference: Reference
) -> Tensor:
    """Matched targets by one guide."""
    first = torch.zeros(len(parents), dtype=torch.long)
    return matched_targets(graph, parents, counterfactual, prediction, first, reference)


def soft(*names: str) -> list[float]:
    targets = counterfactual_targets(GRAPH, intervened(*names), FACTUAL, COUNTERFACTUAL, PREDICTION, "soft")
    return [round(value, 6) for value in targets[0].tolist()]


@pytest.mark.parametrize("names", [(), ("sex",), ("site", "age"), GRAPH.names])
def test_hard_targets_are_the_counterfactual_attributes(names: tuple[str, ...]) -> None:
    targets = counterfactual_targets(GRAPH, intervened(*names), FACTUAL, COUNTERFACTUAL, PREDICTION, "hard")
    assert torch.equal(targets, COUNTERFACTUAL)


def test_soft_targets_keep_what_the_intervention_cannot_move() -> None:
    assert soft("sex") == [0.2, 0.7, 0.1, -0.3, 1.0, 0.65]
    assert soft("ill") == [0.2, 0.7, 0.1, -0.3, 0.9, 1.0]
    assert soft("site") == [0.0, 1.0, 0.0, -0.3, 0.9, 0.65]


def test_descendants_take_their_counterfactual_value() -> None:
    assert soft("age") == [0.2, 0.7, 0.1, 0.5, 0.9, 1.0]


def test_descendants_that_keep_their_value_keep_what_the_guide_said() -> None:
    stays = COUNTERFACTUAL.clone()
    stays[0, 5] = FACTUAL[0, 5]
    stays[0, [0, 1, 2, 4]] = FACTUAL[0, [0, 1, 2, 4]]
    arguments = (GRAPH, intervened("age"), FACTUAL, stays, PREDICTION)
    targets = counterfactual_targets(*arguments, "soft")
    assert targets[0].tolist() == pytest.approx([0.2, 0.7, 0.1, 0.5, 0.9, 0.65])
    published = counterfactual_targets(*arguments, "soft", published=True)
    assert published[0].tolist() == pytest.approx([0.2, 0.7, 0.1, 0.5, 0.9, 0.0])


@pytest.mark.parametrize("mode", ["soft", "matched"])
def test_an_intervention_that_changes_nothing_asks_for_nothing(mode: str) -> None:
    reference = reference_of(*world(500)[::2])
    rounded = FACTUAL.clone()
    rounded[0, 3] += 1e-6
    targets = counterfactual_targets(GRAPH, intervened(*GRAPH.names), FACTUAL, rounded, PREDICTION, mode, reference)
    assert torch.equal(targets, PREDICTION)


def test_certain_predictions_make_soft_targets_hard() -> None:
    # The guide's prediction being the label, nothing is left of the difference.
    labels = COUNTERFACTUAL.clone()
    labels[0, 4] = 0.0  # sex before do(sex)
    both = [
        counterfactual_targets(GRAPH, intervened("sex"), FACTUAL, COUNTERFACTUAL, labels, m) for m in ("hard", "soft")
    ]
    assert torch.equal(both[0], both[1])


@st.composite
def graphs(draw: Any) -> CausalGraph:
    """Graphs of up to six variables of every kind, listed in an order that need not be causal."""
    n = draw(st.integers(1, 6))
    variables = []
    for i in range(n):
        kind = draw(st.sampled_from(["binary", "categorical", "continuous"]))
        own: dict[str, Any] = {"name": f"v{i}", "kind": kind}
        own["parents"] = [f"v{j}" for j in range(i) if draw(st.booleans())]
        if kind == "continuous":
            own |= {"low": 0, "high": 1}
        else:
            own["categories"] = ["a", "b"] if kind == "binary" else list("abcd")[: draw(st.integers(2, 4))]
        variables.append(own)
    return CausalGraph(draw(st.permutations(variables)))


@settings(max_examples=40)
@given(graph=graphs(), data=st.data())
def test_a_column_is_soft_where_the_intervention_cannot_reach(graph: CausalGraph, data: Any) -> None:
    chosen = [data.draw(st.sets(st.sampled_from(graph.names))) for _ in range(3)]
    mask = torch.tensor([[name in names for name in graph.names] for names in chosen])
    counterfactual, prediction = torch.full((3, graph.width), 1.0), torch.full((3, graph.width), 0.25)
    targets = counterfactual_targets(graph, mask, 1 - counterfactual, counterfactual, prediction, "soft")
    for row, names in zip(targets, chosen, strict=True):
        affected = graph.affected_by(names)
        for variable in graph.variables:
            expected = 1.0 if variable.name in affected else 0.25
            assert row[graph.slices[variable.name]].tolist() == [expected] * variable.width


# ---- matched ------------------------------------------------------------------------------------------------------


def world(n: int, parents: Tensor | None = None, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Encoded attributes, how clearly each image shows them, and what a guide says; as site x y z, age, sex, ill.

    An ill person of the same looks is the surer to be called so the older he is; and the guide, which cannot read the
    age well, says ages that are nearer to the mean.
    """
    site, sex = torch.randint(3, (n,)), torch.rand(n).round()
    age = torch.rand(n) * 2 - 1
    ill = (torch.rand(n) < (age + 2) / 4).float()
    if parents is None:
        parents = torch.column_stack([torch.eye(3)[site], age, sex, ill])
    if noise is None:
        noise = torch.randn(n, 6)
    logits = parents * 3 + noise
    columns = [
        logits[:, :3].softmax(dim=1),
        0.5 * parents[:, 3:4] + 0.1 * noise[:, 3:4],
        (logits[:, 4:5] - 1.5).sigmoid(),
        (logits[:, 5:6] + 2 * parents[:, 3:4] - 1.5).sigmoid(),
    ]
    return parents, noise, torch.cat(columns, dim=1)


def changed(parents: Tensor, name: str, n: int) -> Tensor:
    """Somebody else's value of one variable."""
    counterfactual = parents.clone()
    columns = GRAPH.slices[name]
    counterfactual[:, columns] = world(n)[0][:, columns]
    return counterfactual


@pytest.mark.parametrize("name", GRAPH.names)
def test_matched_targets_are_what_the_guide_says_of_the_true_counterfactual(name: str) -> None:
    reference = reference_of(*world(10_000)[::2])
    parents, noise, prediction = world(300)
    counterfactual = changed(parents, name, 300)
    truth = world(300, counterfactual, noise)[2]
    targets = targets_of(GRAPH, parents, counterfactual, prediction, reference)
    columns = GRAPH.slices[name]
    error = (targets - truth)[:, columns].abs().mean()
    assert error < 0.03
    # Labels, and for a continuous variable the value plus what the guide was off by, are much further away.
    naive = counterfactual + prediction - parents if name == "age" else counterfactual
    assert error < 0.5 * (naive - truth)[:, columns].abs().mean()


def test_an_image_of_the_reference_that_stays_as_it_is_keeps_its_prediction() -> None:
    parents = world(200)[0]
    parents[:, 4] = torch.arange(200) % 2  # equally many of both, and fewer than neighbours: all are among the peers
    prediction = world(200, parents)[2]
    targets = targets_of(GRAPH, parents, parents, prediction, reference_of(parents, prediction))
    torch.testing.assert_close(targets[:, :3], prediction[:, :3])
    torch.testing.assert_close(targets[:, 4], prediction[:, 4])


def test_no_donor_is_of_another_category_however_rare_it_is() -> None:
    parents, _, _ = world(1_000)
    parents[:, 4] = 0.0
    parents[:3, 4] = 1.0
    reference = reference_of(*world(1_000, parents)[::2])
    counterfactual = parents.clone()
    counterfactual[:, 4] = 1.0
    targets = targets_of(GRAPH, parents, counterfactual, reference.predictions[0], reference)[:, 4]
    rare = reference.predictions[0, :3, 4]
    assert ((rare.min() - 1e-6 <= targets) & (targets <= rare.max() + 1e-6)).all()


@pytest.mark.parametrize("rare", [500, 10, 2, 1])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_rare_category_does_not_spoil_the_others(rare: int, order: list[int]) -> None:
    """From a common category to another one: the targets are spread as real images of the new one are."""
    counts = [4500 - rare, 500, rare]
    labels = torch.tensor(order).repeat_interleave(torch.tensor(counts))
    parents = torch.nn.functional.one_hot(labels, 3).float()
    said = (torch.randn(len(labels), 3) + 2 * parents + torch.bincount(labels).log()).softmax(dim=1)
    graph = CausalGraph([{"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]}])
    old, new = parents[:300], parents[4500 - rare].expand(300, 3)
    targets = targets_of(graph, old, new, said[:300], reference_of(parents, said))[:, order[1]]
    real = said[labels == order[1], order[1]]
    assert targets.unique().numel() > 250
    assert targets.mean() == pytest.approx(real.mean().item(), abs=0.04)
    assert targets.std() == pytest.approx(real.std().item(), rel=0.15)


AGE_AND_ILL = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 0, "high": 100},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
    ]
)


@pytest.mark.parametrize("ill", [128, 60])
def test_few_images_of_a_category_are_compared_at_the_same_values_of_its_causes(ill: int) -> None:
    """The ill are old, and surer to be called so the older they are; the guide takes them for older than they are."""

    def says(parents: Tensor, noise: Tensor) -> Tensor:
        age, ill = parents.split(1, dim=1)
        return torch.cat(
            [0.7 * age + 0.1 * ill + 0.2 * noise[:, :1], (5 * ill - 2.5 + 1.5 * age + 1.2 * noise[:, 1:]).sigmoid()], 1
        )

    age, noise = torch.rand(10_000, 1) * 2 - 1, torch.randn(10_000, 2)
    chance = torch.sigmoid(2 * age - 5)
    parents = torch.cat([age, (torch.rand(10_000, 1) < ill * chance / chance.sum()).float()], dim=1)
    reference = reference_of(parents, says(parents, noise))
    old = torch.cat([torch.rand(500, 1) * 2 - 1, torch.zeros(500, 1)], dim=1)
    new, own = old + torch.tensor([0.0, 1.0]), torch.randn(500, 2)
    targets = targets_of(AGE_AND_ILL, old, new, says(old, own), reference)
    age_error, ill_error = (targets - says(new, own))[:, 0], targets[:, 1].logit() - says(new, own)[:, 1].logit()
    assert age_error.mean().abs() < 0.04  # says() moves by 0.1
    assert ill_error.mean().abs() < 0.4


@pytest.mark.parametrize(
    ("depends", "mean", "farthest"),
    [
        (lambda age: 1.5 * age, 0.0, 1.0),
        (lambda age: 2 * age.abs(), 0.0, 1.0),
        (lambda age: 1.5 * torch.tanh(6 * age), 0.0, 1.0),
        (lambda age: 1.5 * torch.tanh(6 * (age + 0.5)), -0.5, 0.15),  # do(age) is beyond all real images
    ],
    ids=["line", "valley", "step", "beyond"],
)
def test_targets_follow_what_a_score_depends_on_even_if_that_is_no_line(
    depends: Callable[[Tensor], Tensor], mean: float, farthest: float
) -> None:
    """The ill are old. Where they are made young, and where age is set, scores are those of real images of that age."""

    def says(parents: Tensor, noise: Tensor) -> Tensor:
        age, ill = parents.split(1, dim=1)
        return torch.cat([0.7 * age, (5 * ill - 2.5 + depends(age) + 1.2 * noise).sigmoid()], dim=1)

    age, noise = mean + farthest * (2 * torch.rand(10_000, 1) - 1), torch.randn(10_000, 1)
    parents = torch.cat([age, torch.bernoulli(torch.sigmoid(5 * (age - mean) - 2))], dim=1)
    old, own, reference = parents[:300], noise[:300], reference_of(parents, says(parents, noise))
    for set_to in (torch.tensor([torch.nan, 1.0]), torch.tensor([-0.9, torch.nan]), torch.tensor([0.9, torch.nan])):
        new = torch.where(set_to.isnan(), old, set_to)
        targets = targets_of(AGE_AND_ILL, old, new, says(old, own), reference)[:, 1]
        error = targets.logit(1e-6) - says(new, own)[:, 1].logit(1e-6)
        assert error.mean().abs() < 0.6
        assert error.square().mean().sqrt() < 0.9


def test_the_blanket_counts_however_small_its_spread_is_in_its_range() -> None:
    """Doses of 5 in a range of a million: the guide's view of the ill depends on the dose, not on its unit."""
    targets = []
    for high in (10, 1_000_000):
        graph = CausalGraph(
            [
                {"name": "dose", "kind": "continuous", "low": 0, "high": high},
                {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["dose"]},
            ]
        )
        generator = torch.Generator().manual_seed(0)
        dose, ill = 10 * torch.rand(3_000, 1, generator=generator), torch.rand(3_000, 1, generator=generator).round()
        said = (3 * ill + dose - 6 + torch.randn(3_000, 1, generator=generator)).sigmoid()
        parents, predictions = torch.cat([2 * dose / high - 1, ill], dim=1), torch.cat([dose * 0, said], dim=1)
        new = torch.cat([parents[:100, :1], 1 - parents[:100, 1:]], dim=1)
        reference = reference_of(parents[100:], predictions[100:])
        targets.append(targets_of(graph, parents[:100], new, predictions[:100], reference)[:, 1])
    assert (targets[0] - targets[1]).abs().max() < 0.1  # float32 keeps a dose in a million to 0.06


def test_the_order_of_the_reference_does_not_matter() -> None:
    """Tables are often sorted by site or date; ages in whole years are shared by many."""
    parents, _, prediction = world(3_000)
    parents[:, 3] = (parents[:, 3] * 10).round() / 10
    reference = reference_of(parents, prediction)
    own, _, said = world(100)
    own[:, 3] = (own[:, 3] * 10).round() / 10
    new = changed(changed(own, "ill", 100), "sex", 100)
    first = targets_of(GRAPH, own, new, said, reference)
    order = torch.argsort(parents[:, 3] + 3 * parents[:, 0])
    torch.testing.assert_close(
        targets_of(GRAPH, own, new, said, reference_of(parents[order], prediction[order])), first, atol=1e-4, rtol=0
    )


def test_where_all_of_a_category_are_alike_all_of_them_count() -> None:
    """And not those that come first: nothing is known that would make some of them better peers."""
    parents, _, _ = world(900)
    parents[:, :3] = torch.eye(3).repeat(300, 1)
    parents[:, 4] = torch.tensor([0.0, 1.0]).repeat(450)
    reference = reference_of(*world(900, parents)[::2])
    order = torch.randperm(900)
    shuffled = reference_of(reference.parents[order], reference.predictions[0, order])
    own, _, prediction = world(100)
    new = changed(changed(own, "site", 100), "sex", 100)  # or not: some stay what they are
    targets = [targets_of(GRAPH, own, new, prediction, r) for r in (reference, shuffled)]
    for name in ("site", "sex"):
        torch.testing.assert_close(*(t[:, GRAPH.slices[name]] for t in targets))


@pytest.mark.parametrize(
    ("own", "target"),
    [(0.3, 0.2), (0.5, 0.2899), (0.6, 0.6202), (0.1, 0.1), (0.9, 0.8)],
    ids=["a peer", "between two", "one of two that are alike", "below all", "above all"],
)
def test_the_place_among_the_peers_is_that_among_the_donors(own: float, target: float) -> None:
    """Between two donors, the middle of their log-odds."""
    graph = CausalGraph([{"name": "ill", "kind": "binary", "categories": ["no", "yes"]}])
    ill = torch.tensor([0.0] * 4 + [1.0] * 4)[:, None]
    said = torch.tensor([0.1, 0.2, 0.4, 0.8, 0.15, 0.3, 0.6, 0.6])[:, None]
    targets = targets_of(graph, ill[-1:], ill[:1], torch.tensor([[own]]), reference_of(ill, said))
    assert targets.item() == pytest.approx(target, abs=1e-4)


def test_of_many_categories_each_keeps_its_order_among_its_like() -> None:
    reference = reference_of(*world(5_000)[::2])
    parents = world(200)[0]
    parents[:, :3] = torch.tensor([1.0, 0.0, 0.0])
    prediction = world(200, parents)[2]
    counterfactual = parents.clone()
    counterfactual[:, :3] = torch.tensor([0.0, 1.0, 0.0])
    before = prediction[:, :3].log()
    after = targets_of(GRAPH, parents, counterfactual, prediction, reference)[:, :3].log()
    pair, other = (lambda logs: logs[:, 1] - logs[:, 0], lambda logs: logs[:, 2] - (logs[:, 0] + logs[:, 1]) / 2)
    for odds, correlation in ((pair, 0.999), (other, 0.97)):
        ranks = torch.stack([odds(logs).argsort().argsort().double() for logs in (before, after)])
        assert torch.corrcoef(ranks)[0, 1] > correlation


def test_each_image_is_matched_to_what_its_own_guide_says_of_real_images() -> None:
    real, _, said = world(600)
    parents, _, prediction = world(40)
    new, guide = changed(parents, "site", 40), torch.arange(40) % 2
    shy = [0.5 * x + 0.5 * x.mean(dim=0) for x in (said, prediction)]
    mixed = torch.where(guide[:, None] > 0, shy[1], prediction)
    both = matched_targets(GRAPH, parents, new, mixed, guide, Reference(real, torch.stack([said, shy[0]])))
    alone = [
        targets_of(GRAPH, parents, new, *of_one)
        for of_one in [(prediction, reference_of(real, said)), (shy[1], reference_of(real, shy[0]))]
    ]
    torch.testing.assert_close(both, torch.where(guide[:, None] > 0, alone[1], alone[0]))


def test_of_many_categories_targets_are_together_like_predictions_of_real_images() -> None:
    """Each category by itself would be as likely as it is, but never would several be unlikely at the same time."""
    graph = CausalGraph([{"name": "digit", "kind": "categorical", "categories": list("012345")}])

    def said(digit: Tensor) -> Tensor:
        """Each image is more or less clear, and can be taken for one other digit, which depends on its own."""
        clear, like = 2 + 2 * torch.randn(len(digit), 1), (digit + torch.randint(1, 3, digit.shape)) % 6
        logits = torch.eye(6)[digit] * clear + torch.eye(6)[like] * 3 + 0.3 * torch.randn(len(digit), 6)
        return logits.softmax(dim=1)

    digit, old = torch.randint(6, (6_000,)), torch.randint(6, (2_000,))
    new = (old + torch.randint(1, 6, old.shape)) % 6
    real = said(digit)
    targets = targets_of(
        graph, torch.eye(6)[old], torch.eye(6)[new], said(old), reference_of(torch.eye(6)[digit], real)
    )

    def surprise(probabilities: Tensor, digit: Tensor) -> float:
        return -probabilities.gather(1, digit[:, None]).log().mean().item()

    assert surprise(targets, new) == pytest.approx(surprise(real, digit), rel=0.1)


def test_matched_targets_move_only_what_the_intervention_can_reach() -> None:
    reference = reference_of(*world(1_000)[::2])
    parents, _, prediction = world(50)
    counterfactual = changed(parents, "sex", 50)
    mask = intervened("sex").expand(50, -1)
    targets = counterfactual_targets(GRAPH, mask, parents, counterfactual, prediction, "matched", reference)
    untouched = [0, 1, 2, 3, 5]
    assert torch.equal(targets[:, untouched], prediction[:, untouched])
    assert not torch.equal(targets[:, 4], counterfactual[:, 4])


def test_a_neighbour_of_what_moves_is_matched_to_it() -> None:
    def leaning(parents: Tensor, prediction: Tensor) -> Tensor:
        """A guide that takes the ill for older."""
        prediction = prediction.clone()
        prediction[:, 3] += 0.2 * parents[:, 5]
        return prediction

    real, _, said = world(10_000)
    reference = reference_of(real, leaning(real, said))
    parents, noise, prediction = world(300)
    prediction = leaning(parents, prediction)
    counterfactual = parents.clone()
    counterfactual[:, 5] = 1 - counterfactual[:, 5]
    truth = leaning(counterfactual, world(300, counterfactual, noise)[2])
    mask = intervened("ill").expand(300, -1)
    targets = counterfactual_targets(GRAPH, mask, parents, counterfactual, prediction, "matched", reference)
    assert (targets - truth)[:, 3].abs().mean() < 0.15 * (prediction - truth)[:, 3].abs().mean()
    assert torch.equal(targets[:, [0, 1, 2, 4]], prediction[:, [0, 1, 2, 4]])  # not evidence of each other


def test_continuous_targets_hold_where_no_real_image_is_like_the_counterfactual() -> None:
    """Brightness follows from thickness in all real images; a thin but bright stroke has donors thicker than itself."""
    graph = CausalGraph(
        [
            {"name": "thickness", "kind": "continuous", "low": 0, "high": 1},
            {"name": "brightness", "kind": "continuous", "low": 0, "high": 1, "parents": ["thickness"]},
        ]
    )
    thickness, noise = torch.rand(4_000) * 2 - 1, 0.05 * torch.randn(4_000, 2)
    parents = torch.column_stack([thickness, (thickness + 0.02 * torch.randn(4_000)).clamp(-1, 1)])
    predictions = 0.95 * parents + noise  # towards the mean, as guides do
    counterfactual = parents.clone()
    counterfactual[:200, 1] = -parents[:200, 1]
    truth = 0.95 * counterfactual + noise
    reference = reference_of(parents[200:], predictions[200:])
    targets = targets_of(graph, parents[:200], counterfactual[:200], predictions[:200], reference)
    assert (targets - truth[:200]).abs().mean() < 0.03
    assert (targets - truth[:200]).abs().max() < 0.15  # by the predictions themselves some would be off by 1
