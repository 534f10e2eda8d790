"""Recipes on several processes: the launch files, two machines, odd sizes, and what happens where one process fails.

`torchrun` and `accelerate launch` start real processes here, on the CPU; two machines are two launches on loopback.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands import launch
from diffusers import AutoencoderKL

from softcft import AttributeSCM
from tests.recipes.small_pipeline import RECIPES, TINY, make_pipeline, run_recipe

ROOT = RECIPES.parent
FILES = RECIPES / "accelerate"
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def start(cwd: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command in a folder, without network. Nothing tells it to use the CPU: there is no GPU to see."""
    cwd.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(cwd / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("ACCELERATE_USE_CPU", None)
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*started: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """Exit status and output of each; one that hangs fails the test, and nothing is left running."""
    try:
        outputs = [job.communicate(timeout=400) for job in started]
    finally:
        for job in started:
            job.kill()
    return [(job.returncode, *output) for job, output in zip(started, outputs, strict=True)]


def two_machines(folders: tuple[Path, Path], *command: str) -> list[tuple[int, str, str]]:
    """Run a recipe by the file for two machines, one process on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    file = ("--config_file", str(FILES / "2_nodes_of_8_gpus.yaml"), "--num_processes", "2")
    address = ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
    return finish(
        *(
            start(folder, ACCELERATE, "launch", *file, *address, "--machine_rank", str(rank), *command)
            for rank, folder in enumerate(folders)
        )
    )


# ---- the launch files ---------------------------------------------------------------------------------------------


def command_of(file: Path) -> list[str]:
    """The command in the comment at the top of a file, without `accelerate launch`."""
    found = re.search(r"accelerate launch (.*?)\n#\n", file.read_text(), flags=re.DOTALL)
    assert found is not None
    return shlex.split(found[1].replace("\\\n#", ""))


@pytest.mark.parametrize(
    ("name", "machines", "on_each"),
    [("8_gpus", None, "8"), ("2_nodes_of_8_gpus", "2", "8"), ("2_cpu_processes", None, "2")],
)
def test_the_command_in_a_launch_file_starts_so_many_processes(
    name: str, machines: str | None, on_each: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[SimpleNamespace] = []
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    monkeypatch.chdir(ROOT)
    launch.launch_command(launch.launch_command_parser().parse_args(command_of(FILES / f"{name}.yaml")))
    (run,) = started
    assert run.nproc_per_node == on_each
    assert Path(run.training_script).is_file()
    assert all(Path(value).is_file() for value in run.training_script_args[1:])
    if machines:
        assert (run.nnodes, run.node_rank, run.rdzv_endpoint) == (machines, 1, "MAIN:29500")


def test_the_file_for_one_gpu_starts_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SimpleNamespace] = []
    monkeypatch.setattr(launch, "simple_launcher", started.append)
    monkeypatch.chdir(ROOT)
    launch.launch_command(launch.launch_command_parser().parse_args(command_of(FILES / "1_gpu.yaml")))
    assert [(run.num_processes, run.num_machines, run.use_cpu) for run in started] == [(1, 1, False)]


def test_every_launch_file_is_tested() -> None:
    names = {"1_gpu", "8_gpus", "2_nodes_of_8_gpus", "2_cpu_processes"}
    assert {path.stem for path in FILES.iterdir()} == names


# ---- one model, however it is trained -----------------------------------------------------------------------------

KEEP = """
import sys; sys.path.insert(0, sys.argv.pop(1))
import softcft.training.loop as loop, torch, train_scm
from accelerate import PartialState

def train(*arguments, **settings):
    trained = original(*arguments, **settings)
    torch.save(trained.scm.state_dict(), f"weights-{PartialState().process_index}.pt")
    return trained

original, loop.train = loop.train, train
train_scm.main()
"""


@pytest.mark.slow
def test_two_processes_and_two_machines_train_the_model_of_one_process(tmp_path: Path) -> None:
    together, apart, alone = (tmp_path / name for name in ("together", "apart", "alone"))
    recipe = (str(RECIPES / "train_scm.py"), "--config", str(TINY), "--train_batch_size", "8")
    file = ("--config_file", str(FILES / "2_cpu_processes.yaml"))
    results = finish(start(together, ACCELERATE, "launch", *file, *recipe))
    (tmp_path / "keep.py").write_text(KEEP)
    keep = (str(tmp_path / "keep.py"), str(RECIPES), "--config", str(TINY), "--train_batch_size", "8")
    results += two_machines((apart, apart), *keep)
    for code, _, stderr in results:
        assert code == 0, stderr[-4000:]
    assert [output.count("Saved to runs/scm") for _, output, _ in results] == [1, 1, 0]
    alone.mkdir()
    run_recipe(alone, "train_scm", "--train_batch_size", "16")

    one, two, node = (
        AttributeSCM.from_pretrained(folder / "runs" / "scm").state_dict() for folder in (alone, together, apart)
    )
    kept = [torch.load(apart / f"weights-{rank}.pt") for rank in (0, 1)]
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6)
        for weights in (node, *kept):
            assert torch.equal(weights[key], two[key])
    untrained = AttributeSCM(**AttributeSCM.load_config(alone / "runs" / "scm"))
    assert not all(torch.equal(one[key], value) for key, value in untrained.state_dict().items())


@pytest.mark.slow
def test_machines_that_do_not_share_the_folder_end_before_they_train(tmp_path: Path) -> None:
    """The second does not see the checkpoint that the first would go on from."""
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "runs" / "scm" / "checkpoint-2").mkdir(parents=True)
    recipe = (str(RECIPES / "train_scm.py"), "--config", str(TINY), "--resume_from_checkpoint", "latest")
    results = two_machines((first, second), *recipe)
    assert [code for code, _, _ in results] == [1, 1]
    message = "output_dir runs/scm: the main process sees checkpoint-2, but process 1 sees none. It must be one"
    assert message in results[0][2]
    assert 'train_scm.py", line' not in results[1][2]  # no error of its own


# ---- one process fails --------------------------------------------------------------------------------------------

FAIL = """
import importlib, json, sys; sys.path.insert(0, sys.argv[1])
from accelerate import PartialState

def run(name, *flags):
    sys.argv = [name, "--config", CONFIG, "--dataset_name", "gone", *flags]
    importlib.import_module(name).main()

CONFIG, runs = sys.argv[2], json.loads(sys.argv[3])
for name, *flags in runs:
    try:
        run(name, *flags)
    except BaseException as error:
        with open(f"ends-{PartialState().process_index}.jsonl", "a") as file:
            file.write(json.dumps([name, type(error).__name__, str(error)]) + "\\n")
run(*runs[0])
"""


@pytest.mark.slow
def test_where_the_data_cannot_be_prepared_all_processes_of_every_recipe_end(tmp_path: Path) -> None:
    """The main process prepares them, and only it has an error to show."""
    soft = make_pipeline(tmp_path / "runs" / "soft")
    for folder in ("judge", "watcher", "utility/real", "utility/soft/race"):
        shutil.copytree(soft / "classifier", tmp_path / "runs" / folder)
        (tmp_path / "runs" / folder / "config.yaml").write_text(yaml.safe_dump({"utility": {}}))
    AutoencoderKL(norm_num_groups=4, block_out_channels=[8]).save_pretrained(tmp_path / "runs" / "vae")
    parts = {"scm": "attribute_scm", "guide": "classifier", "hvae": "hvae"}
    runs = [
        ["train_scm"],
        ["train_classifier", "--role", "judge"],
        ["train_hvae"],
        ["train_vae"],
        ["train_diffusion"],
        ["soft_cft", *(flag for name, part in parts.items() for flag in (f"--{name}_dir", str(soft / part)))],
        ["evaluate", "--pipelines", "runs/soft"],
        ["generate_counterfactuals", "--pipelines", "runs/soft"],
        ["evaluate_utility"],
    ]
    (tmp_path / "fail.py").write_text(FAIL)
    command = (*TORCHRUN, "2", "fail.py", str(RECIPES), str(TINY), json.dumps(runs))
    ((code, _, stderr),) = finish(start(tmp_path, *command))
    message = "dataset_name gone is no folder, and no data set of the Hub is called so (owner/name)."
    ends = [
        [json.loads(line) for line in (tmp_path / f"ends-{process}.jsonl").read_text().splitlines()]
        for process in (0, 1)
    ]
    assert ends == [
        [[name, "FileNotFoundError", message] for name, *_ in runs],
        [[name, "SystemExit", "1"] for name, *_ in runs],
    ]
    assert code == 1
    assert stderr.count(message) == 1
    assert stderr.count("Traceback") == 2  # of the recipe, and of torchrun


# ---- odd numbers of images ----------------------------------------------------------------------------------------

COUNT = """
import json, sys; sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
import torch, evaluate_utility
from accelerate import Accelerator
from softcft.evaluation.measuring import run_batches

def picture(index):
    return {"image": torch.full((1, 2, 2), index, dtype=torch.uint8), "parents": torch.tensor([float(index)])}

def see(image):
    return SimpleNamespace(logits=((image[:, :, 0, 0] + 1) * 127.5))

accelerator, wrong = Accelerator(cpu=True), []
assert accelerator.num_processes == 3
for number in (1, 2, 3, 4, 7, 20):
    for batch_size in (1, 2, 3, 250):
        images, expected = [picture(index) for index in range(number)], torch.arange(number).float()
        def measure(batch):
            return {"seen": see(batch["image"]).logits[:, 0]}

        measured = run_batches(accelerator, images, measure, batch_size, "test")["seen"]
        logits, labels = evaluate_utility.predict({"real": see}, images, batch_size, accelerator)
        for name, values in (("evaluate", measured), ("logits", logits["real"][:, 0]), ("labels", labels[:, 0])):
            if values.shape != expected.shape or (values - expected).abs().max() > 1e-3:
                wrong.append([name, number, batch_size, values.tolist()])
with open(f"wrong-{accelerator.process_index}.json", "w") as file:
    json.dump(wrong, file)
"""


@pytest.mark.slow
def test_each_image_is_measured_once_and_in_its_place_on_any_number_of_processes(tmp_path: Path) -> None:
    """Also where their number is no multiple of the processes', and where there are fewer."""
    (tmp_path / "count.py").write_text(COUNT)
    ((code, _, stderr),) = finish(start(tmp_path, *TORCHRUN, "3", "count.py", str(RECIPES)))
    assert code == 0, stderr[-4000:]
    for process in range(3):
        assert json.loads((tmp_path / f"wrong-{process}.json").read_text()) == []
