"""The verdict of a report: plain answers to a few questions of each intervention and model, by fixed rules.

All answers are the judge's, a classifier that had no part in fine-tuning, and never the guide's. Of a variable that the
judge does not see (:mod:`softcft.models.sight`) nothing can be told. The questions are asked so that *yes* is good:

* *Does it work?* Of a discrete variable the judge's AUC with the new values as labels: its 95 % interval is above 50
  (yes), below or at 50 (no), or holds 50 (cannot tell). Of a continuous variable its error in place of the AUC, and
  that of a constant guess in place of 50. *Partly* where it works, but the judge sees less than in real images.
* *As strong as in reality?* Of the variable and of all that follow from it, the differences from real images with the
  same attributes (``auc_excess``, ``logit_excess``, ``mae_excess``).
* *Leaves the rest alone?* Of all other variables the same differences where they are known, and else the changes from
  the images that the counterfactuals were made of (``auc_change``, ``logit_shift``, ``mae_change``).
* *Near the truth?* Where true counterfactuals are known: the error as a share of that which leaving the image alone
  makes (``faithfulness_ratio``). No from 1 on, yes below :data:`NEAR`, partly between.

A difference is compared with its margin (:data:`MARGINS`): *yes* if its whole interval is within the margin on both
sides, *cannot tell* if it holds 0 but leaves the margin, *no* if it is wholly outside, and else *partly*. The worst
answer of all variables and metrics counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from softcft.cft import CFT_NAMES
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph
from softcft.models.sight import Sight

__all__ = [
    "MARGINS",
    "NEAR",
    "Answer",
    "Status",
    "Verdict",
    "answer_training",
    "in_short",
    "reach_verdicts",
    "training_rows",
]

MARGINS = {"auc": 5.0, "logit": 0.5, "mae": 0.1}
"""The largest differences that are none, of AUC in percentage points, of log-odds in nats, of errors as a share of that
on real images."""
NEAR = 0.5
"""Share of the error of an untouched image below which a counterfactual is near the truth."""
ENOUGH, BARELY = 0.5, 0.1
"""Shares of the steps of the settings: at least the first is enough, less than the second is barely trained."""
TRIAL = 100
"""Optimizer steps that are a trial, whatever the settings say."""
CHANCE = 50.0
IMAGE_MODELS = ("hvae", "diffusion")


class Status(StrEnum):
    """An answer in a word."""

    YES = "yes"
    UNKNOWN = "cannot tell"
    PARTLY = "partly"
    NO = "no"


ORDER = tuple(Status)  # from the best to the worst


class Answer(NamedTuple):
    """An answer to one question."""

    question: str
    status: Status
    sentence: str  #: with the numbers it rests on


@dataclass(frozen=True)
class Verdict:
    """The answers of one intervention.

    Attributes:
        intervention: The variable that was set.
        cfts: The models, by fine-tuning: several if all their numbers are the same, as they are after a fine-tuning
            that was refused.
        answers: To all questions that can be asked of it.
    """

    intervention: str
    cfts: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def models(self) -> str:
        """Whose verdict it is, in words."""
        names = ", ".join(CFT_NAMES[cft] for cft in self.cfts)
        return f"{names} (the same model)" if len(self.cfts) > 1 else names


class Estimate(NamedTuple):
    """A number and its 95 % interval, over all seeds: NaN where there is none."""

    value: float
    low: float
    high: float


def reach_verdicts(metrics: pd.DataFrame, graph: CausalGraph) -> list[Verdict]:
    """Answer the questions of all interventions and models.

    Args:
        metrics: Tidy results of one data set, see :mod:`softcft.evaluation.tables`. With several seeds the interval of
            a number is the one that holds those of all, and what one judge does not see counts as not seen.
        graph: Its causal graph.

    Returns:
        By intervention, in the order of the graph; of each the models.
    """
    blind = _unseen(metrics[(metrics["table"] == "sight") & (metrics["predictor"] == "judge")])
    skills = _estimates(metrics[(metrics["table"] == "sight") & (metrics["predictor"] == "judge")])
    seen = _estimates(metrics[(metrics["table"] == "effectiveness") & (metrics["predictor"] == "judge")])
    truth = _estimates(metrics[(metrics["table"] == "truth") & (metrics["metric"] == "faithfulness_ratio")])
    verdicts = []
    for intervention in graph.names:
        for cfts in _same_models(metrics[metrics["intervention"] == intervention]):
            numbers = {key[2:]: estimate for key, estimate in seen.items() if key[:2] == (cfts[0], intervention)}
            judged = Judged(graph, blind, numbers, {key[2:]: x for key, x in seen.items() if key[0] == "real"})
            skill = skills.get(("real", "none", intervention, "skill"))
            answers = [judged.works(intervention, skill), judged.strength(intervention), judged.rest(intervention)]
            ratio = truth.get((cfts[0], intervention, "image", "faithfulness_ratio"))
            answers += [_nearness(ratio)] if ratio else []
            verdicts.append(Verdict(intervention, cfts, tuple(answer for answer in answers if answer)))
    return verdicts


def training_rows(run: Path, sections: Mapping[str, Any], num_train: int) -> pd.DataFrame:
    """How long the image models of a run were trained, and how long its settings say.

    Args:
        run: Its folder.
        sections: Its settings.
        num_train: The number of training images, by which ``max_train_epochs`` is a number of steps.

    Returns:
        The columns :data:`~softcft.evaluation.tables.RESULT`, with the metrics ``steps`` and ``steps_planned`` of the
        variable ``hvae`` or ``diffusion``. A model that was not trained in this folder has no rows.
    """
    rows = []
    for model in IMAGE_MODELS:
        path, settings = run / model / "metrics.jsonl", sections.get(model) or {}
        if path.is_file() and (planned := settings.get("max_train_steps")):
            if epochs := settings.get("max_train_epochs"):
                batch = settings.get("train_batch_size", 1) * settings.get("gradient_accumulation_steps", 1)
                planned = min(planned, math.ceil(epochs * num_train / batch))
            taken = max((json.loads(line)["step"] for line in path.read_text().splitlines()), default=0)
            numbers = {"steps": taken, "steps_planned": planned}
            rows += [("none", model, "", metric, value, math.nan, math.nan) for metric, value in numbers.items()]
    return pd.DataFrame(rows, columns=RESULT)


def answer_training(metrics: pd.DataFrame) -> list[Answer]:
    """Whether image models were trained enough, by the rows of the table ``training``; of the worst seed."""
    rows = metrics[metrics["table"] == "training"]
    answers = []
    for model, group in rows.groupby("variable", sort=False):
        pairs = group.pivot(index="seed", columns="metric", values="value")
        pairs = pairs.loc[[(pairs["steps"] / pairs["steps_planned"]).idxmin()]]
        taken, planned = int(pairs["steps"].iloc[0]), int(pairs["steps_planned"].iloc[0])
        sentence = f"The image model ({model}) was trained for {taken} of the {planned} steps of the settings."
        status = Status.YES if taken >= ENOUGH * planned else Status.PARTLY
        if taken <= TRIAL or taken < BARELY * planned:
            status = Status.NO
            sentence = f"{sentence[:-1]}: it is barely trained, and no number here says what the method can do."
        answers.append(Answer("Trained enough?", status, sentence))
    return answers


def in_short(verdicts: Iterable[Verdict], training: Iterable[Answer]) -> list[str]:
    """The verdicts for a terminal: a line each, and below it the sentences of every *no*."""
    lines = [f"{answer.question} {answer.status}. {answer.sentence}" for answer in training]
    for verdict in verdicts:
        words = " ".join(f"{answer.question} {answer.status}." for answer in verdict.answers)
        lines.append(f"do({verdict.intervention}), {verdict.models}: {words}")
        lines += [f"    {answer.sentence}" for answer in verdict.answers if answer.status == Status.NO]
    return lines


class Judged:
    """What the judge saw of one intervention on one model, and the answers that follow.

    Args:
        graph: The causal graph.
        blind: The variables that the judge does not see.
        numbers: By variable and metric, of the counterfactuals.
        real: The same of the real images.
    """

    def __init__(
        self,
        graph: CausalGraph,
        blind: Collection[str],
        numbers: Mapping[tuple[str, ...], Estimate],
        real: Mapping[tuple[str, ...], Estimate],
    ) -> None:
        self.graph, self.blind, self.numbers, self.real = graph, blind, numbers, real

    def works(self, name: str, skill: Estimate | None) -> Answer:
        """Whether the judge sees the new value; of a continuous variable by its skill on real images."""
        question, do = "Does it work?", f"do({name})"
        is_continuous = self.graph[name].kind == "continuous"
        metric = "mae" if is_continuous else "auc"
        found, real = self.numbers.get((name, metric)), self.real.get((name, metric))
        if name in self.blind:
            return Answer(question, Status.UNKNOWN, f"The judge does not see {name}.")
        if found is None or real is None or math.isnan(found.low + found.high):
            return Answer(question, Status.UNKNOWN, f"There is no interval of what the judge sees of {name}.")
        if is_continuous:
            if skill is None:
                return Answer(question, Status.UNKNOWN, f"It was not measured how well the judge sees {name}.")
            limit = real.value / (1 - skill.value) if skill.value < 1 else math.inf
            margin = limit - found.high, limit - found.low
            unit = f" {self.graph[name].unit}".rstrip()
            numbers = (
                f"error {_with_interval(found, '.3g')}{unit}; a constant guess has about {limit:.3g}, in real images "
            )
            numbers += f"it is {real.value:.3g}"
        else:
            margin = found.low - CHANCE, found.high - CHANCE
            numbers = (
                f"AUC {_with_interval(found, '.1f')}; {CHANCE:.0f} is chance, in real images it is {real.value:.1f}"
            )
        if margin[1] <= 0:
            return Answer(question, Status.NO, f"{do} does not work: {numbers}.")
        if margin[0] <= 0:
            return Answer(question, Status.UNKNOWN, f"{do} may be without effect: {numbers}.")
        excess = self.numbers.get((name, f"{metric}_excess"))
        if excess and self._compare(name, metric, excess) == Status.NO and (excess.value > 0) == is_continuous:
            text = f"The judge sees the new {name}, but less than in real images with the same attributes: {numbers}."
            return Answer(question, Status.PARTLY, text)
        return Answer(question, Status.YES, f"The judge sees the new {name}: {numbers}.")

    def strength(self, name: str) -> Answer:
        """Whether the variable and its descendants are as clear as in real images with the same attributes."""
        moved = [other for other in self.graph.names if other in self.graph.affected_by(name)]
        words = "{} is too strong", "{} is too weak", "As in real images with the same attributes"
        return self._differences("As strong as in reality?", moved, words)

    def rest(self, name: str) -> Answer | None:
        """Whether all other variables are left alone; None if there are no others."""
        others = [other for other in self.graph.names if other not in self.graph.affected_by(name)]
        words = "{} is amplified", "{} becomes harder to see", "No change seen"
        return self._differences("Leaves the rest alone?", others, words) if others else None

    def _differences(self, question: str, names: Sequence[str], words: tuple[str, str, str]) -> Answer:
        up, down, same = words
        by_status: dict[Status, list[str]] = {status: [] for status in reversed(ORDER)}
        unseen = [name for name in names if name in self.blind]
        calm = []
        for name in (name for name in names if name not in self.blind):
            status, metric, found = self._worst(name)
            numbers = self._words(name, metric, found) if found else "it was not measured"
            if status == Status.YES and found and found.low <= 0 <= found.high:
                calm.append(name)
            elif status == Status.UNKNOWN:
                by_status[status].append(f"{name} is uncertain: {numbers}.")
            elif found:
                is_more = (found.value > 0) != (metric == "mae")  # an error is larger where less is seen
                amount = "A little: " if status == Status.YES else ""
                by_status[status].append(f"{amount}{(up if is_more else down).format(name)}: {numbers}.")
        if calm:
            by_status[Status.YES].append(f"{same}: {', '.join(calm)}.")
        if unseen:
            by_status[Status.UNKNOWN].append(f"The judge does not see {', '.join(unseen)}.")
        worst = next(status for status, sentences in by_status.items() if sentences)
        return Answer(question, worst, " ".join(sentence for each in by_status.values() for sentence in each))

    def _worst(self, name: str) -> tuple[Status, str, Estimate | None]:
        """The metric of a variable with the worst answer, the first of those that are equally bad."""
        metrics = ("mae",) if self.graph[name].kind == "continuous" else ("auc", "logit")
        answers = []
        for metric in metrics:
            change = "logit_shift" if metric == "logit" else f"{metric}_change"
            found = self.numbers.get((name, f"{metric}_excess"), self.numbers.get((name, change)))
            if found:
                answers.append((self._compare(name, metric, found), metric, found))
        return max(answers, key=lambda answer: ORDER.index(answer[0]), default=(Status.UNKNOWN, "", None))

    def _compare(self, name: str, metric: str, found: Estimate) -> Status:
        """A difference against its margin."""
        margin = MARGINS[metric]
        if metric == "mae":
            real = self.real.get((name, "mae"))
            margin *= real.value if real else math.nan
        if math.isnan(found.low + found.high + margin):
            return Status.UNKNOWN
        if max(-found.low, found.high) <= margin:
            return Status.YES
        if found.low <= 0 <= found.high:
            return Status.UNKNOWN
        return Status.NO if min(abs(found.low), abs(found.high)) > margin else Status.PARTLY

    def _words(self, name: str, metric: str, found: Estimate) -> str:
        """A difference with its unit."""
        if metric == "mae":
            return f"error {_with_interval(found, '+.3g')} {self.graph[name].unit}".rstrip()
        return (
            f"AUC {_with_interval(found, '+.1f')} points"
            if metric == "auc"
            else f"log-odds {_with_interval(found, '+.2f')} nats"
        )


def _nearness(ratio: Estimate) -> Answer:
    question, numbers = "Near the truth?", f"{_with_interval(ratio, '.2f')} times the error of the untouched image"
    if math.isnan(ratio.low + ratio.high) or ratio.low < 1 <= ratio.high:
        return Answer(question, Status.UNKNOWN, f"Against the true counterfactual: {numbers}.")
    if ratio.low >= 1:
        return Answer(question, Status.NO, f"The untouched image is nearer to the true counterfactual: {numbers}.")
    status = Status.YES if ratio.high < NEAR else Status.PARTLY
    return Answer(question, status, f"Nearer to the true counterfactual than the untouched image: {numbers}.")


def _with_interval(found: Estimate, form: str) -> str:
    """A number with its interval."""
    if math.isnan(found.low + found.high):
        return f"{found.value:{form}} (no interval)"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _estimates(rows: pd.DataFrame) -> dict[tuple[str, ...], Estimate]:
    """By cft, intervention, variable and metric: the mean of the seeds, and the interval that holds those of all."""
    groups = rows.groupby(["cft", "intervention", "variable", "metric"], sort=False)
    frame = groups.agg(value=("value", "mean"), low=("low", "min"), high=("high", "max"))
    return {tuple(map(str, key)): Estimate(*numbers) for key, *numbers in frame.itertuples()}


def _unseen(sight: pd.DataFrame) -> frozenset[str]:
    """The variables that the judge of a seed does not see."""
    numbers = zip(sight["variable"], sight["metric"], sight["value"], sight["low"], sight["high"], strict=True)
    return frozenset(
        name
        for name, metric, *found in numbers
        if not Sight(metric, *(None if math.isnan(x) else x for x in found)).is_seen
    )


def _same_models(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The models that an intervention was evaluated on; those whose numbers are all the same are one."""
    effects = rows[rows["table"] == "effectiveness"]
    groups: dict[tuple[object, ...], list[str]] = {}
    for cft in (cft for cft in CFT_NAMES if cft in set(effects["cft"])):
        mine = effects[effects["cft"] == cft].sort_values(["seed", "variable", "predictor", "metric"])
        numbers = mine[["seed", "variable", "predictor", "metric", "value"]].itertuples(index=False, name=None)
        groups.setdefault(tuple(numbers), []).append(cft)
    return [tuple(cfts) for cfts in groups.values()]
