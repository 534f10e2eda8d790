"""Monitors evaluate a training on the way, and the best weights so far are kept.

The loop shows a :class:`Monitor` the weights as they would be saved, at regular steps. Afterwards weights, buffers,
modes and random numbers are restored, so the training itself does not change.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["BEST", "BestWeights", "Look", "Monitor"]

BEST = "best.safetensors"
"""In a checkpoint: the weights that were the best so far."""
LOOKS = 10


class Look(NamedTuple):
    """The result of one evaluation.

    Attributes:
        metrics: For the log, such as ``{"watch/loss": 0.7}``.
        is_best: Whether these weights are better than all before.
        is_over: Whether the training shall end here, with the best weights.
    """

    metrics: dict[str, float]
    is_best: bool
    is_over: bool = False


class Monitor(Protocol):
    """What the loop needs of a monitor. Only the main process looks."""

    every: int | None
    """Steps between two looks, a tenth of all if None. There is one more before the first step, and after the last."""

    def look(self, step: int) -> Look:
        """Look at the weights after so many steps, which are those that would be saved now.

        The objective may be put into another mode, and its buffers may move: the loop puts them back.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Its state, as plain data for JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Set its state."""
        ...


class BestWeights:
    """Shows the weights to a monitor, and keeps the best: all that is trained, and all buffers.

    Args:
        monitor: The monitor; without one nothing of this happens.
        objective: What is trained.
        average: The moving average of the weights, if there is one: it is what would be saved.
        accelerator: That of the training. All processes call all methods.
    """

    def __init__(
        self, monitor: Monitor | None, objective: nn.Module, average: EMAModel | None, accelerator: Accelerator
    ) -> None:
        self.monitor = monitor
        self.objective = objective
        self.average = average
        self.accelerator = accelerator
        self.best: dict[str, Tensor] = {}
        self.is_over = False

    @property
    def state(self) -> dict[str, Any] | None:
        """The monitor's; belongs into a checkpoint, beside ``best``."""
        return None if self.monitor is None else {"monitor": self.monitor.state(), "is_over": self.is_over}

    def is_due(self, step: int, total: int) -> bool:
        """Whether there is a look after this step."""
        if self.monitor is None:
            return False
        return step % (self.monitor.every or -(-total // LOOKS)) == 0 or step == total

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Let the monitor look; returns its metrics on all processes."""
        with self._as_saved():
            seen: list[Look | None] = [None]
            if self.accelerator.is_main_process and self.monitor is not None:
                with self._undisturbed(), self.accelerator.autocast():
                    seen = [self.monitor.look(step)]
            (look,) = broadcast_object_list(seen)
            if look.is_best:
                tensors = self._tensors()
                self.best = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        self.is_over = look.is_over
        metrics: dict[str, float] = look.metrics
        return metrics

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the objective the best weights and buffers; it stays as it is if none were the best."""
        if self.best:
            for name, tensor in self._tensors().items():
                tensor.copy_(self.best[name])

    def load(self, checkpoint: Path, state: dict[str, Any] | None) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: If it is of a training that was not watched, and now it is, or the other way round.
        """
        if (state is None) != (self.monitor is None):
            was, now = ("not watched", "it is") if state is None else ("watched", "it is not")
            raise ValueError(
                f"{checkpoint} is of a training that was {was}, but now {now}: which weights were the best is not "
                "known. Restore the setting, or start anew in another output_dir."
            )
        if self.monitor is not None and state is not None:
            self.monitor.restore(state["monitor"])
            self.is_over = state["is_over"]
            self.best = load_file(checkpoint / BEST) if (checkpoint / BEST).is_file() else {}

    def _tensors(self) -> dict[str, Tensor]:
        trained = {name: weight for name, weight in self.objective.named_parameters() if weight.requires_grad}
        return {**trained, **dict(self.objective.named_buffers())}

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The objective with the weights that would be saved now."""
        weights = [weight for weight in self.objective.parameters() if weight.requires_grad]
        if self.average is not None:
            self.average.store(weights)
            self.average.copy_to(weights)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.restore(weights)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Afterwards buffers and modes of the objective are what they were, and so are all random generators."""
        buffers = [(buffer, buffer.clone()) for buffer in self.objective.buffers()]
        modes = [(module, module.training) for module in self.objective.modules()]
        others = random.getstate(), np.random.get_state()  # noqa: NPY002  # whoever uses it, it is put back
        device = self.accelerator.device
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
            for module, mode in modes:
                module.training = mode
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002
