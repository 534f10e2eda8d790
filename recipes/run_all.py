"""Everything from images to the report: counterfactuals without, with hard and with soft fine-tuning.

    python recipes/run_all.py                                                         # the phantom: ten minutes
    python recipes/run_all.py --cft none hard soft matched                            # and the matched targets
    python recipes/run_all.py --dataset_name FOLDER --graph graph.yaml --output_dir outputs/mine    # your own images
    python recipes/run_all.py --config recipes/configs/morphomnist.yaml --data_dir FOLDER --seed 1

Chains train_scm.py, train_classifier.py (guide, judge and watcher), train_vae.py, train_hvae.py (or train_diffusion.py,
if the settings have a section diffusion and none named hvae), soft_cft.py and evaluate.py, two at a time; with
--utility also generate_counterfactuals.py, train_classifier.py for each set of them, and evaluate_utility.py (Table 2).
If the settings have a list guides, all of them steer matched fine-tuning. A diffusion model is evaluated again under
each guidance of the section guidance. A run that was stopped goes on when it is started again; to start anew, delete
its folder. Check your own images with check_data.py first. The flags are those of the data; all other settings come
from the YAML file.
"""

import asyncio
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser

from softcft.arguments import Count, Natural, check_fields
from softcft.cft import CFT_NAMES, PUBLISHED_CFT
from softcft.cft.verdict import read_sentence
from softcft.data.config import AugmentationConfig, DataConfig, SubsetConfig
from softcft.hub.config import HubConfig
from softcft.training.cft_config import (
    CFTConfig,
    DiffusionTuningConfig,
    SolverConfig,
    WatchConfig,
    given_settings,
    refuse_for_hvae,
)
from softcft.training.config import (
    DiffusionConfig,
    MemoryConfig,
    PatchConfig,
    TrainingConfig,
    TrunkConfig,
    UtilityConfig,
    ValidationConfig,
)
from softcft.training.parsing import FURTHER_GUIDE, further_guides, model_arguments, parse_config

if TYPE_CHECKING:
    from softcft import CausalGraph

RECIPES = Path(__file__).resolve().parent
DEFAULT_CONFIG = RECIPES / "configs" / "phantom.yaml"


@dataclass(frozen=True)
class Training:
    """What trains a section of the settings.

    Attributes:
        recipe: The script.
        model: The name of the class that ``model`` in the section has the arguments of.
        settings: What its flags are, besides those that all trainings have.
        role: Whether the section is a role of the recipe.
        seed: What is added to the run's seed: no two classifiers start alike.
    """

    recipe: str
    model: str | None
    settings: tuple[type, ...] = ()
    role: bool = False
    seed: int = 0


def classifier(seed: int = 0) -> Training:
    """The training of a guide, the judge or the watcher."""
    settings = (SubsetConfig, ValidationConfig, AugmentationConfig, TrunkConfig)
    return Training("train_classifier", "AttributeClassifier", settings, role=True, seed=seed)


TUNING = SubsetConfig, MemoryConfig, CFTConfig, AugmentationConfig, WatchConfig, SolverConfig, DiffusionTuningConfig
TRAININGS = {  # in the order of the steps
    "scm": Training("train_scm", "AttributeSCM"),
    "hvae": Training("train_hvae", "HVAEModel", (MemoryConfig,)),
    "diffusion": Training("train_diffusion", None, (MemoryConfig, DiffusionConfig)),
    "guide": classifier(),
    "watcher": classifier(seed=3000),
    "judge": classifier(seed=1000),
    "vae": Training("train_vae", "AutoencoderKL", (PatchConfig,)),
    "cft": Training("soft_cft", None, TUNING),
    "utility": Training(
        "train_classifier",
        "AttributeClassifier",
        (UtilityConfig, AugmentationConfig, TrunkConfig),
        role=True,
        seed=2000,
    ),
}
TAKEN = (*TRAININGS, *CFT_NAMES, "data", "figures", "metrics", "logs", "counterfactuals")
TRIAL = 100  # steps; a run of so few shows that all works, and learns nothing
TAIL = 20  # lines of the log of a job that failed
OWN_CFT = ("none", "soft", "matched")

Jobs = dict[str, list[str]]  # what Python is to run, by the name of its logs


@dataclass(kw_only=True)
class RunConfig:
    """What all steps have in common."""

    output_dir: str = field(
        metadata={"help": "Folder of the whole run. Left out, -seedN is added to the default for a seed other than 0."}
    )
    seed: Natural = field(default=0, metadata={"help": "Seed of all steps; the judge's is this plus 1000."})
    max_train_steps: Count | None = field(
        default=None,
        metadata={
            "help": f"At most so many optimizer steps in each training. With up to {TRIAL} it is a trial of the chain: "
            "fine-tuning has its published settings then, which ask a guide also for what it does not see."
        },
    )
    cft: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Kinds of fine-tuning to compare, of {', '.join(CFT_NAMES)}. Left out: {' '.join(PUBLISHED_CFT)}; "
            f"where the settings have matched targets, as those for your own data, {' '.join(OWN_CFT)}."
        },
    )
    utility: bool = field(
        default=False,
        metadata={"help": "Also train predictors on the counterfactuals, and test them on real images: Table 2."},
    )

    def __post_init__(self) -> None:
        if len(set(self.cft)) < len(self.cft) or not set(self.cft) <= set(CFT_NAMES):
            raise ValueError(f"--cft must be different ones of {', '.join(CFT_NAMES)}, got {self.cft}.")
        check_fields(self)


async def run(jobs: Jobs, logs: Path) -> None:
    """Run jobs two at a time, each in a process group of its own. If one fails, the other is ended.

    The terminal shows the progress of the first job, and of those that follow in its place.
    """
    waiting = iter(jobs.items())
    async with asyncio.TaskGroup() as lanes:
        for shown in (True, False):
            lanes.create_task(_lane(waiting, logs, shown))


async def _lane(waiting: Iterator[tuple[str, list[str]]], logs: Path, shown: bool) -> None:
    """Run one job after another while there are any."""
    import torch

    # One thread a process, two processes at a time: on few cores more threads only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    for name, command in waiting:
        out, err = logs / f"{name}.out", logs / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr, err.open("rb") as progress:
            streams = {"stdin": asyncio.subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
            job = await asyncio.create_subprocess_exec(
                sys.executable, *command, **streams, env=environment, start_new_session=True
            )
            try:
                while True:
                    ended = job.returncode is not None  # asked before the log is read, which then is complete
                    if shown:
                        sys.stderr.buffer.write(progress.read())
                        sys.stderr.flush()
                    if ended:
                        break
                    await asyncio.sleep(0.1)
            finally:
                await _end(job)
        if job.returncode:
            end = [] if shown else err.read_text(errors="replace").splitlines()[-TAIL:]
            raise RuntimeError("\n".join([f"\n{name} failed (exit status {job.returncode}), see {err}", *end]))
        print(out.read_text(errors="replace"), end="", flush=True)


async def _end(job: asyncio.subprocess.Process) -> None:
    """End a job, if it still runs, with all processes that it has started."""
    # torchrun needs time to end its workers, which are in groups of their own.
    for number, patience in ((signal.SIGTERM, 40), (signal.SIGKILL, math.inf)):
        if job.returncode is None:
            os.killpg(job.pid, number)
        until = time.monotonic() + patience
        while job.returncode is None and time.monotonic() < until:
            with contextlib.suppress(asyncio.CancelledError):  # the group and asyncio.run both cancel
                await asyncio.sleep(0.1)


def read_settings() -> tuple[dict[str, Any], RunConfig, list[str]]:
    """The sections of the settings, those of the run with its folder, and the flags that all steps have."""
    sections, _, settings = parse_config(
        "data", DataConfig, RunConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    parser = HfArgumentParser(RunConfig, add_help=False, allow_abbrev=False)
    given, flags = parser.parse_args_into_dataclasses(
        ["--output_dir", "", *sys.argv[1:]], return_remaining_strings=True, look_for_args_file=False
    )
    is_matched = (sections.get("cft") or {}).get("cft") == "matched"
    settings.cft = settings.cft or list(OWN_CFT if is_matched else PUBLISHED_CFT)
    seed = f"-seed{settings.seed}" if settings.seed and not given.output_dir else ""
    settings.output_dir = f"{Path(settings.output_dir)}{seed}"
    return sections, settings, [*flags, "--output_dir", settings.output_dir]


def plan(
    sections: dict[str, Any], settings: RunConfig, flags: list[str], image_model: str
) -> tuple[dict[str, list[Jobs]], list[str]]:
    """What is to be done, once all settings are read and no mistake is found.

    Returns:
        By heading, groups of jobs, of which each begins when the one before it has ended; and the names of the
        evaluations under guidance.
    """
    folder = Path(settings.output_dir)
    left_out = {"hvae", "diffusion"} - {image_model} | (set() if settings.utility else {"utility"})
    more = further_guides(sections) if "matched" in settings.cft else []
    trainings = TRAININGS | {name: classifier(seed=100 * number) for number, name in enumerate(more, start=1)}
    if not is_watched(settings.cft, sections, flags, image_model):
        left_out.add("watcher")
    commands, latents = {}, False
    for section, kind in ((name, kind) for name, kind in trainings.items() if name not in left_out):
        graph, training, others = read_training(section, kind, flags, image_model)
        latents |= any(isinstance(other, DiffusionConfig) and other.latents for other in others)
        most = min(training.max_train_steps, settings.max_train_steps or training.max_train_steps)
        role = ["--role", section] if kind.role else []
        steps = ["--seed", str(settings.seed + kind.seed), "--max_train_steps", str(most)]
        commands[section] = script(kind.recipe, *role, *flags, *steps, "--resume_from_checkpoint", "latest")
        if section == "cft" and settings.max_train_steps is not None and settings.max_train_steps <= TRIAL:
            commands[section] += ["--published", "true"]  # for all variables: guides of a trial have not learned to see
            print("A trial: fine-tuning has its published settings, which ask a guide also for what it does not see.")
    guidances = read_guidances(sections.get("guidance", {}), folder)
    if guidances and image_model == "hvae":
        raise ValueError("The section guidance is for diffusion models, but the image model is an HVAE.")

    scm, cft, utility, image = (commands.pop(name, []) for name in ("scm", "cft", "utility", image_model))
    cft += [f"--{image_model}_dir", str(folder / image_model)]  # the folder may have another kind of image model, too
    tunings = {kind: [*cft, "--cft", kind] for kind in reversed(settings.cft)}
    if more:
        tunings["matched"] += ["--more_guides", *(str(folder / role) for role in more)]
    pretraining = [{image_model: image, **commands}]
    if latents:
        pretraining = [{"vae": commands.pop("vae"), **commands}, {image_model: image}]
    discrete = [v.name for v in graph.variables if v.kind != "continuous"]
    sets = ["real", *(f"{kind}/{name}" for kind in settings.cft for name in discrete)] if settings.utility else []
    predictors = {f"utility_{name.replace('/', '_')}": [*utility, "--train_on", name] for name in sets}
    flags = [*flags, "--seed", str(settings.seed)]
    pipelines = ["--pipelines", *(str(folder / kind) for kind in settings.cft)]
    evaluation = plan_evaluation(flags, pipelines, predictors, guidances)
    stages = {
        "Data and attribute mechanisms": [{"scm": scm}],
        f"Image model; beside it classifiers and the VAE of the metrics (logs: {folder}/logs)": pretraining,
        f"Fine-tuning, two at a time: {', '.join(tunings)}": [tunings],
        "Counterfactuals of all test images, seen by guide and judge": evaluation,
    }
    return stages, list(guidances)


def plan_evaluation(
    flags: list[str], pipelines: list[str], predictors: Jobs, guidances: dict[str, list[str]]
) -> list[Jobs]:
    """The jobs after fine-tuning, in groups."""
    import torch

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torch.cuda.device_count() or 2)]
    generate = [*torchrun, *script("generate_counterfactuals", *flags, *pipelines)]
    evaluate = [*torchrun, *script("evaluate", *flags, *pipelines)]
    evaluate_utility = [*torchrun, *script("evaluate_utility", *flags)]
    table2 = [{"generate": generate}, predictors, {"evaluate_utility": evaluate_utility}] if predictors else []
    guided = [{f"evaluate_{name}": [*evaluate, *scales]} for name, scales in guidances.items()]
    return [*table2, {"evaluate": evaluate}, *guided]


def script(recipe: str, *flags: str) -> list[str]:
    """The command of a recipe."""
    return [str(RECIPES / f"{recipe}.py"), *flags]


def read_training(
    section: str, kind: Training, flags: list[str], image_model: str
) -> tuple["CausalGraph", TrainingConfig, list[Any]]:
    """The settings of a training, once it is sure that its model can be made from them."""
    import diffusers
    import torch

    import softcft
    from softcft.models.trunk import read_trunk

    types = DataConfig, TrainingConfig, HubConfig, *kind.settings
    config, data, training, _, *others = parse_config(section, *types, default_config=DEFAULT_CONFIG, argv=flags)
    name = config[section]["unet"] if section == "diffusion" else kind.model
    graph = softcft.CausalGraph(config["graph"])
    if section == "cft" and image_model == "hvae":
        refuse_for_hvae(*(other for other in others if isinstance(other, SolverConfig | DiffusionTuningConfig)))
    if name is not None:
        model_class = getattr(softcft if name in softcft.__all__ else diffusers, name)
        arguments = model_arguments(config, section, model_class)
    for other in others:
        if isinstance(other, TrunkConfig) and other.trunk_dir is not None:
            read_trunk(other.trunk_dir, data.sample_size, arguments.get("image_size"))
    if section == "hvae":
        with torch.device("meta"):  # no memory: whether it can be built is all that is asked
            softcft.HVAEModel(graph.to_list(), data.sample_size, **arguments)
    return graph, training, others


def is_watched(cft: list[str], sections: dict[str, Any], flags: list[str], image_model: str) -> bool:
    """Whether there is a watcher in fine-tuning, for which there must be settings."""
    *_, others = read_training("cft", TRAININGS["cft"], flags, image_model)
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


def write_table1(folder: Path, guidances: list[str]) -> None:
    """Table 1 under each guidance, as tidy as metrics.csv, with the column guidance."""
    import pandas as pd

    folders = {"none": folder} | {name: folder / name for name in guidances}
    tables = [
        pd.read_csv(path / "metrics.csv").query("table == 'effectiveness'").assign(guidance=name)
        for name, path in folders.items()
    ]
    pd.concat(tables).to_csv(folder / "table1.csv", index=False)


def main() -> None:
    """Run the recipe; see the module's docstring."""
    started = time.monotonic()
    sections, settings, flags = read_settings()
    image_model = "diffusion" if "diffusion" in sections and "hvae" not in sections else "hvae"
    stages, guidances = plan(sections, settings, flags, image_model)
    out, logs = Path(settings.output_dir), Path(settings.output_dir, "logs")
    logs.mkdir(parents=True, exist_ok=True)
    for end in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(end) != signal.SIG_IGN:  # as under nohup
            signal.signal(end, lambda number, _: sys.exit(128 + number))
    try:
        for number, (heading, groups) in enumerate(stages.items(), start=1):
            print(f"{chr(10) * (number > 1)}== {number}/5 {heading}", flush=True)
            for jobs in groups:
                asyncio.run(run(jobs, logs))
        if guidances:
            write_table1(out, guidances)
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")
    except ExceptionGroup as failed:
        sys.exit(str(failed.exceptions[0]))
    print_end(settings, image_model, guidances, started)


def print_end(settings: RunConfig, image_model: str, guidances: list[str], started: float) -> None:
    """Say what there is to see."""
    out = settings.output_dir
    print(f"\n== 5/5 Done after {round((time.monotonic() - started) / 60)} minutes.")
    for cft in settings.cft:
        if sentence := read_sentence(Path(out, cft)):
            print(f"{CFT_NAMES[cft]}: {sentence}")
    print("Look at")
    print(f"    {out}/report.html             all tables and figures; also report.md, report.tex")
    print(f"    {out}/metrics.csv             all numbers, tidy")
    for name in guidances:
        print(f"    {out}/{name}/report.html    the same under guidance; Table 1 of all in {out}/table1.csv")
    print(f"    {out}/figures/comparison.png  the same counterfactuals after each fine-tuning")
    print("and ask for your own:")
    pipeline = "DSCMPipeline" if image_model == "hvae" else "DiffusionDSCMPipeline"
    print(f"    from softcft import {pipeline}")
    print(f'    pipe = {pipeline}.from_pretrained("{out}/{settings.cft[-1]}")')
    print("    result = pipe(image, parents={...}, do={...})   # the variables: pipe.causal_graph")


if __name__ == "__main__":
    main()
