"""The type that networks compute in, where the machine is to choose it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState, is_initialized

from softcft.training.config import Precision
from softcft.training.processes import this_process

__all__ = ["choose_precision", "start_accelerator"]

logger = get_logger(__name__)


def start_accelerator(mixed_precision: Precision, **arguments: Any) -> Accelerator:
    """An Accelerator with the precision that ``--help`` describes, also if an earlier one here had another."""
    precision = choose_precision(mixed_precision)
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # Accelerate would refuse; transformers' Trainer does so, too
    return Accelerator(mixed_precision=precision, **arguments)


def choose_precision(setting: Precision) -> Literal["no", "bf16", "fp16"]:
    """What to give Accelerate as ``mixed_precision``: ``auto`` becomes bf16 or no, all else stays."""
    kind = this_process().device.type
    fast = _computes_bf16(kind)
    if setting == "bf16" and kind == "cpu" and not fast:
        logger.warning("--mixed_precision bf16 is very slow on this CPU, which has no such instructions; try auto.")
    if setting != "auto":
        return setting
    logger.info(f"--mixed_precision auto: {'bf16' if fast else 'no, for want of bf16 instructions'}.")
    return "bf16" if fast else "no"


def _computes_bf16(kind: str) -> bool:
    """Whether a kind of device has instructions for bf16. Emulation, which most have, is slower than float32."""
    if kind == "cuda":  # from Ampere on; also AMD's
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    # Not mkldnn's own answer, which is yes where it emulates them.
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()
