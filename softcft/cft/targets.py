"""What the guide should see in a counterfactual image: the difference between hard and soft counterfactual fine-tuning.

Algorithm 1 of the paper. Let A* be the attributes that the intervention cannot move (neither intervened on nor
descendants):

* attributes outside A* have their counterfactual value as target, as a label;
* attributes in A* have their own label as target (``hard``), or the guide's prediction on the factual image (``soft``).

A label asks for certainty: an image with a mild effusion (predicted at 0.65) is driven towards 1, although nobody
touched the disease. That is attribute amplification. The soft target asks for 0.65 again.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softcft.graph import CausalGraph

__all__ = ["TargetMode", "counterfactual_targets"]

TargetMode = Literal["hard", "soft"]


def counterfactual_targets(
    graph: CausalGraph,
    intervened: Tensor,
    counterfactual_parents: Tensor,
    factual_prediction: Tensor,
    mode: TargetMode,
) -> Tensor:
    """Targets of the guide on counterfactual images, for any graph and any set of interventions per image.

    Args:
        graph: The causal graph.
        intervened: Which variables each image's intervention sets, bool of shape (B, V).
        counterfactual_parents: Encoded counterfactual attributes, shape (B, K). Those in A* are the factual labels.
        factual_prediction: The guide's probabilities and means on the factual images, shape (B, K). No gradient passes.
        mode: ``"hard"`` or ``"soft"``.

    Returns:
        Encoded targets, shape (B, K): labels, probabilities or means.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode == "hard":
        return counterfactual_parents
    if mode == "soft":
        may_move = graph.expand(graph.affected(intervened))
        return torch.where(may_move, counterfactual_parents, factual_prediction.detach())
    raise ValueError(f"mode must be 'hard' or 'soft', got {mode!r}.")
