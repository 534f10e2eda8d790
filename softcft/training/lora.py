"""Fine-tuning of low-rank adapters in place of all weights, by peft."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from torch import nn

__all__ = ["LoRAConfig"]


@dataclass(kw_only=True)
class LoRAConfig:
    """Whether all weights of a network are fine-tuned, or adapters.

    Raises:
        ValueError: If the rank is not positive, or peft is not installed.
    """

    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Diffusion only: train adapters of this rank on each layer of the UNet, and add them to its "
            "weights at the end; all weights are trained if left out. Needs pip install peft."
        },
    )

    def __post_init__(self) -> None:
        if self.lora_rank is None:
            return
        if self.lora_rank < 1:
            raise ValueError(f"--lora_rank must be at least 1, got {self.lora_rank}.")
        if importlib.util.find_spec("peft") is None:
            raise ValueError("--lora_rank needs a package that is not installed: pip install peft")

    def adapters(self, network: nn.Module) -> AbstractContextManager[None]:
        """Freezes a network but for adapters, which it adds to its weights in the end; does nothing without a rank.

        Hu et al., "LoRA: low-rank adaptation of large language models" (ICLR 2022), on linear layers and convolutions.
        """
        return nullcontext() if self.lora_rank is None else _adapters(network, self.lora_rank)


@contextmanager
def _adapters(network: nn.Module, rank: int) -> Iterator[None]:
    from peft import LoraConfig  # not everybody needs it
    from peft.tuners.lora import LoraModel

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    adapters = LoraModel(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), "default")
    yield
    adapters.merge_and_unload()
    network.requires_grad_(True)
