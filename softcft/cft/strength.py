"""Keeps interventions, on average, as strong as their targets: offsets of the targets that learn what is missing.

A model follows its targets in part. Changes that cost more than they gain are left undone, and counterfactuals are on
the whole weaker than their targets (on weak digits by 0.7 nats of log-odds, or 2 points of AUC), or stronger.

The *strength* of an image is the share of real images of other categories in which the guide sees less of the image's
category. Its mean over the images of a category is their AUC. An offset is added to the log-odds of all targets of a
variable. It grows by what the counterfactuals of the last step fell short of the strength of their targets, and shrinks
by what they were beyond it: the multiplier of an equality constraint. A mean of log-odds is no good measure of
strength. No model reaches the clearest targets, and to make up for these all others would become too clear.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from softcft.cft.transport import Reference
from softcft.graph import CausalGraph
from softcft.variable import Variable

__all__ = ["StrengthConstraint"]


class StrengthConstraint(nn.Module):
    """The constraint that counterfactuals are as strong as their targets, with an offset for each discrete variable.

    Args:
        graph: The causal graph.
        learning_rate: Step of an offset in nats, per unit of strength that the mean image falls short.
        names: The variables to hold; continuous ones among them are not held. All if left out.
    """

    offsets: Tensor

    def __init__(self, graph: CausalGraph, learning_rate: float = 5.0, names: Collection[str] | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.learning_rate = learning_rate
        self.variables = [
            variable
            for variable in graph.variables
            if variable.kind != "continuous" and (names is None or variable.name in names)
        ]
        # A buffer, like the multiplier of the fidelity: saved and resumed, but not optimised.
        self.register_buffer("offsets", torch.zeros(len(self.variables)))

    def forward(self, targets: Tensor, counterfactual_parents: Tensor, moves: Tensor) -> Tensor:
        """Add the offset of each variable to its targets, where the intervention moves it.

        Args:
            targets: Encoded targets, shape (B, K).
            counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
            moves: Which variables the intervention moves, bool of shape (B, V).

        Returns:
            Encoded targets, shape (B, K).
        """
        targets = targets.clone()
        for variable, offset in zip(self.variables, self.offsets.unbind(), strict=True):
            columns, moved = self.graph.slices[variable.name], self._moved(variable, moves)
            asked = variable.category_probabilities(targets[:, columns])
            labels = variable.category_probabilities(counterfactual_parents[:, columns])
            more = torch.softmax(asked.clamp_min(torch.finfo(asked.dtype).tiny).log() + offset * labels, dim=1)
            targets[:, columns] = torch.where(moved[:, None], more, asked)[:, -variable.width :]
        return targets

    def shortfall(
        self,
        targets: Tensor,
        prediction: Tensor,
        counterfactual_parents: Tensor,
        moves: Tensor,
        guide: Tensor,
        reference: Reference,
    ) -> dict[str, Tensor]:
        """By how much the strength of each counterfactual falls short of that of its targets.

        Args:
            targets: Encoded targets, without offsets, shape (B, K).
            prediction: Probabilities and means on the counterfactual images, each by its guide, shape (B, K).
            counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
            moves: Which variables the intervention moves, bool of shape (B, V).
            guide: The guide of each image, shape (B,), in [0, G).
            reference: What the guides say of real images.

        Returns:
            For each discrete variable shape (B,); 0 where the intervention does not move it.
        """
        short = {}
        for variable in self.variables:
            columns, moved = self.graph.slices[variable.name], self._moved(variable, moves)
            labels, asked, seen, real, real_labels = (
                variable.category_probabilities(values[..., columns])
                for values in (counterfactual_parents, targets, prediction, reference.predictions, reference.parents)
            )
            # Others in order, the images of the category itself beyond them: (C, G, N), and of each image (B, N).
            others = torch.where(real_labels > 0, torch.inf, real).permute(2, 0, 1).sort().values
            new = labels.argmax(dim=1)
            number = (real_labels == 0).sum(dim=0)[new]
            asked, seen = (
                _share_below(others[new, guide], values.gather(1, new[:, None]), number) for values in (asked, seen)
            )
            short[variable.name] = torch.where(moved, asked - seen, 0)
        return short

    def ascend(self, shortfalls: dict[str, float]) -> None:
        """Raise the offsets of variables that fall short, and lower those of variables that are too strong.

        Args:
            shortfalls: Of each discrete variable, the mean over all images of a step.
        """
        steps = torch.tensor([shortfalls[variable.name] for variable in self.variables])
        self.offsets.add_(self.learning_rate * steps.to(self.offsets))

    def _moved(self, variable: Variable, moves: Tensor) -> Tensor:
        return moves[:, self.graph.names.index(variable.name)]


def _share_below(others: Tensor, values: Tensor, number: Tensor) -> Tensor:
    """The share of the first others (B, N), sorted, that is less than each value (B, 1), equals by half; (B,).

    ``number`` of others, shape (B,), are finite.
    """
    below, not_above = (torch.searchsorted(others, values, right=right)[:, 0] for right in (False, True))
    return (below + not_above) / (2 * number)
