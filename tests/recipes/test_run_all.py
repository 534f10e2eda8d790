"""The whole run as one command, on a folder of generated pictures and models of toy size."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from softcft import DSCMPipeline
from softcft.data.config import DataConfig
from softcft.run.plan import Plan
from softcft.training.parsing import parse_config
from tests.processes import run_python
from tests.recipes.small_pipeline import RECIPES, TINY, load_recipe

GRAPH = """
graph:
  - {name: shape, kind: binary, categories: [disc, square]}
  - {name: width, kind: continuous, low: 4, high: 12, unit: pixels, parents: [shape]}
columns:
  shape: {column: form, values: {0: disc, 1: square}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey pictures of 16 x 16 pixels with their table, a graph for them, and models of toy size."""
    folder = tmp_path_factory.mktemp("run_all")
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    lines = ["file_name,form,width"]
    y, x = np.mgrid[:16, :16] - 7.5
    for i in range(60):
        form, width = i % 2, 4 + i % 9
        inside = (x**2 + y**2 < width**2 / 4) if form == 0 else (np.maximum(abs(x), abs(y)) < width / 2)
        pixels = 200 * inside + random.integers(0, 40, (16, 16))
        Image.fromarray(pixels.astype("u1")).save(folder / "pictures" / f"{i}.png")
        lines.append(f"{i}.png,{form},{width}")
    (folder / "pictures" / "metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "graph.yaml").write_text(GRAPH)
    config = yaml.safe_load(TINY.read_text())
    del config["graph"]
    config["data"] = {"sample_size": 16}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def data(folder: Path) -> list[str]:
    """The flags of the data."""
    return ["--config", "tiny.yaml", "--dataset_name", "pictures", "--graph", "graph.yaml"]


def a_second_each(plan: Plan, sizes: dict[str, int]) -> dict[str, float]:
    """In place of an estimate, which takes a while."""
    return {step.name: 1.0 for group in plan.groups for step in group}


@pytest.fixture
def run_all(
    folder: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Runs the recipe here, but in place of the other recipes scripts that write down how they were called."""
    recipe = load_recipe("run_all")
    for name in (
        *("train_scm", "train_classifier", "train_hvae", "train_vae", "soft_cft", "evaluate"),
        *("generate_counterfactuals", "evaluate_utility", "train_diffusion"),
    ):
        (tmp_path / f"{name}.py").write_text(f"import sys; open('{tmp_path}/calls', 'a').write(str(sys.argv) + '\\n')")
    monkeypatch.setattr(recipe, "RECIPES", tmp_path)
    monkeypatch.setattr("softcft.run.estimate.estimate", a_second_each)
    set_handler = signal.signal
    before = set_handler(signal.SIGINT, signal.default_int_handler)  # tests in the background may have to ignore it
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    monkeypatch.chdir(folder)

    def run_all(*flags: str, **scripts: str) -> None:
        for name, script in scripts.items():
            (tmp_path / f"{name}.py").write_text(script)
        monkeypatch.setattr(sys, "argv", ["run_all.py", *data, *flags])
        recipe.main()

    yield run_all
    set_handler(signal.SIGINT, before)


def calls(tmp_path: Path) -> list[list[str]]:
    return [ast.literal_eval(line) for line in (tmp_path / "calls").read_text().splitlines()]


def value(command: list[str], flag: str) -> str:
    """What a recipe reads where a flag is given twice."""
    return command[len(command) - command[::-1].index(flag)]


@pytest.mark.slow
def test_from_pictures_to_a_table_and_a_pipeline(folder: Path, data: list[str]) -> None:
    environment = {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(RECIPES.parent)}
    run = subprocess.run(
        [sys.executable, str(RECIPES / "run_all.py"), *data, "--output_dir", "runs/mine", "--max_train_steps", "2"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    steps = ["== 1/5", "== 2/5", "== 3/5", "== 4/5", "by the judge", "== 5/5 Done after", "runs/mine/report.html"]
    assert sorted(steps, key=run.stdout.rindex) == steps
    assert "The judge on validation data" in run.stdout
    out = folder / "runs" / "mine"
    assert "Soft-CFT" in (out / "report.md").read_text()
    assert yaml.safe_load((out / "hvae" / "config.yaml").read_text())["hvae"]["max_train_steps"] == 2
    pipeline = DSCMPipeline.from_pretrained(out / "soft")
    with Image.open(folder / "pictures" / "0.png") as picture:
        result = pipeline(picture, parents={"shape": "disc", "width": 4}, do={"shape": "square"})
    assert result.parents["shape"] == ["square"]
    assert result.images[0].size == (16, 16)


def test_each_recipe_gets_the_data_its_seed_and_its_steps(
    run_all: Callable[..., None], data: list[str], tmp_path: Path
) -> None:
    run_all("--seed", "4", "--max_train_steps", "3", "--sample_size=16")
    assert len(calls(tmp_path)) == 10 + (not torch.cuda.is_available())  # evaluate.py by two processes
    for script, *flags in calls(tmp_path):
        assert flags[flags.index("--config") :][: len(data)] == data
        assert "--sample_size=16" in flags
        assert value(flags, "--output_dir") == "runs-seed4"
        apart = {"judge": "1004", "watcher": "3004"}
        assert value(flags, "--seed") == apart.get(value(flags, "--role") if "--role" in flags else "", "4")
        if not script.endswith("evaluate.py"):
            most = "2" if script.endswith("train_vae.py") else "3"  # of 4 for the image model
            assert value(flags, "--max_train_steps") == most
            assert value(flags, "--resume_from_checkpoint") == "latest"
    order = [Path(script).stem for script, *_ in calls(tmp_path)]
    assert order[0] == "train_scm"
    assert sorted(order[1:6]) == [*["train_classifier"] * 3, "train_hvae", "train_vae"]
    assert order[6:] == ["soft_cft"] * 3 + ["evaluate"] * (len(order) - 9)


def test_a_watcher_is_trained_where_somebody_watches(
    run_all: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    run_all("--cft", "none")
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    del config["watcher"]
    (folder / "alone.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"section watcher.*watch: false"):
        run_all("--config", "alone.yaml")
    config["cft"]["watch"] = False
    (folder / "alone.yaml").write_text(yaml.safe_dump(config))
    run_all("--config", "alone.yaml")
    assert not [flags for _, *flags in calls(tmp_path) if "watcher" in flags]


def test_what_the_watcher_saw_is_said_in_the_end(
    run_all: Callable[..., None], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "told" / "soft").mkdir(parents=True)
    (folder / "told" / "soft" / "watch.json").write_text('{"sentence": "It became an attack."}')
    run_all("--output_dir", "told")
    assert "Soft-CFT: It became an attack." in capfd.readouterr().out


def test_matched_fine_tuning_has_the_further_guides_of_the_settings(
    run_all: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["guides"] = 3 * [config.pop("guide")]
    (folder / "guides.yaml").write_text(yaml.safe_dump(config))
    run_all("--config", "guides.yaml", "--seed", "4", "--cft", "soft", "matched")
    made = [flags for _, *flags in calls(tmp_path)]
    seeds = {value(flags, "--role"): value(flags, "--seed") for flags in made if "--role" in flags}
    assert seeds == {"guide": "4", "guide_2": "104", "guide_3": "204", "watcher": "3004", "judge": "1004"}
    guides = {
        value(flags, "--cft"): flags[flags.index("--more_guides") + 1 :] for flags in made if "--more_guides" in flags
    }
    assert guides == {"matched": ["runs-seed4/guide_2", "runs-seed4/guide_3"]}
    (tmp_path / "calls").unlink()
    run_all("--config", "guides.yaml", "--seed", "4", "--cft", "soft")
    assert not [flags for _, *flags in calls(tmp_path) if "guide_2" in flags or "--more_guides" in flags]


def test_settings_with_matched_targets_are_compared_with_soft_ones(
    run_all: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["cft"] = {**config["cft"], "cft": "matched"}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    run_all("--config", "own.yaml")
    made = [value(flags, "--cft") for script, *flags in calls(tmp_path) if script.endswith("soft_cft.py")]
    assert sorted(made) == ["matched", "none", "soft"]


def test_other_kinds_of_fine_tuning_are_compared(run_all: Callable[..., None], tmp_path: Path) -> None:
    run_all("--cft", "soft", "matched", "--utility")
    made = {Path(script).stem: [] for script, *_ in calls(tmp_path)}
    for script, *flags in calls(tmp_path):
        made[Path(script).stem].append(flags)
    assert sorted(value(flags, "--cft") for flags in made["soft_cft"]) == ["matched", "soft"]
    for recipe in ("generate_counterfactuals", "evaluate"):
        (flags, *_) = made[recipe]
        start = flags.index("--pipelines") + 1
        assert [Path(folder).name for folder in flags[start : start + 2]] == ["soft", "matched"]
    sets = [value(flags, "--train_on") for flags in made["train_classifier"] if "--train_on" in flags]
    assert sorted(sets) == ["matched/shape", "real", "soft/shape"]


def test_with_utility_predictors_learn_from_every_set(run_all: Callable[..., None], tmp_path: Path) -> None:
    run_all("--utility", "--seed", "4")
    flags = [flags for script, *flags in calls(tmp_path) if "utility" in flags]
    assert sorted(value(f, "--train_on") for f in flags) == ["hard/shape", "none/shape", "real", "soft/shape"]
    assert {value(f, "--seed") for f in flags} == {"2004"}
    order = [Path(script).stem for script, *_ in calls(tmp_path)]
    assert order.index("generate_counterfactuals") > max(i for i, name in enumerate(order) if name == "soft_cft")
    assert order[-1] == "evaluate"
    (utility,) = {tuple(flags) for script, *flags in calls(tmp_path) if script.endswith("evaluate_utility.py")}
    types = DataConfig, load_recipe("evaluate_utility").EvaluateUtilityConfig
    parse_config("data", *types, default_config=TINY, argv=utility)  # it takes all its flags


def test_without_an_hvae_in_the_settings_the_image_model_is_a_diffusion_model(
    run_all: Callable[..., None],
    diffusion: Callable[..., list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_all(*diffusion())
    made = [Path(script).stem for script, *_ in calls(tmp_path)]
    assert "train_diffusion" in made
    assert "train_hvae" not in made
    assert made.count("soft_cft") == 3
    assert 'DiffusionDSCMPipeline.from_pretrained("runs/diffusion/soft")' in capfd.readouterr().out


@pytest.fixture
def diffusion(folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The flags of a run with a diffusion model, whose settings may be changed."""

    def flags(**changes: dict[str, Any]) -> list[str]:
        config = yaml.safe_load((folder / "tiny.yaml").read_text())
        for section in ("hvae", "generate", "utility"):
            del config[section]
        for section, settings in changes.items():
            config[section] = config.get(section, {}) | settings
        (tmp_path / "diffusion.yaml").write_text(yaml.safe_dump(config))
        return ["--config", str(tmp_path / "diffusion.yaml"), "--output_dir", "runs/diffusion"]

    return flags


def test_a_diffusion_model_is_evaluated_under_each_guidance(
    run_all: Callable[..., None], diffusion: Callable[..., list[str]], tmp_path: Path
) -> None:
    guidance = {"cfg": {"guidance_scale": 2}, "factored": {"guidance_scale": 2, "invariant_guidance_scale": 1}}
    evaluate = """
import pathlib, sys
folder = pathlib.Path(sys.argv[len(sys.argv) - sys.argv[::-1].index('--output_dir')])
folder.mkdir(parents=True, exist_ok=True)
scale = sys.argv[sys.argv.index('--guidance_scale') + 1] if '--guidance_scale' in sys.argv else '1'
(folder / 'metrics.csv').write_text(f'table,value\\neffectiveness,{scale}\\ntruth,0\\n')
"""
    run_all(*diffusion(guidance=guidance), evaluate=evaluate.replace("\\\\", "\\"))
    table = pd.read_csv("runs/diffusion/table1.csv")
    assert table.to_dict("list") == {
        "table": ["effectiveness"] * 3,
        "value": [1, 2, 2],
        "guidance": ["none", "cfg", "factored"],
    }


def test_latents_wait_for_their_vae(
    run_all: Callable[..., None], diffusion: Callable[..., list[str]], tmp_path: Path
) -> None:
    run_all(*diffusion(diffusion={"latents": True, "patch_size": 1}))
    made = [Path(script).stem for script, *_ in calls(tmp_path)]
    assert made.index("train_diffusion") > made.index("train_vae")
    fine_tuned = [flags for script, *flags in calls(tmp_path) if script.endswith("soft_cft.py")]
    assert {value(flags, "--diffusion_dir") for flags in fine_tuned} == {"runs/diffusion/diffusion"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"guidance": {"hard": {}}}, "guidance.hard"),
        ({"guidance": {"cfg": {"scale": 2}}}, "guidance.cfg: .*'scale'"),
        ({"guidance": {"cfg": {"guidance_scale": "two"}}}, "guidance_scale .*'two'"),
        ({"guidance": {"each": {"guidance_scale": {"sex": -2}}}}, r"guidance_scale\['sex'\] .*-2"),
        ({"cft": {"num_inference_steps": 1}}, "--num_inference_steps .*1"),
        ({"cft": {"abduction": "edict"}}, "abduction.*'edict'"),
        ({"diffusion": {"model": {"channels": 8}}}, "diffusion.model: .*'channels'"),
        ({"diffusion": {"model": {"in_channels": 8}}}, "diffusion.model: .*'in_channels'"),
        ({"diffusion": {"patch_size": 3}}, "patch_size 3"),
        ({"diffusion": {"pipeline_dir": "nowhere"}}, "pipeline_dir .*nowhere"),
    ],
)
def test_mistakes_with_a_diffusion_model_end_it_before_anything_is_made(
    run_all: Callable[..., None],
    diffusion: Callable[..., list[str]],
    tmp_path: Path,
    changes: dict[str, Any],
    named: str,
) -> None:
    with pytest.raises(ValueError, match=named):
        run_all(*diffusion(**changes))
    assert not (tmp_path / "calls").exists()


def test_settings_of_diffusion_are_refused_for_an_hvae(run_all: Callable[..., None], folder: Path) -> None:
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "solver.yaml").write_text(yaml.safe_dump(config | {"cft": config["cft"] | {"lora_rank": 2}}))
    with pytest.raises(ValueError, match="lora_rank is for diffusion models"):
        run_all("--config", "solver.yaml")
    (folder / "solver.yaml").write_text(yaml.safe_dump(config | {"guidance": {"cfg": {"guidance_scale": 2}}}))
    with pytest.raises(ValueError, match="The section guidance is for diffusion models"):
        run_all("--config", "solver.yaml")


def test_a_trial_does_not_lengthen_a_training(run_all: Callable[..., None], tmp_path: Path) -> None:
    run_all("--output_dir", "runs/short", "--max_train_steps", "1000")
    steps = {  # jobs run side by side, in whatever order
        value(flags, "--role") if "--role" in flags else Path(script).stem: value(flags, "--max_train_steps")
        for script, *flags in calls(tmp_path)[:-2]
    }
    classifiers = {"guide": "30", "judge": "3", "watcher": "30"}
    assert steps == classifiers | {"train_scm": "3", "train_hvae": "4", "train_vae": "2", "soft_cft": "3"}


def test_a_failure_beside_ends_the_run_at_once_and_is_shown(run_all: Callable[..., None], tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        run_all(
            *("--output_dir", "runs/failed"),
            train_hvae=f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(300)",
            train_classifier="import sys, time; time.sleep(1); print('x' * 99, file=sys.stderr); sys.exit('no memory')",
        )
    assert time.monotonic() - began < 60  # the 300 seconds of the other are not waited for
    message = str(stopped.value)
    assert message.startswith("\nguide failed (exit status 1), see runs/failed/logs/guide.err\nxxx")
    assert message.endswith("\nno memory")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


MAKES = """
import pathlib, sys
flag = lambda name: sys.argv[len(sys.argv) - sys.argv[::-1].index(name)]
run, recipe = pathlib.Path(flag('--output_dir')), pathlib.Path(sys.argv[0]).stem
named = {'train_classifier': '--role', 'soft_cft': '--cft'}
folder = flag(named[recipe]) if recipe in named else recipe.removeprefix('train_')
file = run / 'report.html' if recipe == 'evaluate' else run / folder / 'config.json'
for path in file, file.with_name('model_index.json'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
open(CALLS, 'a').write(str(sys.argv) + '\\n')
"""


@pytest.fixture
def run_again(run_all: Callable[..., None], tmp_path: Path) -> Callable[..., set[str]]:
    """Runs the recipe, whose steps make what they should; returns which of them ran."""
    names = ("train_scm", "train_classifier", "train_hvae", "train_vae", "soft_cft", "evaluate")
    scripts = dict.fromkeys(names, MAKES.replace("CALLS", repr(str(tmp_path / "calls"))))

    def run(*flags: str, **changed: str) -> set[str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        run_all("--output_dir", "runs/again", *flags, **scripts | changed)
        made = calls(tmp_path) if (tmp_path / "calls").exists() else []
        return {
            value(flags, "--role" if "--role" in flags else "--cft") if {"--role", "--cft"} & {*flags} else Path(s).stem
            for s, *flags in made
        }

    return run


ALL = {"train_scm", "guide", "watcher", "judge", "train_vae", "train_hvae", "none", "hard", "soft", "evaluate"}


@pytest.mark.slow
def test_a_run_that_is_complete_is_not_run_again(run_again: Callable[..., set[str]], folder: Path) -> None:
    assert run_again() == ALL
    assert run_again() == set()
    assert run_again("--jobs", "1") == set()
    (folder / "runs/again/hvae/config.json").unlink()  # what follows from it is made anew
    assert run_again() == {"train_hvae", "none", "hard", "soft", "evaluate"}
    (folder / "runs/again/logs/evaluate.done").unlink()
    assert run_again() == {"evaluate"}
    assert run_again("--cft", "none", "soft", "matched") == {"matched", "evaluate"}
    with (folder / "pictures" / "metadata.csv").open("a") as table:
        table.write("\n")
    assert run_again() == ALL
    assert run_again("--num_test", "5") == ALL


def test_what_failed_is_run_again_and_what_was_done_is_not(run_again: Callable[..., set[str]], folder: Path) -> None:
    with pytest.raises(SystemExit):
        run_again("--seed", "7", soft_cft="raise SystemExit(1)")
    assert run_again("--seed", "7") == {"none", "hard", "soft", "evaluate"}


def test_a_run_that_is_complete_is_not_loaded(
    run_again: Callable[..., set[str]], folder: Path, data: list[str]
) -> None:
    run_again("--seed", "9")
    command = f"""
import sys
sys.path.insert(0, {str(RECIPES)!r})
sys.argv[1:] = {[*data, "--output_dir", "runs/again", "--seed", "9"]!r}
import run_all
run_all.RECIPES = run_all.Path("nowhere")  # nothing is there to be run
run_all.main()
if slow := {{"torch", "diffusers", "datasets", "pandas"}} & set(sys.modules):
    raise RuntimeError(slow)
"""
    assert "Done before: scm" in run_python("-c", command, cwd=folder)


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_steps_run_side_by_side(
    run_all: Callable[..., None], tmp_path: Path, jobs: int, capfd: pytest.CaptureFixture[str]
) -> None:
    script = f"""
import pathlib, time, os
here = pathlib.Path('{tmp_path}/now')
here.mkdir(exist_ok=True)
(here / str(os.getpid())).touch()
open('{tmp_path}/most', 'a').write(f"{{len(list(here.iterdir()))}} ")
time.sleep(0.3)
(here / str(os.getpid())).unlink()
"""
    names = ("train_scm", "train_classifier", "train_hvae", "train_vae", "soft_cft", "evaluate")
    run_all("--output_dir", f"runs/jobs{jobs}", "--jobs", str(jobs), **dict.fromkeys(names, script))
    most = max(map(int, (tmp_path / "most").read_text().split()))
    assert most == (jobs if not torch.cuda.is_available() else max(jobs, torch.cuda.device_count()))
    told = capfd.readouterr().out
    assert "-- scm: " in told
    assert " left\n" in told


@pytest.mark.parametrize("where", ["train_hvae", "evaluate"])
def test_a_stopped_run_leaves_nothing_behind_and_goes_on(
    run_all: Callable[..., None], tmp_path: Path, where: str
) -> None:
    """The first time, a step stops the run, as Ctrl-C would; evaluate.py is a grandchild of it."""
    script = f"""
import os, pathlib, signal, sys, time
pathlib.Path('{tmp_path}/pids').open('a').write(f'{{os.getpid()}} ')
if '{where}' in sys.argv[0] and not pathlib.Path('{tmp_path}/stopped').exists():
    try:
        pathlib.Path('{tmp_path}/stopped').touch(exist_ok=False)
        os.kill({os.getpid()}, signal.SIGINT)
    except FileExistsError:  # one of the two processes of evaluate.py is enough
        pass
    time.sleep(300)
"""
    beside = f"{script}if not pathlib.Path('{tmp_path}/stopped').exists(): time.sleep({300 * (where == 'train_hvae')})"
    with pytest.raises(SystemExit, match=r"Stopped\. The same command goes on from here"):
        run_all("--output_dir", "runs/stopped", train_hvae=script, train_classifier=beside, evaluate=script)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    run_all("--output_dir", "runs/stopped", train_classifier=script)
    assert (tmp_path / "pids").read_text().split()[len(pids) :]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--sample_sise", "16"], "'--sample_sise'.*'--sample_size'"),
        (["--learning_rate", "1"], "'--learning_rate'"),
        (["--max_train_steps", "0"], "--max_train_steps"),
        (["--cft", "soft", "medium"], "--cft"),
        (["--seed", "-1"], "--seed"),
        (["--num_test", "0"], "--num_test"),
        (["--sample_size", "24"], "sample_size"),
        (["--config", "cft.yaml"], "'dampening'.*'cft'.*'damping'"),
        (["--config", "judge.yaml"], "judge.model: .*'backbones'"),
    ],
)
def test_mistakes_end_it_before_anything_is_made(
    run_all: Callable[..., None], folder: Path, tmp_path: Path, flags: list[str], named: str
) -> None:
    """Also those in the settings of the last training."""
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    for section, change in (("cft", {"dampening": 1}), ("judge", {"model": {"backbones": {}}})):
        (folder / f"{section}.yaml").write_text(yaml.safe_dump(config | {section: config[section] | change}))
    with pytest.raises(ValueError, match=named):
        run_all("--output_dir", "runs/mistake", *flags)
    assert not Path("runs/mistake").exists()
    assert not (tmp_path / "calls").exists()
