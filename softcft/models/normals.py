"""Diagonal normals as maps of means and log standard deviations: the latents of the hierarchical VAE."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["normal_kl"]


class _NormalKL(torch.autograd.Function):
    """The divergence with its gradient by hand, which takes two thirds of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, q_loc: Tensor, q_log_scale: Tensor, p_loc: Tensor, p_log_scale: Tensor) -> Tensor:
        log_ratio = q_log_scale - p_log_scale
        variance_ratio = torch.exp(2 * log_ratio)
        precision = torch.exp(-p_log_scale)
        distance = (q_loc - p_loc).mul_(precision)
        ctx.save_for_backward(variance_ratio, precision, distance)
        twice = torch.addcmul(variance_ratio, distance, distance).sub_(1).sub_(log_ratio, alpha=2)
        return 0.5 * twice.sum(dim=tuple(range(1, twice.ndim)))  # flattened first, channels_last maps would be copied

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():  # with create_graph=True, which would take what was saved for constants
            raise RuntimeError("The KL divergence of the HVAE has no second derivative.")
        variance_ratio, precision, distance = ctx.saved_tensors
        grad = grads[0].reshape(-1, *[1] * (distance.ndim - 1))
        to_q_loc = (distance * precision).mul_(grad)
        to_q_log_scale = (variance_ratio - 1).mul_(grad)
        to_p_log_scale = torch.addcmul(to_q_log_scale, distance.square(), grad).neg_()
        return to_q_loc, to_q_log_scale, -to_q_loc, to_p_log_scale


def normal_kl(q_loc: Tensor, q_log_scale: Tensor, p_loc: Tensor, p_log_scale: Tensor) -> Tensor:
    """KL(q || p) in nats, summed over all but the batch, shape (B,); differentiable once.

    All arguments, means and log standard deviations, have one shape (B, ...).
    """
    return cast("Tensor", _NormalKL.apply(q_loc, q_log_scale, p_loc, p_log_scale))
