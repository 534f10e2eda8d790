"""Checkpoints and models, saved atomically: written into a folder of another name, synced, and renamed last.

A checkpoint also has a list of its files with their sizes and SHA-256, which shows later damage. No pickle of a
checkpoint is unpickled: weights and their moving average are safetensors, and PyTorch reads the state of optimizer and
random generators as tensors and numbers only (``weights_only``).
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import SCALER_NAME
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from softcft.training.monitor import BEST
from softcft.training.writing import remove, sync, sync_folder, writing

__all__ = [
    "Progress",
    "checkpoint_to_resume",
    "load_checkpoint",
    "prune_checkpoints",
    "save_checkpoint",
    "save_whole",
    "saved_progress",
    "set_aside",
]

logger = get_logger(__name__)

FILES = "files.json"
AVERAGE = "average.safetensors"
PROGRESS = "progress.json"
PARTIAL_CHECKPOINT = "partial-checkpoint"
PARTIAL_MODEL = "partial-model"
REPLACED_MODEL = "replaced-model"
MARKERS = ("model_index.json", "config.json", "parent_encoder")
"""What a folder must have to be loaded as a pipeline, a model, or a diffusion model. It comes last and goes first."""


class Progress(TypedDict):
    """How far a training has come, beside what it has learned."""

    seed: int
    images: int
    """Number of images seen, of all processes: the place in their order, which follows from the seed."""
    open_line: dict[str, Any]
    """What the next line of the log will be made of, plain data."""
    monitor: NotRequired[dict[str, Any] | None]
    """What a monitor has seen, plain data; None if there is none."""


def save_checkpoint(
    accelerator: Accelerator,
    average: EMAModel | None,
    output_dir: Path,
    step: int,
    total_limit: int,
    progress: Progress,
    best: dict[str, Tensor],
) -> None:
    """Save the state of a training as ``checkpoint-STEP``, and delete checkpoints beyond the limit, on all processes.

    Args:
        accelerator: Has prepared the objective, its optimizer and its schedule.
        average: The moving average of the weights, if there is one.
        output_dir: Folder of the run.
        step: The last step taken.
        total_limit: Number of checkpoints to keep; 0 keeps all.
        progress: How far the training has come.
        best: Weights and buffers that a monitor found best so far; empty if there are none.

    Raises:
        OSError: If it cannot be written. What was there before stays.
    """
    partial, checkpoint = output_dir / PARTIAL_CHECKPOINT, output_dir / f"checkpoint-{step}"
    fewer = f", or lower checkpoints_total_limit (now {total_limit or '0, which keeps all'})"
    room = f"Make room{fewer if total_limit != 1 else ''}"
    with writing(partial, str(checkpoint), "go on with resume_from_checkpoint latest", room):
        accelerator.save_state(str(partial))
        if average is not None and accelerator.is_main_process:
            weights = {str(i): weight.contiguous() for i, weight in enumerate(average.shadow_params)}
            save_file(weights, partial / AVERAGE, metadata={"steps": str(average.optimization_step)})
        if best and accelerator.is_main_process:
            save_file(best, partial / BEST)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
            listed = {str(path.relative_to(partial)): _describe(path) for path in files}
            (partial / FILES).write_text(json.dumps(listed, indent=1), encoding="utf-8")
            sync(partial)
            partial.rename(checkpoint)
            sync_folder(output_dir)
            prune_checkpoints(output_dir, total_limit)
    accelerator.wait_for_everyone()


def prune_checkpoints(output_dir: Path, total_limit: int) -> None:
    """Delete all checkpoints but the newest ``total_limit``; 0 keeps all."""
    partial = output_dir / PARTIAL_CHECKPOINT
    remove(partial)
    for outdated in _checkpoints(output_dir)[:-total_limit] if total_limit else []:
        outdated.rename(partial)  # half a folder must not keep the name
        remove(partial)


def load_checkpoint(accelerator: Accelerator, schedule: LambdaLR, average: EMAModel | None, checkpoint: Path) -> None:
    """Bring a training back to the state of a checkpoint without damage, on all processes.

    Weights, moments, average and the step of the schedule are those of the checkpoint. Learning rate, betas, weight
    decay and the shape of the schedule stay as they are now.

    Args:
        accelerator: Has prepared the objective, its optimizer and its schedule.
        schedule: That schedule, with the optimizer.
        average: The moving average of the weights, if there is one.
        checkpoint: Its folder.

    Raises:
        ValueError: If it is of another training (other weights, with or without a moving average), or holds what might
            run code.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in schedule.optimizer.param_groups]
    peaks, scaler = schedule.base_lrs, accelerator.scaler
    if (average is not None) != (checkpoint / AVERAGE).is_file():
        have, need = ("no", "a") if average is not None else ("a", "no")
        raise ValueError(
            f"{checkpoint} has {have} moving average of the weights, but ema_decay asks for {need} one: restore the "
            "setting, or start anew in another output_dir."
        )
    if not (checkpoint / SCALER_NAME).is_file():  # of a run in another precision: that of fp16 starts anew
        accelerator.scaler = None
    try:
        accelerator.load_state(str(checkpoint))
    except RuntimeError as error:  # PyTorch's, with a line for each tensor
        raise ValueError(f"{checkpoint} is of another model: {str(error).splitlines()[0]}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{checkpoint} is refused, for it holds more than tensors and numbers: reading it might run code. Use a "
            "checkpoint of your own, or start anew in another output_dir."
        ) from error
    accelerator.scaler = scaler
    accelerator.step = 0  # of the batches of a step, which are perhaps others now
    schedule.base_lrs = peaks
    for group, mine, peak, factor in zip(
        schedule.optimizer.param_groups, settings, peaks, schedule.lr_lambdas, strict=True
    ):
        group |= mine | {"lr": peak * factor(schedule.last_epoch)}
    if average is not None:
        with safe_open(checkpoint / AVERAGE, framework="pt") as file:
            average.shadow_params = [file.get_tensor(str(i)) for i in range(len(average.shadow_params))]
            average.optimization_step = int(file.metadata()["steps"])
        average.to(accelerator.device)


def saved_progress(checkpoint: Path, seed: int) -> Progress:
    """How far the training of a checkpoint had come.

    Raises:
        ValueError: If it has another seed, so that the images that are left cannot be known; or if the checkpoint does
            not say.
    """
    try:
        progress: Progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{checkpoint} does not say which images it has seen, for an earlier softcft saved it: start anew in "
            "another output_dir."
        ) from error
    if progress["seed"] != seed:
        raise ValueError(
            f"{checkpoint} is of a run with seed {progress['seed']}, now it is {seed}, and the order of the images "
            "follows from it: restore it, or start anew in another output_dir."
        )
    return progress


def checkpoint_to_resume(
    resume_from: str | None, output_dir: Path, max_train_steps: int
) -> tuple[Path | None, int, list[Path]]:
    """Which checkpoint a run goes on from. Changes nothing.

    Args:
        resume_from: The setting ``resume_from_checkpoint``.
        output_dir: Folder of the run.
        max_train_steps: At which step the run will end.

    Returns:
        The checkpoint, if any; its step; and newer ones that are damaged, for :func:`set_aside`.

    Raises:
        FileNotFoundError: If the checkpoint that was asked for does not exist.
        ValueError: If it is damaged or beyond the last step, or the folder has whole checkpoints of steps yet to come.
    """
    checkpoints, damaged, path = _checkpoints(output_dir), [], None
    if resume_from == "latest":
        for path in reversed(checkpoints):
            if (damage := find_damage(path)) is None:
                break
            logger.warning(f"{path} is damaged, so the one before it is used: {damage}.", main_process_only=True)
            damaged.append(path)
        else:
            path = None
    elif resume_from is not None:
        path = Path(resume_from)
        if not path.is_dir():
            raise FileNotFoundError(
                f"resume_from_checkpoint {path}: there is no such folder. 'latest' is the newest in output_dir."
            )
        step_of(path)
        if damage := find_damage(path):
            raise ValueError(
                f"resume_from_checkpoint {path} is damaged: {damage}. Use 'latest' for the newest whole one, or "
                "another with another output_dir."
            )
    step = 0 if path is None else step_of(path)
    if step > max_train_steps:
        raise ValueError(
            f"max_train_steps must be at least {step}, the step of {path}, got {max_train_steps}: raise it (and "
            "max_train_epochs), or start anew in another output_dir, without resume_from_checkpoint."
        )
    if later := [c.name for c in checkpoints if step_of(c) > step and c not in damaged]:
        raise ValueError(
            f"output_dir {output_dir} already has {', '.join(later)}, but this run starts after step {step}: "
            "pass resume_from_checkpoint latest, or another output_dir."
        )
    return path, step, damaged


def find_damage(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is missing or not as it was written, in words; None if there is none."""
    try:
        listed = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        for name, described in listed.items():
            if _describe(checkpoint / name) != described:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return None


def set_aside(damaged: list[Path]) -> None:
    """Rename damaged checkpoints: their steps will be taken again, and their files may still be of use."""
    for path in damaged:
        aside = path.with_name(f"damaged-{path.name}")
        remove(aside)
        path.rename(aside)


def save_whole(folder: str | Path, model: Any = None, **parts: Any) -> None:
    """Save a model or pipeline, or several parts in folders of their names, so that it loads only when it is whole.

    Args:
        folder: Where; what else it has is left alone.
        model: What has ``save_pretrained``; its files go into the folder itself.
        parts: What goes into folders in it.

    Raises:
        OSError: If it cannot be written. An old model in the folder stays.
    """
    folder = Path(folder)
    partial, replaced = folder / PARTIAL_MODEL, folder / REPLACED_MODEL
    for left in (partial, replaced):
        remove(left)
    with writing(partial, f"the model in {folder}", "run the same command again"):
        partial.mkdir(parents=True)
        if model is not None:
            model.save_pretrained(partial)
        for name, part in parts.items():
            part.save_pretrained(partial / name)
        sync(partial)
    names = sorted((path.name for path in partial.iterdir()), key=lambda name: name in MARKERS)
    replaced.mkdir()
    for name in reversed(names):
        if (folder / name).exists():
            (folder / name).rename(replaced / name)
    for name in names:
        (partial / name).rename(folder / name)
    sync_folder(folder)
    for left in (partial, replaced):
        remove(left)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its name; raises ValueError if that is no checkpoint's."""
    number = checkpoint.name.removeprefix("checkpoint-")
    if not number.isdigit() or number == checkpoint.name:
        raise ValueError(f"A checkpoint's folder must be named checkpoint-STEP, got {checkpoint}.")
    return int(number)


def _checkpoints(output_dir: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted(output_dir.glob("checkpoint-*"), key=step_of)


def _describe(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
