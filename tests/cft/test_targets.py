from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softcft.cft.targets import counterfactual_targets
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
PREDICTION = torch.tensor([[0.2, 0.7, 0.1, -0.3, 0.9, 0.65]])


def intervened(*names: str) -> Tensor:
    return torch.tensor([[name in names for name in GRAPH.names]])


def soft(*names: str) -> list[float]:
    targets = counterfactual_targets(GRAPH, intervened(*names), COUNTERFACTUAL, PREDICTION, "soft")
    return [round(value, 6) for value in targets[0].tolist()]


@pytest.mark.parametrize("names", [(), ("sex",), ("site", "age"), GRAPH.names])
def test_hard_targets_are_the_counterfactual_attributes(names: tuple[str, ...]) -> None:
    targets = counterfactual_targets(GRAPH, intervened(*names), COUNTERFACTUAL, PREDICTION, "hard")
    assert torch.equal(targets, COUNTERFACTUAL)


def test_soft_targets_keep_what_the_intervention_cannot_move() -> None:
    assert soft("sex") == [0.2, 0.7, 0.1, -0.3, 1.0, 0.65]
    assert soft("ill") == [0.2, 0.7, 0.1, -0.3, 0.9, 1.0]
    assert soft("site") == [0.0, 1.0, 0.0, -0.3, 0.9, 0.65]


def test_descendants_take_their_counterfactual_value() -> None:
    assert soft("age") == [0.2, 0.7, 0.1, 0.5, 0.9, 1.0]


def test_several_interventions_at_once() -> None:
    assert soft("age", "site") == [0.0, 1.0, 0.0, 0.5, 0.9, 1.0]
    assert soft("ill", "sex") == [0.2, 0.7, 0.1, -0.3, 1.0, 1.0]
    assert soft(*GRAPH.names) == COUNTERFACTUAL[0].tolist()
    assert soft() == pytest.approx(PREDICTION[0].tolist())


def test_each_image_has_its_own_intervention() -> None:
    choices = [(), ("age",), ("sex", "site"), ("ill",)]
    mask = torch.cat([intervened(*names) for names in choices])
    targets = counterfactual_targets(GRAPH, mask, COUNTERFACTUAL.repeat(4, 1), PREDICTION.repeat(4, 1), "soft")
    for row, names in zip(targets, choices, strict=True):
        assert row.tolist() == pytest.approx(soft(*names))


def test_certain_predictions_make_soft_targets_hard() -> None:
    # The guide's prediction being the label, nothing is left of the difference.
    labels = COUNTERFACTUAL.clone()
    labels[0, 4] = 0.0  # sex before do(sex)
    both = [counterfactual_targets(GRAPH, intervened("sex"), COUNTERFACTUAL, labels, m) for m in ("hard", "soft")]
    assert torch.equal(both[0], both[1])


def test_no_gradient_reaches_the_factual_prediction() -> None:
    prediction = PREDICTION.clone().requires_grad_()
    for mode in ("hard", "soft"):
        targets = counterfactual_targets(GRAPH, intervened("sex"), COUNTERFACTUAL, prediction, mode)
        assert not targets.requires_grad


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="mode must be 'hard' or 'soft', got 'medium'"):
        counterfactual_targets(GRAPH, intervened("sex"), COUNTERFACTUAL, PREDICTION, "medium")


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
    targets = counterfactual_targets(graph, mask, counterfactual, prediction, "soft")
    for row, names in zip(targets, chosen, strict=True):
        affected = graph.affected_by(names)
        for variable in graph.variables:
            expected = 1.0 if variable.name in affected else 0.25
            assert row[graph.slices[variable.name]].tolist() == [expected] * variable.width
