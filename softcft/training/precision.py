"""The type that networks compute in, where the machine is to choose it."""

from __future__ import annotations

from typing import Literal

import torch
from accelerate.logging import get_logger

from softcft.training.processes import this_process

__all__ = ["PRECISION_HELP", "Precision", "choose_precision"]

logger = get_logger(__name__)

Precision = Literal["auto", "no", "bf16", "fp16"]
PRECISION_HELP = (
    "Type of the forward pass; weights stay float32. auto: bf16 on machines that compute in it, else no. A CPU without "
    "such instructions takes up to a hundred times as long in bf16. fp16 needs a GPU."
)


def choose_precision(setting: Precision) -> Literal["no", "bf16", "fp16"]:
    """What to give Accelerate as ``mixed_precision``: ``auto`` becomes bf16 or no, all else stays."""
    device = this_process().device.type
    fast = torch.cuda.is_bf16_supported() if device == "cuda" else device == "cpu" and _cpu_computes_bf16()
    if setting == "bf16" and device == "cpu" and not fast:
        logger.warning("--mixed_precision bf16 is very slow on this CPU, which has no such instructions; try auto.")
    if setting != "auto":
        return setting
    logger.info(f"--mixed_precision auto: {'bf16' if fast else 'no, for want of bf16 instructions'}.")
    return "bf16" if fast else "no"


def _cpu_computes_bf16() -> bool:
    # Not mkldnn's own answer, which is yes where it emulates them.
    return torch.cpu._is_avx512_bf16_supported()
