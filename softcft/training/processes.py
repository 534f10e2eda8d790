"""Which of the processes this is that ``accelerate launch`` or ``torchrun`` has started."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool

__all__ = ["this_process"]


def this_process() -> PartialState:
    """Accelerate's knowledge of this process and the others; to be asked for before any Accelerator is made.

    A plain ``PartialState()`` takes each of several processes on CPUs for the only one, and later Accelerators believe
    it.
    """
    wants_cpu = bool(str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")))
    return PartialState(cpu=wants_cpu or not torch.accelerator.is_available())
