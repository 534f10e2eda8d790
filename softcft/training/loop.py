"""The training loop, the only one. What is trained, and on which loss, is defined by an objective.

An *objective* is a module that holds the models and whose ``forward`` turns a batch into a loss. Accelerate wraps the
objective, so a loss may call any method of any of its models and still be trained on many GPUs.

On the CPU, a run that was interrupted and resumed gives the same weights, bit for bit, as one that was not. The
checkpoint holds weights, buffers, moving average, optimizer, schedule, random states of all processes, the open line of
the log, and the state and best weights of the monitor. The order of the data is a function of the seed alone, and each
image's noise one of the seed and of its place in that order. So the number of processes and of accumulated batches may
change on the way. The data set must give the same sample for the same index: random augmentation is the objective's.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from tqdm.auto import tqdm

from softcft.training.checkpoints import (
    Progress,
    checkpoint_to_resume,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    saved_progress,
    set_aside,
)
from softcft.training.config import TrainingConfig
from softcft.training.interruption import StopSignals, explain_faults, next_batch
from softcft.training.monitor import BestWeights, Monitor
from softcft.training.precision import start_accelerator
from softcft.training.processes import this_process
from softcft.training.writing import replace_file

__all__ = ["AfterStep", "Objective", "train"]

logger = get_logger(__name__)

METRICS = "metrics.jsonl"
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
MAX_CONSECUTIVE_SKIPS = 50
"""So many steps skipped in a row end the run: the weights no longer move, and waiting will not help."""


class Objective(Protocol):
    """What the loop asks of the ``nn.Module`` it trains.

    The loop trains all parameters that require a gradient, and each of them must take part in every forward pass. It
    never calls ``train()`` or ``eval()``: the objective puts its models into the right mode, once.
    """

    def __call__(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Evaluate a batch.

        Args:
            batch: What the data set gives, collated: ``image``, uint8 or floats in [-1, 1], (B, C, H, W), and
                ``parents``, encoded (B, K); attribute mechanisms see ``parents`` alone. And ``seeds``, a list of one
                integer for each image, of which its noise should follow; those of a run are consecutive.

        Returns:
            Tensors, under the same keys at every call: the scalar ``loss``, a mean over the images of the batch, which
            is minimised; and any metrics to be averaged. Scalars are logged, others are for :class:`AfterStep` alone.
        """
        ...


@runtime_checkable
class AfterStep(Protocol):
    """An objective may also have this method; a Lagrange multiplier does its ascent here."""

    def after_step(self, metrics: dict[str, Any]) -> None:
        """Follow up on an optimizer step that was taken, not skipped.

        Args:
            metrics: What ``forward`` returned in this step, averaged over accumulated batches and processes: floats,
                and tensors for what is no scalar. They are the same on every process, so buffers updated from them
                stay in step.
        """
        ...


ObjectiveModule = TypeVar("ObjectiveModule", bound=nn.Module)


def train(  # noqa: C901  # one algorithm, told in order
    objective: ObjectiveModule,
    dataset: Dataset[Any],
    config: TrainingConfig,
    *,
    name: str,
    monitor: Monitor | None = None,
) -> ObjectiveModule:
    """Train an objective, on whatever ``accelerate launch`` or ``torchrun`` started: a CPU, a GPU, or many.

    Args:
        objective: The module to train, see :class:`Objective` and :class:`AfterStep`.
        dataset: Map-style data set with a length, which gives the same sample for an index whenever asked; or an
            iterable one without end, whose method ``skip(n)`` gives it without its first n samples.
        config: The settings.
        name: What is trained, for the progress bar and the tracker.
        monitor: Evaluates the weights on the way and finds the best. It changes nothing in the training.

    Returns:
        The same objective, with the moving average of its weights if ``config.ema_decay`` is not 0; with a monitor,
        with the weights and buffers that this found best.

    Raises:
        FileNotFoundError: If the checkpoint to resume from does not exist.
        ValueError: If Accelerate is set to cut weights into pieces, the data set is empty, nothing requires a gradient,
            the checkpoint to resume from is damaged or of another model or monitor, or the output folder has
            checkpoints of steps yet to come.
        RuntimeError: If 50 steps in a row were skipped, or all there were; if weights or buffers are not finite, memory
            does not suffice, or the data cannot be read.
        OSError: If a checkpoint cannot be written.
        SystemExit: After SIGTERM or SIGINT and a checkpoint, with the exit status that these signals have.
    """
    output_dir = Path(config.output_dir)
    process = this_process()  # before anything is logged
    step_size = config.train_batch_size * config.gradient_accumulation_steps * process.num_processes
    streamed = isinstance(dataset, IterableDataset)
    total = config.max_train_steps
    if config.max_train_epochs is not None and not streamed:
        total = min(total, -(-config.max_train_epochs * len(dataset) // step_size))  # type: ignore[arg-type]
    resume_from, first_step, damaged = checkpoint_to_resume(config.resume_from_checkpoint, output_dir, total)
    progress = saved_progress(resume_from, config.seed) if resume_from is not None else None
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"Nothing to train: no parameter of {type(objective).__name__} requires a gradient.")

    accelerator = start_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
        step_scheduler_with_optimizer=False,  # else it steps once per process, and the schedule ends early
        dataloader_config=DataLoaderConfiguration(non_blocking=True),  # from pinned memory
    )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"Accelerate is set to {accelerator.distributed_type.value}, which cuts weights into pieces: moving "
            "average, checkpoints and constraint want whole ones. Choose MULTI_GPU, see recipes/accelerate."
        )
    set_seed(config.seed, device_specific=True)  # of what has no seeds of its own, such as dropout

    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=betas, weight_decay=config.adam_weight_decay, fused=True
    )
    warmup = config.lr_warmup_steps
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    seen = progress["images"] if progress else 0  # not the step times its size, which was perhaps another one
    # Its own generator: by default, starting to load would draw from the global one, once more after each resume.
    generator = torch.Generator().manual_seed(config.seed)
    dataloader = DataLoader(
        dataset.skip(seen) if streamed else dataset,  # type: ignore[attr-defined]
        batch_size=config.train_batch_size,
        sampler=None if streamed else _EndlessShuffle(dataset, config.seed, start=seen),
        drop_last=True,
        num_workers=config.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=generator,
    )
    wrapped, optimizer, dataloader, scheduler = accelerator.prepare(objective, optimizer, dataloader, schedule)
    if streamed:
        dataloader.base_dataloader.generator = generator  # Accelerate drops it
    ema = EMAModel(parameters, decay=config.ema_decay, foreach=True) if config.ema_decay else None
    watched = BestWeights(monitor, objective, ema, accelerator)
    log = _Log(output_dir / METRICS)
    if resume_from is not None and progress is not None:
        load_checkpoint(accelerator, schedule, ema, resume_from)
        watched.load(resume_from, progress.get("monitor"))
        log.open_line = progress["open_line"]
    logger.info(f"Training {name} from {resume_from or 'the start'} to step {total} in {output_dir}.")
    is_main = accelerator.is_main_process
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        set_aside(damaged)
        prune_checkpoints(output_dir, config.checkpoints_total_limit)  # makes room, also for the next one
        log.truncate(first_step if resume_from is not None else -1)
    accelerator.init_trackers(name, {k: v for k, v in asdict(config).items() if v is not None})  # it chokes on None

    batches = iter(dataloader)
    skipped_in_a_row, stopped = 0, False
    steps = range(first_step + 1, first_step + 1 if watched.is_over else total + 1)
    bar = tqdm(steps, initial=first_step, total=total, desc=name, disable=not is_main)
    with StopSignals() as signals, explain_faults(name, config), ExitStack() as at_end:
        # Frees the objective of Accelerate's precision, also where training fails: it may be trained again.
        at_end.callback(accelerator.unwrap_model, wrapped, keep_fp32_wrapper=False)
        if first_step == 0 and watched.is_due(0, total):
            accelerator.log(log.add(0, watched.look(0), write=is_main), step=0)
        for step in bar:
            output: dict[str, Tensor] = {}
            buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
            for part in range(config.gradient_accumulation_steps):
                batch = next_batch(batches, name, step, config.dataloader_num_workers)
                place = seen + config.train_batch_size * (part * accelerator.num_processes + accelerator.process_index)
                seeds = [config.seed * 2**48 + place + i for i in range(config.train_batch_size)]
                with accelerator.accumulate(wrapped):
                    returned = wrapped({**batch, "seeds": seeds})
                    accelerator.backward(returned["loss"])
                for key, value in returned.items():
                    output[key] = output.get(key, 0) + value.detach().float() / config.gradient_accumulation_steps
            grad_norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)

            # One transfer per step. A NaN on one process makes the mean NaN on all, so that all of them skip together;
            # and a signal that one of them got stops all.
            stop = grad_norm.new_tensor(float(signals.received > 0), dtype=torch.float32)
            scalars = {key: value for key, value in output.items() if not value.ndim} | {"grad_norm": grad_norm.float()}
            means = accelerator.reduce(torch.stack([*scalars.values(), stop]), "mean").tolist()
            metrics, stopped = dict(zip(scalars, means[:-1], strict=True)), means[-1] > 0
            learning_rate = optimizer.param_groups[0]["lr"]
            seen += step_size
            loss, norm = metrics["loss"], metrics["grad_norm"]
            if math.isfinite(loss) and math.isfinite(norm) and norm <= config.skip_grad_norm:
                optimizer.step()
                scheduler.step()
                if isinstance(objective, AfterStep):
                    others = {key: value for key, value in output.items() if value.ndim}
                    objective.after_step(metrics | {key: accelerator.reduce(x, "mean") for key, x in others.items()})
                if ema:
                    ema.step(parameters)
                log.take(metrics)
                skipped_in_a_row = 0
            else:
                for buffer, before in buffers:  # such as the statistics of a batch normalisation that saw a NaN
                    buffer.copy_(before)
                if accelerator.scaler is not None:
                    accelerator.scaler.update()  # fp16: lowers the loss scale after an overflow
                log.skip()
                skipped_in_a_row += 1
                if skipped_in_a_row == MAX_CONSECUTIVE_SKIPS:
                    raise RuntimeError(
                        f"{name}: skipped {skipped_in_a_row} steps in a row, the last one (step {step}) with loss "
                        f"{loss:.6g} and gradient norm {norm:.6g}. Lower learning_rate, or raise skip_grad_norm "
                        f"(now {config.skip_grad_norm:g}) if such gradients are usual here, and go on with "
                        "resume_from_checkpoint latest; or from the path of an earlier checkpoint, with another "
                        "output_dir, if the weights are too far off by now."
                    )
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss:.4g}")

            if step % config.logging_steps == 0 or step == total:
                line = log.close_line(step, learning_rate, step_size, write=is_main)
                accelerator.log(line, step=step)
            if watched.is_due(step, total):
                accelerator.log(log.add(step, watched.look(step), write=is_main), step=step)
            every = config.checkpointing_steps
            if every and (step % every == 0 or step == total or stopped or watched.is_over):
                _check_finite(objective, name, step)
                progress = Progress(seed=config.seed, images=seen, open_line=log.open_line, monitor=watched.state)
                limit = config.checkpoints_total_limit
                save_checkpoint(accelerator, ema, output_dir, step, limit, progress, watched.best)
            if stopped or watched.is_over:
                break

    for tracker in accelerator.trackers:
        tracker.finish()
    if stopped:
        number = signals.received or signal.SIGTERM  # another process may be the one that got it
        saved = f"checkpoint-{step} is saved" if every else "nothing is saved, for checkpointing_steps is 0"
        if is_main:
            bar.close()
            sys.stderr.write(
                f"{name}: stopped by {signal.Signals(number).name} after step {step} of {total}; {saved}. The same "
                "command with resume_from_checkpoint latest goes on from there.\n"
            )
        raise SystemExit(128 + number)
    if skipped_in_a_row and skipped_in_a_row == total - first_step:
        raise RuntimeError(
            f"{name}: all {skipped_in_a_row} steps were skipped, the last one with loss {loss:.6g} and gradient norm "
            f"{norm:.6g}. Nothing was learned; look for values that are not finite in data and models."
        )
    if watched.is_over:
        bar.close()
        logger.warning(f"{name}: training on is of no use, the monitor found; it ends before step {total}.")
    accelerator.wait_for_everyone()
    if ema:
        ema.copy_to(parameters)
    watched.put_back()
    return objective


class _Log:
    """The lines of metrics.jsonl: averages over the steps since the last line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken: list[dict[str, float]] = []
        self.skipped, self.started, self.steps = 0, time.perf_counter(), 0

    @property
    def open_line(self) -> dict[str, Any]:
        """What the next line will be made of; part of a checkpoint."""
        return {"taken": self.taken, "skipped": self.skipped}

    @open_line.setter
    def open_line(self, state: dict[str, Any]) -> None:
        self.taken, self.skipped = list(state["taken"]), state["skipped"]

    def take(self, metrics: dict[str, float]) -> None:
        self.taken.append(metrics)
        self.steps += 1

    def skip(self) -> None:
        self.skipped += 1
        self.steps += 1

    def close_line(self, step: int, learning_rate: float, step_size: int, write: bool) -> dict[str, float]:
        line = {key: sum(metrics[key] for metrics in self.taken) / len(self.taken) for key in (self.taken or [{}])[0]}
        speed = self.steps * step_size / (time.perf_counter() - self.started)
        line |= {"lr": learning_rate, "skipped": self.skipped, "images_per_second": speed}
        self.taken, self.skipped, self.started, self.steps = [], 0, time.perf_counter(), 0
        return self.add(step, line, write)

    def add(self, step: int, line: dict[str, float], write: bool) -> dict[str, float]:
        if write:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **line}) + "\n")
        return line

    def truncate(self, last_step: int) -> None:
        """Drop the lines after the checkpoint: the resumed run writes them again."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a killed run may leave half a line
        replace_file(self.path, "".join(line for line in whole if json.loads(line)["step"] <= last_step))


class _EndlessShuffle(Sampler[int]):
    """The indices of a data set, shuffled anew each epoch, without end; ``start`` of them were seen already."""

    def __init__(self, dataset: Dataset[Any], seed: int, start: int) -> None:
        self.size = len(dataset)  # type: ignore[arg-type]
        if self.size == 0:
            raise ValueError("The training data set is empty.")
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[int]:
        epoch, position = divmod(self.start, self.size)
        while True:
            yield from np.random.default_rng((self.seed, epoch)).permutation(self.size)[position:].tolist()
            epoch, position = epoch + 1, 0


def _check_finite(objective: nn.Module, name: str, step: int) -> None:
    """Raise RuntimeError if a weight or buffer is not finite: such a checkpoint is of no use."""
    broken = [key for key, tensor in objective.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise RuntimeError(
            f"{name}: after step {step} {broken[0]} is not finite, nor are {len(broken) - 1} others. No checkpoint of "
            "it is saved; those before are kept. Lower learning_rate and go on with resume_from_checkpoint latest."
        )
