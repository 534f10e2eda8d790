"""Divergence and draws of diagonal normals."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from softcft.models.hvae_blocks import MAX_LOG_SCALE, MIN_LOG_SCALE
from softcft.models.normals import normal_kl


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kl_is_that_of_torch_distributions() -> None:
    q_loc, q_log_scale, p_loc, p_log_scale = torch.randn(4, 3, 2, 4, 4, generator=seeded()).unbind()
    expected = kl_divergence(Normal(q_loc, q_log_scale.exp()), Normal(p_loc, p_log_scale.exp())).sum(dim=(1, 2, 3))
    torch.testing.assert_close(normal_kl(q_loc, q_log_scale, p_loc, p_log_scale), expected)
    assert (expected > 0).all()
    assert (normal_kl(q_loc, q_log_scale, q_loc, q_log_scale) == 0).all()


def test_kl_of_extreme_scales_and_its_gradient() -> None:
    # Both ends of what the model lets its log scales be, and means far apart.
    scales = torch.tensor([MIN_LOG_SCALE, 0.0, MAX_LOG_SCALE])
    grid = torch.cartesian_prod(scales, scales, torch.tensor([0.0, 1.0, 50.0]))
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [column[:, None].to(dtype).requires_grad_() for column in grid.T]
        q_log_scale, p_log_scale, distance = leaves
        if dtype == torch.float32:
            kl = normal_kl(distance, q_log_scale, torch.zeros_like(distance), p_log_scale)
        else:  # the definition, by autograd
            ratio = (2 * (q_log_scale - p_log_scale)).exp()
            square = (distance * (-p_log_scale).exp()).square()
            kl = (0.5 * (ratio + square - 1) - (q_log_scale - p_log_scale)).sum(dim=1)
        results.append([kl, *torch.autograd.grad(kl.sum(), leaves)])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_gradient_of_the_kl_is_that_of_its_value() -> None:
    inputs = [torch.randn(2, 3, 4, 4, dtype=torch.double, generator=seeded(i), requires_grad=True) for i in range(4)]
    # Squared, so that each image has its own incoming gradient.
    assert torch.autograd.gradcheck(lambda *x: normal_kl(*x).square(), inputs)


def test_a_second_derivative_of_the_kl_is_refused() -> None:
    inputs = [torch.randn(2, 3, 4, 4, generator=seeded(i), requires_grad=True) for i in range(4)]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(normal_kl(*inputs).mean(), inputs, create_graph=True)
