"""What happens from outside while a training runs: signals that end it, and machines that give way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from softcft.training.config import TrainingConfig

__all__ = ["StopSignals", "explain_memory", "next_batch"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Remembers SIGTERM (a cluster that takes its machine back) and SIGINT (Ctrl-C), so that a step can end in peace.

    A second SIGINT is a KeyboardInterrupt at once. Outside the main thread, which alone can receive signals, there is
    nothing to remember.

    Attributes:
        received: The signal's number, 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> StopSignals:
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        again = "; once more to leave at once" if number == signal.SIGINT else ""
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step{again}.\n".encode())


@contextmanager
def explain_memory(config: TrainingConfig) -> Iterator[None]:
    """Says what to lower where there is not enough memory.

    Raises:
        RuntimeError: In place of PyTorch's and Python's errors.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not known:
            raise
        raise RuntimeError(
            f"Out of memory: {str(error).splitlines()[0]} Lower --train_batch_size (now {config.train_batch_size}) and "
            "raise --gradient_accumulation_steps by the same factor, which makes the same steps; or try "
            f"--mixed_precision bf16 (now {config.mixed_precision}), or --gradient_checkpointing for an image model. "
            "--resume_from_checkpoint latest goes on from the last checkpoint."
        ) from error


def next_batch(batches: Iterator[dict[str, Any]], name: str, step: int, num_workers: int) -> dict[str, Any]:
    """The next batch.

    Raises:
        RuntimeError: If it cannot be read: files that are gone, a process that was killed.
    """
    try:
        return next(batches)
    except Exception as error:  # of many kinds: whatever files, networks and the processes that read them may do
        killed = "DataLoader worker" in str(error) and "killed" in str(error)
        advice = f" For want of memory? Then lower --dataloader_num_workers (now {num_workers})." if killed else ""
        raise RuntimeError(
            f"{name}: the data of step {step} cannot be read: {error}.{advice} The last checkpoint is whole: "
            "--resume_from_checkpoint latest goes on from there."
        ) from error
