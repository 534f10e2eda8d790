"""Which of the processes this is that ``accelerate launch`` or ``torchrun`` has started."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import str_to_bool

__all__ = ["this_process"]


def this_process() -> PartialState:
    """Accelerate's knowledge of this process and the others; to be asked for before any Accelerator is made.

    A plain ``PartialState()`` takes each of several processes on CPUs for the only one, and later Accelerators believe
    it. Where ``ACCELERATE_USE_CPU`` was set anew since, as in a notebook, it decides.
    """
    setting = os.environ.get("ACCELERATE_USE_CPU")
    cpu = bool(str_to_bool(setting or "false")) or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    if setting and not state.use_distributed and (state.device.type == "cpu") != cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
        state = PartialState(cpu=cpu)
    return state
