import math

import pytest
import torch
from torch import Tensor

from softcft.cft.constraint import LagrangianConstraint


def solve(constraint: LagrangianConstraint, start: float, steps: int = 2000) -> float:
    """Minimise (x - 2)^2 subject to x <= slack by descent in x and ascent in the multiplier."""
    x = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        ((x - 2).square() + constraint(x)).backward()
        optimizer.step()
        constraint.ascend(x.item())
        assert constraint.multiplier >= 0
    return x.item()


@pytest.mark.parametrize("inequality", [True, False])
@pytest.mark.parametrize("damping", [0.0, 10.0])
@pytest.mark.parametrize("start", [-3.0, 5.0])
def test_finds_the_constrained_minimum_and_its_multiplier(start: float, damping: float, inequality: bool) -> None:
    constraint = LagrangianConstraint(slack=1.0, damping=damping, learning_rate=0.05, inequality=inequality)
    assert solve(constraint, start) == pytest.approx(1, abs=1e-3)
    # At the optimum 2 (x - 2) + multiplier = 0.
    assert constraint.multiplier.item() == pytest.approx(2, abs=1e-2)


def test_a_constraint_that_does_not_bind_leaves_the_minimum_alone() -> None:
    constraint = LagrangianConstraint(slack=3.0, damping=10.0, learning_rate=0.05)
    assert solve(constraint, 5.0) == pytest.approx(2, abs=1e-3)
    assert constraint.multiplier == 0


def test_the_published_form_gives_room_away_until_the_constraint_is_tight() -> None:
    # The equilibrium of 2 (x - 2) + 10 (x - 3) = 0: worse than the free minimum, which satisfied the constraint.
    published = LagrangianConstraint(slack=3.0, damping=10.0, learning_rate=0.05, inequality=False)
    assert solve(published, 2.0) == pytest.approx(34 / 12, abs=1e-3)


def gradient(constraint: LagrangianConstraint, x: float) -> float:
    """Of the term, at fidelity x^2, as it was in all steps before."""
    multiplier = constraint.multiplier.clone()
    constraint.learning_rate, rate = 0.0, constraint.learning_rate
    for _ in range(400):  # until the average is there
        constraint.ascend(x**2)
    constraint.learning_rate = rate
    assert torch.equal(constraint.multiplier, multiplier)
    variable = torch.tensor(x, requires_grad=True)
    constraint(variable.square()).backward()
    assert variable.grad is not None
    return variable.grad.item()


@pytest.mark.parametrize("x", [0.5, 1.2, 2.0])
def test_gradients(x: float) -> None:
    kwargs = {"slack": 1.0, "damping": 3.0, "learning_rate": 0.1}
    for multiplier in (0.0, 0.7, 5.0):
        forms = [LagrangianConstraint(**kwargs, inequality=i) for i in (False, True)]
        for form in forms:
            form.multiplier.fill_(multiplier)
        weight = multiplier + 3 * (x**2 - 1)
        assert gradient(forms[0], x) == pytest.approx(weight * 2 * x, rel=1e-5)
        assert gradient(forms[1], x) == pytest.approx(max(0, weight) * 2 * x, rel=1e-5)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.3])
@pytest.mark.parametrize("damping", [1.0, 100.0])
def test_noise_of_a_batch_does_not_pull_where_the_constraint_is_met(noise: float, damping: float) -> None:
    """Clamped at each step, its mean weight would be 0.4 times damping times noise."""
    constraint, generator = LagrangianConstraint(3.0, damping, 0.0), torch.Generator().manual_seed(0)
    weights = []
    for _ in range(4_000):
        constraint.ascend(3 + noise * torch.randn((), generator=generator).item())
        weights.append(constraint.weight.item())
    assert sum(weights) / len(weights) < 0.12 * damping * noise


def test_as_published_the_violation_is_that_of_the_last_step() -> None:
    constraint = LagrangianConstraint(slack=1.0, damping=3.0, learning_rate=0.0, inequality=False)
    for fidelity in (5.0, 2.0):
        constraint.ascend(fidelity)
        assert constraint.weight == 3 * (fidelity - 1)


def test_the_multiplier_follows_the_violation_and_stops_at_zero() -> None:
    constraint = LagrangianConstraint(slack=1.0, damping=0.0, learning_rate=0.5)
    seen = []
    for fidelity in (3.0, 1.5, 1.0, 0.0, -9.0, 1.2):
        constraint.ascend(fidelity)
        seen.append(constraint.multiplier.item())
    assert seen == pytest.approx([1.0, 1.25, 1.25, 0.75, 0.0, 0.1])


def test_a_term_keeps_its_gradient_when_the_multiplier_moves_on() -> None:
    constraint = LagrangianConstraint(slack=0.0, damping=0.0, learning_rate=1.0)
    constraint.multiplier.fill_(1.0)
    constraint.ascend(1.0)
    seen: list[Tensor] = []
    for fidelity in (1.0, 2.0):
        variable = torch.tensor(fidelity, requires_grad=True)
        term = constraint(variable)
        constraint.ascend(fidelity)
        term.backward()
        seen.append(variable.grad)
    assert [g.item() for g in seen] == [2.0, 3.0]


def test_however_a_batch_is_cut_it_has_the_same_gradient() -> None:
    constraint = LagrangianConstraint(slack=1.0, damping=50.0, learning_rate=0.1)
    constraint.ascend(1.2)
    fidelities = torch.tensor([0.3, 1.9, 1.4, 0.6], requires_grad=True)
    whole, parts = (
        torch.autograd.grad(loss, fidelities)[0]
        for loss in (
            constraint(fidelities.mean()),
            (constraint(fidelities[:2].mean()) + constraint(fidelities[2:].mean())) / 2,
        )
    )
    assert torch.equal(whole, parts)
    assert (whole > 0).all()


def test_state_travels_with_checkpoints_and_is_no_parameter() -> None:
    constraint = LagrangianConstraint(slack=-1.25, damping=1.0, learning_rate=0.5)
    constraint.ascend(3.0)
    other = LagrangianConstraint(slack=0.0, damping=1.0, learning_rate=0.5)
    other.load_state_dict(constraint.state_dict())
    assert other.slack == -1.25
    assert other.multiplier == constraint.multiplier == 2.125
    for each in (constraint, other):
        each.ascend(2.0)
    for name, value in constraint.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert list(constraint.parameters()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("slack", math.nan), ("slack", math.inf), ("damping", -1.0), ("damping", math.nan), ("learning_rate", -0.5)],
)
def test_wrong_values(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        LagrangianConstraint(**{"slack": 1.0, "damping": 1.0, "learning_rate": 0.1, name: value})
