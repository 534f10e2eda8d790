"""Decides whether fine-tuning has become an attack on the guide, from what a watcher saw on the way.

Fine-tuning changes images until the guide sees what it should. Another classifier, the *watcher*, compares the same
counterfactuals with real images from time to time. Such a look finds an attack if the guide's loss is lower than at the
best look, and one of two things holds:

* the watcher's loss is higher than at the best look, by more than two standard errors over the same images;
* the watcher's embeddings of the counterfactuals are far from those of real images with the same attributes: their
  Fréchet distance is more than twice that of such real images from each other, and more than before fine-tuning.

The best look is that with the watcher's lowest loss, among those whose images are not far from real ones. Its model is
saved. After three looks in a row that found an attack fine-tuning ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["WATCH", "Seen", "Verdict", "best_look", "is_attack", "is_lost", "reach_verdict", "read_sentence"]

WATCH = "watch.json"
"""In the folder of a fine-tuned pipeline: the verdict, and all that it rests on."""
STANDARD_ERRORS = 2
FAR = 2
"""Times the distance of real images from each other."""
PATIENCE = 3
"""Looks in a row that find an attack before fine-tuning ends."""


@dataclass(frozen=True)
class Seen:
    """What was seen at one look. All looks are at counterfactuals of the same images under the same interventions.

    Attributes:
        step: Optimizer steps taken; 0 is the pretrained model.
        guide: The guide's guidance loss of each image, in nats.
        watcher: The watcher's, against targets of its own.
        change: Mean absolute change of each image, in grey levels of 255.
        frechet: Fréchet distance of the counterfactuals from real images with the same attributes, in the watcher's
            embeddings.
        floor: That of other such real images from them.
    """

    step: int
    guide: list[float]
    watcher: list[float]
    change: list[float]
    frechet: float
    floor: float

    def means(self) -> dict[str, float]:
        """The same as means over the images."""
        lists = {"guide": self.guide, "watcher": self.watcher, "change": self.change}
        return {name: sum(values) / len(values) for name, values in lists.items()} | {
            "frechet": self.frechet,
            "floor": self.floor,
        }


@dataclass(frozen=True)
class Verdict:
    """The verdict on a fine-tuning.

    Attributes:
        step_saved: The step whose model is saved.
        steps: Steps taken; fewer than planned where fine-tuning ended early.
        is_attack: Whether fine-tuning became an attack on the guide.
        sentence: That in words, with the numbers.
    """

    step_saved: int
    steps: int
    is_attack: bool
    sentence: str

    def to_json(self, looks: Sequence[Seen]) -> str:
        """The content of ``watch.json``: the verdict, and under ``looks`` all that was seen."""
        return json.dumps(asdict(self) | {"looks": [asdict(look) | {"means": look.means()} for look in looks]})


def best_look(looks: Sequence[Seen]) -> Seen | None:
    """The first of those with the watcher's lowest mean loss whose images are not far from real ones.

    None if the loss was never a number.
    """
    known = [look for look in looks if not math.isnan(look.means()["watcher"]) and not _is_far(looks, look)]
    return min(known, key=lambda look: look.means()["watcher"]) if known else None


def is_attack(looks: Sequence[Seen]) -> bool:
    """Whether the last look found an attack on the guide.

    Args:
        looks: By step; at least two images each.
    """
    best, last = best_look(looks), looks[-1]
    if best is None or not last.means()["guide"] < best.means()["guide"]:
        return False
    rise, error = _paired(best.watcher, last.watcher)
    return _is_far(looks, last) or not rise <= STANDARD_ERRORS * error


def _is_far(looks: Sequence[Seen], look: Seen) -> bool:
    return look.frechet > max(FAR * look.floor, looks[0].frechet)


def is_lost(looks: Sequence[Seen]) -> bool:
    """Whether fine-tuning ends here: each of the last three looks found an attack."""
    return len(looks) > PATIENCE and all(is_attack(looks[: len(looks) - i]) for i in range(PATIENCE))


def reach_verdict(looks: Sequence[Seen]) -> Verdict:
    """Judge a fine-tuning.

    Args:
        looks: By step, the last step among them; at least two images each.

    Raises:
        ValueError: If there are no looks.
    """
    if not looks:
        raise ValueError("looks is empty.")
    last, best = looks[-1], best_look(looks)
    if best is None:
        sentence = f"The watcher's loss was never a number, so the model of the last step ({last.step}) is saved."
        return Verdict(last.step, last.step, False, sentence)
    then, now = best.means(), last.means()
    attack = is_attack(looks)
    if attack:
        rise, error = _paired(best.watcher, last.watcher)
        what = (
            f"Fine-tuning became an attack on the guide: from step {best.step} to step {last.step} the guide's loss on "
            f"validation counterfactuals fell from {then['guide']:.3g} to {now['guide']:.3g} nats. But the loss of the "
            "watcher, a classifier that had no part in it and compares with real images, went from "
            f"{then['watcher']:.3g} to {now['watcher']:.3g} ({rise:+.2g} ± {error:.1g}); the Fréchet distance from "
            f"real images with the same attributes from {then['frechet']:.3g} to {now['frechet']:.3g} (theirs from "
            f"each other is {now['floor']:.3g}); and the mean change of the images from {then['change']:.3g} to "
            f"{now['change']:.3g} grey levels."
        )
    else:
        first = looks[0].means()
        what = (
            f"The watcher, a classifier that had no part in fine-tuning, found counterfactuals of validation images "
            f"best after step {best.step} of {last.step}: its loss was {first['watcher']:.3g} nats before fine-tuning, "
            f"{then['watcher']:.3g} then and {now['watcher']:.3g} at the end."
        )
    saved = f"The model of step {best.step} is saved."
    if best.step == 0:
        is_lower = any(look.means()["watcher"] < then["watcher"] for look in looks)
        why = "Images of all later models are far from real ones" if is_lower else "The watcher saw no improvement"
        saved = f"{why}: the pretrained model is saved, untouched."
    ended = " Fine-tuning ended there." if is_lost(looks) else ""
    return Verdict(best.step, last.step, attack, f"{what}{ended} {saved}")


def read_sentence(folder: str | Path) -> str | None:
    """The verdict on the fine-tuning of a saved pipeline in words; None if it had no watcher.

    Raises:
        ValueError: If ``watch.json`` is damaged.
    """
    path = Path(folder, WATCH)
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sentence"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what soft_cft.py writes ({error!r}): delete it, or fine-tune anew.") from error


def _paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The mean difference of the same images, and its standard error."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((x - mean) ** 2 for x in differences) / (len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))
