"""What changed between an image and its counterfactual: attributes, pixels, and the classifier's predictions.

An attribute that the intervention cannot change is *marked* if the classifier's prediction of it changes nevertheless:
the probability of some category by more than :data:`MOVED`, or the predicted mean by more than that share of the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from softcft.graph import CausalGraph, Variable
from softcft.pipelines.result import DSCMPipelineOutput

__all__ = ["MOVED", "Bar", "Change", "another_value", "changes", "curves", "sweep_values"]

MOVED = 0.1
SWEEP_VALUES = 7

Role = Literal["do", "follows", "untouched"]


class Bar(NamedTuple):
    """The classifier's prediction of one category, or of a continuous variable.

    Attributes:
        label: The category; empty if the variable is continuous.
        before: On the factual image, the probability, or the place of the predicted mean in the range, in [0, 1].
        after: The same on the counterfactual.
        words: Both as text.
    """

    label: str
    before: float
    after: float
    words: str

    @property
    def shift(self) -> float:
        """The change, in [-1, 1]."""
        return self.after - self.before


class Change(NamedTuple):
    """One attribute before and after.

    Attributes:
        name: The variable.
        role: Intervened on, caused by a variable that is, or untouched.
        before: The factual value as text.
        after: The counterfactual value.
        bars: The classifier's predictions, if there is one; of a binary variable only of its second category.
    """

    name: str
    role: Role
    before: str
    after: str
    bars: tuple[Bar, ...]

    @property
    def is_marked(self) -> bool:
        """Whether the variable is untouched, and its prediction has changed by more than :data:`MOVED`."""
        return self.role == "untouched" and any(abs(bar.shift) > MOVED for bar in self.bars)


def changes(
    graph: CausalGraph, parents: Mapping[str, Any], do: Mapping[str, Any], output: DSCMPipelineOutput
) -> list[Change]:
    """Describe the first counterfactual of a pipeline's output, variable by variable.

    ``parents`` and ``do`` are the factual attributes and the intervention in natural units.
    """
    affected = graph.affected_by(set(do))
    described = []
    for variable in graph.variables:
        name = variable.name
        role: Role = "do" if name in do else "follows" if name in affected else "untouched"
        bars: tuple[Bar, ...] = ()
        if output.factual_predictions is not None and output.counterfactual_predictions is not None:
            before, after = output.factual_predictions[name][0], output.counterfactual_predictions[name][0]
            bars = _bars(variable, before, after)
        values = variable.in_words(parents[name]), variable.in_words(output.parents[name][0])
        described.append(Change(name, role, *values, bars))
    return described


def _bars(variable: Variable, before: Any, after: Any) -> tuple[Bar, ...]:
    if variable.kind == "continuous":
        words = f"{variable.in_words(before, with_unit=False)} → {variable.in_words(after)}"
        return (Bar("", _place(variable, before), _place(variable, after), words),)
    categories = variable.categories[1:] if variable.kind == "binary" else variable.categories
    return tuple(Bar(c, before[c], after[c], f"{100 * before[c]:.0f} → {100 * after[c]:.0f} %") for c in categories)


def _place(variable: Variable, value: float) -> float:
    """A value's place in the variable's range, in [0, 1], clamped."""
    low, high = variable.bounds
    return (variable.encode(min(max(value, low), high)).item() + 1) / 2


def sweep_values(variable: Variable) -> list[float]:
    """Values of a continuous variable from its low to its high, in equal steps of its encoding."""
    space = np.geomspace if variable.log else np.linspace
    return [float(v) for v in space(*variable.bounds, SWEEP_VALUES).clip(*variable.bounds)]


def another_value(variable: Variable, factual: Any) -> Any:
    """A value to begin an intervention with: another category, or a number on the other side of the range."""
    if variable.kind != "continuous":
        return next(category for category in variable.categories if category != factual)
    values = sweep_values(variable)
    return values[-2] if factual is None or factual < values[len(values) // 2] else values[1]


def curves(
    graph: CausalGraph, categories: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """The classifier's predictions along a sweep: for each variable one number in [0, 1] for each image.

    Args:
        graph: The causal graph.
        categories: For each discrete variable the category whose probability is wanted.
        predictions: For each image the predictions of all variables. Continuous ones become places in their ranges.
    """
    return {
        variable.name: [
            _place(variable, seen[variable.name])
            if variable.kind == "continuous"
            else seen[variable.name][categories[variable.name]]
            for seen in predictions
        ]
        for variable in graph.variables
    }
