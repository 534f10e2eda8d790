"""Keeps the image model as good as it was while it is fine-tuned: a damped Lagrangian.

Counterfactual fine-tuning minimises the guidance loss subject to ``fidelity <= slack``, where fidelity is the negative
evidence lower bound (HVAE) and the slack is what the pretrained model reaches on training data. With the violation
g = fidelity - slack the gradient of the published objective is (multiplier + damping * g) * grad g: an augmented
Lagrangian. Where the constraint holds with room to spare, that expression turns negative and *worsens* the fidelity
until the constraint is tight. The inequality form max(0, multiplier + damping * g) leaves such a model alone; it is
the default here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LagrangianConstraint"]


class LagrangianConstraint(nn.Module):
    """The constraint ``fidelity <= slack`` with its multiplier.

    Args:
        slack: Largest fidelity allowed, in the backbone's unit (lower fidelity is better). Measure it, do not guess it.
        damping: Weight of the quadratic term, at least 0.
        learning_rate: Step of the multiplier's gradient ascent, per unit of violation.
        inequality: Clamp ``multiplier + damping * violation`` at 0 (see the module docstring). False is the published
            form.

    Raises:
        ValueError: If slack is not finite, or damping or learning rate is negative.
    """

    slack: Tensor
    multiplier: Tensor

    def __init__(self, slack: float, damping: float, learning_rate: float, inequality: bool = True) -> None:
        super().__init__()
        if not math.isfinite(slack):
            raise ValueError(f"slack must be finite, got {slack}.")
        if not (damping >= 0 and learning_rate >= 0):  # also true for NaN
            raise ValueError(f"damping and learning_rate must be >= 0, got {damping} and {learning_rate}.")
        self.damping, self.learning_rate, self.inequality = damping, learning_rate, inequality
        # Buffers: saved and resumed with the training state, but no business of the image model's optimizer.
        self.register_buffer("slack", torch.tensor(float(slack)))
        self.register_buffer("multiplier", torch.zeros(()))

    def forward(self, fidelity: Tensor) -> Tensor:
        """The term to add to the guidance loss: its gradient is (multiplier + damping * violation) * grad fidelity."""
        violation = fidelity - self.slack
        weight = self.multiplier + self.damping * violation.detach()
        return (weight.clamp_min(0) if self.inequality else weight) * violation

    def ascend(self, fidelity: float) -> None:
        """Move the multiplier up where ``fidelity`` violates the constraint and down, not below 0, where it holds."""
        self.multiplier.add_(self.learning_rate * (fidelity - self.slack)).clamp_(min=0)
