"""Which attributes a classifier sees in images, measured on validation images.

A guide that does not see an attribute still has a gradient for it, and an image model that follows it learns patterns
that no real image has. So fine-tuning leaves out what the guide does not see.

An attribute is *seen* if the lower end of the 95 % interval of its metric is above its margin (:data:`MARGINS`):

* ``auc`` of a binary or categorical variable, the area under the ROC curve, from 0 to 1; 0.5 is chance. Of more than
  two categories the mean of each against the rest.
* ``skill`` of a continuous variable, 1 - (root mean squared error) / (standard deviation of the values): by which share
  the error is smaller than that of the best constant.

:mod:`softcft.evaluation.sight` measures them. A variable that was not measured, as in classifiers of earlier versions,
counts as seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softcft.arguments import check_choice, check_number, shown

if TYPE_CHECKING:
    from softcft.models.classifier import AttributeClassifier

__all__ = ["MARGINS", "Sight", "not_seen", "read_sight", "seen_by_some", "unseen_by_some"]

MARGINS = {"auc": 0.55, "skill": 0.005}
"""What the lower end of the interval must exceed. With an AUC of 0.55 or less a gradient is mostly noise. A skill of
0.005 is a correlation of 0.1, which between two equal groups is an AUC of 0.55."""


@dataclass(frozen=True)
class Sight:
    """How well a classifier sees one variable in images that it has not learned.

    Attributes:
        metric: ``auc`` or ``skill``, see the module's docstring.
        value: The metric, at most 1; None if no image could tell.
        low: Lower end of its 95 % interval over subjects; None if there are too few subjects for one.
        high: Its upper end.

    Raises:
        ValueError: If the metric is unknown, or a number is none or above 1.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, tuple(MARGINS))
        for name in ("value", "low", "high"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), most=1)

    @property
    def is_seen(self) -> bool:
        """Whether the lower end of the interval is above the margin."""
        return self.low is not None and self.low > MARGINS[self.metric]

    def __str__(self) -> str:
        if self.value is None:
            return "too few validation images to measure it"
        # Skill is written as the error's share of that of a constant guess, which is never negative.
        is_error = self.metric == "skill"
        value, low, high, margin = (
            None if x is None else 100 * (1 - x if is_error else x)
            for x in (self.value, self.low, self.high, MARGINS[self.metric])
        )
        text = f"validation error {value:.1f} % of a constant guess's" if is_error else f"validation AUC {value:.1f} %"
        ends = [f"{end:.1f}" for end in (low, high) if end is not None]
        interval = f" ({' to '.join(ends[::-1] if is_error else ends)})" if ends else ", of too few subjects to tell"
        return f"{text}{interval}, margin {margin:g} %"


def read_sight(names: Sequence[str], sees: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Sight]:
    """Read ``sees`` of a classifier's settings.

    Args:
        names: The variables.
        sees: For each of them ``metric``, ``value``, ``low`` and ``high`` of :class:`Sight`; None if not measured.

    Returns:
        By the variable's name; empty if it was not measured.

    Raises:
        ValueError: If other variables are named, or an entry is invalid.
    """
    if sees is None:
        return {}
    if not isinstance(sees, Mapping) or set(sees) != set(names):
        raise ValueError(f"sees must name the variables {list(names)}, got {shown(sees)}.")
    fields = set(Sight.__dataclass_fields__)
    for name, entry in sees.items():
        if not isinstance(entry, Mapping) or set(entry) != fields:
            raise ValueError(f"sees[{name!r}] must have {sorted(fields)}, got {shown(entry)}.")
    read = {}
    for name in names:
        try:
            read[name] = Sight(**sees[name])
        except ValueError as error:
            raise ValueError(f"sees[{name!r}]: {error}") from error
    return read


def not_seen(sight: Mapping[str, Sight], predictor: str = "guide") -> dict[str, str]:
    """A warning for each variable that a classifier does not see.

    Args:
        sight: By the variable's name; variables that were not measured may be left out.
        predictor: ``guide``, ``guide_2`` and so on, or another role, such as ``judge``.
    """
    if predictor == "guide":
        consequence = "softcft cannot change {name} in these images: the guide does not see it: {entry}."
    elif predictor.startswith("guide"):
        number = predictor.removeprefix("guide_")
        consequence = f"Guide number {number} does not see {{name}}, and is not asked for it: {{entry}}."
    else:
        consequence = f"What the {predictor} says of {{name}} means little, for it does not see it: {{entry}}."
    return {name: consequence.format(name=name, entry=entry) for name, entry in sight.items() if not entry.is_seen}


def unseen_by_some(guides: Sequence[AttributeClassifier]) -> dict[str, str]:
    """A warning for each variable that not all guides, classifiers of one graph, see."""
    if len(guides) == 1:
        return not_seen(guides[0].sight)
    warnings = {}
    for name in guides[0].causal_graph.names:
        blind = [str(guide.sight[name]) for guide in guides if name not in guide.seen]
        if len(blind) == len(guides):
            warnings[name] = f"softcft cannot change {name} in these images: no guide sees it: {'; '.join(blind)}."
        elif blind:
            what = f"{len(blind)} of {len(guides)} guides do not see {name}, and are not asked for it"
            warnings[name] = f"{what}: {'; '.join(blind)}."
    return warnings


def seen_by_some(guides: Sequence[AttributeClassifier]) -> tuple[str, ...]:
    """The variables that at least one guide sees, in the order of the graph; ValueError if there is none."""
    seen = tuple(name for name in guides[0].causal_graph.names if any(name in guide.seen for guide in guides))
    if not seen:
        reasons = " ".join(unseen_by_some(guides).values())
        raise ValueError(
            f"The guide sees no variable in validation images, so there is nothing to fine-tune by. {reasons} Train "
            "the guide for longer, on more or larger images; give more validation images (num_validation); or do "
            "without fine-tuning (cft none)."
        )
    return seen
