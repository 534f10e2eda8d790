from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from softcft.cft.strength import StrengthConstraint
from softcft.cft.transport import Reference
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"]},
    ]
)
SITE, AGE, ILL = (GRAPH.slices[name] for name in GRAPH.names)


def world(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Encoded attributes, and what an honest guide says of them."""
    generator = torch.Generator().manual_seed(seed)
    site = torch.nn.functional.one_hot(torch.randint(3, (size,), generator=generator), 3).float()
    ill = torch.randint(2, (size, 1), generator=generator).float()
    age = torch.rand(size, 1, generator=generator) * 2 - 1
    noise = torch.randn(size, 4, generator=generator)
    said = torch.cat(
        [(2 * site + noise[:, :3]).softmax(dim=1), age, (3 * ill - 1.5 + 2 * noise[:, 3:]).sigmoid()], dim=1
    )
    return torch.cat([site, age, ill], dim=1), said


def shortfall(strength: StrengthConstraint, *arguments: Any) -> dict[str, Tensor]:
    """Summed over images, by one guide; arguments as in its method, and what the guide says of real images."""
    *known, real_parents, real = arguments
    first = torch.zeros(len(known[0]), dtype=torch.long)
    short = strength.shortfall(*known, first, Reference(real_parents, real[None]))
    return {name: values.sum() for name, values in short.items()}


def log_odds(probabilities: Tensor) -> Tensor:
    return torch.logit(probabilities.double())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.integers(0, 10**6))
def test_an_offset_adds_to_the_log_odds_of_the_new_category_alone(offsets: list[float], seed: int) -> None:
    parents, targets = (values.double() for values in world(20, seed))  # log-odds of float32 near 1 are rough
    moves = torch.rand(20, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    strength = StrengthConstraint(GRAPH)
    strength.offsets.copy_(torch.tensor(offsets))
    asked = strength(targets, parents, moves)
    for i in range(20):
        site, ill = int(parents[i, SITE].argmax()), int(parents[i, ILL])
        added = log_odds(asked[i]) - log_odds(targets[i])
        assert added[site].item() == pytest.approx(offsets[0] * moves[i, 0].item(), abs=1e-4)
        assert added[ILL].item() == pytest.approx(offsets[1] * (2 * ill - 1) * moves[i, 2].item(), abs=1e-4)
        others = [k for k in range(3) if k != site]
        shares = [x[others] / x[others].sum() for x in (asked[i], targets[i])]
        torch.testing.assert_close(*shares, atol=1e-5, rtol=1e-4)
    assert torch.equal(asked[:, AGE], targets[:, AGE])


def test_the_shortfall_is_the_difference_of_two_areas_under_the_curve() -> None:
    real_parents, real = world(400, 0)
    parents, targets = world(300, 1)
    seen = world(300, 2)[1]  # of other images: no better than chance
    moves = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    short = shortfall(StrengthConstraint(GRAPH), targets, seen, parents, moves, real_parents, real)

    def area(scores: Tensor, mine: Tensor, real_scores: Tensor, others: Tensor) -> float:
        labels = [1] * int(mine.sum()) + [0] * int(others.sum())
        return float(roc_auc_score(labels, torch.cat([scores[mine], real_scores[others]])))

    expected = {"site": 0.0, "ill": 0.0}
    for name, column, sign in [("site", 0, 1), ("site", 1, 1), ("site", 2, 1), ("ill", 4, -1), ("ill", 4, 1)]:
        is_it, is_real_it = (values[:, column] == (1 if sign > 0 else 0) for values in (parents, real_parents))
        mine = is_it & moves[:, GRAPH.names.index(name)]
        asked, got = (
            area(sign * scores[:, column], mine, sign * real[:, column], ~is_real_it) for scores in (targets, seen)
        )
        expected[name] += (asked - got) * int(mine.sum())
    assert short.keys() == expected.keys()
    for name, value in short.items():
        assert value.item() == pytest.approx(expected[name], abs=1e-3)
        assert value > 20


@pytest.mark.parametrize(("followed", "lost"), [(0.6, 1.0), (0.8, 0.5), (1.5, 1.5), (0.5, -3.0), (1.5, -1.0)])
def test_offsets_make_up_for_what_a_model_does_not_follow(followed: float, lost: float) -> None:
    """A model that makes something else of each log-odds it is asked for ends as strong as it should be."""
    reference = world(2000, 0)
    strength = StrengthConstraint(GRAPH)
    gaps = []
    for step in range(400):
        parents, targets = world(64, 1 + step)
        moves = torch.ones(64, 3, dtype=torch.bool)
        asked = log_odds(strength(targets, parents, moves))
        signs = torch.cat([2 * parents[:, SITE] - 1, torch.ones(64, 1), 2 * parents[:, ILL] - 1], dim=1)
        seen = (followed * asked - lost * signs).sigmoid().float()
        seen[:, SITE] = seen[:, SITE] / seen[:, SITE].sum(dim=1, keepdim=True)
        short = shortfall(strength, targets, seen, parents, moves, *reference)
        gaps.append({name: value.item() / 64 for name, value in short.items()})
        strength.ascend(gaps[-1])
    for name in ("site", "ill"):
        before, after = (abs(sum(gap[name] for gap in part) / len(part)) for part in (gaps[:5], gaps[-200:]))
        assert after < 0.005
        assert before > 4 * after


def test_more_is_asked_of_what_falls_short_and_less_of_what_is_too_strong() -> None:
    strength = StrengthConstraint(GRAPH)
    strength.ascend({"site": 0.1, "ill": -0.1})
    assert strength.offsets[0] > 0 > strength.offsets[1]
    before = strength.offsets.clone()
    strength.ascend({"site": -0.05, "ill": 0.0})
    assert 0 < strength.offsets[0] < before[0]
    assert strength.offsets[1] == before[1]


def test_offsets_stay_where_targets_are_met() -> None:
    parents, targets = world(50, 0)
    strength = StrengthConstraint(GRAPH)
    moves = torch.ones(50, 3, dtype=torch.bool)
    torch.testing.assert_close(strength(targets, parents, moves), targets)
    reference = world(100, 1)
    assert not any(shortfall(strength, targets, targets, parents, moves, *reference).values())
    assert all(shortfall(strength, targets, 0 * targets, parents, moves, *reference).values())
    assert not any(shortfall(strength, targets, 0 * targets, parents, ~moves, *reference).values())


def test_offsets_are_saved_and_have_no_gradient() -> None:
    strength = StrengthConstraint(GRAPH)
    strength.ascend({"ill": 0.1, "site": 0.2})
    other = StrengthConstraint(GRAPH)
    other.load_state_dict(strength.state_dict())
    assert torch.equal(other.offsets, strength.offsets)
    assert other.offsets[0] > other.offsets[1] > 0
    assert not list(strength.parameters())
