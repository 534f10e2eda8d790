"""The rules of the verdict: what is good is told as good, and each fault as what it is."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from softcft.data.phantom import PHANTOM_GRAPH
from softcft.evaluation.tables import COLUMNS
from softcft.evaluation.verdict import (
    MARGINS,
    Status,
    Verdict,
    answer_training,
    in_short,
    reach_verdicts,
    training_rows,
)

NAN = float("nan")
ROW = tuple[str, str, str, str, str, str, float, float, float]
WORKS, STRENGTH, REST, TRUTH = range(4)
REAL = {"auc": 90.0, "mae": 5.0}


def results(*rows: ROW, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame([(table, "toy", seed, *rest, "subject") for table, *rest in rows], columns=COLUMNS)


def around(value: float, width: float) -> tuple[float, float, float]:
    return value, value - width, value + width


def measured(
    intervention: str = "sex", predictor: str = "judge", width: float = 0.01, cft: str = "soft", **changed: float
) -> list[ROW]:
    """A model without fault under an intervention, but for the named numbers: ``race__auc_change=-20``."""
    numbers: dict[str, float] = {}
    for variable in PHANTOM_GRAPH.variables:
        metrics = ("mae",) if variable.kind == "continuous" else ("auc", "logit")
        for metric in metrics:
            if metric in REAL:
                numbers[f"{variable.name}__{metric}"] = REAL[metric]
            if variable.name in PHANTOM_GRAPH.affected_by(intervention):
                numbers[f"{variable.name}__{metric}_excess"] = 0.0
            else:
                numbers[f"{variable.name}__" + ("logit_shift" if metric == "logit" else f"{metric}_change")] = 0.0
    rows: list[ROW] = []
    for key, value in (numbers | changed).items():
        name, metric = key.split("__")
        rows.append(("effectiveness", cft, intervention, name, predictor, metric, *around(value, width)))
    for variable in PHANTOM_GRAPH.variables:
        is_continuous = variable.kind == "continuous"
        metric, sight = ("mae", "skill") if is_continuous else ("auc", "auc")
        rows.append(("effectiveness", "real", "none", variable.name, predictor, metric, *around(REAL[metric], width)))
        rows.append(("sight", "real", "none", variable.name, predictor, sight, *around(0.8, 0.01)))
    return rows


def verdict(*rows: ROW) -> Verdict:
    (found,) = reach_verdicts(results(*rows), PHANTOM_GRAPH)
    return found


@pytest.mark.parametrize("intervention", PHANTOM_GRAPH.names)
def test_a_model_without_fault_is_told_as_good(intervention: str) -> None:
    answers = verdict(*measured(intervention)).answers
    assert {answer.status for answer in answers} == {Status.YES}


@pytest.mark.parametrize(
    ("intervention", "changed", "question"),
    [
        ("sex", {"sex__auc": 10.0, "sex__auc_excess": -80.0}, WORKS),
        ("sex", {"sex__auc": 50.0}, WORKS),  # the interval holds chance: see below for its status
        ("age", {"age__mae": 30.0, "age__mae_excess": 25.0}, WORKS),
        ("sex", {"sex__logit_excess": 2.0}, STRENGTH),
        ("sex", {"sex__auc_excess": -20.0}, STRENGTH),
        ("age", {"age__mae_excess": 2.0}, STRENGTH),
        ("age", {"age__mae_excess": -2.0}, STRENGTH),
        ("sex", {"race__logit_shift": 1.5}, REST),
        ("sex", {"race__auc_change": -20.0}, REST),
        ("sex", {"age__mae_change": -2.0}, REST),
    ],
)
def test_each_fault_is_told_and_named(intervention: str, changed: dict[str, float], question: int) -> None:
    answer = verdict(*measured(intervention, **changed)).answers[question]
    assert answer.status == (Status.UNKNOWN if changed.get("sex__auc") == 50 else Status.NO)
    assert next(iter(changed)).split("__")[0] in answer.sentence
    assert f"{next(iter(changed.values())):.3g}".lstrip("-") in answer.sentence


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("metric", ["auc", "logit"])
@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ((-0.5, 0.5), Status.YES),  # within the margin, in margins
        ((0.2, 0.9), Status.YES),  # small, though it does not hold 0
        ((-0.5, 1.5), Status.UNKNOWN),
        ((0.5, 1.5), Status.PARTLY),
        ((1.1, 1.5), Status.NO),
        ((NAN, NAN), Status.UNKNOWN),
    ],
)
def test_an_interval_is_compared_with_the_margin(
    ends: tuple[float, float], status: Status, metric: str, sign: int
) -> None:
    low, high = sorted(sign * end * MARGINS[metric] for end in ends)
    rows = [row for row in measured() if row[3:6] != ("sex", "judge", f"{metric}_excess")]
    middle = 0.0 if math.isnan(low) else (low + high) / 2
    rows.append(("effectiveness", "soft", "sex", "sex", "judge", f"{metric}_excess", middle, low, high))
    assert verdict(*rows).answers[STRENGTH].status == status


@pytest.mark.parametrize("name", PHANTOM_GRAPH.names)
def test_of_what_the_judge_does_not_see_nothing_is_told(name: str) -> None:
    rows = [row for row in measured(name) if row[:4] != ("sight", "real", "none", name)]
    kind = "skill" if PHANTOM_GRAPH[name].kind == "continuous" else "auc"
    rows.append(("sight", "real", "none", name, "judge", kind, 0.0, -0.1, 0.1))
    found = verdict(*rows)
    assert found.answers[WORKS].status == found.answers[STRENGTH].status == Status.UNKNOWN
    assert name in found.answers[WORKS].sentence


def test_the_guide_is_not_asked() -> None:
    fooled = {"sex__auc": 10.0, "sex__auc_excess": -80.0}
    alone = verdict(*measured(**fooled))
    assert verdict(*measured(**fooled), *measured(predictor="guide")).answers == alone.answers


@pytest.mark.parametrize(
    ("ratio", "status"),
    [(0.2, Status.YES), (0.8, Status.PARTLY), (1.0, Status.UNKNOWN), (4.0, Status.NO), (NAN, Status.UNKNOWN)],
)
def test_nearness_to_the_truth(ratio: float, status: Status) -> None:
    row = ("truth", "soft", "sex", "image", "", "faithfulness_ratio", *around(ratio, 0.05))
    assert verdict(*measured(), row).answers[TRUTH].status == status


def test_models_with_equal_numbers_are_told_once() -> None:
    rows = [row for cft in ("none", "soft", "matched") for row in measured(cft=cft) if row[1] == cft]
    real = [row for row in measured() if row[1] == "real"]
    assert verdict(*rows, *real).cfts == ("none", "soft", "matched")
    other = [row for row in measured(cft="hard", sex__auc=80.0) if row[1] == "hard"]
    both = reach_verdicts(results(*rows, *real, *other), PHANTOM_GRAPH)
    assert sorted(each.cfts for each in both) == [("hard",), ("none", "soft", "matched")]


def test_an_interval_holds_those_of_all_seeds() -> None:
    seeds = [results(*measured(sex__auc_excess=excess), seed=i) for i, excess in enumerate((-20.0, 20.0))]
    (found,) = reach_verdicts(pd.concat(seeds), PHANTOM_GRAPH)
    assert found.answers[STRENGTH].status == Status.UNKNOWN


@pytest.mark.parametrize(
    ("taken", "planned", "status"),
    [(6000, 6000, Status.YES), (2000, 6000, Status.PARTLY), (300, 6000, Status.NO), (50, 50, Status.NO)],
)
def test_a_model_that_is_barely_trained_is_told(tmp_path, taken: int, planned: int, status: Status) -> None:
    (tmp_path / "hvae").mkdir()
    records = [{"step": step} for step in (0, taken // 2, taken)]
    (tmp_path / "hvae" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = training_rows(tmp_path, {"hvae": {"max_train_steps": planned}, "diffusion": {"max_train_steps": 1}}, 100)
    metrics = rows.assign(table="training", dataset="toy", seed=0, cft="none", resampled="subject")
    (answer,) = answer_training(metrics[list(COLUMNS)])
    assert answer.status == status
    assert str(taken) in answer.sentence


def test_fewer_steps_for_few_images_are_enough(tmp_path: Path) -> None:
    (tmp_path / "hvae").mkdir()
    (tmp_path / "hvae" / "metrics.jsonl").write_text('{"step": 1500}\n')
    settings = {"hvae": {"max_train_steps": 6000, "max_train_epochs": 300, "train_batch_size": 32}}
    rows = training_rows(tmp_path, settings, 160)
    assert rows.set_index("metric")["value"].to_dict() == {"steps": 1500, "steps_planned": 1500}


def test_a_terminal_is_told_what_does_not_work() -> None:
    found = verdict(*measured(sex__auc=11.7))
    lines = in_short([found], [])
    assert any("do(sex)" in line and "11.7" in line for line in lines)
    assert not any("11.7" in line for line in in_short([verdict(*measured())], []))
