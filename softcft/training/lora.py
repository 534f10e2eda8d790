"""Fine-tuning of low-rank adapters in place of all weights, by peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["adapters"]


@contextmanager
def adapters(network: nn.Module, rank: int | None) -> Iterator[None]:
    """Freeze a network but for adapters, and add these to its weights in the end; without a rank, do nothing.

    Hu et al., "LoRA: low-rank adaptation of large language models" (ICLR 2022), on linear layers and convolutions.
    """
    if rank is None:
        yield
        return
    from peft import LoraConfig  # not everybody needs it
    from peft.tuners.lora import LoraModel

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    tuned = LoraModel(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), "default")
    yield
    tuned.merge_and_unload()
    network.requires_grad_(True)
