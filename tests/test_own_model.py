"""A user's own model evaluated, fine-tuned and shown."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import softcft
from softcft import BackboneOutput, CounterfactualPipeline, cli
from softcft.app.answers import Answers, Subject
from softcft.app.models import load_models
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.models.weights import import_modules
from tests.own_models import SIZE, USED, Additive
from tests.pipelines.test_counterfactual import IMAGE, answer, make
from tests.pipelines.test_dscm import build, row
from tests.recipes.small_pipeline import run_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "soft"
    make(Additive()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_phantom(SIZE, 24, 40, 24, cache_dir=str(tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize("kind", USED)
def test_it_is_evaluated(kind: str, dataset: Any) -> None:
    pipe = make(USED[kind]())
    settings = {"interventions": ["sex"], "num_resamples": 0, "axiom_images": 2, "eval_batch_size": 16}
    table = softcft.evaluate({"soft": pipe}, dataset, build().classifier, **settings)
    assert {"effectiveness", "shift", "axioms"} <= set(table["table"])
    composition = table.query("metric == 'composition_1'")["value"].item()
    assert composition == pytest.approx(0, abs=1e-2)
    assert table.query("metric == 'reversibility_1'")["value"].item() >= 0


def test_sets_are_generated(folder: Path, dataset: Any, tmp_path: Path) -> None:
    pipe = CounterfactualPipeline.from_pretrained(folder)
    sets = softcft.generate_counterfactuals({"soft": pipe}, dataset["test"], tmp_path, attributes=["race"])
    assert sets.num_images == 48
    again = softcft.generate_counterfactuals({"soft": pipe}, dataset["test"], tmp_path, attributes=["race"])
    assert again.num_images == 0
    with pytest.raises(ValueError, match="made_with"):
        softcft.generate_counterfactuals({"soft": make(USED["Object"]())}, dataset["test"], tmp_path)


@pytest.mark.parametrize("kind", ["own", "hvae"])
def test_fine_tuning_in_one_call(kind: str, dataset: Any, tmp_path: Path) -> None:
    pipe = make(Additive()) if kind == "own" else build()
    model = pipe.backbone if kind == "own" else pipe.hvae
    before = [parameter.clone() for parameter in model.parameters()]
    settings = {"max_train_steps": 2, "train_batch_size": 8, "slack_images": 8, "checkpointing_steps": 0}
    softcft.fine_tune(pipe, dataset["train"], tmp_path, cft="soft", lr_warmup_steps=0, **settings)
    assert any((old != new).any() for old, new in zip(before, model.parameters(), strict=True))
    assert not model.training
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    answer(pipe)
    with pytest.raises(ValueError, match="lora_rank"):
        softcft.fine_tune(pipe, dataset["train"], tmp_path, lora_rank=2)


def test_fine_tuning_obeys(dataset: Any, tmp_path: Path) -> None:
    pipe = make(Additive())
    with torch.no_grad():
        pipe.backbone.patterns.weight.mul_(0.1)

    def loss(step: int) -> float:
        return json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[step])["guidance"]

    settings = {"max_train_steps": 40, "train_batch_size": 24, "slack_images": 24, "logging_steps": 10}
    softcft.fine_tune(
        pipe, dataset["train"], tmp_path, damping=0.0, multiplier_learning_rate=0.0, learning_rate=0.03, **settings
    )
    assert loss(-1) < loss(0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_speed": 1}, "learning_speed"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"cft": "none"}, "none"),
        ({"guides": []}, "guides"),
    ],
)
def test_bad_settings_of_fine_tuning_are_refused(
    change: dict[str, Any], named: str, dataset: Any, tmp_path: Path
) -> None:
    pipe = make(Additive(), with_classifier="guides" not in change)
    with pytest.raises(ValueError, match=named):
        softcft.fine_tune(pipe, dataset["train"], tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_needs_images_of_the_size_and_a_fidelity(dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        softcft.fine_tune(make(Additive(sample_size=24)), dataset["train"], tmp_path)

    class Unsure(Additive):
        def counterfactual(self, *arguments: Any) -> BackboneOutput:
            return BackboneOutput(image=super().counterfactual(*arguments).image)

    with pytest.raises(ValueError, match="fidelity"):
        softcft.fine_tune(make(Unsure()), dataset["train"], tmp_path)


def test_the_command_line_asks_it(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray((255 * IMAGE).astype(np.uint8)).save("scan.png")
    modules = ["--modules", "tests.own_models"]
    cli.main(["info", str(folder), *modules])
    said = capsys.readouterr().out
    assert "CounterfactualPipeline of grey images of 16 x 16" in said
    assert "Additive" in said
    known = [f"{name}={value}" for name, value in row(0).items()]
    asked = ["scan.png", "--model", str(folder), "--parents", *known, "--do", "sex=female", "-o", "out.png"]
    cli.main(["counterfactual", *asked, *modules])
    with Image.open("out.png") as image:
        assert image.size == (SIZE, SIZE)


def test_modules_lie_in_the_current_folder_too(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("model_of_this_test.py").write_text("LOADED = True")
    import_modules(["model_of_this_test"])
    Path("broken_model.py").write_text("1 / 0")
    for name in ("broken_model", "no_such_model", "model_of_this_test.py", ""):
        with pytest.raises(SystemExit):
            cli.main(["info", "--modules", name])
        assert f"--modules {name}" in capsys.readouterr().err


def test_recipes_evaluate_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make(Additive()).save_pretrained(runs / "soft")
    build().classifier.save_pretrained(runs / "judge")
    diffusers.AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=4).save_pretrained(runs / "vae")
    flags = ["--pipelines", "runs/soft", "--modules", "tests.own_models"]
    assert "Generated 64 images" in run_recipe(tmp_path, "generate_counterfactuals", *flags, "--attributes", "sex")
    said = run_recipe(tmp_path, "evaluate", *flags, "--interventions", "sex", "--num_resamples", "0")
    assert "Soft-CFT" in said
    assert (runs / "report.html").is_file()


def test_the_app_shows_it(folder: Path) -> None:
    pytest.importorskip("gradio", reason="the app is made with gradio")
    from softcft.app import page

    (model,) = load_models([str(folder)])
    assert model.name == "soft"

    async def build_page() -> Any:  # where no event loop runs, gradio opens some and leaves them open
        return page.build([model], [])

    asyncio.run(build_page())
    subject = Subject((255 * IMAGE).astype(np.uint8), "", {})
    values, others = ([row(i)[name] for name in PHANTOM_GRAPH.names] for i in (0, 1))
    shown = Answers([model], model.graph).ask(subject, None, "", None, [*values, False, True, False, False, *others])
    assert "male → <b>female</b>" in shown.html
