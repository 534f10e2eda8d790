"""Solvers of the diffusion model's ODE: against diffusers, against an analytic denoiser, and there and back."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from softcft.counterfactuals import Solver
from softcft.counterfactuals.solvers import LARGEST, Denoiser, NoiseLevels, _round, invert, predict
from softcft.models.noise_schedule import NoiseSchedule, new_scheduler

SCHEDULER = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
SCHEDULES = {
    "epsilon": NoiseSchedule(SCHEDULER),
    "v_prediction": NoiseSchedule(new_scheduler("v_prediction")),
    "flow": NoiseSchedule(new_scheduler("flow")),
    "shifted flow": NoiseSchedule(FlowMatchEulerDiscreteScheduler(shift=3.0)),
}


def levels(number: int) -> NoiseLevels:
    return NoiseLevels.spaced(SCHEDULES["epsilon"], number)


def splitting(grid: NoiseLevels, noise: Callable[[Tensor, int], Tensor]) -> Denoiser:
    """A denoiser from what tells the noise in images, given the level."""

    def denoiser(x: Tensor, level: int, told: int) -> tuple[Tensor, Tensor]:
        epsilon = noise(x, told)
        return (x - grid.noise[level] * epsilon) / grid.signal[level], epsilon

    return denoiser


def bend(x: Tensor, level: int) -> Tensor:
    """Some noise, far from linear."""
    return torch.sin(x + 0.1 * level) + 0.3 * x.roll(1, dims=-1)


def normals(schedule: NoiseSchedule, grid: NoiseLevels, means: list[float], shares: list[float]) -> Denoiser:
    """The perfect denoiser of pixels from a mixture of normals with these means and a standard deviation of 0.4."""
    centres, prior = torch.tensor(means, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)

    def denoiser(x: Tensor, level: int, told: int) -> tuple[Tensor, Tensor]:
        signal, sigma = grid.signal[told], grid.noise[told]
        apart, variance = x[..., None] - signal * centres, 0.16 * signal**2 + sigma**2
        posterior = (prior.log() - apart.square() / (2 * variance)).softmax(dim=-1)
        clean = (posterior * (centres + 0.16 * signal * apart / variance)).sum(dim=-1)
        noise = (posterior * sigma * apart / variance).sum(dim=-1)
        prediction = schedule.target(clean, noise, torch.tensor(signal), torch.tensor(sigma))
        return schedule.split(x, prediction, grid.signal[level], grid.noise[level])

    return denoiser


def same_quantile(x: Tensor, means: list[float], shares: list[float], others: list[float]) -> Tensor:
    """Where the mixture with shares ``others`` has as much below it as that with ``shares`` has below x.

    The exact solution, as it keeps the order of pixels.
    """
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)

    def below(points: Tensor, weights: list[float]) -> Tensor:
        parts = torch.special.ndtr((points[..., None] - torch.tensor(means, dtype=torch.float64)) / 0.4)
        return parts @ torch.tensor(weights, dtype=torch.float64)

    return torch.as_tensor(np.interp(below(x, shares), below(grid, others), grid))


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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shift": 3.0},
        {"shift": 3.0, "num_train_timesteps": 100},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
        {"use_karras_sigmas": True},
        {"use_beta_sigmas": True},
    ],
)
def test_euler_steps_of_a_flow_are_those_of_diffusers(settings: dict[str, Any]) -> None:
    scheduler, tokens = FlowMatchEulerDiscreteScheduler(**settings), 1024
    schedule = NoiseSchedule(scheduler, tokens)
    grid, x = NoiseLevels.spaced(schedule, 7), images().float()
    scheduler.set_timesteps(sigmas=[(7 - i) / 7 for i in range(7)], mu=calculate_shift(tokens))
    torch.testing.assert_close(torch.tensor(grid.timesteps).flip(0), scheduler.timesteps)

    def denoiser(x: Tensor, level: int, told: int) -> tuple[Tensor, Tensor]:
        return schedule.split(x, bend(x, told), grid.signal[level], grid.noise[level])

    expected = x
    for level, t in zip(range(7, 0, -1), scheduler.timesteps, strict=True):
        expected = scheduler.step(bend(expected, level), t, expected).prev_sample
    torch.testing.assert_close(predict(denoiser, [x], grid, 7), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("number", "name"), [*((n, "epsilon") for n in (2, 50, 250)), (2, "flow"), (33, "shifted flow")]
)
def test_bdia_finds_the_way_back(number: int, name: str, dtype: torch.dtype) -> None:
    """Whatever the denoiser, and the type that it computes in."""
    schedule, x = SCHEDULES[name], images().float()
    grid = NoiseLevels.spaced(schedule, number)
    for noise in (bend, lambda x, level: 3 * bend(x, level) + x.square().clamp_max(9)):

        def denoiser(
            x: Tensor, level: int, told: int, noise: Callable[[Tensor, int], Tensor] = noise
        ) -> tuple[Tensor, Tensor]:
            return schedule.split(x, noise(x.to(dtype), told).float(), grid.signal[level], grid.noise[level])

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


@pytest.mark.parametrize("name", SCHEDULES)
def test_errors_fall_as_they_should(name: str) -> None:
    """With a perfect denoiser: those of DDIM as 1 / S, those of BDIA as 1 / S^2."""
    schedule, x = SCHEDULES[name], images()
    means, shares, others = [-0.6, 0.3], [0.5, 0.5], [0.2, 0.8]
    expected = same_quantile(x, means, shares, others)
    back, counterfactual = {}, {}
    for number in (10, 40):
        grid = NoiseLevels.spaced(schedule, number)
        factual, changed = (normals(schedule, grid, means, weights) for weights in (shares, others))
        for solver in get_args(Solver):
            latents, _ = invert(factual, x, grid, solver, 1)
            back[solver, number] = (predict(factual, latents, grid, 1) - x).abs().mean()
            counterfactual[solver, number] = (predict(changed, latents, grid, 1) - expected).abs().mean()
    for error in (back, counterfactual):
        assert 2.7 < error["ddim", 10] / error["ddim", 40] < 5
    assert counterfactual["bdia", 10] / counterfactual["bdia", 40] > 7
    assert counterfactual["bdia", 40] < counterfactual["ddim", 40] / 5


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
        for steps in (1, 3, 9, 10):
            (gradient,) = torch.autograd.grad(there_and_back(strength, 0.0, steps), strength)
            assert abs(gradient.item()) < 1e-12


@pytest.mark.parametrize("number", [0, 1, 30, 1001])
def test_levels_must_be_evenly_spaced(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps must .* divide .* got {number}"):
        levels(number)
