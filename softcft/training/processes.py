"""Which of the processes this is that ``accelerate launch`` or ``torchrun`` has started."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import str_to_bool

__all__ = ["this_process"]


def this_process() -> PartialState:
    """Accelerate's ``PartialState``; call this before any Accelerator is made.

    A plain ``PartialState()`` takes each of several processes on CPUs for the only one, and later Accelerators copy
    that. If ``ACCELERATE_USE_CPU`` has changed since, as in a notebook, the state is made anew.
    """
    setting = os.environ.get("ACCELERATE_USE_CPU")
    cpu = bool(str_to_bool(setting or "false")) or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    if setting and not state.use_distributed and (state.device.type == "cpu") != cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
        state = PartialState(cpu=cpu)
    return state
