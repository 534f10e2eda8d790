"""Keeps the image model as good as it was while it is fine-tuned: a damped Lagrangian.

Counterfactual fine-tuning minimises the guidance loss subject to ``fidelity <= slack``, where fidelity is the negative
evidence lower bound (HVAE) and the slack is what the pretrained model reaches on training data. With the violation
g = fidelity - slack the gradient of the published objective is (multiplier + damping * g) * grad g: an augmented
Lagrangian. Where the constraint holds with room to spare, that expression turns negative and *worsens* the fidelity
until the constraint is tight. The inequality form max(0, multiplier + damping * g) leaves such a model alone; it is
the default here.

The published code takes g from the batch at hand; here it is that of the last step, the mean over all its images. So
the loss is a mean over images: it makes no difference how many processes and accumulated batches share them. And noise
of g that comes from the images of a batch does not go together with that of their gradient.

In the inequality form g is a moving average over steps. The clamp would make a pull of the noise of one: where a
constraint is exactly met, max(0, damping * g) is .4 times damping on the average for each unit of g's deviation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LagrangianConstraint"]

AVERAGED_STEPS = 10
"""Of the moving average of the violation: as many as those of Adam's mean of gradients."""


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
    violation: Tensor
    weight: Tensor

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
        self.register_buffer("violation", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, fidelity: Tensor) -> Tensor:
        """The term to add to the guidance loss: its gradient is (multiplier + damping * violation) * grad fidelity.

        Args:
            fidelity: Scalar, of the batch at hand. The violation in the weight is that of :meth:`ascend`.
        """
        # Not the buffer itself: it may move on before the gradient is taken.
        return self.weight.clone() * (fidelity - self.slack)

    def ascend(self, fidelity: float) -> None:
        """Move the multiplier up where ``fidelity`` violates the constraint and down, not below 0, where it holds.

        Args:
            fidelity: The mean over all images of a step.
        """
        violation = fidelity - self.slack
        self.multiplier.add_(self.learning_rate * violation).clamp_(min=0)
        self.violation.lerp_(violation, 1 / AVERAGED_STEPS if self.inequality else 1)
        weight = self.multiplier + self.damping * self.violation
        self.weight.copy_(weight.clamp_min(0) if self.inequality else weight)
