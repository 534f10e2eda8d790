"""Solvers of the diffusion model's ODE: against diffusers, against an analytic denoiser, and there and back."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from softcft.counterfactuals import Solver
from softcft.counterfactuals.solvers import LARGEST, Denoiser, NoiseLevels, _round, invert, predict
from softcft.models.noise_schedule import NoiseSchedule

SCHEDULER = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
SCHEDULE = NoiseSchedule(SCHEDULER)


def levels(number: int) -> NoiseLevels:
    return NoiseLevels.spaced(SCHEDULE, number)


def splitting(grid: NoiseLevels, noise: Callable[[Tensor, int], Tensor]) -> Denoiser:
    """A denoiser from what tells the noise in images, given the level."""

    def denoiser(x: Tensor, level: int, told: int) -> tuple[Tensor, Tensor]:
        epsilon = noise(x, told)
        return (x - grid.noise[level] * epsilon) / grid.signal[level], epsilon

    return denoiser


def bend(x: Tensor, level: int) -> Tensor:
    """Some noise, far from linear."""
    return torch.sin(x + 0.1 * level) + 0.3 * x.roll(1, dims=-1)


def gaussian(grid: NoiseLevels, mean: float) -> Denoiser:
    """The perfect denoiser of pixels with that mean and a standard deviation of 0.4.

    The exact solution keeps the quantile of each pixel, so that its counterfactual under another mean is a shift.
    """

    def noise(x: Tensor, level: int) -> Tensor:
        signal, sigma = grid.signal[level], grid.noise[level]
        return sigma * (x - signal * mean) / (0.16 * signal**2 + sigma**2)

    return splitting(grid, noise)


def images() -> Tensor:
    return 0.4 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_ddim_is_that_of_diffusers() -> None:
    grid, x = levels(20), images()
    inverse = DDIMInverseScheduler.from_config(SCHEDULER.config)
    inverse.set_timesteps(20)
    SCHEDULER.set_timesteps(20)
    assert sorted(SCHEDULER.timesteps.tolist()) == grid.timesteps
    expected = x
    for level, t in enumerate(inverse.timesteps, start=1):
        expected = inverse.step(bend(expected, level), t, expected).prev_sample
    ((ours,), _) = invert(splitting(grid, bend), x, grid, "ddim", 1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for level, t in zip(range(20, 0, -1), SCHEDULER.timesteps, strict=True):
        expected = SCHEDULER.step(bend(expected, level), t, expected).prev_sample
    torch.testing.assert_close(predict(splitting(grid, bend), [ours], grid, 20), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [2, 50, 250])
def test_bdia_finds_the_way_back(number: int, dtype: torch.dtype) -> None:
    """Whatever the denoiser, and the type that it computes in."""
    grid, x = levels(number), images().float()
    for noise in (bend, lambda x, level: 3 * bend(x, level) + x.square().clamp_max(9)):
        denoiser = splitting(grid, lambda x, level, noise=noise: noise(x.to(dtype), level).float())
        latents, _ = invert(denoiser, x, grid, "bdia", 1)
        assert all(z.dtype == torch.float64 for z in latents)
        assert (predict(denoiser, latents, grid, number) - x).abs().max() < 1e-12
        ((end,), _) = invert(denoiser, x, grid, "ddim", 1)
        assert (predict(denoiser, [end], grid, number) - x).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_was_added_can_be_taken_away(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.logspace(-9, 2.5, 1000, dtype=dtype) * torch.randn(1000, generator=generator, dtype=dtype).sign()
    x, y = _round(wide), _round(wide[torch.randperm(1000, generator=generator)])
    assert torch.equal((x + y) - y, x)
    assert (x - wide).abs().max() <= LARGEST * torch.finfo(dtype).eps


def test_errors_fall_as_they_should() -> None:
    """With a perfect denoiser: those of DDIM as 1 / S, those of BDIA are far smaller."""
    x = images()
    back, counterfactual = {}, {}
    for number in (50, 100, 200):
        grid = levels(number)
        for solver in get_args(Solver):
            latents, _ = invert(gaussian(grid, 0), x, grid, solver, 1)
            back[solver, number] = (predict(gaussian(grid, 0), latents, grid, 1) - x).abs().mean()
            counterfactual[solver, number] = (predict(gaussian(grid, 0.2), latents, grid, 1) - x - 0.2).abs().mean()
    for number in (50, 100):
        assert 1.7 < back["ddim", number] / back["ddim", 2 * number] < 2.3
        assert 1.7 < counterfactual["ddim", number] / counterfactual["ddim", 2 * number] < 2.3
    for number in (50, 100, 200):
        assert counterfactual["ddim", number] > 5e-3
        assert counterfactual["bdia", number] < 5e-4  # what is left of the image's mean at the last level


@pytest.mark.parametrize("solver", ["ddim", "bdia"])
def test_gradients_flow_through_the_last_steps(solver: Solver) -> None:
    """Those of all steps are the true ones; of the last K those of a path whose beginning is a constant."""
    grid, x = levels(10), images()
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def scaled(factor: Tensor | float) -> Denoiser:
        return splitting(grid, lambda x, level: factor * bend(x, level))

    def gradient(steps: int) -> float:
        image = predict(scaled(strength), latents, grid, steps)
        return float(torch.autograd.grad(image.square().mean(), strength)[0])

    latents, _ = invert(scaled(strength), x, grid, solver, 10)
    assert not any(z.requires_grad for z in latents)
    with torch.no_grad():
        above, below = (predict(scaled(0.7 + h), latents, grid, 10).square().mean() for h in (1e-6, -1e-6))
    assert gradient(10) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)
    assert len({round(gradient(steps), 10) for steps in (1, 2, 5, 10)}) == 4

    # What comes before the last three steps is a constant.
    def partly(x: Tensor, level: int) -> Tensor:
        return (strength if level <= 3 else strength.detach()) * bend(x, level)

    image = predict(splitting(grid, partly), latents, grid, 10)
    assert gradient(3) == pytest.approx(float(torch.autograd.grad(image.square().mean(), strength)[0]), rel=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "bdia"])
def test_the_gradient_of_the_whole_way_is_the_true_one(solver: Solver) -> None:
    """Up under one condition and down under another, the network changes both."""
    grid, x = levels(10), images()

    def there_and_back(strength: Tensor, shift: float, steps: int) -> Tensor:
        up = splitting(grid, lambda x, level: strength * bend(x, level))
        down = splitting(grid, lambda x, level: strength * bend(x + shift, level))
        latents, passed = invert(up, x, grid, solver, steps)
        return (predict(down, latents, grid, steps, passed) * x).mean()

    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for shift in (0.0, 0.3):
        above, below = (there_and_back(strength.detach() + h, shift, 10) for h in (1e-6, -1e-6))
        (gradient,) = torch.autograd.grad(there_and_back(strength, shift, 10), strength)
        assert gradient.item() == pytest.approx(float(above - below) / 2e-6, rel=1e-4, abs=1e-8)
    if solver == "bdia":  # what comes back as it was has no gradient, through however few steps
        for steps in (1, 3, 9):
            (gradient,) = torch.autograd.grad(there_and_back(strength, 0.0, steps), strength)
            assert abs(gradient.item()) < 1e-12


@pytest.mark.parametrize("number", [0, 1, 30, 1001])
def test_levels_must_be_evenly_spaced(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps must .* divide .* got {number}"):
        levels(number)
