"""Signals that end a training, memory that does not suffice, data that cannot be read."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from softcft.training.config import TrainingConfig
from softcft.training.writing import KILLED

__all__ = ["StopSignals", "explain_faults", "next_batch"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Remembers SIGTERM (from a cluster) and SIGINT (Ctrl-C), so that the step that is running can end.

    A second SIGINT is a KeyboardInterrupt at once. Only the main thread receives signals.

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
def explain_faults(name: str, config: TrainingConfig) -> Iterator[None]:
    """Says what to do where memory does not suffice or a process that loads data was killed.

    Raises:
        RuntimeError: In place of PyTorch's and Python's errors. That of a killed process may come at any time.
    """
    again = "resume_from_checkpoint latest goes on from the last checkpoint."
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        what = str(error).strip().partition("\n")[0]
        if KILLED in what:
            raise RuntimeError(
                f"{name}: {what} If that was for want of memory, lower dataloader_num_workers (now "
                f"{config.dataloader_num_workers}). {again}"
            ) from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in what:
            smaller = (
                f"Lower train_batch_size (now {config.train_batch_size}) and raise gradient_accumulation_steps by "
                "the same factor, for the same steps; or try"
            )
            raise RuntimeError(
                f"{name}: out of memory. {what} {smaller if config.train_batch_size > 1 else 'Try'} mixed_precision "
                f"bf16 (now {config.mixed_precision}), or gradient_checkpointing for an image model. {again}"
            ) from error
        raise


def next_batch(batches: Iterator[dict[str, Any]], name: str, step: int, num_workers: int) -> dict[str, Any]:
    """The next batch.

    Raises:
        RuntimeError: If it cannot be read, for files that are gone for instance, or a process that reads was killed;
            that one begins with `KILLED`, whichever of Python's and PyTorch's errors came first.
    """
    try:
        return next(batches)
    except Exception as error:  # of many kinds: whatever files and networks may do
        if KILLED in str(error):
            raise
        of_worker = "in DataLoader worker process" in str(error)  # PyTorch says so of what a worker itself met
        if isinstance(error, ConnectionError | EOFError) and num_workers and not of_worker:
            # Killed while it was handing over a tensor.
            time.sleep(1)  # PyTorch's own error comes by a signal; later, it would garble the report of this one
            raise RuntimeError(f"{KILLED} unknown) was killed: {error}.") from error
        what = str(error).strip().splitlines() or [type(error).__name__]  # another process's ends with what it was
        raise RuntimeError(
            f"{name}: the data cannot be read any more at step {step}: {what[-1]}. The last checkpoint is whole: "
            "resume_from_checkpoint latest goes on from there."
        ) from error
