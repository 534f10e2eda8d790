"""Random numbers for each image, which depend on a seed and not on the batch or process that the image is in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

__all__ = [
    "Generator",
    "copies",
    "draw_normal",
    "noise_generators",
    "own_generators",
    "seeded_generator",
    "spread_evenly",
    "uniform",
]

Generator = torch.Generator | list[torch.Generator] | None
"""One for a batch, a list with one for each image, or PyTorch's global one."""

GOLDEN_RATIO = 0x9E3779B97F4A7C15  # its fractional part, times 2^64


def seeded_generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for a seed and a key (numbers of at least 0). Similar seeds or keys give unrelated numbers.

    Numbers that are drawn on the CPU are the same wherever the models are.
    """
    # The CPU's generator takes 32 bits.
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def noise_generators(batch: dict[str, Any]) -> Generator:
    """A generator for each image of a batch, on its device, or PyTorch's global one for all if it has no ``seeds``."""
    seeds = batch.get("seeds")
    device = batch["image"].device
    return None if seeds is None else [seeded_generator(seed, device=device) for seed in seeds]


def own_generators(images: Tensor) -> list[torch.Generator]:
    """A generator for each image (B, C, H, W) in [-1, 1], on the CPU, seeded by its pixels in 8 bits.

    So an image has the same noise whenever, wherever and beside whichever others it is looked at, and two images have
    unrelated ones.
    """
    pixels = ((images.float().cpu() + 1) * 127.5).round().to(torch.uint8).numpy()
    return [seeded_generator(int.from_bytes(hashlib.sha256(one.tobytes()).digest())) for one in pixels]


def copies(generator: torch.Generator | list[torch.Generator], number: int) -> list[Any]:
    """Generators in one state, for draws that shall be the same. The last is the given one, so that it moves on."""
    if isinstance(generator, list):
        return [[one.clone_state() for one in generator] for _ in range(number - 1)] + [generator]
    return [generator.clone_state() for _ in range(number - 1)] + [generator]


def draw_normal(shape: tuple[int, ...], generator: Generator, device: torch.device | str) -> Tensor:
    """Standard normal numbers, float32, each row from its own generator where there are several."""
    if generator is None:  # the same numbers; randn_tensor cannot be exported with a batch of any size
        return torch.randn(shape, device=device)
    return randn_tensor(shape, generator=generator, device=torch.device(device), dtype=torch.float32)


def uniform(shape: tuple[int, ...], generator: Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1], float32, each row from its own generator where there are several."""
    return torch.special.ndtr(draw_normal(shape, generator, device))


def spread_evenly(places: Sequence[int]) -> Tensor:
    """The fractional parts of B integers times the golden ratio (Weyl's sequence), in [0, 1), shape (B,).

    Those of consecutive integers are about as evenly spread as they can be.
    """
    return torch.tensor([(place * GOLDEN_RATIO % 2**64) / 2**64 for place in places]).clamp_max(1 - 2**-24)
