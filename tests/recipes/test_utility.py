"""Predictors that learn from one set of counterfactuals, and their test on real images, at toy size."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from sklearn.metrics import roc_auc_score

from softcft import AttributeClassifier
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.schema import ImageAttributeDataset, random_part, scale_pixels
from tests.recipes.small_pipeline import TINY, load_recipe, make_pipeline

IMAGES = "40"  # of 64
COLUMNS = [
    "table",
    "dataset",
    "seed",
    "cft",
    "intervention",
    "variable",
    "predictor",
    "metric",
    "value",
    "low",
    "high",
    "resampled",
]

Run = Callable[..., None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a recipe here, in the folder that all tests share."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("utility")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

        def run(script: str, *flags: str, replaced: tuple[str, Any] | None = None) -> None:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            with pytest.MonkeyPatch.context() as context:
                context.setattr(sys, "argv", [f"{script}.py", "--config", str(TINY), *flags])
                if replaced:
                    context.setattr(*replaced)
                load_recipe(script).main()

        yield run
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="module")
def trained(run: Run) -> Path:
    """Counterfactuals of two variables, and predictors that learned from them and from the real images."""
    make_pipeline(Path("runs/soft"))
    generate = ["--pipelines", "runs/soft", "--attributes", "race", "sex", "--num_images", IMAGES]
    run("generate_counterfactuals", *generate)
    for source in ("real", "soft/race", "soft/sex"):
        run("train_classifier", "--role", "utility", "--train_on", source, "--num_images", IMAGES)
    return Path("runs").resolve()


@pytest.fixture
def learned(run: Run) -> Callable[..., Any]:
    """What a predictor would learn from, its folder and its steps."""

    class Caught(Exception):
        pass

    def catch(objective: Any, dataset: Any, training: Any, *, name: str, **_: Any) -> None:
        raise Caught(dataset, training)

    def learned(*flags: str) -> Any:
        flags = "--role", "utility", *flags, "--output_dir", "runs"
        with pytest.raises(Caught) as caught:
            run("train_classifier", *flags, replaced=("softcft.training.loop.train", catch))
        return caught.value.args

    return learned


def test_each_predictor_is_where_its_images_are(trained: Path) -> None:
    for source in ("real", "soft/race", "soft/sex"):
        predictor = AttributeClassifier.from_pretrained(trained / "utility" / source)
        assert predictor.causal_graph == PHANTOM_GRAPH
        settings = yaml.safe_load((trained / "utility" / source / "config.yaml").read_text())["utility"]
        assert (settings["train_on"], settings["num_images"]) == (source, 40)
    real, race = (AttributeClassifier.from_pretrained(trained / "utility" / s) for s in ("real", "soft/race"))
    assert not torch.equal(real.heads.weight, race.heads.weight)


def test_real_and_counterfactual_images_are_of_the_same_rows(trained: Path, learned: Callable[..., Any]) -> None:
    train = ImageAttributeDataset(load_phantom(16, 64, 48, 40, cache_dir="data")["train"], PHANTOM_GRAPH)
    real, real_training = learned("--train_on", "real", "--num_images", IMAGES)
    sources = random_part(range(64), 40, seed=0)
    assert [example["parents"].tolist() for example in real] == train.parents[sources].tolist()
    assert all(torch.equal(example["image"], train[i]["image"]) for i, example in zip(sources, real, strict=True))

    counterfactual, training = learned("--train_on", "soft/race", "--num_images", IMAGES)
    race = PHANTOM_GRAPH.slices["race"]
    assert len(counterfactual) == 2 * len(real)
    for i, example in enumerate(counterfactual):
        factual = train.parents[sources[i // 2]]
        assert not torch.equal(example["parents"][race], factual[race])
        assert example["parents"][1] == factual[1]
        assert not torch.equal(example["image"], train[sources[i // 2]]["image"])
    assert training.max_train_steps == real_training.max_train_steps
    assert {training.output_dir, real_training.output_dir} == {"runs/utility/soft/race", "runs/utility/real"}


def test_the_table_is_that_of_the_predictors(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate_utility", "--num_resamples", "50", "--eval_batch_size", "16", "--seed", "4")
    table = pd.read_csv(trained / "metrics" / "utility.csv", keep_default_na=False)
    assert list(table.columns) == COLUMNS
    assert {(*row,) for row in table[["table", "dataset", "seed"]].to_numpy()} == {("utility", "phantom", 4)}
    sets = {("real", "none"): "real", ("soft", "race"): "soft/race", ("soft", "sex"): "soft/sex"}
    assert set(table[["cft", "intervention"]].itertuples(index=False, name=None)) == set(sets)
    assert len(table) == 4 + 2 * 2 * 4

    test = ImageAttributeDataset(load_phantom(16, 64, 48, 40, cache_dir="data")["test"], PHANTOM_GRAPH)
    image = scale_pixels(torch.stack([example["image"] for example in test]))
    values = {}
    for (cft, intervention), folder in sets.items():
        predictor = AttributeClassifier.from_pretrained(trained / "utility" / folder).eval()
        with torch.no_grad():
            predicted = predictor.predict(image).double().numpy()
        rows = table[(table["cft"] == cft) & (table["intervention"] == intervention)].set_index(["variable", "metric"])
        values[cft, intervention] = rows["value"].astype(float)
        for name in ("sex", "race", "disease"):
            columns = PHANTOM_GRAPH.slices[name]
            truth = test.parents[:, columns].numpy()
            expected = 100 * roc_auc_score(truth, predicted[:, columns], average="macro")
            assert values[cft, intervention][name, "auc"] == pytest.approx(expected, abs=0.5)
        error = 37 * np.abs(predicted[:, 0] - test.parents[:, 0].numpy()).mean()
        assert values[cft, intervention]["age", "mae"] == pytest.approx(error, rel=1e-3)
    change = values["soft", "race"]["sex", "auc"] - values["real", "none"]["sex", "auc"]
    assert values["soft", "race"]["sex", "auc_change"] == pytest.approx(change)
    printed = capsys.readouterr().out
    assert "AUC in % or mean absolute error" in printed
    assert "All results, with intervals: runs/metrics/utility.csv" in printed


def test_the_bootstrap_draws_subjects(run: Run, trained: Path) -> None:
    calls = []

    def spy(subjects: Any, *arguments: Any) -> np.ndarray:
        calls.append(list(subjects))
        raise KeyboardInterrupt

    replaced = "softcft.evaluation.bootstrap.bootstrap_weights", spy
    with pytest.raises(KeyboardInterrupt):
        run("evaluate_utility", "--group_column", "race", "--output_dir", "runs", replaced=replaced)
    rows = load_phantom(16, 64, 48, 40, cache_dir="data")["test"]
    assert calls == [rows["race"][:]]


def test_what_is_missing_is_told_with_its_command(run: Run, trained: Path) -> None:
    command = r"recipes/generate_counterfactuals.py --pipelines runs/hard --attributes sex$"
    with pytest.raises(SystemExit, match=r"no counterfactuals in runs/counterfactuals/hard/sex. .*\n.*" + command):
        run("train_classifier", "--role", "utility", "--train_on", "hard/sex")
    with pytest.raises(SystemExit, match=r"no predictor in new/utility/real. (.*\n)+.*--role utility --train_on real$"):
        run("evaluate_utility", "--output_dir", "new")
    assert not (trained / "utility" / "hard").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--train_on", "race"], "--train_on"),
        (["--train_on", "soft/"], "--train_on"),
        (["--num_images", "1"], "--num_images"),
        (["--half", "even"], "'--half'"),
        (["--train_on", "soft/race"], "soft/race must have the counterfactuals of the 64 .* has those of 40"),
        (["--train_on", "soft/race", "--num_images", "30"], "30 training images .* has those of 40"),
        (["--streaming", "--dataset_name", "folder"], "--streaming"),
        (["--train_on", "soft/race", "--num_images", IMAGES, "--sample_size", "20"], "--sample_size is 20, but .* 16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_a_training_before_it_starts(run: Run, trained: Path, flags: list[str], named: str) -> None:
    files = sorted(trained.rglob("*"))
    replaced = "softcft.training.loop.train", lambda *_, **__: pytest.fail("too far")
    with pytest.raises(ValueError, match=named):
        run("train_classifier", "--role", "utility", *flags, replaced=replaced)
    assert sorted(trained.rglob("*")) == files


def test_predictors_that_were_not_trained_alike_are_not_compared(run: Run, trained: Path) -> None:
    shutil.copytree(trained / "utility", "longer/utility")
    config = Path("longer/utility/soft/sex/config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["utility"]["max_train_steps"] = 5
    config.write_text(yaml.safe_dump(settings))
    message = r"soft/sex was trained with max_train_steps = 5, but longer/utility/real, .* with 3: train them alike"
    with pytest.raises(ValueError, match=message):
        run("evaluate_utility", "--output_dir", "longer")


def test_evaluation_refuses_bad_numbers(run: Run) -> None:
    for flag, value in (("--num_resamples", "-1"), ("--eval_batch_size", "0"), ("--seed", "-2")):
        with pytest.raises(ValueError, match=f"{flag} .*{value}"):
            run("evaluate_utility", flag, value)
