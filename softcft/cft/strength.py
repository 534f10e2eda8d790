"""Keeps interventions, all together, as strong as their targets: offsets that learn what is missing.

A model follows its targets in part: what it cannot tell from an image, and what costs more change than it is worth, it
leaves undone, and counterfactuals come out weaker on the whole than each was asked to be. Of weak digits the log-odds
are then lower by 0.7 nats, and the AUC by 2 points.

The *strength* of an image of some category is the share of real images of other categories that the guide takes for
less of a case: its mean over images is their AUC. Where counterfactuals of a category fall short of the strength of
their targets, more is asked of them: an offset is added to the target's log-odds, which grows by what was short in the
last step. It stands still where both are equal. A mean of log-odds would do for a measure too, but for the clearest of
targets, which no model reaches: to make up for them, all others would be made too clear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softcft.cft.targets import Reference
from softcft.graph import CausalGraph
from softcft.variable import Variable

__all__ = ["StrengthConstraint"]


class StrengthConstraint(nn.Module):
    """The constraint that counterfactuals of each category are as strong as their targets, with its offsets.

    Args:
        graph: The causal graph.
        learning_rate: Step of an offset in nats, per unit of strength that a category's images fall short, were all
            categories equally frequent and all images moved.
    """

    offsets: Tensor

    def __init__(self, graph: CausalGraph, learning_rate: float = 2.0) -> None:
        super().__init__()
        self.graph = graph
        self.learning_rate = learning_rate
        self.variables = [variable for variable in graph.variables if variable.kind != "continuous"]
        self.categories = [f"{variable.name}={k}" for variable in self.variables for k in variable.categories]
        # A buffer, as the multiplier of the other constraint is: resumed, not optimised.
        self.register_buffer("offsets", torch.zeros(len(self.categories)))

    def forward(self, targets: Tensor, counterfactual_parents: Tensor, moves: Tensor) -> Tensor:
        """Targets with the offsets of their categories, where the intervention moves them.

        Args:
            targets: Encoded targets, shape (B, K).
            counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
            moves: Which variables the intervention moves, bool of shape (B, V).

        Returns:
            Encoded targets, shape (B, K).
        """
        targets = targets.clone()
        for variable, offsets in zip(self.variables, self._split(self.offsets), strict=True):
            columns = self.graph.slices[variable.name]
            asked = _probabilities(variable, targets[:, columns])
            labels = _probabilities(variable, counterfactual_parents[:, columns])
            more = torch.softmax(asked.clamp_min(torch.finfo(asked.dtype).tiny).log() + labels * offsets, dim=1)
            moved = moves[:, self.graph.names.index(variable.name), None]
            targets[:, columns] = torch.where(moved, more, asked)[:, -variable.width :]
        return targets

    def shortfall(
        self,
        targets: Tensor,
        prediction: Tensor,
        counterfactual_parents: Tensor,
        moves: Tensor,
        reference: Reference,
    ) -> Tensor:
        """By how much counterfactual images fall short of their targets' strength, summed over the images.

        Args:
            targets: Encoded targets, without offsets, shape (B, K).
            prediction: The guide's probabilities and means on the counterfactual images, shape (B, K).
            counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
            moves: Which variables the intervention moves, bool of shape (B, V).
            reference: What the guide says of real images.

        Returns:
            For each of ``categories`` the sum over its images that were moved, shape (categories,).
        """
        short = []
        for variable in self.variables:
            columns = self.graph.slices[variable.name]
            labels, asked, seen, real, real_labels = (
                _probabilities(variable, values[:, columns])
                for values in (counterfactual_parents, targets, prediction, reference.predictions, reference.parents)
            )
            moved = moves[:, self.graph.names.index(variable.name)]
            for k in range(len(variable.categories)):
                mine = moved & (labels[:, k] > 0)
                others = real[real_labels[:, k] == 0, k]
                short.append((_share_below(others, asked[mine, k]) - _share_below(others, seen[mine, k])).sum())
        return torch.stack(short)

    def ascend(self, shortfalls: Tensor) -> None:
        """Ask more of categories that fall short, and less of those that are too strong.

        Args:
            shortfalls: Of each category, a mean over all images of a step, shape (categories,).
        """
        steps = self.learning_rate * shortfalls.to(self.offsets)
        for variable, offsets, step in zip(self.variables, self._split(self.offsets), self._split(steps), strict=True):
            offsets.add_(step, alpha=len(variable.categories))

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([len(variable.categories) for variable in self.variables])


def _probabilities(variable: Variable, values: Tensor) -> Tensor:
    """Of each category, from encoded probabilities or labels of shape (N, width)."""
    return torch.cat([1 - values, values], dim=1) if variable.kind == "binary" else values


def _share_below(others: Tensor, values: Tensor) -> Tensor:
    """The share of the others (N,) that is less than each value (B,), equals by half."""
    below, equal = ((compare(others, values[:, None])).float().mean(dim=1) for compare in (torch.lt, torch.eq))
    return below + equal / 2
