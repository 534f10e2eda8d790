"""How long a run will take on this machine: a few steps of each training are taken, on noise in place of images.

Processes measure side by side, as the run will train. What they learn is thrown away.
"""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from functools import partial
from typing import Any

from softcft.data.config import BUILT_IN, SPLITS, DataConfig
from softcft.evaluation.config import EvaluationSettings
from softcft.run.plan import Plan, Settings, Step
from softcft.run.schedule import duration, span
from softcft.training.cft_config import WATCHED_IMAGES, CFTConfig, SolverConfig, given_settings
from softcft.training.config import VALIDATION_IMAGES, DiffusionConfig, ValidationConfig

__all__ = ["estimate", "forecast", "measure", "split_sizes", "tell"]

STEPS = 4  # that are measured; the first two, in which memory is allotted, do not count
FORWARD = 0.4  # of the time of a step, which also has a backward pass
TABLES = 1.5  # times what measuring images takes: tables and figures on top
IMAGES = 32  # whose counterfactuals are measured
COUNTERFACTUAL = "counterfactual"
START = "start"


def split_sizes(data: DataConfig, columns: Mapping[str, Any]) -> dict[str, int]:
    """The number of rows of each split, as far as they are known before any picture is read."""
    sizes = {"phantom": (20_000, 2_000, 10_000), "morphomnist": (55_000, 5_000, 10_000)}.get(data.dataset_name)
    if sizes is not None:
        return dict(zip(SPLITS, sizes, strict=True)) | data.numbers
    from softcft.data.own import read_own
    from softcft.data.splits import make_splits

    name = str(data.data_dir) if data.dataset_name in BUILT_IN else data.dataset_name
    table, _ = read_own(name, data, columns)
    splits = make_splits(table, data.numbers, data.group_column, data.data_seed)
    return {name: len(rows) for name, rows in splits.items()}


def estimate(plan: Plan, sizes: Mapping[str, int]) -> dict[str, float]:
    """Seconds of each step of a plan, by its name.

    Args:
        plan: What is to be done.
        sizes: The number of rows of each split.

    Raises:
        ValueError: If it cannot be known: a diffusion model is one of latents, or starts from a pretrained one.
    """
    diffusion = plan.trainings.get("diffusion")
    if diffusion is not None and (choice := diffusion.others[DiffusionConfig]).latents | bool(choice.pipeline_dir):
        raise ValueError("a diffusion model of latents, or one that starts from a pretrained one, is not measured")
    sections = [*plan.trainings, COUNTERFACTUAL]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(plan.run.jobs, multiprocessing.get_context("spawn")) as pool:
            measured = list(pool.map(partial(measure, plan), sections))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    seconds = {section: one for section, (one, _) in zip(sections, measured, strict=True)}
    seconds[START] = max(start for _, start in measured)
    return {step.name: _seconds_of(plan, step, seconds, sizes) for group in plan.groups for step in group}


def _seconds_of(plan: Plan, step: Step, seconds: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Of a step, by what its parts take."""
    start, one = seconds[START], seconds[COUNTERFACTUAL]
    processes = plan.run.jobs
    if step.section is not None:
        settings = plan.trainings[step.section]
        number = 0 if step.name == "none" else number_of_steps(plan, settings, sizes["train"])
        return start + (number + _looks(plan, settings, number, sizes)) * seconds[step.section]
    section = plan.sections.get(step.recipe.split("_")[0]) or {}
    models, variables = len(plan.run.cft), plan.sections["graph"]
    if step.recipe == "generate_counterfactuals":
        images = min(section.get("num_images") or sizes["train"], sizes["train"])
        values = sum(len(v.get("categories", ())) - 1 for v in variables if v["kind"] != "continuous")
        return start + models * images * (1 + values) * one / processes
    if step.recipe == "evaluate_utility":
        return 2 * start
    asked = len(section.get("interventions") or variables)
    axioms = min(section.get("axiom_images", EvaluationSettings.axiom_images), sizes["test"])
    passes = sizes["test"] * (1 + asked) + axioms * (20 + 21 * asked)
    return start + TABLES * models * passes * one / processes


def number_of_steps(plan: Plan, settings: Settings, images: int) -> int:
    """The number of optimizer steps of a training."""
    training = settings.training
    most = min(training.max_train_steps, plan.run.max_train_steps or training.max_train_steps)
    if training.max_train_epochs is None:
        return most
    is_half = any(getattr(other, "half", "all") != "all" for other in settings.others.values())
    size = training.train_batch_size * training.gradient_accumulation_steps
    return min(most, math.ceil(training.max_train_epochs * (images // 2 if is_half else images) / size))


def _looks(plan: Plan, settings: Settings, steps: int, sizes: Mapping[str, int]) -> float:
    """What a training does beside its steps, in steps: looks at validation images, and at what is measured before."""
    size, images, watched = settings.training.train_batch_size, 0.0, "watcher" in plan.trainings
    if (validation := settings.others.get(ValidationConfig)) is not None and validation.validation_steps:
        images += steps // validation.validation_steps * min(VALIDATION_IMAGES, sizes["validation"])
    if (cft := settings.others.get(CFTConfig)) is not None and steps:
        images += min(cft.slack_images, sizes["train"]) + 11 * watched * min(WATCHED_IMAGES, sizes["validation"])
    return FORWARD * images / size


def tell(
    plan: Plan, sizes: Mapping[str, int], seconds: Mapping[str, float], groups: Sequence[Sequence[Step]] | None = None
) -> str:
    """What an estimate says, for people; of some groups of steps only, where others are done."""
    groups = plan.groups if groups is None else groups
    rows = []
    for step in (step for group in groups for step in group):
        steps = ""
        if step.section is not None and step.name != "none":
            steps = f"{number_of_steps(plan, plan.trainings[step.section], sizes['train']):,} steps"
        rows.append(f"    {step.name:20}  {steps:>14}  {duration(seconds[step.name]):>12}")
    whole = span([[seconds[step.name] for step in group] for group in groups], plan.run.jobs)
    places = "one step at a time" if plan.run.jobs == 1 else "two steps side by side"
    head = f"About {duration(whole)} on this machine, {places}, by some measured steps of each training:"
    is_read = plan.trainings["scm"].data.dataset_name != "phantom"
    return "\n".join([head, *rows, *(["    Reading the pictures for the first time comes on top."] * is_read)])


def forecast(plan: Plan, groups: Sequence[Sequence[Step]] | None = None) -> tuple[str, dict[str, float]]:
    """How long a run, or some groups of its steps, will take: in words, and the seconds of each step.

    Where it cannot be known the words say why, and there are no seconds.

    Raises:
        ValueError: If a model cannot be made from its settings.
    """
    from softcft.run.models import check_models

    check_models(plan)
    data = plan.trainings["scm"].data
    if plan.is_trial:
        return "A trial: fine-tuning has its published settings, which ask a guide also for what it does not see.", {}
    if data.streaming:
        return "How long it takes is not known: nobody knows the number of images of a stream.", {}
    sizes = split_sizes(data, plan.sections["columns"])
    try:
        seconds = estimate(plan, sizes)
    except ValueError as error:
        return f"How long it takes is not known: {error}.", {}
    return tell(plan, sizes, seconds, groups), seconds


def measure(plan: Plan, section: str) -> tuple[float, float]:
    """Seconds of an optimizer step of a training, or of one pass of an image model over one image; and of the start.

    The start is what importing takes, the first time in a process.
    """
    began = time.perf_counter()
    import torch
    from torch.utils.data import StackDataset

    from softcft.run import toys
    from softcft.training.loop import train
    from softcft.training.precision import start_accelerator

    started = time.perf_counter() - began
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        if section == COUNTERFACTUAL:
            chosen = {**plan.sections.get("cft", {}), **plan.sections.get("evaluate", {})}
            names = {field.name for field in fields(SolverConfig)}
            solver = given_settings(SolverConfig(**{name: chosen[name] for name in names & chosen.keys()}))
            pipeline, batch = toys.make_pipeline(plan), toys.draw(plan, IMAGES)
            accelerator = start_accelerator(chosen.get("mixed_precision", "no"))
            backbone = pipeline.to(accelerator.device).make_backbone(**solver).eval()
            image, parents = (batch[name].to(accelerator.device) for name in ("image", "parents"))
            for _ in range(2):  # the first one allots memory
                before = time.perf_counter()
                with torch.no_grad(), accelerator.autocast():
                    backbone.counterfactual(image / 127.5 - 1, parents, parents.roll(1, 0)).image.cpu()
            return (time.perf_counter() - before) / IMAGES, started
        settings = plan.trainings[section]
        training = settings.training
        short = replace(
            training,
            output_dir=folder,
            max_train_steps=STEPS,
            max_train_epochs=None,
            report_to=None,
            resume_from_checkpoint=None,
            checkpointing_steps=0,
            gradient_accumulation_steps=1,
        )
        timed = toys.Timed(toys.make_objective(plan, settings))
        noise: dict[str, Any] = toys.draw(plan, 2 * training.train_batch_size)
        train(timed, StackDataset(**noise), short, name=section)
    began = timed.began[2]
    return (time.perf_counter() - began) / (STEPS - 2) * training.gradient_accumulation_steps, started
