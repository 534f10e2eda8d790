"""The settings that are shipped: they parse, their models can be built, and every recipe has a help."""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, DSCMPipeline, HVAEModel
from softcft.data.chest_xrays import SOURCES
from softcft.data.config import AugmentationConfig, DataConfig, SubsetConfig
from softcft.data.morphomnist import MORPHOMNIST_GRAPH
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.evaluation.config import GenerationSettings
from softcft.models.denoiser import new_denoiser
from softcft.models.networks import network_class
from softcft.training.cft_config import CFTConfig, DiffusionTuningConfig, SolverConfig, WatchConfig
from softcft.training.config import (
    AdapterConfig,
    DiffusionConfig,
    MemoryConfig,
    TrainingConfig,
    UtilityConfig,
    ValidationConfig,
)
from softcft.training.parsing import model_arguments, parse_config
from tests.data.test_morphomnist import make_files
from tests.processes import run_python
from tests.recipes.small_pipeline import RECIPES, TINY, load_recipe, run_recipe


@pytest.mark.parametrize("script", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_help_teaches(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as exit_:
        recipe.main()
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert recipe.__doc__ is not None
    assert recipe.__doc__.strip() in text
    assert f"{script}.py" in text


def test_a_flag_takes_the_same_values_in_all_recipes_and_has_one_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, dict[str, Any]] = defaultdict(dict)

    def record(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            for flag in action.option_strings[:1]:
                kind = action.choices and list(action.choices), action.nargs, isinstance(action.default, bool)
                found[flag][script] = kind if action.choices else (getattr(action.type, "__name__", "str"), *kind)

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", record)
    for script in sorted(path.stem for path in RECIPES.glob("*.py")):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
        with pytest.raises(SystemExit):
            load_recipe(script).main()
    del found["--cft"]["run_all"], found["-h"]  # there it is a list
    assert len(found) > 80
    for flag, by_script in found.items():
        assert len({str(kind) for kind in by_script.values()}) == 1, (flag, by_script)
        assert re.fullmatch(r"--[a-z][a-z0-9_]*", flag)


WITHOUT_TORCH = """
import contextlib, io, runpy, sys
from pathlib import Path
from softcft import app, cli

RECIPES = Path(sys.argv[1])

def run(start, *argv):
    sys.argv[:] = argv
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            start()
        except (SystemExit, ValueError, FileNotFoundError):
            pass
        else:
            raise RuntimeError(f"{argv} should have ended")
    if slow := {"accelerate", "datasets", "diffusers", "matplotlib", "pandas", "scipy", "torch"} & set(sys.modules):
        raise RuntimeError(f"{argv} imports {slow}")

for flags in ("--help",), ("--version",), ("counterfactual", "--help"), ("info", "--nobody"):
    run(cli.main, "softcft", *flags)
run(app.main, "softcft-app", "--help")
for script in sorted(map(str, RECIPES.glob("*.py"))):
    for flag in "--help", "--nobody":
        run(lambda: runpy.run_path(script, run_name="__main__"), script, flag)
for flag in "--sample_size=-1", "--max_train_steps=0", "--learning_rate=fast", "--config=nobody.yaml":
    script = str(RECIPES / "soft_cft.py")
    run(lambda: runpy.run_path(script, run_name="__main__"), script, flag)
"""


def test_help_and_mistakes_in_flags_need_not_wait_for_torch(tmp_path: Path) -> None:
    run_python("-c", WITHOUT_TORCH, RECIPES, cwd=tmp_path)


def shipped(name: str) -> Path:
    return RECIPES / "configs" / f"{name}.yaml"


def parse(name: str, section: str) -> tuple[Any, ...]:
    """A section of a shipped config, as its recipe reads it."""
    classifier = [DataConfig, TrainingConfig, SubsetConfig, ValidationConfig, AugmentationConfig]
    types = {
        "scm": [DataConfig, TrainingConfig],
        **dict.fromkeys(("guide", "guide_2", "guide_3", "judge", "watcher"), classifier),
        "hvae": [DataConfig, TrainingConfig, MemoryConfig],
        "diffusion": [DataConfig, TrainingConfig, MemoryConfig, DiffusionConfig, AdapterConfig],
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
            AdapterConfig,
            load_recipe("soft_cft").PretrainedConfig,
        ],
        "generate": [
            DataConfig,
            load_recipe("generate_counterfactuals").GenerateConfig,
            GenerationSettings,
            SolverConfig,
        ],
        "utility": [DataConfig, TrainingConfig, UtilityConfig],
    }[section]
    own = ["--dataset_name", "folder", "--graph", str(TINY.with_name("graph.yaml"))]
    argv = ["--data_dir", "data", "--config", str(shipped(name)), *(own if name in OWN else [])]
    return parse_config(section, *types, default_config=shipped("phantom"), argv=argv)


OF_PHANTOM = ["phantom_diffusion", "phantom_flow"]
PRETRAINED = "own_data_pretrained"
DIFFUSION = [*OF_PHANTOM, "mimic_cxr_224_diffusion", "own_data_flow", PRETRAINED]
OF_SOURCES = {f"{source}_{size}": source for source in SOURCES for size in (224, 64)}
OWN = ["own_data", "own_data_quick", "own_data_flow", PRETRAINED]
SHIPPED = ["phantom", "phantom_32", "phantom_64", "morphomnist", *OF_SOURCES, *dict.fromkeys(OWN + DIFFUSION)]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_parse_and_agree_on_their_folder(name: str) -> None:
    for section in (
        "scm",
        "guide",
        "judge",
        "watcher",
        "diffusion" if name in DIFFUSION else "hvae",
        "cft",
    ):
        _, data, training, *_ = parse(name, section)
        assert training.output_dir == f"outputs/{name}"
        phantoms = [name for name in SHIPPED if name.startswith("phantom")]
        names = dict.fromkeys(OWN, "folder") | dict.fromkeys(phantoms, "phantom") | OF_SOURCES
        assert data.dataset_name == names.get(name, "mimic_cxr" if name.startswith("mimic_cxr") else name)
    (cft,) = (settings for settings in parse(name, "cft") if isinstance(settings, CFTConfig))
    assert cft.cft == ("matched" if name in OWN or (name in OF_SOURCES and name.endswith("_64")) else "soft")


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
    Path("run/diffusion/parent_encoder").mkdir(parents=True)
    Path("run/diffusion/parent_encoder/config.json").touch()
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


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in OF_PHANTOM])  # which have none
def test_predictors_learn_from_the_same_images(name: str) -> None:
    config, _, training, choice = parse(name, "utility")
    assert (choice.train_on, training.ema_decay) == ("real", 0)
    assert choice.num_images == config["generate"].get("num_images")
    with pytest.raises(SystemExit, match=rf"no pipeline in outputs/{name}/none"):  # its settings are right
        parse(name, "generate")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_can_be_built(name: str) -> None:
    is_diffusion = name in DIFFUSION
    config, *others = parse(name, "diffusion" if is_diffusion else "hvae")
    graph = CausalGraph(config["graph"])
    if name.startswith("phantom"):
        assert graph == PHANTOM_GRAPH
    if name == "morphomnist":
        assert graph == MORPHOMNIST_GRAPH
    assert AttributeSCM(graph.to_list(), **config["scm"].get("model", {})).causal_graph == graph
    for role in {"guide", "guide_2", "guide_3", "judge", "watcher", "utility"} & set(config):
        backbone = {"num_channels": 1, **config[role]["model"]["backbone"]}
        assert AttributeClassifier(graph.to_list(), backbone).causal_graph == graph
    size = config["data"]["sample_size"]
    if is_diffusion:
        channels, size = (4, 28) if others[3].latents else (1, size)
        with torch.device("meta"):
            kind = others[3].network, others[3].prediction_type
            model = model_arguments(config, "diffusion", network_class(others[3].network))
            denoiser = new_denoiser(graph, *kind, channels, size, others[3].patch_size, model)
        assert denoiser.parent_encoder.causal_graph == graph
    else:
        assert HVAEModel(graph.to_list(), size, **config["hvae"]["model"]).causal_graph == graph


def test_a_pretrained_pipeline_is_the_image_model_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["--dataset_name", "folder", "--graph", str(TINY.with_name("graph.yaml"))]
    pretrained = ["--pipeline_dir", "stock", "--prompt", "a scan"]
    monkeypatch.setattr(sys, "argv", ["run_all.py", *own, *pretrained, "--preset", "pretrained"])
    plan = load_recipe("run_all").read_plan()
    assert plan.image_model == "diffusion"
    steps = {step.name: " ".join(step.flags) for group in plan.groups for step in group}
    assert {name for name, flags in steps.items() if " ".join(pretrained) in flags} == {"diffusion"}
    for flags in (pretrained, ["--preset", "pretrained"]):
        monkeypatch.setattr(sys, "argv", ["run_all.py", *own, *flags])
        with pytest.raises(ValueError, match="pipeline_dir"):
            load_recipe("run_all").read_plan()


# ---- the other data set -------------------------------------------------------------------------------------------


def test_morphomnist_from_files_to_a_counterfactual(tmp_path: Path) -> None:
    """With the models of the shipped config, whose folders hand on from one recipe to the next."""
    (tmp_path / "files").mkdir()
    files = make_files(tmp_path / "files", num_train=60, num_test=20)
    flags = ["--data_dir", str(files), "--num_validation", "40", "--max_train_steps", "1"]
    for script, *own in (
        ("train_scm",),
        ("train_classifier", "--role", "guide"),
        ("train_hvae",),
        ("soft_cft", "--cft", "none"),
    ):
        run_recipe(tmp_path, script, *flags, "--train_batch_size", "4", *own, config=shipped("morphomnist"))

    outputs = tmp_path / "outputs" / "morphomnist"
    pipeline = DSCMPipeline.from_pretrained(outputs / "none")
    trained = HVAEModel.from_pretrained(outputs / "hvae").state_dict()
    assert all(torch.equal(trained[key], value) for key, value in pipeline.hvae.state_dict().items())
    image = torch.rand(1, 32, 32)
    result = pipeline(image, parents={"thickness": 2, "intensity": 150, "digit": "3"}, do={"digit": "8"})
    assert result.parents["digit"] == ["8"]
    assert result.parents["thickness"] == [pytest.approx(2)]
    assert np.isfinite(result.effects).all()
