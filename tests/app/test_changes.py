"""What the app says of an answer: roles, bars, the marking rule, effect maps, sweeps."""

from typing import Any

import numpy as np
import pytest

from softcft import CausalGraph, Variable
from softcft.app.changes import (
    MOVED,
    Change,
    changes,
    curves,
    sweep_values,
)
from softcft.pipelines.effects import EFFECT_LIMIT, effect_colours
from softcft.pipelines.result import DSCMPipelineOutput

GRAPH = CausalGraph(
    [
        Variable(name="age", kind="continuous", low=20, high=90, unit="years"),
        Variable(name="dose", kind="continuous", low=0.1, high=1000, log=True, unit="mg"),
        Variable(name="ill", kind="binary", categories=("no", "yes"), parents=("age",)),
        Variable(name="site", kind="categorical", categories=("a", "b", "c")),
    ]
)
PARENTS = {"age": 50.0, "dose": 10.0, "ill": "no", "site": "a"}
SEEN = {"age": 50.0, "dose": 10.0, "ill": {"no": 0.9, "yes": 0.1}, "site": {"a": 0.8, "b": 0.1, "c": 0.1}}


def describe(do: dict[str, Any], values: dict[str, Any] | None = None, **seen: Any) -> dict[str, Change]:
    """The changes if the counterfactual has those values, and the classifier sees that in it."""
    parents = {name: [value] for name, value in (PARENTS | do | (values or {})).items()}
    output = DSCMPipelineOutput(
        images=[],
        parents=parents,
        factual_predictions={name: [value] for name, value in SEEN.items()},
        counterfactual_predictions={name: [value] for name, value in (SEEN | seen).items()},
    )
    return {change.name: change for change in changes(GRAPH, PARENTS, do, output)}


def test_roles_follow_from_the_graph() -> None:
    changed = describe({"age": 80.0}, {"ill": "yes"})
    assert {name: change.role for name, change in changed.items()} == {
        "age": "do",
        "ill": "follows",
        "dose": "untouched",
        "site": "untouched",
    }
    assert (changed["age"].before, changed["age"].after) == ("50 years", "80 years")
    assert (changed["ill"].before, changed["ill"].after) == ("no", "yes")
    assert not any(change.is_marked for change in changed.values())


@pytest.mark.parametrize(("shift", "is_marked"), [(MOVED - 0.01, False), (MOVED + 0.01, True), (-MOVED - 0.01, True)])
def test_an_untouched_attribute_is_marked_where_its_probability_moves(shift: float, is_marked: bool) -> None:
    site = {"a": 0.8 - shift, "b": 0.1 + shift, "c": 0.1}
    assert describe({"ill": "yes"}, site=site)["site"].is_marked == is_marked


@pytest.mark.parametrize(("part", "is_marked"), [(MOVED - 0.01, False), (MOVED + 0.01, True)])
def test_a_continuous_one_by_the_part_of_its_range(part: float, is_marked: bool) -> None:
    """That of the logarithm, where it has one."""
    age = 50 + part * 70
    dose = 10 * (1000 / 0.1) ** part
    assert describe({"ill": "yes"}, age=age)["age"].is_marked == is_marked
    assert describe({"ill": "yes"}, dose=dose)["dose"].is_marked == is_marked


def test_what_an_intervention_may_move_is_never_marked() -> None:
    changed = describe({"age": 80.0}, age=85.0, ill={"no": 0.1, "yes": 0.9})
    assert not changed["age"].is_marked
    assert not changed["ill"].is_marked


def test_bars_are_probabilities_and_places_in_the_range() -> None:
    changed = describe({"age": 80.0}, age=130.0, ill={"no": 0.25, "yes": 0.75})
    (age,), (ill,), site = changed["age"].bars, changed["ill"].bars, changed["site"].bars
    assert (age.before, age.after) == (pytest.approx(30 / 70), 1.0)  # beyond an end is at that end
    assert age.words == "50 → 130 years"
    assert (ill.label, ill.before, ill.after, ill.words) == ("yes", 0.1, 0.75, "10 → 75 %")
    assert [bar.label for bar in site] == ["a", "b", "c"]


def test_without_a_classifier_there_are_no_bars_and_no_marks() -> None:
    output = DSCMPipelineOutput(images=[], parents={name: [value] for name, value in PARENTS.items()})
    for change in changes(GRAPH, PARENTS, {"ill": "no"}, output):
        assert change.bars == ()
        assert not change.is_marked


def test_effects_are_red_where_brighter_and_blue_where_darker() -> None:
    effect = np.zeros((2, 2, 3))
    effect[0, 0], effect[0, 1], effect[1, 0] = EFFECT_LIMIT, -EFFECT_LIMIT, 1.0
    colours = effect_colours(effect).astype(int)
    assert colours.shape == (2, 2, 3)
    assert colours[0, 0, 0] > colours[0, 0, 2]
    assert colours[0, 1, 2] > colours[0, 1, 0]
    assert (colours[1, 0] == colours[0, 0]).all()  # beyond the scale is its end
    assert (colours[1, 1] == 255).all()


def test_a_sweep_covers_the_range_and_nothing_else() -> None:
    for name in ("age", "dose"):
        values = sweep_values(GRAPH[name])
        GRAPH[name].encode(values)  # refuses what is out of range
        assert (values[0], values[-1]) == pytest.approx((GRAPH[name].low, GRAPH[name].high))
        steps = GRAPH[name].encode(values)[:, 0].diff().tolist()
        assert steps == pytest.approx([steps[0]] * len(steps), abs=1e-5)


def test_curves_are_probabilities_of_the_wanted_category() -> None:
    rows = [SEEN, {**SEEN, "ill": {"no": 0.2, "yes": 0.8}}]
    lines = curves(GRAPH, {"ill": "yes", "site": "b"}, rows)
    assert lines["ill"] == [0.1, 0.8]
    assert lines["site"] == [0.1, 0.1]
    assert lines["age"] == pytest.approx([30 / 70] * 2)
