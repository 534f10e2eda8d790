r"""Deterministic solvers from an image to noise and back, for abduction by a diffusion model.

The image is level 0, pure noise level S (less noise, where levels are left out); at level i an image is
:math:`x_i = \alpha_i x + \sigma_i \epsilon`. A denoiser predicts the image :math:`\hat x_i` and the noise
:math:`\hat\epsilon_i` in it, once for each level.

*DDIM* (Song et al., "Denoising diffusion implicit models", ICLR 2021) moves by

.. math:: x_{i-1} = \alpha_{i-1} \hat x_i + \sigma_{i-1} \hat\epsilon_i.

The inverse would need the noise of the level above, which is not known yet, and takes that of the level below: even
with a perfect denoiser it has an error, which falls with the number of levels as 1 / S.

*BDIA* (Zhang et al., "Exact diffusion inversion via bidirectional integration approximation", ECCV 2024, with gamma 1)
steps over the level between:

.. math:: x_{i-1} = x_{i+1} + (\alpha_{i-1} - \alpha_{i+1}) \hat x_i + (\sigma_{i-1} - \sigma_{i+1}) \hat\epsilon_i.

Solved for :math:`x_{i+1}` this is the exact inverse, with the same call of the denoiser, and it is of second order.
Both ways begin with a step of DDIM. That of abduction is done as it is. That of prediction, from pure noise, need not
lead to where abduction came through; so the noise is :math:`x_S`, and what this step lacks,

.. math:: r = x_{S-1} - (\alpha_{S-1} \hat x_S + \sigma_{S-1} \hat\epsilon_S),

which is of second order. The images of the two last levels would not do as noise: what the factual attributes do to an
image between them would stay in the counterfactual, an error of first order. Both steps give the network the level that
they go to: level 0 has no training step, and pure noise has next to no weight in training.

A network that gets an image with other rounding on the way back predicts something else; in bfloat16 the image would
change by dozens of grey levels over fifty levels. So nothing is rounded: images and what is added to them are multiples
of one small number, whose sums float64 holds exactly. The network gets the same numbers on the way back, which ends at
the same image, whatever the type and the errors of the network, while no pixel at any level is beyond :data:`LARGEST`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softcft.counterfactuals import Solver
from softcft.models.noise_schedule import NoiseSchedule

__all__ = ["LARGEST", "Denoiser", "Interrupted", "NoiseLevels", "OnStep", "invert", "predict"]

Denoiser = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""From images (B, C, H, W), their level and the level that the network gets, to the image and the noise in each."""
OnStep = Callable[[Tensor, int], Tensor]
"""From the images after a step, and their level, to those to go on with."""

LARGEST = 1024
"""Sums of pixels up to this size are exact. Those of images and noise are below 10."""


class Interrupted(Exception):  # no error
    """Raised by :data:`OnStep` to stop; ``images`` are those of the last step."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images


@dataclass(frozen=True)
class NoiseLevels:
    """The levels of a solver.

    Attributes:
        timesteps: For each of the levels 1 to S the time that the network gets: training steps, or parts of them.
        signal: Factor of the image at the levels 0 to S.
        noise: Factor of the noise at the levels 0 to S.
    """

    timesteps: list[float]
    signal: list[float]
    noise: list[float]

    @classmethod
    def spaced(cls, schedule: NoiseSchedule, number: int, strength: float = 1.0) -> NoiseLevels:
        """S levels, see :meth:`~softcft.models.noise_schedule.NoiseSchedule.levels`; of these the share ``strength``.

        Those of the most noise are left out.

        Raises:
            ValueError: If there is no such number of levels, or fewer than two are left.
        """
        timesteps, signal, noise = schedule.levels(number)
        kept = round(strength * number)
        if kept < 2:
            raise ValueError(
                f"strength {strength:g} leaves {kept} of num_inference_steps {number}, but two are needed: raise one "
                "of them."
            )
        return cls(timesteps[:kept], signal[: kept + 1], noise[: kept + 1])

    def __len__(self) -> int:
        return len(self.timesteps)

    def mix(self, clean: Tensor, noise: Tensor, level: int) -> Tensor:
        """The image at a level."""
        return self.signal[level] * clean + self.noise[level] * noise

    def leap(self, clean: Tensor, noise: Tensor, level: int) -> Tensor:
        """The step from the level above to the level below, rounded so that it can be undone exactly."""
        return _round(self.mix(clean, noise, level - 1) - self.mix(clean, noise, level + 1))


def invert(
    denoiser: Denoiser,
    image: Tensor,
    levels: NoiseLevels,
    solver: Solver,
    gradient_steps: int,
    on_step: OnStep | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Find the noise that images come from.

    Args:
        denoiser: Predicts image and noise in noisy images.
        image: Shape (B, C, H, W), of any floating type.
        levels: S of them.
        solver: ``ddim`` or ``bdia``.
        gradient_steps: K, how many of the first steps gradients flow through, see :func:`predict`.
        on_step: Of the levels 1 to S.

    Returns:
        The images at level S, for BDIA with r before them, constants; and those at level K, for BDIA also at level
        K + 1, as functions of the network (if K is S, the former). All are of float64 (of float32 on devices that have
        none).
    """
    tracked = torch.is_grad_enabled()
    count = len(levels)
    known = gradient_steps + (solver == "bdia")  # levels whose images are kept as functions of the network
    # DDIM gives the network the level that it goes to, as diffusers' DDIMInverseScheduler does.
    image = _round(image.to(torch.float32 if image.device.type == "mps" else torch.float64))
    path = [image, image]
    for level in range(count):
        below, x = path
        with torch.set_grad_enabled(tracked and level < known):
            if solver == "ddim" or level == 0:
                above = _round(levels.mix(*denoiser(x, level, level + 1), level + 1))
            else:
                above = below - levels.leap(*denoiser(x, level, level), level)
            if on_step is not None:
                above = on_step(above, level + 1)
        path = [x, above]
        if level < known:
            passed = path
    if solver == "ddim":
        return [path[1].detach()], passed[1:]
    with torch.set_grad_enabled(tracked and gradient_steps >= count):
        below, x = path
        path = [below - _round(levels.mix(*denoiser(x, count, count - 1), count - 1)), x]
    return [x.detach() for x in path], path if gradient_steps >= count else passed


def predict(
    denoiser: Denoiser,
    latents: list[Tensor],
    levels: NoiseLevels,
    gradient_steps: int,
    passed: list[Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The images that noise becomes.

    Gradients flow through the last K steps (DRaFT-K of Clark et al., "Directly fine-tuning diffusion models on
    differentiable rewards", ICLR 2024). The abducted noise depends on the network, too, and cancels the change of an
    image that is to stay the same; ``passed`` adds this part of the gradient.

    Args:
        denoiser: Predicts image and noise in noisy images.
        latents: Of :func:`invert`: one tensor for DDIM, two for BDIA.
        levels: The same S levels.
        gradient_steps: K.
        passed: Of :func:`invert`: the images at level K, whose gradient is added to that of the images there, as if
            the levels above changed neither. Left out, there is none.
        on_step: Of the levels S - 1 down to 0.
    """
    tracked = torch.is_grad_enabled()
    state, count = list(latents), len(levels)
    last = min(gradient_steps, count)
    for level in range(count, 0, -1):
        if level == last and tracked and passed is not None:
            state = [x + (p - p.detach()) for x, p in zip(state, passed, strict=True)]
        with torch.set_grad_enabled(tracked and level <= last):
            if len(state) == 1:
                state = [levels.mix(*denoiser(state[0], level, level), level - 1)]
            elif level == count:
                missing, x = state
                state = [missing + _round(levels.mix(*denoiser(x, level, level - 1), level - 1)), x]
            else:
                x, above = state
                state = [above + levels.leap(*denoiser(x, level, level), level), x]
            if on_step is not None:
                state[0] = on_step(state[0], level - 1)
    return state[0]


def _round(x: Tensor) -> Tensor:
    """Round to multiples of the smallest number whose sums up to :data:`LARGEST` are exact."""
    step = torch.finfo(x.dtype).eps * LARGEST
    return (x / step).round().detach() * step + (x - x.detach())  # its gradient is that of x
