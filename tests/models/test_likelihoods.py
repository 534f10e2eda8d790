import math

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from torch import Tensor

from softcft.models.likelihoods import HALF_BIN, discretised_gaussian_log_prob

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def log_prob(image: float | Tensor, loc: float | Tensor, log_scale: float | Tensor) -> Tensor:
    """In float64 unless a tensor says otherwise, broadcast."""
    arguments = [
        torch.as_tensor(a, dtype=None if isinstance(a, Tensor) else torch.float64) for a in (image, loc, log_scale)
    ]
    return discretised_gaussian_log_prob(*torch.broadcast_tensors(*arguments))


def grid(log_scales: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """All 256 pixels for means inside, between and outside of them, shape (scales, means, 256)."""
    locs = torch.tensor([-3, -1.0001, -1, -0.996, -0.3, 0, HALF_BIN, 0.123, 0.5, 1, 2.5], dtype=torch.float64)
    scales = torch.tensor(log_scales, dtype=torch.float64)
    return torch.broadcast_tensors(LEVELS, locs[:, None], scales[:, None, None])


def reference(image: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """SciPy's normal distribution function, each bin seen from the side where it is small."""
    x, loc, scale = image.numpy(), loc.numpy(), log_scale.exp().numpy()
    upper = np.where(x > 0.999, np.inf, (x + HALF_BIN - loc) / scale)
    lower = np.where(x < -0.999, -np.inf, (x - HALF_BIN - loc) / scale)
    mirror = lower + upper > 0
    near, far = np.where(mirror, -lower, upper), np.where(mirror, -upper, lower)
    return torch.from_numpy(log_ndtr(near) + np.log(-np.expm1(log_ndtr(far) - log_ndtr(near))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_is_a_distribution_over_the_256_values(dtype: torch.dtype) -> None:
    image, loc, log_scale = grid([-9, -7, -5, -4, -3, -2, -1, 0, 2, 4, 9])
    total = log_prob(image.to(dtype), loc.to(dtype), log_scale.to(dtype)).double().exp().sum(dim=-1)
    # Where a bin ends is known to a rounding error of the pixel; how much mass that is depends on the scale.
    rounding = 1e-6 if dtype == torch.float64 else 2e-5 + 3e-7 * (-log_scale[..., 0]).exp()
    assert ((total - 1).abs() <= rounding).all()


def test_matches_the_exact_value_in_float64() -> None:
    image, loc, log_scale = grid([-9, -6, -4, -3, -2, -1, 0, 3])
    torch.testing.assert_close(log_prob(image, loc, log_scale), reference(image, loc, log_scale), rtol=1e-9, atol=4e-6)


def test_matches_the_exact_value_in_float32() -> None:
    image, loc, log_scale = grid([-6, -4, -3, -2, -1, 0])
    actual = log_prob(image.float(), loc.float(), log_scale.float())
    expected = reference(image, loc, log_scale)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=2e-4)


def test_low_precision_is_promoted() -> None:
    image, loc = torch.tensor([-1.0, 0.5, 1.0]).bfloat16(), torch.zeros(3).bfloat16()
    actual = discretised_gaussian_log_prob(image, loc, loc - 1)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, discretised_gaussian_log_prob(image.float(), loc.float(), loc.float() - 1))


@pytest.mark.parametrize("log_scale", [-4.0, -9.0])
@pytest.mark.parametrize("pixel", [-1, -126 / 127.5, 0.5, 1])
def test_a_wrong_mean_is_pulled_back_however_sure_it_is(log_scale: float, pixel: float) -> None:
    # 1.0 off is 55 and 8,100 standard deviations: the distribution function itself is 0 there in float32.
    image = torch.full((2,), pixel)
    loc = (image + torch.tensor([1.0, -1.0])).requires_grad_()
    scale = torch.full((2,), log_scale, requires_grad=True)
    inside = torch.tensor([pixel > -0.999, pixel < 0.999])  # a mean outside [-1, 1] explains an end value
    discretised_gaussian_log_prob(image, loc, scale).sum().backward()
    # A density has the gradient error / scale^2, and here the error counts from the edge of the bin.
    pull = (1 - HALF_BIN) * math.exp(-2 * log_scale)
    expected_loc = torch.where(loc.detach() > image, -pull, pull)
    reaches = torch.where(loc.detach() > image, inside[1] | (pixel < 0), inside[0] | (pixel > 0))
    torch.testing.assert_close(loc.grad, expected_loc * reaches, rtol=0.02, atol=0)
    assert ((scale.grad > 1e3) == reaches).all()  # larger scales are wanted


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    image = LEVELS[torch.randint(256, (40,), generator=generator)]
    image[:2] = torch.tensor([-1, 1])
    loc = (2 * torch.rand(40, generator=generator, dtype=torch.float64) - 1).requires_grad_()
    log_scale = (3 * torch.rand(40, generator=generator, dtype=torch.float64) - 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: discretised_gaussian_log_prob(image, m, s), (loc, log_scale))
    to_image, to_loc = torch.autograd.grad(
        discretised_gaussian_log_prob(image.requires_grad_(), loc, log_scale).sum(), (image, loc)
    )
    assert torch.equal(to_image, -to_loc)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finite_at_extremes(dtype: torch.dtype) -> None:
    image, loc, log_scale = (t.to(dtype).clone() for t in grid([-9, -8.7, -6, 0, 6, 9]))
    loc.mul_(2).requires_grad_()
    log_scale.requires_grad_()
    value = discretised_gaussian_log_prob(image, loc, log_scale)
    value.sum().backward()
    assert value.isfinite().all()
    assert loc.grad.isfinite().all()
    assert log_scale.grad.isfinite().all()
    assert (value <= 0).all()


@pytest.mark.parametrize("log_scale", [-9.0, -4.0, -1.0])
def test_end_values_take_the_whole_tail(log_scale: float) -> None:
    assert log_prob(-1.0, -4.0, log_scale) == pytest.approx(0, abs=1e-4)
    assert log_prob(1.0, 4.0, log_scale) == pytest.approx(0, abs=1e-4)
    # With the mean on the inner edge, one half of all mass.
    assert log_prob(-1.0, -1 + HALF_BIN, log_scale) == pytest.approx(math.log(0.5), abs=1e-9)
    assert log_prob(1.0, 1 - HALF_BIN, log_scale) == pytest.approx(math.log(0.5), abs=1e-9)
    # One standard deviation inside of the inner edge.
    scale = math.exp(log_scale)
    assert log_prob(-1.0, -1 + HALF_BIN + scale, log_scale) == pytest.approx(log_ndtr(-1), abs=1e-9)


def test_a_second_derivative_is_refused() -> None:
    inputs = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(discretised_gaussian_log_prob(*inputs).mean(), inputs, create_graph=True)
