"""How many parameters a training has, and the memory that they take."""

from __future__ import annotations

from torch import nn

__all__ = ["footprint"]

OF_TRAINING = 3  # beside a weight: its gradient, and the two moments of Adam


def footprint(module: nn.Module, averaged: bool) -> str:
    """A sentence on what is trained of a module.

    Args:
        module: What is trained, with all that it computes with; parameters that require no gradient are frozen.
        averaged: Whether a moving average of the weights is kept.
    """
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    total, learned = (sum(parameter.numel() for parameter in some) for some in (parameters, trained))
    copies = OF_TRAINING + averaged
    size = sum(parameter.nbytes for parameter in parameters) + copies * sum(parameter.nbytes for parameter in trained)
    average = " and their moving average" if averaged else ""
    return (
        f"Trains {learned:,} of {total:,} parameters ({learned / total:.2%}). Weights, gradients, Adam's moments"
        f"{average} take {size / 1e9:,.2f} GB; activations come on top."
    )
