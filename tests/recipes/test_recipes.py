"""The recipes from end to end, as a reader of the README runs them, on a data set and models of toy size.

Each script runs once, in this process, in the order of the README: whatever a module-scoped fixture has made, many
small tests look at. One test starts the README's own command, and one two processes.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoModel

from softcft import AttributeClassifier, AttributeSCM, DSCMPipeline, HVAEModel
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.evaluation.tables import COLUMNS
from softcft.hub.publish import model_files
from tests.processes import run_command, run_python
from tests.recipes.small_pipeline import RECIPES, TINY, forget_accelerate, load_recipe, run_recipe


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
    assert "log likelihood" in run_recipe(folder, "train_scm", "--seed", "3")
    return folder / "runs" / "scm"


@pytest.fixture(scope="module")
def classifiers(folder: Path) -> dict[str, Path]:
    for role in ("guide", "judge", "watcher"):
        assert f"The {role} on validation data" in run_recipe(folder, "train_classifier", "--role", role)
    return {role: folder / "runs" / role for role in ("guide", "judge", "watcher")}


@pytest.fixture(scope="module")
def hvae(folder: Path) -> Path:
    run_recipe(folder, "train_hvae")
    return folder / "runs" / "hvae"


@pytest.fixture(scope="module")
def pipelines(folder: Path, scm: Path, classifiers: dict[str, Path], hvae: Path) -> dict[str, Path]:
    """No fine-tuning, the published and ours."""
    run_recipe(folder, "soft_cft", "--cft", "none")
    run_recipe(folder, "soft_cft", "--cft", "hard", "--watch", "false")
    printed = run_recipe(folder, "soft_cft")
    assert "Saved a pipeline to runs/soft" in printed
    assert json.loads((folder / "runs" / "soft" / "watch.json").read_text())["sentence"] in printed
    return {cft: folder / "runs" / cft for cft in ("none", "hard", "soft")}


@pytest.fixture(scope="module")
def evaluation(folder: Path, pipelines: dict[str, Path]) -> Path:
    run_recipe(folder, "train_vae")
    narrow = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    AttributeClassifier(PHANTOM_GRAPH.to_list()[:3], narrow).save_pretrained(folder / "narrow")
    assert "Soft-CFT" in run_recipe(folder, "evaluate", "--examples", "2")
    return folder / "runs"


def test_guide_and_judge_load_calibrated_and_share_nothing(classifiers: dict[str, Path]) -> None:
    models = [AttributeClassifier.from_pretrained(classifiers[role]) for role in ("guide", "judge")]
    for model in models:
        assert model.causal_graph == PHANTOM_GRAPH
        assert set(model.config["scales"]) == set(PHANTOM_GRAPH.names)
        assert all(scale > 0 and scale != 1 for scale in model.config["scales"].values())
    ours, theirs = (model.config["backbone"]["hidden_sizes"] for model in models)
    assert ours != theirs
    assert not torch.equal(*(model.heads.weight for model in models))


def test_metrics_have_a_line_each_step(hvae: Path, pipelines: dict[str, Path]) -> None:
    for path, steps, keys in (
        (hvae, 4, {"loss", "nll", "kl"}),
        (pipelines["hard"], 3, {"loss", "guidance", "fidelity", "multiplier"}),
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
    run_recipe(folder, "train_scm", "--output_dir", "again", config=scm / "config.yaml")
    again = AttributeSCM.from_pretrained(folder / "again" / "scm")
    assert equal(AttributeSCM.from_pretrained(scm), again)
    assert not equal(again, AttributeSCM(PHANTOM_GRAPH.to_list(), num_bins=4, hidden_features=[8]))


def test_a_run_stopped_half_way_and_resumed_equals_one_that_was_not(folder: Path, hvae: Path) -> None:
    assert sorted(path.name for path in hvae.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    resumed = folder / "resumed" / "hvae"
    resumed.mkdir(parents=True)
    shutil.copytree(hvae / "checkpoint-2", resumed / "checkpoint-2")
    shutil.copy(hvae / "metrics.jsonl", resumed)  # its lines 3 and 4 are to be written anew
    run_recipe(folder, "train_hvae", "--output_dir", "resumed", "--resume_from_checkpoint", "latest")
    assert equal(HVAEModel.from_pretrained(hvae), HVAEModel.from_pretrained(resumed))
    ours, theirs = ([(line["step"], line["loss"]) for line in metrics(path)] for path in (hvae, resumed))
    assert ours == theirs


def test_fine_tuning_moves_the_hvae_and_nothing_else(
    pipelines: dict[str, Path], scm: Path, classifiers: dict[str, Path], hvae: Path
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
        assert equal(pipeline.classifier, AttributeClassifier.from_pretrained(classifiers["guide"]))


@pytest.mark.slow
def test_the_command_of_the_readme_makes_the_same_model(pipelines: dict[str, Path], folder: Path) -> None:
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    parts = [f"--{part}_dir=runs/{part}" for part in ("scm", "guide", "watcher", "hvae")]
    flags = ["--config", str(TINY), "--output_dir", "launched", *parts]
    result = run_command(accelerate, "launch", RECIPES / "soft_cft.py", *flags, cwd=folder)
    assert "Saved a pipeline to launched/soft" in result.stdout, result.stderr[-4000:]
    launched, here = (DSCMPipeline.from_pretrained(path) for path in (folder / "launched/soft", pipelines["soft"]))
    assert equal(launched.hvae, here.hvae)


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
    ages = table[(table["variable"] == "age") & (table["predictor"] == "judge")]
    assert set(ages["metric"]) == {"mae", "mae_change", "mae_excess", "ks"}
    values = table.set_index([*key, "metric"])["value"]
    assert values.xs("auc", level="metric").between(0, 100).all()
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
    words = ["No CFT", "Hard-CFT", "Soft-CFT", "Real images", "by the guide", "by the judge", "Age, MAE (years)"]
    assert [word for word in [*words, *(f"do({name})" for name in PHANTOM_GRAPH.names)] if word not in text] == []
    html = (evaluation / "report.html").read_text()
    assert html.count("<img") == len([*evaluation.glob("figures/*.png"), *evaluation.glob("figures/*.gif")])


def test_figures_show_something(evaluation: Path) -> None:
    names = ["counterfactuals_none", "counterfactuals_hard", "counterfactuals_soft"]
    for name in [*names, "comparison", "strength", "training_curves"]:
        with Image.open(evaluation / "figures" / f"{name}.png") as image:
            assert min(image.size) > 200
            assert image.convert("L").getextrema() == (0, 255)
        assert (evaluation / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(evaluation / "figures" / "interpolation_age.gif") as gif:
        assert gif.n_frames > 10


def test_test_images_are_beside_each_pipeline_where_they_are_asked_for(
    evaluation: Path, pipelines: dict[str, Path]
) -> None:
    for path in pipelines.values():
        table = pd.read_csv(path / "examples" / "metadata.csv")
        assert list(table.columns) == ["file_name", *PHANTOM_GRAPH.names]
        assert len(table) == 2
        assert all((path / "examples" / name).is_file() for name in table["file_name"])
        assert "examples" not in {part for file in model_files(path) for part in file.parts}  # what is published


def test_the_report_says_what_the_watcher_saw(evaluation: Path, pipelines: dict[str, Path]) -> None:
    sentence = json.loads((pipelines["soft"] / "watch.json").read_text())["sentence"]
    assert f"Soft-CFT: {sentence}" in (evaluation / "report.md").read_text()
    assert f"Soft-CFT: {sentence}" in (evaluation / "report.html").read_text().replace("&#x27;", "'")
    assert "Hard-CFT: " not in (evaluation / "report.md").read_text()  # which nobody has watched


@pytest.mark.slow
def test_two_processes_measure_the_same(evaluation: Path, folder: Path) -> None:
    flags = ["--config", str(TINY), "--mixed_precision", "no", "--eval_batch_size", "7", "--axiom_images", "20"]
    expected = read_metrics(evaluation)
    tables = []
    for number in (1, 2):
        run_python(RECIPES / "evaluate.py", *flags, cwd=folder, processes=number)
        tables.append(read_metrics(evaluation))
    first, second = tables
    assert len(first) == len(expected)
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
        for name in ("training.loop.train", "training.cft_trainer.CFTTrainer", "evaluation.evaluate.Evaluation"):
            monkeypatch.setattr(f"softcft.{name}", lambda *args, **kwargs: pytest.fail("It should not get this far."))
        forget_accelerate()
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


@pytest.mark.parametrize("script", ["train_scm", "train_classifier", "train_hvae"])
@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["--lerning_rate", "1"], {}, "--lerning_rate.*--learning_rate"),
        (["--learning_rate", "-1"], {}, r"--learning_rate .*-1\.0"),
        (["--sample_size", "8"], {}, "--sample_size .*8"),
        (["--dataset_name", "morphomnist", "--sample_size", "32", "--data_dir", "gone"], {}, "'morphomnist'"),
        ([], {"data": with_value(num_train="many")}, "changed.yaml: data.num_train .*'many'"),
        ([], {"data": with_value(sample=16)}, "'sample' .*'sample_size'"),
        ([], {"graph": renamed}, "'height'"),
        ([], {"graph": cyclic}, "cycle"),
    ],
    ids=["flag", "range", "size", "data set", "type", "key", "column", "cycle"],
)
def test_mistakes_end_a_training_before_it_starts(
    start: Start, script: str, flags: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start(script, *flags, **changes)


@pytest.mark.parametrize(
    ("script", "flags", "changes", "message"),
    [
        ("train_hvae", [], {"hvae": with_model(channels=[8, 7, 16])}, "channels .*7"),
        ("train_hvae", ["--sample_size", "24"], {}, "sample_size .*24/2"),
        ("train_hvae", [], {"hvae": with_model(z_dims=4)}, "hvae.model: .*'z_dims'.*'z_dim'"),
        ("train_vae", ["--patch_size", "3"], {}, "--sample_size .*6.*16"),
        ("train_vae", [], {"vae": with_model(latents=4)}, "vae.model: .*'latents'"),
        ("train_classifier", ["--ema_decay", "0.5"], {}, r"--ema_decay .*0\.5"),
        ("soft_cft", ["--damping", "-1"], {}, r"--damping .*-1\.0"),
        ("evaluate", ["--pipelines", "runs/mine"], {}, "--pipelines.*runs/mine"),
    ],
)
def test_mistakes_end_a_recipe_before_it_starts(
    start: Start, script: str, flags: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start(script, *flags, **changes)


def test_missing_parts_are_told_with_the_commands_that_make_them(start: Start) -> None:
    with pytest.raises(SystemExit) as told:
        start("soft_cft")
    first, *commands = str(told.value).splitlines()
    assert "--scm_dir runs/scm, --guide_dir runs/guide, --watcher_dir runs/watcher, --hvae_dir runs/hvae" in first
    assert commands[:4] == [
        "    accelerate launch recipes/train_scm.py",
        "    accelerate launch recipes/train_classifier.py --role guide",
        "    accelerate launch recipes/train_classifier.py --role watcher",
        "    accelerate launch recipes/train_hvae.py",
    ]
    command = "accelerate launch recipes/soft_cft.py --cft none --output_dir runs"
    with pytest.raises(SystemExit, match=rf"runs/none/model_index.json.*\n    {command}$"):
        start("evaluate")


def wider(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**variable, "high": 99} if variable["name"] == "age" else variable for variable in graph]


def swapped(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**v, "categories": v["categories"][::-1]} if v["name"] == "sex" else v for v in graph]


@pytest.mark.parametrize(
    ("script", "flags", "changes", "message"),
    [
        ("soft_cft", ["--watcher_dir", "runs/guide"], {}, "--watcher_dir runs/guide"),
        ("soft_cft", ["--watcher_dir", "runs/judge"], {}, "--watcher_dir runs/judge"),
        ("soft_cft", ["--watcher_dir", "gone"], {}, "--watcher_dir gone"),
        ("soft_cft", ["--more_guides", "runs/guide", "runs/guide_2"], {}, "--more_guides runs/guide_2"),
        ("soft_cft", ["--more_guides", "narrow"], {}, "--more_guides narrow .*graph"),
        ("soft_cft", [], {"graph": wider}, "runs/hvae .*graph"),
        ("soft_cft", ["--sample_size", "32"], {}, r"--sample_size is 32, but runs/\w+ was trained with 16"),
        ("evaluate", ["--sample_size", "32"], {}, r"sample_size is 32, but runs/\w+ was trained with 16"),
        ("evaluate", [], {"graph": swapped}, "runs/judge .*graph"),
        ("evaluate", ["--interventions", "height"], {}, "'height'"),
        ("train_hvae", ["--resume_from_checkpoint", "latest", "--seed", "1"], {}, "runs/hvae/checkpoint-4 .*seed"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    start: Start,
    evaluation: Path,
    folder: Path,
    script: str,
    flags: list[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises((ValueError, SystemExit), match=message):
        start(script, *flags, cwd=folder, **changes)


def test_fine_tuning_with_all_options(pipelines: dict[str, Path], folder: Path) -> None:
    options = ["--minimality", "0.1", "--random_noise", "0.1", "--random_shift", "0.1", "--more_guides", "runs/judge"]
    run_recipe(folder, "soft_cft", "--cft", "matched", *options)
    logged = [line for line in metrics(folder / "runs" / "matched") if "loss" in line][-1]
    assert logged["change"] > 0
    tuned, pretrained = (DSCMPipeline.from_pretrained(folder / "runs" / cft) for cft in ("matched", "none"))
    assert equal(tuned.classifier, pretrained.classifier)  # the first guide is the pipeline's
    watched = json.loads((folder / "runs" / "matched" / "watch.json").read_text())
    assert equal(tuned.hvae, pretrained.hvae) == (watched["step_saved"] == 0)


# ---- a pretrained trunk -------------------------------------------------------------------------------------------


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
    printed = run_recipe(folder, "train_classifier", "--role", "guide", "--output_dir", "from_trunk", *flags)
    assert f"trunk_dir {trunk}: vit" in printed
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


@pytest.mark.parametrize(("script", "flags"), [("train_classifier", ("--role", "guide")), ("run_all", ())])
def test_a_pretrained_trunk_is_there_and_stands_for_the_backbone(
    start: Start, trunk: Path, tmp_path: Path, script: str, flags: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"trunk_dir {trunk} and model.backbone"):
        start(script, *flags, guide=with_value(trunk_dir=str(trunk)))
    missing = str(tmp_path / "missing")  # a short one might be a model of the Hub
    with pytest.raises(FileNotFoundError, match=f"trunk_dir {missing}"):
        start(script, *flags, guide=with_value(trunk_dir=missing, model={}))
