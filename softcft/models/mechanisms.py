"""The invertible mechanism of one variable: a function of its parents and of its noise, by kind.

See the table in :mod:`softcft.models.attribute_scm`. All take the variable's encoded value (B, width), its parents
(B, P), None for a root, and standard normal draws (B, width) as their only randomness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import zuko
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GumbelMechanism", "LogisticMechanism", "SplineMechanism"]


class SplineMechanism(nn.Module):
    """Continuous variable: a spline flow from noise to the real line, squashed to the encoded range."""

    # The ends of the encoded range lie at finite atanh(0.999) = 3.8, within the spline's domain of [-5, 5].
    shrink = 0.999

    def __init__(self, parents_width: int, num_bins: int, hidden_features: Sequence[int]) -> None:
        super().__init__()
        # One dimension needs one spline. Its conditioner is smooth, and so are the effects of parents.
        network = {"hidden_features": hidden_features, "activation": nn.SiLU} if parents_width else {}
        self.flow = zuko.flows.NSF(1, parents_width, bins=num_bins, transforms=1, **network)

    def noise(self, normal: Tensor) -> Tensor:
        """Noise from normal draws."""
        return normal

    def abduct(self, value: Tensor, parents: Tensor | None, normal: Tensor) -> Tensor:
        """Noise that gives the value, drawn where several do."""
        return self.flow(parents).transform(torch.atanh(self.shrink * value))

    def predict(self, noise: Tensor, parents: Tensor | None) -> Tensor:
        """The value, from noise."""
        # The flow may reach values between 1 and 1 / 0.999, beyond the end of the range.
        return (torch.tanh(self.flow(parents).transform.inv(noise)) / self.shrink).clamp(-1, 1)

    def log_prob(self, value: Tensor, parents: Tensor | None) -> Tensor:
        """Log probability or density of the value in nats, shape (B,)."""
        log_slope = math.log(self.shrink) - torch.log1p(-((self.shrink * value) ** 2))
        return self.flow(parents).log_prob(torch.atanh(self.shrink * value)) + log_slope[:, 0]


class LogisticMechanism(nn.Module):
    """Binary variable: 1 where logit + logistic noise > 0."""

    def __init__(self, parents_width: int, hidden_features: Sequence[int]) -> None:
        super().__init__()
        self.logit = _Logits(parents_width, 1, hidden_features)

    def noise(self, normal: Tensor) -> Tensor:
        """Noise from normal draws."""
        # Phi(normal) is uniform; its logit is logistic. The log form is accurate in both tails.
        return torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)

    def abduct(self, value: Tensor, parents: Tensor | None, normal: Tensor) -> Tensor:
        """Noise that gives the value, drawn where several do."""
        # By symmetry sign * noise is logistic, truncated to > -margin: its survival function is uniform below
        # sigmoid(margin).
        sign = 2 * value - 1
        margin = sign * self.logit(parents)
        log_survival = torch.special.log_ndtr(normal) + F.logsigmoid(margin)
        noise = torch.log(-torch.expm1(log_survival)) - log_survival
        # Rounding must not put the draw on the wrong side.
        return sign * torch.maximum(noise, torch.nextafter(-margin.detach(), torch.full_like(margin, math.inf)))

    def predict(self, noise: Tensor, parents: Tensor | None) -> Tensor:
        """The value, from noise."""
        return (self.logit(parents) + noise > 0).to(noise.dtype)

    def log_prob(self, value: Tensor, parents: Tensor | None) -> Tensor:
        """Log probability or density of the value in nats, shape (B,)."""
        return F.logsigmoid((2 * value - 1) * self.logit(parents))[:, 0]


class GumbelMechanism(nn.Module):
    """Categorical variable: one-hot argmax of logits + Gumbel noise."""

    def __init__(self, parents_width: int, width: int, hidden_features: Sequence[int]) -> None:
        super().__init__()
        self.logits = _Logits(parents_width, width, hidden_features)

    def noise(self, normal: Tensor) -> Tensor:
        """Noise from normal draws."""
        return -torch.log(-torch.special.log_ndtr(normal))

    def abduct(self, value: Tensor, parents: Tensor | None, normal: Tensor) -> Tensor:
        """Noise that gives the value, drawn where several do."""
        logits = self.logits(parents)
        gumbel = self.noise(normal)
        # The maximum of logits + noise does not depend on which category attains it. Given the maximum, the other
        # categories are Gumbel truncated below it.
        maximum = (value * gumbel).sum(dim=1, keepdim=True) + logits.logsumexp(dim=1, keepdim=True)
        below = -torch.logaddexp(-(gumbel + logits), -maximum)
        # Rounding must not make a tie of a runner-up.
        gap = 8 * torch.finfo(maximum.dtype).eps * (1 + maximum.abs() + logits.abs().amax(dim=1, keepdim=True))
        return torch.where(value > 0.5, maximum, torch.minimum(below, maximum - gap)) - logits

    def predict(self, noise: Tensor, parents: Tensor | None) -> Tensor:
        """The value, from noise."""
        winner = (self.logits(parents) + noise).argmax(dim=1, keepdim=True)
        return torch.zeros_like(noise).scatter(1, winner, 1.0)

    def log_prob(self, value: Tensor, parents: Tensor | None) -> Tensor:
        """Log probability or density of the value in nats, shape (B,)."""
        return (value * self.logits(parents).log_softmax(dim=1)).sum(dim=1)


class _Logits(nn.Module):
    """Logits (B, width) of a discrete variable: a network of its parents, or for a root (1, width) parameters."""

    def __init__(self, parents_width: int, width: int, hidden_features: Sequence[int]) -> None:
        super().__init__()
        if parents_width:
            self.network = zuko.nn.MLP(parents_width, width, hidden_features, activation=nn.SiLU)
        else:
            self.root = nn.Parameter(torch.zeros(1, width))

    def forward(self, parents: Tensor | None) -> Tensor:
        return self.root if parents is None else self.network(parents)
