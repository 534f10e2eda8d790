"""The discretised Gaussian: the likelihood of 8-bit pixels under a normal density, in log space.

A pixel takes 256 values; in [-1, 1] they are 2/255 apart. Its probability is the normal mass of its bin, and of the
whole tail for the two end values. In log space, with the tail expansion of the normal distribution function far from
the mean, the gradient grows linearly with the error, as that of a density, and does not vanish.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["discretised_gaussian_log_prob"]

HALF_BIN = 1 / 255
# Beyond this many standard deviations the tail expansion replaces erfc, which underflows at about 13 in float32.
TAIL = 7.0
# Stands for minus infinity: farther out than any inner edge (2 / exp(-9) is 16,000), its square finite in float32.
OUTER_EDGE = -1e9


def _log_ndtr_tail(z: Tensor) -> Tensor:
    """Log of the standard normal distribution function for z <= -TAIL (relative error of the mass below 4e-6)."""
    inverse_square = z.square().reciprocal()
    series = -inverse_square * (1 - inverse_square * (3 - inverse_square * (15 - 105 * inverse_square)))
    return -0.5 * z.square() - torch.log(-z) - 0.5 * math.log(2 * math.pi) + torch.log1p(series)


def discretised_gaussian_log_prob(image: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of 8-bit pixels in nats under a discretised normal distribution, float32 at least.

    Pixels in [-1, 1] (``x / 127.5 - 1``), mean, log standard deviation and the result have one shape.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, loc, log_scale = image.to(dtype), loc.to(dtype), log_scale.to(dtype)
    inverse_scale = torch.exp(-log_scale)
    centred = image - loc
    upper = (centred + HALF_BIN) * inverse_scale
    lower = (centred - HALF_BIN) * inverse_scale
    # By symmetry mirror every bin to the left of the mean, where the distribution function keeps its relative
    # precision. The end bins reach to infinity, so that only their inner edge counts; the rightmost is mirrored
    # whatever its place.
    leftmost, rightmost = image < -0.999, image > 0.999
    mirror = ((centred > 0) & ~leftmost) | rightmost
    near = torch.where(mirror, -lower, upper)
    far = torch.where(leftmost | rightmost, torch.full_like(upper, OUTER_EDGE), torch.where(mirror, -upper, lower))

    is_tail = near < -TAIL
    # Each branch sees a harmless argument where the other one is taken, so that no gradient becomes nan.
    near_body, far_body = near.clamp_min(-TAIL), far.masked_fill(is_tail, -2 * TAIL)
    mass = 0.5 * (torch.erfc(-near_body / math.sqrt(2)) - torch.erfc(-far_body / math.sqrt(2)))
    body = torch.log(mass.clamp_min(torch.finfo(dtype).tiny))

    near_tail = near.clamp_max(-TAIL)
    gap = _log_ndtr_tail(near_tail) - _log_ndtr_tail(torch.minimum(far, near_tail - 1e-4))
    tail = _log_ndtr_tail(near_tail) + torch.log(-torch.expm1(-gap))
    return torch.where(is_tail, tail, body)
