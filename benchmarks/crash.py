"""Kill a training again and again at random moments, also while it saves, and see that it ends as if nothing had been.

    python benchmarks/crash.py --kills 30

Trains the image model of a small phantom by recipes/train_hvae.py, once without interruption and once with SIGKILLs,
after each of which the same command is started again. About a third of the kills are aimed at checkpoints being
written, and the last ones at the model being saved. Ends with exit status 1 if a weight differs by a bit, if what a
killed run has left loads as if it were whole, or if the log has not the same lines.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from softcft import HVAEModel
from softcft.training.checkpoints import find_damage, step_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "recipes" / "tiny.yaml"
AIMS = ("anywhere", "checkpoint", "model")


def start(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """The recipe, in a process of its own."""
    settings = {
        "config": CONFIG,
        "output_dir": folder / "run",
        "data_dir": folder / "data",
        "max_train_steps": steps,
        "checkpointing_steps": 3,
        "logging_steps": 2,
        "resume_from_checkpoint": "latest",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, str(ROOT / "recipes" / "train_hvae.py"), *flags]
        return subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)


def newest(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((step_of(path) for path in run.glob("checkpoint-*")), default=0)


def new(path: Path, since: float) -> bool:
    """Whether a folder was made or changed since, and is not what an earlier kill has left."""
    try:
        return path.stat().st_ctime > since
    except FileNotFoundError:
        return False


def kill(process: subprocess.Popen[bytes], run: Path, aim: str, chance: random.Random) -> str:
    """Wait for the moment, then kill; what was hit, or 'ended' if the run was over before."""
    started, before = time.time(), newest(run)
    saving = {"checkpoint": run / "partial-checkpoint", "model": run / "partial-model"}
    moment = started + chance.uniform(0.5, 18)
    while process.poll() is None:
        if aim == "anywhere" and time.time() >= moment:
            break
        if aim != "anywhere" and new(saving[aim], started):
            time.sleep(chance.uniform(0, 0.03))
            break
        time.sleep(0.0005)
    else:
        return "ended"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if new(saving["checkpoint"], started):
        return "while saving a checkpoint"
    if new(saving["model"], started) or new(run / "replaced-model", started):
        return "while saving the model"
    return "before a new checkpoint" if newest(run) == before else "between checkpoints"


def leftovers(run: Path) -> list[str]:
    """What a killed run has left that is broken and would not be noticed."""
    broken = [f"{path.name}: {damage}" for path in run.glob("checkpoint-*") if (damage := find_damage(path))]
    if (run / "config.json").exists():
        try:
            HVAEModel.from_pretrained(run)
        except Exception as error:  # whatever it is: it looked whole
            broken.append(f"the model: {error}")
    return broken


def checksum(run: Path) -> str:
    """Of the saved weights."""
    return hashlib.sha256((run / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


def log_lines(run: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="Number of SIGKILLs that hit a run. (default: 30)")
    parser.add_argument("--steps", type=int, default=2000, help="Optimizer steps of the training. (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the moments. (default: 0)")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, parts = (Path(temporary, name) for name in ("whole", "parts"))
        for folder in (whole, parts):
            folder.mkdir()
        if code := start(whole, arguments.steps).wait():
            sys.exit(f"The uninterrupted run ended with {code}:\n{(whole / 'log.txt').read_text()[-3000:]}")
        run, hits, broken = parts / "run" / "hvae", Counter[str](), []
        while hits.total() < arguments.kills:
            left = arguments.kills - hits.total()
            aim = "model" if left <= 3 else chance.choices(AIMS[:2], weights=(2, 1))[0]
            process = start(parts, arguments.steps)
            hit = kill(process, run, aim, chance)
            if hit == "ended" and process.returncode:
                sys.exit(f"A resumed run ended with {process.returncode}:\n{(parts / 'log.txt').read_text()[-3000:]}")
            if hit != "ended":
                hits[hit] += 1
                broken += leftovers(run)
                print(f"kill {hits.total():3d}  {hit:26s} newest checkpoint: {newest(run)}", flush=True)
            elif aim != "model":
                print("the run was over; kills go on, of the same command that has nothing left to train", flush=True)
        if code := start(parts, arguments.steps).wait():
            sys.exit(f"The last run ended with {code}:\n{(parts / 'log.txt').read_text()[-3000:]}")
        print(", ".join(f"{number} {hit}" for hit, number in hits.most_common()))
        sums = {folder.name: checksum(folder / "run" / "hvae") for folder in (whole, parts)}
        same_log = log_lines(whole / "run" / "hvae") == log_lines(run)
        print(f"weights without interruption {sums['whole']}")
        print(f"weights after {arguments.kills} kills      {sums['parts']}")
        print(f"the same lines in metrics.jsonl: {same_log}; looks whole and is not: {broken or 'nothing'}")
        sys.exit(0 if sums["whole"] == sums["parts"] and same_log and not broken else 1)


if __name__ == "__main__":
    main()
