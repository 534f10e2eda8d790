"""The recipes from end to end, as a reader of the README runs them, on a data set and models of toy size.

Each script runs once, in a process of its own, in the order of the README: whatever a module-scoped fixture has made,
many small tests look at. What a recipe refuses before it starts is tested in this process, which is faster.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from transformers import AutoConfig, AutoModel

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, DSCMPipeline, HVAEModel
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.schema import ImageAttributeDataset
from softcft.data.sources import DataConfig, SubsetConfig
from softcft.evaluation.report import COLUMNS
from softcft.training.augmentation import AugmentationConfig
from softcft.training.cft_trainer import CFTConfig
from softcft.training.config import (
    DiffusionConfig,
    DiffusionTuningConfig,
    MemoryConfig,
    SolverConfig,
    TrainingConfig,
)
from softcft.training.parsing import parse_config
from softcft.training.validation import ValidationConfig
from softcft.training.watch import WatchConfig
from tests.recipes.small_pipeline import RECIPES, TINY, load_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("train_scm", "train_classifier", "train_hvae", "soft_cft", "evaluate")


def call(cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without network or the user's own Accelerate settings."""
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "HF_HOME": str(cwd / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)


def run(cwd: Path, script: str, *flags: str) -> str:
    """Run a recipe on the tiny config; returns what it printed."""
    result = call(cwd, sys.executable, str(RECIPES / script), "--config", str(TINY), *flags)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models have the same weights, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---- one run of everything ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all recipes of this file run."""
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def scm(folder: Path) -> Path:
    assert "log likelihood" in run(folder, "train_scm.py", "--seed", "3")
    return folder / "runs" / "scm"


@pytest.fixture(scope="module")
def guide(folder: Path) -> Path:
    assert "The guide on validation data" in run(folder, "train_classifier.py", "--role", "guide")
    return folder / "runs" / "guide"


@pytest.fixture(scope="module")
def judge(folder: Path) -> Path:
    printed = run(folder, "train_classifier.py", "--role", "judge")
    assert "The judge on validation data" in printed
    assert "The weights after step " in printed
    return folder / "runs" / "judge"


@pytest.fixture(scope="module")
def watcher(folder: Path) -> Path:
    assert "The watcher on validation data" in run(folder, "train_classifier.py", "--role", "watcher")
    return folder / "runs" / "watcher"


@pytest.fixture(scope="module")
def hvae(folder: Path) -> Path:
    run(folder, "train_hvae.py")
    return folder / "runs" / "hvae"


@pytest.fixture(scope="module")
def pipelines(folder: Path, scm: Path, guide: Path, hvae: Path, watcher: Path) -> dict[str, Path]:
    """No fine-tuning, the published and ours; the last one by the command of the README."""
    run(folder, "soft_cft.py", "--cft", "none")
    run(folder, "soft_cft.py", "--cft", "hard", "--watch", "false")
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    result = call(folder, accelerate, "launch", str(RECIPES / "soft_cft.py"), "--config", str(TINY))
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Saved a pipeline to runs/soft" in result.stdout
    assert json.loads((folder / "runs" / "soft" / "watch.json").read_text())["sentence"] in result.stdout
    return {cft: folder / "runs" / cft for cft in ("none", "hard", "soft")}


@pytest.fixture(scope="module")
def vae(folder: Path) -> Path:
    run(folder, "train_vae.py")
    return folder / "runs" / "vae"


@pytest.fixture(scope="module")
def evaluation(folder: Path, judge: Path, vae: Path, pipelines: dict[str, Path]) -> Path:
    assert "Soft-CFT" in run(folder, "evaluate.py")
    return folder / "runs"


def test_the_scm_loads_and_knows_its_graph(scm: Path) -> None:
    model = AttributeSCM.from_pretrained(scm)
    assert model.causal_graph == PHANTOM_GRAPH
    assert model.sample(5).isfinite().all()


def test_guide_and_judge_load_calibrated_and_share_nothing(guide: Path, judge: Path) -> None:
    models = [AttributeClassifier.from_pretrained(path) for path in (guide, judge)]
    for model in models:
        assert model.causal_graph == PHANTOM_GRAPH
        assert set(model.config["scales"]) == set(PHANTOM_GRAPH.names)
        assert all(scale > 0 and scale != 1 for scale in model.config["scales"].values())
    ours, theirs = (model.config["backbone"]["hidden_sizes"] for model in models)
    assert ours != theirs
    assert not torch.equal(*(model.heads.weight for model in models))


def test_the_halves_share_no_row_and_leave_none_out() -> None:
    images = ImageAttributeDataset(load_phantom(16, 7, 1, 1)["train"], PHANTOM_GRAPH)
    even, odd, everything = (set(images.subset(half).indices) for half in ("even", "odd", "all"))
    assert everything == set(range(7))
    assert even | odd == everything
    assert not even & odd


def test_the_hvae_loads_and_leaves_checkpoints(hvae: Path) -> None:
    model = HVAEModel.from_pretrained(hvae)
    assert (model.causal_graph, model.config["sample_size"]) == (PHANTOM_GRAPH, 16)
    assert sorted(path.name for path in hvae.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_metrics_have_a_line_each_step(hvae: Path, pipelines: dict[str, Path]) -> None:
    for path, steps, keys in (
        (hvae, 4, {"loss", "nll", "kl"}),
        (pipelines["hard"], 3, {"loss", "guidance", "fidelity", "multiplier"}),
        (pipelines["soft"], 3, {"loss", "guidance", "fidelity", "multiplier"}),
    ):
        lines = [line for line in metrics(path) if "loss" in line]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        for line in lines:
            assert keys | {"lr", "grad_norm", "skipped", "images_per_second"} <= line.keys()
            assert line["skipped"] == 0
            assert np.isfinite(list(line.values())).all()


def test_the_config_repeats_the_run(folder: Path, scm: Path) -> None:
    """The seed came by a flag, and is in the file."""
    assert yaml.safe_load((scm / "config.yaml").read_text())["scm"]["seed"] == 3
    run(folder, "train_scm.py", "--config", str(scm / "config.yaml"), "--output_dir", "again")
    again = folder / "again" / "scm"
    assert equal(AttributeSCM.from_pretrained(scm), AttributeSCM.from_pretrained(again))
    untrained = AttributeSCM(PHANTOM_GRAPH.to_list(), num_bins=4, hidden_features=[8])
    assert not equal(AttributeSCM.from_pretrained(scm), untrained)


def test_a_run_stopped_half_way_and_resumed_equals_one_that_was_not(folder: Path, hvae: Path) -> None:
    resumed = folder / "resumed" / "hvae"
    resumed.mkdir(parents=True)
    shutil.copytree(hvae / "checkpoint-2", resumed / "checkpoint-2")
    shutil.copy(hvae / "metrics.jsonl", resumed)  # its lines 3 and 4 are to be written anew
    run(folder, "train_hvae.py", "--output_dir", "resumed", "--resume_from_checkpoint", "latest")
    assert equal(HVAEModel.from_pretrained(hvae), HVAEModel.from_pretrained(resumed))
    ours, theirs = ([(line["step"], line["loss"]) for line in metrics(path)] for path in (hvae, resumed))
    assert ours == theirs


def test_fine_tuning_moves_the_hvae_and_nothing_else(
    pipelines: dict[str, Path], scm: Path, guide: Path, hvae: Path
) -> None:
    loaded = {cft: DSCMPipeline.from_pretrained(path) for cft, path in pipelines.items()}
    pretrained = HVAEModel.from_pretrained(hvae)
    assert equal(loaded["none"].hvae, pretrained)
    assert not equal(loaded["hard"].hvae, pretrained)
    watched = json.loads((pipelines["soft"] / "watch.json").read_text())
    assert [look["step"] for look in watched["looks"]] == [0, 1, 2, 3]
    assert equal(loaded["soft"].hvae, pretrained) == (watched["step_saved"] == 0)
    assert not equal(loaded["hard"].hvae, loaded["soft"].hvae)
    for pipeline in loaded.values():
        assert equal(pipeline.attribute_scm, AttributeSCM.from_pretrained(scm))
        assert equal(pipeline.classifier, AttributeClassifier.from_pretrained(guide))


@pytest.mark.parametrize("cft", ["none", "hard", "soft"])
def test_a_saved_pipeline_answers(pipelines: dict[str, Path], folder: Path, cft: str) -> None:
    pipeline = DSCMPipeline.from_pretrained(pipelines[cft])
    row = load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["test"][0]
    parents = {name: row[name] for name in PHANTOM_GRAPH.names}
    other = "female" if parents["sex"] == "male" else "male"
    result = pipeline(row["image"], parents=parents, do={"sex": other}, generator=torch.manual_seed(0))
    assert result.images[0].size == (16, 16)
    assert result.parents["sex"] == [other]
    assert result.parents["race"] == [parents["race"]]
    assert result.effects.any()


# ---- table and figures --------------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv", keep_default_na=False, na_values={"low": "", "high": ""})


def test_table_1_has_all_results(evaluation: Path) -> None:
    table = read_metrics(evaluation)
    assert tuple(table.columns) == COLUMNS
    assert set(table["dataset"]) == {"phantom"}
    assert set(table["seed"]) == {0}
    table = table[table["table"] == "effectiveness"]
    key = ["cft", "intervention", "variable", "predictor"]
    names = PHANTOM_GRAPH.names
    models = pd.MultiIndex.from_product([["none", "hard", "soft", "truth"], names, names, ["guide", "judge", "gap"]])
    real = pd.MultiIndex.from_product([["real"], ["none"], names, ["guide", "judge"]])
    assert set(table[key].itertuples(index=False, name=None)) == {*models, *real}
    assert set(table.loc[(table["variable"] == "age") & (table["predictor"] == "judge"), "metric"]) == {
        "mae",
        "mae_change",
        "mae_excess",
        "ks",
    }
    excess = table[table["metric"] == "logit_excess"]
    near = {
        name: PHANTOM_GRAPH.affected_by(name).union(*map(PHANTOM_GRAPH.blanket, PHANTOM_GRAPH.affected_by(name)))
        for name in names
    }
    moved = [(name, effect) for name in names for effect in near[name] - {"age"}]
    judged = excess[excess["predictor"] == "judge"][["cft", "intervention", "variable"]]
    assert {*judged.itertuples(index=False, name=None)} == {
        (cft, *pair) for cft in ("none", "hard", "soft", "truth") for pair in moved
    }
    values = table.set_index([*key, "metric"])["value"]
    for cft, intervention, variable, predictor, metric in values.index:
        if metric == "auc" and cft != "real":
            change = values[cft, intervention, variable, predictor, "auc_change"]
            baseline = values["real", "none", variable, predictor, "auc"]
            assert values[cft, intervention, variable, predictor, metric] - baseline == pytest.approx(change, abs=1e-6)
    auc = table[table["metric"] == "auc"]
    assert auc["value"].between(0, 100).all()
    assert ((auc["low"] <= auc["value"]) & (auc["value"] <= auc["high"])).mean() > 0.9
    assert not values["none"].equals(values["hard"])  # which nobody has watched, and perhaps left as it was


def test_every_other_table_has_results(evaluation: Path) -> None:
    table = read_metrics(evaluation)
    rows = set(table[["table", "cft", "intervention", "variable", "metric"]].itertuples(index=False, name=None))
    for cft in ("none", "hard", "soft"):
        for name in PHANTOM_GRAPH.names:
            assert ("truth", cft, name, "image", "faithfulness_ratio") in rows
            assert ("truth", cft, name, "disease", "expression_error") in rows
            assert ("axioms", cft, name, "image", "reversibility_10") in rows
            assert ("axioms", cft, name, "image", "cld") in rows
            assert ("axioms", cft, name, "image", "frechet_images") in rows
        assert ("axioms", cft, "none", "image", "reconstruction_10") in rows
    assert ("axioms", "truth", "sex", "image", "frechet_images") in rows
    assert ("truth", "real", "none", "race", "r2") in rows
    assert ("shift", "real", "none", "race", "eta_squared") in rows
    composition = table[(table["table"] == "axioms") & (table["metric"] == "composition_10")]
    assert len(composition) == 3
    assert (composition["value"] < 0.5).all()


def test_the_report_can_be_read(evaluation: Path) -> None:
    text = (evaluation / "report.md").read_text()
    words = [
        "No CFT",
        "Hard-CFT",
        "Soft-CFT",
        "Real images",
        "by the guide",
        "by the judge",
        "Age, MAE (years)",
        "Table 1e",
    ]
    assert [word for word in [*words, *(f"do({name})" for name in PHANTOM_GRAPH.names)] if word not in text] == []
    html = (evaluation / "report.html").read_text()
    assert html.count("<img") == len([*evaluation.glob("figures/*.png"), *evaluation.glob("figures/*.gif")])


@pytest.mark.parametrize(
    "name",
    [
        "counterfactuals_none",
        "counterfactuals_hard",
        "counterfactuals_soft",
        "comparison",
        "strength",
        "training_curves",
    ],
)
def test_figures_show_something(evaluation: Path, name: str) -> None:
    with Image.open(evaluation / "figures" / f"{name}.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert image.convert("L").getextrema() == (0, 255)
    assert (evaluation / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_continuous_variables_are_animated(evaluation: Path) -> None:
    with Image.open(evaluation / "figures" / "interpolation_age.gif") as gif:
        assert gif.n_frames > 10


def test_two_processes_measure_the_same(evaluation: Path, folder: Path) -> None:
    one = read_metrics(evaluation)
    flags = ["--config", str(TINY), "--mixed_precision", "no", "--eval_batch_size", "7", "--axiom_images", "20"]
    tables = []
    for number in ("1", "2"):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", number]
        result = call(folder, *launch, str(RECIPES / "evaluate.py"), *flags)
        assert result.returncode == 0, result.stderr[-4000:]
        tables.append(read_metrics(evaluation))
    assert len(tables[0]) == len(one)
    first, second = tables
    numbers = ["value", "low", "high"]
    pd.testing.assert_frame_equal(first.drop(columns=numbers), second.drop(columns=numbers))
    stable = ~first["metric"].str.contains("_p")  # a tie more or less, and a p-value moves by a thousandth
    np.testing.assert_allclose(first.loc[stable, numbers], second.loc[stable, numbers], rtol=1e-5, atol=1e-5)


# ---- what a recipe refuses, before any training -------------------------------------------------------------------


Start = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a recipe here, on a changed config; to train, or to leave anything behind, is to fail."""

    def start(script: str, *flags: str, cwd: Path = tmp_path, **changes: Any) -> None:
        config = yaml.safe_load(TINY.read_text())
        for section, change in changes.items():
            config[section] = change(config[section])
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(config))
        recipe = load_recipe(script)
        for name in {"train", "CFTTrainer", "plan_counterfactuals"} & set(vars(recipe)):
            monkeypatch.setattr(recipe, name, lambda *args, **kwargs: pytest.fail("It should not get this far."))
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--config", str(path), *flags])
        existed = set(cwd.glob("runs*/*"))
        try:
            recipe.main()
        finally:
            assert set(cwd.glob("runs*/*")) == existed

    return start


def with_value(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda section: section | values


def with_model(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda section: section | {"model": section["model"] | values}


def renamed(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**variable, "name": variable["name"].replace("sex", "height")} for variable in graph]


def cyclic(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**variable, "parents": ["disease"]} if variable["name"] == "age" else variable for variable in graph]


@pytest.mark.parametrize("script", SCRIPTS[:3])
@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["--lerning_rate", "1"], {}, r"^unknown argument '--lerning_rate'; did you mean '--learning_rate'\?$"),
        (["--learning_rate", "-1"], {}, r"^--learning_rate must be > 0 and finite, got -1\.0\.$"),
        (["--sample_size", "8"], {}, r"^--sample_size must be at least 16 for the phantom, else 1, got 8\.$"),
        (
            ["--dataset_name", "morphomnist", "--sample_size", "32", "--data_dir", "gone"],
            {},
            r"the data set 'morphomnist'",
        ),
        ([], {"data": with_value(num_train="many")}, r"changed.yaml: data.num_train must be int, got 'many' \(str\)"),
        ([], {"data": with_value(sample=16)}, r"unknown key 'sample' in section 'data'; did you mean 'sample_size'"),
        ([], {"graph": renamed}, r"^The graph has the variables \['age', 'disease', 'height', 'race'\], but .*section"),
        ([], {"graph": cyclic}, r"^The graph has a cycle: (age -> disease -> age|disease -> age -> disease)\.$"),
    ],
    ids=["flag", "range", "size", "data set", "type", "key", "column", "cycle"],
)
def test_mistakes_end_a_training_before_it_starts(
    start: Start, script: str, flags: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start(script, *flags, **changes)


def test_a_model_that_cannot_be_built_ends_the_training_before_it_starts(start: Start) -> None:
    with pytest.raises(ValueError, match=r"channels must be multiples of 4, got \[8, 7, 16\]"):
        start("train_hvae", hvae=with_model(channels=[8, 7, 16]))
    with pytest.raises(ValueError, match=r"resolutions\[0\] must be sample_size / patch_size = 24/2, got 8"):
        start("train_hvae", "--sample_size", "24")
    with pytest.raises(ValueError, match=r"hvae.model: HVAEModel takes no 'z_dims'; did you mean 'z_dim'\?"):
        start("train_hvae", hvae=with_model(z_dims=4))


def test_a_role_is_guide_or_judge(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        start("train_classifier", "--role", "jury")
    assert exit_.value.code == 2
    assert "invalid choice: 'jury'" in capsys.readouterr().err


def test_fine_tuning_and_evaluation_need_their_parts(start: Start) -> None:
    command = "accelerate launch recipes/soft_cft.py --cft none --output_dir runs"
    with pytest.raises(SystemExit, match=rf"There is no runs/none/model_index.json. Make it.*\n    {command}$"):
        start("evaluate")
    with pytest.raises(
        ValueError, match=r"--pipelines: folders must be named none, hard, soft, matched, got \['runs/mine'\]"
    ):
        start("evaluate", "--pipelines", "runs/mine")
    with pytest.raises(ValueError, match=r"^--damping must be >= 0, got -1\.0\.$"):
        start("soft_cft", "--damping", "-1")


def test_missing_parts_are_told_with_the_commands_that_make_them(tmp_path: Path) -> None:
    result = call(tmp_path, sys.executable, str(RECIPES / "soft_cft.py"), "--config", str(TINY))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("No trained model in ") :]
    assert message.splitlines() == [
        "No trained model in --scm_dir runs/scm, --guide_dir runs/guide, --watcher_dir runs/watcher, --hvae_dir "
        "runs/hvae. Make it, with the same flags, by",
        "    accelerate launch recipes/train_scm.py",
        "    accelerate launch recipes/train_classifier.py --role guide",
        "    accelerate launch recipes/train_classifier.py --role watcher",
        "    accelerate launch recipes/train_hvae.py",
        "or do without a watcher, by --watch false.",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_what_the_watcher_saw(evaluation: Path, pipelines: dict[str, Path]) -> None:
    sentence = json.loads((pipelines["soft"] / "watch.json").read_text())["sentence"]
    assert f"Soft-CFT: {sentence}" in (evaluation / "report.md").read_text()
    assert f"Soft-CFT: {sentence}" in (evaluation / "report.html").read_text().replace("&#x27;", "'")
    assert "Hard-CFT: " not in (evaluation / "report.md").read_text()  # which nobody has watched


@pytest.mark.parametrize("role", ["guide", "judge"])
def test_the_watcher_is_neither_guide_nor_judge(
    start: Start, pipelines: dict[str, Path], judge: Path, folder: Path, role: str
) -> None:
    with pytest.raises(ValueError, match=f"--watcher_dir runs/{role}"):
        start("soft_cft", "--watcher_dir", f"runs/{role}", cwd=folder)


def test_a_missing_watcher_is_told_before_any_work(start: Start, pipelines: dict[str, Path], folder: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"(?s)--watcher_dir gone.*train_classifier.py --role watcher\n.*--watch false"
    ):
        start("soft_cft", "--watcher_dir", "gone", cwd=folder)


def test_a_missing_guide_is_told_before_any_work(start: Start, pipelines: dict[str, Path], folder: Path) -> None:
    message = r"No trained model in --more_guides runs/guide_2. Make it, .*by\n.*train_classifier.py --role guide_2$"
    with pytest.raises(SystemExit, match=message):
        start("soft_cft", "--more_guides", "runs/guide", "runs/guide_2", cwd=folder)


def test_a_guide_with_another_graph_is_refused(
    start: Start, pipelines: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    trunk = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    AttributeClassifier(PHANTOM_GRAPH.to_list()[:3], trunk).save_pretrained(tmp_path / "narrow")
    with pytest.raises(
        ValueError, match=r"--more_guides .*narrow was trained with another graph than that of --config"
    ):
        start("soft_cft", "--more_guides", str(tmp_path / "narrow"), cwd=folder)


def test_fine_tuning_with_all_options(pipelines: dict[str, Path], judge: Path, folder: Path) -> None:
    options = ["--minimality", "0.1", "--random_noise", "0.1", "--random_shift", "0.1", "--more_guides", "runs/judge"]
    run(folder, "soft_cft.py", "--cft", "matched", *options)
    logged = [line for line in metrics(folder / "runs" / "matched") if "loss" in line][-1]
    assert logged["change"] > 0
    tuned, pretrained = (DSCMPipeline.from_pretrained(folder / "runs" / cft) for cft in ("matched", "none"))
    assert equal(tuned.classifier, pretrained.classifier)  # the first guide is the pipeline's
    watched = json.loads((folder / "runs" / "matched" / "watch.json").read_text())
    assert equal(tuned.hvae, pretrained.hvae) == (watched["step_saved"] == 0)


def test_parts_with_another_graph_are_refused(start: Start, pipelines: dict[str, Path], folder: Path) -> None:
    def wider(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**variable, "high": 99} if variable["name"] == "age" else variable for variable in graph]

    with pytest.raises(ValueError, match=r"runs/hvae was trained with another graph than the section 'graph'"):
        start("soft_cft", cwd=folder, graph=wider)


def test_evaluation_refuses_parts_with_another_graph(
    start: Start, pipelines: dict[str, Path], judge: Path, vae: Path, folder: Path
) -> None:
    def swapped(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**v, "categories": v["categories"][::-1]} if v["name"] == "sex" else v for v in graph]

    with pytest.raises(ValueError, match=r"runs/judge was trained with another graph"):
        start("evaluate", cwd=folder, graph=swapped)


def test_another_size_than_the_model_was_trained_with_is_refused(
    start: Start, pipelines: dict[str, Path], judge: Path, vae: Path, folder: Path
) -> None:
    for recipe in ("soft_cft", "evaluate"):
        with pytest.raises(ValueError, match=r"--sample_size is 32, but runs/\w+ was trained with 16"):
            start(recipe, "--sample_size", "32", cwd=folder)


def test_a_run_does_not_go_on_as_another(start: Start, hvae: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"runs/hvae/checkpoint-4 is of a run with --seed = 0, now it is 1"):
        start("train_hvae", "--resume_from_checkpoint", "latest", "--seed", "1", cwd=folder)


def test_a_run_goes_on_as_errors_advise(monkeypatch: pytest.MonkeyPatch, hvae: Path, folder: Path) -> None:
    """Lower learning rate; smaller batches, precision and checkpointed gradients for memory; and elsewhere."""

    def start(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train_hvae.py", "--config", str(TINY), *flags])
        load_recipe("train_hvae").main()

    monkeypatch.chdir(folder)
    shutil.copytree(hvae, folder / "advised" / "hvae")
    on = ("--output_dir", "advised", "--resume_from_checkpoint", "latest", "--lr_scheduler")
    smaller = ("--train_batch_size", "4", "--gradient_accumulation_steps", "2", "--mixed_precision", "bf16")
    start(*on, "constant_with_warmup", "--max_train_steps", "5", "--learning_rate", "1e-4")
    start(*on, "cosine", "--max_train_steps", "6", *smaller, "--gradient_checkpointing")
    logged = metrics(folder / "advised" / "hvae")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert logged[4]["lr"] == 1e-4
    assert logged[4]["loss"] != logged[5]["loss"]
    path = "advised/hvae/checkpoint-5"
    start("--output_dir", "elsewhere", "--resume_from_checkpoint", path, *smaller, "--max_train_steps", "6")
    assert [line["step"] for line in metrics(folder / "elsewhere" / "hvae")] == [6]


def test_a_classifier_is_not_averaged(start: Start) -> None:
    with pytest.raises(ValueError, match=r"--ema_decay must be 0 for a classifier, got 0.5"):
        start("train_classifier", "--ema_decay", "0.5")


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """A folder as transformers saves a pretrained model: of colour, for images of another size than ours."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    AutoModel.from_config(AutoConfig.for_model("vit", **sizes, image_size=24, patch_size=8)).save_pretrained(
        tmp_path / "trunk"
    )
    statistics = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "trunk" / "preprocessor_config.json").write_text(json.dumps(statistics))
    return tmp_path / "trunk"


def test_a_guide_starts_from_a_pretrained_trunk(folder: Path, trunk: Path) -> None:
    """One step with a learning rate of nothing: the trunk's weights are those of its folder."""
    pretrained = AutoModel.from_pretrained(trunk)
    flags = ("--trunk_dir", str(trunk), "--learning_rate", "1e-12", "--max_train_steps", "1")
    printed = run(folder, "train_classifier.py", "--role", "guide", "--output_dir", "from_trunk", *flags)
    assert f"--trunk_dir {trunk}: vit" in printed
    saved = folder / "from_trunk" / "guide"
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    assert settings["guide"]["trunk_dir"] == str(trunk)
    assert "backbone" not in settings["guide"]["model"]
    shutil.rmtree(trunk)
    guide = AttributeClassifier.from_pretrained(saved)
    assert (guide.config.image_size, guide.config.image_mean) == (24, [0.4] * 3)
    for name, tensor in pretrained.state_dict().items():
        torch.testing.assert_close(guide.trunk.state_dict()[name], tensor, rtol=0, atol=1e-6)
    image = torch.zeros(2, 1, 16, 16, requires_grad=True)
    guide.requires_grad_(False)(image).logits.sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_pretrained_trunk_and_a_backbone_are_not_both_said(start: Start, trunk: Path) -> None:
    for script, flags in (("train_classifier", ("--role", "guide")), ("run_all", ())):
        with pytest.raises(ValueError, match=rf"trunk_dir {trunk} and model.backbone"):
            start(script, *flags, guide=with_value(trunk_dir=str(trunk)))


def test_a_pretrained_trunk_that_is_not_there_is_refused(start: Start, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    without = with_value(trunk_dir=missing, model={})
    for script, flags in (("train_classifier", ("--role", "guide")), ("run_all", ())):
        with pytest.raises(FileNotFoundError, match=f"--trunk_dir {missing}"):
            start(script, *flags, guide=without)


def test_an_unknown_intervention_is_refused(start: Start, evaluation: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"The graph has no variable 'height'; it has \['age', "):
        start("evaluate", "--interventions", "height", cwd=folder)


# ---- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as exit_:
        recipe.main()
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert recipe.__doc__ is not None
    assert recipe.__doc__.strip() in text
    assert f"accelerate launch recipes/{script}.py" in text
    assert "--config FILE" in text
    for flag in {
        "train_scm": ["--max_train_steps", "--learning_rate"],
        "train_classifier": ["--role", "--half", "--trunk_dir", "--max_train_steps"],
        "train_hvae": ["--mixed_precision", "--resume_from_checkpoint"],
        "soft_cft": ["--cft", "--damping", "--hvae_dir"],
        "evaluate": ["--pipelines", "--interventions", "--eval_batch_size"],
    }[script]:
        assert flag in text


# ---- the configs that are shipped ---------------------------------------------------------------------------------


def shipped(name: str) -> Path:
    return RECIPES / "configs" / f"{name}.yaml"


def parse(name: str, section: str) -> tuple[Any, ...]:
    """A section of a shipped config, as its recipe reads it."""
    types = {
        "scm": [DataConfig, TrainingConfig],
        "guide": [DataConfig, TrainingConfig, SubsetConfig, ValidationConfig, AugmentationConfig],
        "guide_2": [DataConfig, TrainingConfig, SubsetConfig, ValidationConfig, AugmentationConfig],
        "guide_3": [DataConfig, TrainingConfig, SubsetConfig, ValidationConfig, AugmentationConfig],
        "judge": [DataConfig, TrainingConfig, SubsetConfig, ValidationConfig, AugmentationConfig],
        "watcher": [DataConfig, TrainingConfig, SubsetConfig, ValidationConfig, AugmentationConfig],
        "hvae": [DataConfig, TrainingConfig, MemoryConfig],
        "diffusion": [DataConfig, TrainingConfig, MemoryConfig, DiffusionConfig],
        "cft": [
            DataConfig,
            TrainingConfig,
            SubsetConfig,
            MemoryConfig,
            CFTConfig,
            AugmentationConfig,
            WatchConfig,
            SolverConfig,
            DiffusionTuningConfig,
            load_recipe("soft_cft").PretrainedConfig,
        ],
    }[section]
    own = ["--dataset_name", "folder", "--graph", str(TINY.with_name("graph.yaml"))]
    argv = ["--data_dir", "data", "--config", str(shipped(name)), *(own if name == "own_data" else [])]
    return parse_config(section, *types, default_config=shipped("phantom"), argv=argv)


DIFFUSION = ["phantom_diffusion", "mimic_cxr_224_diffusion"]
SHIPPED = ["phantom", "phantom_32", "morphomnist", "mimic_cxr_224", "own_data", *DIFFUSION]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_parse_and_agree_on_their_folder(name: str) -> None:
    for section in ("scm", "guide", "judge", "watcher", "diffusion" if name in DIFFUSION else "hvae", "cft"):
        _, data, training, *_ = parse(name, section)
        assert training.output_dir == f"outputs/{name}"
        names = {"own_data": "folder", "phantom_diffusion": "phantom", "phantom_32": "phantom"}
        assert data.dataset_name == names.get(name, "mimic_cxr" if name.startswith("mimic_cxr") else name)
    (cft,) = (settings for settings in parse(name, "cft") if isinstance(settings, CFTConfig))
    assert cft.cft == ("matched" if name == "own_data" else "soft")


def test_parts_are_looked_for_where_the_recipes_leave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("scm", "guide", "hvae", "judge", "vae"):
        Path("run", part).mkdir(parents=True)
        Path("run", part, "config.json").touch()
    for cft in ("none", "hard", "soft"):
        Path("run", cft).mkdir()
        Path("run", cft, "model_index.json").touch()
    parts = load_recipe("soft_cft").PretrainedConfig()
    there = {name: Path("run", name) for name in ("scm", "guide", "hvae")}
    assert parts.folders("run", watched=False) == there
    elsewhere = load_recipe("soft_cft").PretrainedConfig(guide_dir="run/judge")
    assert elsewhere.folders("run", watched=False) == there | {"guide": Path("run/judge")}
    # A diffusion model is taken where there is no HVAE, or where it is asked for.
    Path("run/diffusion/unet").mkdir(parents=True)
    Path("run/diffusion/unet/config.json").touch()
    assert parts.folders("run", watched=False) == there
    diffusion = {name: Path("run", name) for name in ("scm", "guide", "diffusion")}
    assert (
        load_recipe("soft_cft").PretrainedConfig(diffusion_dir="run/diffusion").folders("run", watched=False)
        == diffusion
    )
    Path("run/hvae/config.json").unlink()
    assert parts.folders("run", watched=False) == diffusion
    settings = load_recipe("evaluate").EvaluateConfig(output_dir="run")
    assert settings.judge_dir == "run/judge"
    assert settings.vae_dir == "run/vae"
    assert settings.pipelines == ["run/none", "run/hard", "run/soft"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_guide_and_judge_share_nothing(name: str) -> None:
    (guide, _, guide_training, guide_rows, *_), (judge, _, judge_training, judge_rows, *_) = (
        parse(name, role) for role in ("guide", "judge")
    )
    assert guide_training.seed != judge_training.seed
    assert {guide_rows.half, judge_rows.half} == {"even", "odd"}
    assert guide["guide"]["model"] != judge["judge"]["model"]
    watcher, _, training, *_ = parse(name, "watcher")
    assert training.seed not in {guide_training.seed, judge_training.seed}
    assert watcher["watcher"]["model"] not in (guide["guide"]["model"], judge["judge"]["model"])
    for role in {"guide_2", "guide_3"} & set(guide):
        more, _, training, rows, *_ = parse(name, role)
        assert training.seed not in {guide_training.seed, judge_training.seed}
        assert rows.half == guide_rows.half
        assert more[role]["model"] not in (guide["guide"]["model"], judge["judge"]["model"])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_can_be_built(name: str) -> None:
    is_diffusion = name in DIFFUSION
    config, *_, last = parse(name, "diffusion" if is_diffusion else "hvae")
    graph = CausalGraph(config["graph"])
    if name.startswith("phantom"):
        assert graph == PHANTOM_GRAPH
    assert AttributeSCM(graph.to_list(), **config["scm"].get("model", {})).causal_graph == graph
    for role in {"guide", "guide_2", "guide_3", "judge", "watcher"} & set(config):
        backbone = {"num_channels": 1, **config[role]["model"]["backbone"]}
        assert AttributeClassifier(graph.to_list(), backbone).causal_graph == graph
    size = config["data"]["sample_size"]
    if is_diffusion:
        channels, size = (4, 28) if last.latents else (1, size)
        with torch.device("meta"):
            denoiser = load_recipe("train_diffusion").build(config, graph, last, channels, size)
        assert denoiser.parent_encoder.causal_graph == graph
    else:
        assert HVAEModel(graph.to_list(), size, **config["hvae"]["model"]).causal_graph == graph


# ---- the other data set -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_accelerate() -> Iterator[Callable[[], None]]:
    """Forgets the state that Accelerate keeps: each process has one precision, and here many recipes share one."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    yield forget
    forget()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def morphomnist(tmp_path: Path) -> Path:
    """Files as they are downloaded: 60 training images and 20 test images, of noise."""
    folder = tmp_path / "morphomnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    for prefix, n in (("train", 60), ("t10k", 20)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx((np.arange(n) % 10).astype("u1"))))
        lines = [f"{i},{1 + i / 100},{100 + i}\n" for i in range(n)]
        (folder / f"{prefix}-morpho.csv").write_text("index,thickness,intensity\n" + "".join(lines))
    return folder


def test_morphomnist_from_files_to_a_counterfactual(
    morphomnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerate: Callable[[], None]
) -> None:
    """With the models of the shipped config, whose folders hand on from one recipe to the next."""
    monkeypatch.chdir(tmp_path)
    for script, *flags in (
        ("train_scm",),
        ("train_classifier", "--role", "guide"),
        ("train_hvae",),
        ("soft_cft", "--cft", "none"),
    ):
        short = ["--num_validation", "40", "--max_train_steps", "1", "--train_batch_size", "4"]
        config = ["--config", str(shipped("morphomnist")), "--data_dir", str(morphomnist)]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *config, *short, *flags])
        fresh_accelerate()
        load_recipe(script).main()

    pipeline = DSCMPipeline.from_pretrained("outputs/morphomnist/none")
    assert equal(pipeline.hvae, HVAEModel.from_pretrained("outputs/morphomnist/hvae"))
    image = torch.rand(1, 32, 32)
    result = pipeline(image, parents={"thickness": 2, "intensity": 150, "digit": "3"}, do={"digit": "8"})
    assert result.parents["digit"] == ["8"]
    assert result.parents["thickness"] == [pytest.approx(2)]
    assert np.isfinite(result.effects).all()
