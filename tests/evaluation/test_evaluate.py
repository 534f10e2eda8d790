"""Evaluation from Python. What it measures is tested with its parts; the whole table with recipes/evaluate.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import DatasetDict

import softcft
from softcft import AttributeClassifier, DSCMPipeline
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.evaluation.tables import COLUMNS
from tests.recipes.small_pipeline import make_pipeline

SETTINGS = {"interventions": ["sex"], "num_resamples": 0, "axiom_images": 2, "eval_batch_size": 16}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetDict:
    return load_phantom(16, 2, 48, 40, cache_dir=str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DSCMPipeline]:
    """Makes pipelines with random weights, by seed."""
    folder = tmp_path_factory.mktemp("pipelines")
    return lambda seed, **parts: DSCMPipeline.from_pretrained(make_pipeline(folder / str(seed), seed), **parts)


@pytest.fixture(scope="module")
def judge(make: Callable[..., DSCMPipeline]) -> AttributeClassifier:
    return make(9).classifier


def test_the_table_has_the_results_of_each_pipeline(
    make: Callable[..., DSCMPipeline], dataset: DatasetDict, judge: AttributeClassifier
) -> None:
    """By subjects, without a VAE and without known truth. Twice the same, to the last digit."""
    none = make(0)
    soft = DSCMPipeline(make(1).hvae, none.attribute_scm, none.classifier)  # a model of its own, with the same guide
    subjects = [row // 2 for row in range(40)]
    settings = SETTINGS | {"subjects": subjects, "dataset_name": "toy", "num_resamples": 20}
    table, again = (softcft.evaluate({"none": none, "soft": soft}, dataset, judge, **settings) for _ in range(2))
    pd.testing.assert_frame_equal(table, again)
    assert tuple(table.columns) == COLUMNS
    assert set(table["dataset"]) == {"toy"}
    assert set(table["resampled"]) == {"subject"}
    assert set(table["cft"]) == {"real", "none", "soft"}
    assert set(table["table"]) == {"effectiveness", "shift", "axioms"}
    assert set(table["intervention"]) == {"none", "sex"}
    assert not table["metric"].str.contains("cld").any()
    auc = table.query("metric == 'auc' and predictor == 'judge' and variable == 'sex'").set_index("cft")
    assert len(auc) == 3
    assert auc[["low", "high"]].notna().all(axis=None)
    drift = table.query("metric == 'reversibility_1'").set_index("cft")["value"]
    assert drift["none"] != drift["soft"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pipelines": {}}, "pipelines"),
        ({"pipelines": lambda pipe: {"mine": pipe}}, "pipelines"),
        ({"pipelines": lambda pipe: {"soft": DSCMPipeline(pipe.hvae, pipe.attribute_scm, None)}}, "pipelines"),
        ({"dataset": lambda splits: {"test": splits["test"]}}, "dataset"),
        ({"dataset": lambda splits: {**splits, "test": splits["test"].select([0])}}, "test"),
        ({"interventions": ["height"]}, "height"),
        ({"interventions": ["sex", "sex"]}, "interventions"),
        ({"seed": -1}, "seed"),
        ({"axiom_images": 1}, "axiom_images"),
        ({"num_resamples": 1.5}, "num_resamples"),
    ],
)
def test_bad_arguments_are_refused_before_any_image_is_made(
    make: Callable[..., DSCMPipeline],
    dataset: DatasetDict,
    judge: AttributeClassifier,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    named: str,
) -> None:
    arguments: dict[str, Any] = {"pipelines": {"soft": make(0)}, "dataset": dataset} | SETTINGS
    for name, value in change.items():
        given = arguments.get(name)
        arguments[name] = value(given["soft"] if name == "pipelines" else given) if callable(value) else value
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("It should not get this far."))
    with pytest.raises(ValueError, match=named):
        softcft.evaluate(**arguments, judge=judge)


def test_pipelines_must_fit_each_other_the_images_and_the_judge(
    make: Callable[..., DSCMPipeline], dataset: DatasetDict, judge: AttributeClassifier, tmp_path: Path
) -> None:
    large = load_phantom(24, 2, 8, 8, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"24 pixels.*16"):
        softcft.evaluate({"soft": make(0)}, large, judge, **SETTINGS)
    with pytest.raises(ValueError, match="guide"):
        softcft.evaluate({"none": make(0), "soft": make(1)}, dataset, judge, **SETTINGS)
    other = AttributeClassifier(PHANTOM_GRAPH.to_list()[:3], judge.config["backbone"])
    with pytest.raises(ValueError, match="graph"):
        softcft.evaluate({"soft": make(0)}, dataset, other, **SETTINGS)


def test_sets_are_only_gone_on_with_by_the_same_weights(
    make: Callable[..., DSCMPipeline], dataset: DatasetDict, tmp_path: Path
) -> None:
    sets = softcft.generate_counterfactuals({"soft": make(0)}, dataset["test"], tmp_path, attributes=["race"])
    assert (sets.folders, sets.num_images) == ([tmp_path / "soft" / "race"], 80)
    again = softcft.generate_counterfactuals({"soft": make(0)}, dataset["test"], tmp_path, attributes=["race"])
    assert again.num_images == 0
    with pytest.raises(ValueError, match="weights"):
        softcft.generate_counterfactuals({"soft": make(1)}, dataset["test"], tmp_path, attributes=["race"])
