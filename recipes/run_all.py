"""Everything from images to the report: counterfactuals without, with hard and with soft fine-tuning.

    python recipes/run_all.py                                                         # the phantom: 20 minutes
    python recipes/run_all.py --cft none hard soft matched                            # and the matched targets
    python recipes/run_all.py --dataset_name FOLDER --graph graph.yaml --output_dir outputs/mine    # your own images
    python recipes/run_all.py --config recipes/configs/morphomnist.yaml --data_dir FOLDER --seed 1

Chains train_scm.py, train_classifier.py (guide, judge and watcher), train_vae.py, train_hvae.py (or train_diffusion.py,
if the settings have a section diffusion and none named hvae), soft_cft.py and evaluate.py, two at a time; with
--utility, before the evaluation, generate_counterfactuals.py, train_classifier.py for each set of them, and
evaluate_utility.py (Table 2). If the settings have several guides (a list guides in place of the section guide),
matched fine-tuning is steered by all of them. A diffusion model is evaluated again under each guidance of the section
guidance. A run that was stopped goes on where it was when it is started again; to start anew, delete its folder. Let
check_data.py look at your own images first. The flags are those of the data; all other settings come from the YAML
file.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, HVAEModel
from softcft.cft.verdict import read_sentence
from softcft.data.sources import DataConfig, SubsetConfig
from softcft.evaluation.tables import CFT_NAMES, PUBLISHED_CFT
from softcft.hub.publish import HubConfig
from softcft.models.denoiser import UNETS
from softcft.models.trunk import read_trunk
from softcft.training.augmentation import AugmentationConfig
from softcft.training.cft_trainer import CFTConfig
from softcft.training.config import (
    DiffusionConfig,
    DiffusionTuningConfig,
    MemoryConfig,
    PatchConfig,
    SolverConfig,
    TrainingConfig,
    TrunkConfig,
    UtilityConfig,
    given_settings,
    refuse_for_hvae,
)
from softcft.training.parsing import FURTHER_GUIDE, further_guides, model_arguments, parse_config
from softcft.training.validation import ValidationConfig
from softcft.training.watch import WatchConfig

RECIPES = Path(__file__).resolve().parent
DEFAULT_CONFIG = RECIPES / "configs" / "phantom.yaml"
TRAININGS = {
    "scm": ([], AttributeSCM),
    "guide": ([SubsetConfig, ValidationConfig, AugmentationConfig, TrunkConfig], AttributeClassifier),
    "judge": ([SubsetConfig, ValidationConfig, AugmentationConfig, TrunkConfig], AttributeClassifier),
    "watcher": ([SubsetConfig, ValidationConfig, AugmentationConfig, TrunkConfig], AttributeClassifier),
    "hvae": ([MemoryConfig], HVAEModel),
    "diffusion": ([MemoryConfig, DiffusionConfig], None),
    "vae": ([PatchConfig], AutoencoderKL),
    "cft": (
        [SubsetConfig, MemoryConfig, CFTConfig, AugmentationConfig, WatchConfig, SolverConfig, DiffusionTuningConfig],
        None,
    ),
    "utility": ([UtilityConfig, AugmentationConfig, TrunkConfig], AttributeClassifier),
}
TAKEN = (*TRAININGS, *CFT_NAMES, "data", "figures", "metrics", "logs", "counterfactuals")
# Added to the run's seed: no two classifiers start alike. Further guides have 100, 200 and so on.
SEEDS = {"judge": 1000, "utility": 2000, "watcher": 3000}
TRIAL = 100  # of so many steps a run is one, which shows that all works and teaches nothing
TAIL = 20  # lines of the log of a job that failed

Jobs = dict[str, list[str]]  # what Python is to run, by the name of its logs


@dataclass(kw_only=True)
class RunConfig:
    """What all steps have in common."""

    output_dir: str = field(
        metadata={"help": "Folder of the whole run. Left out, -seedN is added to the default for a seed other than 0."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of all steps; the judge's is this plus 1000."})
    max_train_steps: int | None = field(
        default=None,
        metadata={
            "help": f"At most so many optimizer steps in each training. With up to {TRIAL} it is a trial of the chain: "
            "fine-tuning has its published settings then, which ask a guide also for what it does not see."
        },
    )
    cft: list[str] = field(
        default_factory=lambda: list(PUBLISHED_CFT),
        metadata={"help": f"Kinds of fine-tuning to compare, of {', '.join(CFT_NAMES)}."},
    )
    utility: bool = field(
        default=False,
        metadata={"help": "Also train predictors on the counterfactuals, and test them on real images: Table 2."},
    )

    def __post_init__(self) -> None:
        if not self.cft or len(set(self.cft)) < len(self.cft) or not set(self.cft) <= set(CFT_NAMES):
            raise ValueError(f"--cft must be different ones of {', '.join(CFT_NAMES)}, got {self.cft}.")
        if self.seed < 0:
            raise ValueError(f"--seed must be >= 0, got {self.seed}.")
        if self.max_train_steps is not None and self.max_train_steps < 1:
            raise ValueError(f"--max_train_steps must be at least 1, got {self.max_train_steps}.")


class Runner:
    """Runs jobs, each in a process group of its own, so that nothing trains on when this program ends."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: list[subprocess.Popen[bytes]] = []
        logs.mkdir(parents=True, exist_ok=True)
        # One thread a process, two processes at a time: on few cores more threads only wait for each other.
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if not torch.cuda.is_available():
            self.environment["ACCELERATE_USE_CPU"] = "true"

    def run(self, jobs: Jobs) -> None:
        """Run jobs two at a time. The terminal shows the progress of the first, and of what follows in its place."""
        waiting = iter(jobs.items())
        lanes = [self._lane(waiting, shown) for shown in (True, False)]
        while lanes := [lane for lane in lanes if next(lane, False)]:
            time.sleep(0.1)

    def _lane(self, waiting: Iterator[tuple[str, list[str]]], shown: bool) -> Iterator[bool]:
        """Runs one job after another while there are any, and yields meanwhile; ends the program if one fails."""
        for name, command in waiting:
            out, err = self.logs / f"{name}.out", self.logs / f"{name}.err"
            with out.open("wb") as stdout, err.open("wb") as stderr, err.open("rb") as progress:
                job = subprocess.Popen(
                    [sys.executable, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=self.environment,
                    start_new_session=True,
                )
                self.running.append(job)
                runs = True
                while runs:
                    runs = job.poll() is None  # asked before the log is read, which is whole if it does not
                    if shown:
                        sys.stderr.buffer.write(progress.read())
                        sys.stderr.flush()
                    if runs:
                        yield True
            self.running.remove(job)
            if job.returncode:
                end = [] if shown else err.read_text(errors="replace").splitlines()[-TAIL:]
                raise SystemExit("\n".join([f"\n{name} failed (exit status {job.returncode}), see {err}", *end]))
            print(out.read_text(errors="replace"), end="", flush=True)

    def stop(self) -> None:
        """End what still runs."""
        # torchrun needs time to end its workers, which are in groups of their own.
        for end, patience in ((signal.SIGTERM, 40), (signal.SIGKILL, None)):
            for job in self.running:
                if job.poll() is None:
                    os.killpg(job.pid, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                for job in self.running:
                    job.wait(patience)


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        folder: The run's folder.
        cft: Kinds of fine-tuning.
        flags: Those of each step.
        sets: What the predictors of Table 2 learn from; none without --utility.
        guidances: The flags of the evaluations under guidance, by their name.
        latents: Whether the diffusion model needs the VAE.
    """

    folder: Path
    cft: list[str]
    flags: dict[str, list[str]]
    sets: list[str]
    guidances: dict[str, list[str]]
    latents: bool


def plan() -> Plan:
    """Read all settings; mistakes end the program here."""
    sections, _, settings = parse_config(
        "data", DataConfig, RunConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("output_dir", "seed", "max_train_steps"):
        own.add_argument(f"--{name}")
    own.add_argument("--cft", nargs="+")
    own.add_argument("--utility", nargs="?")
    given, flags = own.parse_known_args()
    folder = Path(settings.output_dir)
    if given.output_dir is None and settings.seed:
        folder = folder.with_name(f"{folder.name}-seed{settings.seed}")
    flags += ["--output_dir", str(folder)]

    image_model = "diffusion" if "diffusion" in sections and "hvae" not in sections else "hvae"
    pipelines = ["--pipelines", *(str(folder / cft) for cft in settings.cft)]
    steps = {key: [*flags, "--seed", str(settings.seed), *pipelines] for key in ("generate", "evaluate")}
    left_out = {"hvae", "diffusion"} - {image_model} | (set() if settings.utility else {"utility"})
    more = further_guides(sections) if "matched" in settings.cft else []
    seeds = SEEDS | {name: 100 * number for number, name in enumerate(more, start=1)}
    if not is_watched(settings.cft, sections, flags, image_model):
        left_out.add("watcher")
    latents = False
    for section in [*TRAININGS, *more]:
        if section in left_out:
            continue
        graph, training, others = read_training(section, flags, image_model)
        latents |= any(isinstance(other, DiffusionConfig) and other.latents for other in others)
        most = min(training.max_train_steps, settings.max_train_steps or training.max_train_steps)
        seed = settings.seed + seeds.get(section, 0)
        steps[section] = [*flags, "--seed", str(seed), "--max_train_steps", str(most)]
        steps[section] += ["--resume_from_checkpoint", "latest"]
        if section == "cft" and settings.max_train_steps is not None and settings.max_train_steps <= TRIAL:
            steps[section] += ["--published", "true"]  # asks for all: guides of a trial have not learned to see
            print("A trial: fine-tuning has its published settings, which ask a guide also for what it does not see.")
    sets = [f"{cft}/{v.name}" for cft in settings.cft for v in graph.variables if v.kind != "continuous"]
    guidances = sections.get("guidance", {})
    if guidances and image_model == "hvae":
        raise ValueError("The section guidance is for diffusion models, but the image model is an HVAE.")
    sets = ["real", *sets] if settings.utility else []
    return Plan(folder, settings.cft, steps, sets, read_guidances(guidances, folder), latents)


def read_training(section: str, flags: list[str], image_model: str) -> tuple[CausalGraph, TrainingConfig, list[Any]]:
    """The settings of a training, once it is sure that its model can be made from them."""
    types, model_class = TRAININGS["guide" if FURTHER_GUIDE.fullmatch(section) else section]
    config, data, training, _, *others = parse_config(
        section, DataConfig, TrainingConfig, HubConfig, *types, default_config=DEFAULT_CONFIG, argv=flags
    )
    graph = CausalGraph(config["graph"])
    if section == "diffusion":
        model_class = UNETS[config[section]["unet"]]
    if section == "cft" and image_model == "hvae":
        refuse_for_hvae(*(other for other in others if isinstance(other, SolverConfig | DiffusionTuningConfig)))
    if model_class is not None:
        arguments = model_arguments(config, section, model_class)
    for other in others:
        if isinstance(other, TrunkConfig) and other.trunk_dir is not None:
            read_trunk(other.trunk_dir, data.sample_size, arguments.get("image_size"))
    if model_class is HVAEModel:
        with torch.device("meta"):  # no memory: whether it can be built is all that is asked
            HVAEModel(graph.to_list(), data.sample_size, **arguments)
    return graph, training, others


def is_watched(cft: list[str], sections: dict[str, Any], flags: list[str], image_model: str) -> bool:
    """Whether somebody watches the fine-tuning, for which there must be settings."""
    *_, others = read_training("cft", flags, image_model)
    if cft == ["none"] or not any(isinstance(other, WatchConfig) and other.watch for other in others):
        return False
    if "watcher" not in sections:
        raise ValueError(
            "The settings have no section watcher, the classifier that looks on while fine-tuning runs: copy that of "
            "recipes/configs/own_data.yaml, or say watch: false in the section cft."
        )
    return True


def read_guidances(section: dict[str, dict[str, Any]], folder: Path) -> dict[str, list[str]]:
    """The flags of each evaluation under guidance: the same models, but tables and figures in a folder of its own."""
    parts = ["--judge_dir", str(folder / "judge"), "--vae_dir", str(folder / "vae")]
    guidances, known = {}, [field.name for field in fields(SolverConfig)]
    for name, settings in section.items():
        if name in TAKEN or FURTHER_GUIDE.fullmatch(name):
            raise ValueError(f"guidance.{name}: the name is taken by another folder of the run; choose another.")
        if unknown := [key for key in settings if key not in known]:
            raise ValueError(f"guidance.{name}: unknown key {unknown[0]!r}; it may have {', '.join(known)}.")
        given = given_settings(SolverConfig(**settings))
        scales = [flag for key, value in given.items() for flag in (f"--{key}", str(value))]
        guidances[name] = [*parts, *scales, "--output_dir", str(folder / name)]
    return guidances


def write_table1(folder: Path, guidances: dict[str, list[str]]) -> None:
    """Table 1 under each guidance, as tidy as metrics.csv, with the column guidance."""
    folders = {"none": folder} | {name: folder / name for name in guidances}
    tables = [
        pd.read_csv(path / "metrics.csv").query("table == 'effectiveness'").assign(guidance=name)
        for name, path in folders.items()
    ]
    pd.concat(tables).to_csv(folder / "table1.csv", index=False)


def print_verdicts(planned: Plan) -> None:
    """What the watcher found of each fine-tuning."""
    for cft in planned.cft:
        if sentence := read_sentence(planned.folder / cft):
            print(f"{CFT_NAMES[cft]}: {sentence}")


def main() -> None:
    """Run the recipe; see the module's docstring."""
    started = time.monotonic()
    planned = plan()
    out, flags, sets = planned.folder, planned.flags, planned.sets
    image_model = "hvae" if "hvae" in flags else "diffusion"
    scm, image, vae, generate, evaluate, evaluate_utility, classifier = (
        str(RECIPES / f"{name}.py")
        for name in (
            "train_scm",
            f"train_{image_model}",
            "train_vae",
            "generate_counterfactuals",
            "evaluate",
            "evaluate_utility",
            "train_classifier",
        )
    )
    more = further_guides(flags)
    roles = [role for role in ("guide", *more, "watcher", "judge") if role in flags]
    classifiers = {role: [classifier, "--role", role, *flags[role]] for role in roles}
    utility = {
        f"utility_{name.replace('/', '_')}": [classifier, "--role", "utility", "--train_on", name, *flags["utility"]]
        for name in sets
    }
    part = [f"--{image_model}_dir", str(out / image_model)]  # whatever else the folder has
    tunings = {cft: [str(RECIPES / "soft_cft.py"), "--cft", cft, *flags["cft"], *part] for cft in reversed(planned.cft)}
    if more:
        tunings["matched"] += ["--more_guides", *(str(out / role) for role in more)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torch.cuda.device_count() or 2)]

    for end in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(end) != signal.SIG_IGN:  # as under nohup
            signal.signal(end, lambda number, _: sys.exit(128 + number))
    runner = Runner(out / "logs")
    try:
        print("== 1/5 Data and attribute mechanisms", flush=True)
        runner.run({"scm": [scm, *flags["scm"]]})
        print(f"\n== 2/5 Image model; beside it classifiers and the VAE of the metrics (logs: {out}/logs)", flush=True)
        image_job, vae_job = [image, *flags[image_model]], [vae, *flags["vae"]]
        if planned.latents:
            runner.run({"vae": vae_job, **classifiers})
            runner.run({image_model: image_job})
        else:
            runner.run({image_model: image_job, **classifiers, "vae": vae_job})
        print(f"\n== 3/5 Fine-tuning, two at a time: {', '.join(tunings)}", flush=True)
        runner.run(tunings)
        print("\n== 4/5 Counterfactuals of all test images, seen by guide and judge", flush=True)
        if sets:
            runner.run({"generate": [*torchrun, generate, *flags["generate"]]})
            runner.run(utility)
            runner.run({"evaluate_utility": [*torchrun, evaluate_utility, *flags["evaluate"]]})
        runner.run({"evaluate": [*torchrun, evaluate, *flags["evaluate"]]})
        for name, scales in planned.guidances.items():
            runner.run({f"evaluate_{name}": [*torchrun, evaluate, *flags["evaluate"], *scales]})
        if planned.guidances:
            write_table1(out, planned.guidances)
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")
    finally:
        runner.stop()
    print(f"\n== 5/5 Done after {round((time.monotonic() - started) / 60)} minutes.")
    print_verdicts(planned)
    print("Look at")
    print(f"    {out}/report.html             all tables and figures; also report.md, report.tex")
    print(f"    {out}/metrics.csv             all numbers, tidy")
    for name in planned.guidances:
        print(f"    {out}/{name}/report.html    the same under guidance; Table 1 of all in {out}/table1.csv")
    print(f"    {out}/figures/comparison.png  the same counterfactuals after each fine-tuning")
    print("and ask for your own:")
    pipeline = "DSCMPipeline" if image_model == "hvae" else "DiffusionDSCMPipeline"
    print(f"    from softcft import {pipeline}")
    print(f'    pipe = {pipeline}.from_pretrained("{out}/{planned.cft[-1]}")')
    print("    result = pipe(image, parents={...}, do={...})   # the variables: pipe.causal_graph")


if __name__ == "__main__":
    main()
