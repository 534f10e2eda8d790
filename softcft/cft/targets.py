"""What the guide should see in a counterfactual image: all that hard, soft and matched fine-tuning differ in.

Algorithm 1 of the paper, and beyond its letter in one point. Let A* be the attributes that keep their value:

================  ================================================  ==========================================
mode              target of attributes outside A*                   target of attributes in A*
================  ================================================  ==========================================
``hard``          their counterfactual value, as a label            their own value, as a label
``soft``          their counterfactual value, as a label            the guide's prediction on the factual image
``matched``       what the guide says of a real image like that     the guide's prediction on the factual image;
                                                                    of their neighbours, as on the left
================  ================================================  ==========================================

A label asks for certainty: an image with a mild effusion (predicted at 0.65) is driven towards 1, although nobody
touched the disease. That is attribute amplification. The soft target asks for 0.65 again.

The paper has in A* what an intervention cannot move, neither intervened on nor descendants. But most descendants keep
their value, too, and their labels amplify them just the same. So here a descendant is outside A* only where its value
changes; ``published`` is the paper's letter.

For what *is* intervened on
it still asks for certainty, which real images do not give: the matched target does not, see
:mod:`softcft.cft.matched`.

Neighbours are attributes of which those that move are evidence, the variables that have one in their Markov blanket.
Who sees an effusion takes the patient for older than he is. Without it the same patient looks younger, though his age
is what it was: to hold the guide to his former looks would hold back the effusion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softcft.cft.matched import Reference, matched_targets
from softcft.graph import CausalGraph

__all__ = ["TargetMode", "counterfactual_targets", "moved_variables"]

TargetMode = Literal["hard", "soft", "matched"]


def moved_variables(
    graph: CausalGraph, intervened: Tensor, parents: Tensor, counterfactual_parents: Tensor, published: bool = False
) -> Tensor:
    """Which variables are outside A*.

    Args:
        graph: The causal graph.
        intervened: Which variables each image's intervention sets, bool of shape (B, V).
        parents: Encoded factual attributes, shape (B, K).
        counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
        published: Whether variables are that keep their value, although the intervention can reach them.

    Returns:
        Bool of shape (B, V).
    """
    reached = graph.affected(intervened)
    return reached if published else reached & graph.changed(parents, counterfactual_parents)


def counterfactual_targets(
    graph: CausalGraph,
    intervened: Tensor,
    parents: Tensor,
    counterfactual_parents: Tensor,
    factual_prediction: Tensor,
    mode: TargetMode,
    reference: Reference | None = None,
    published: bool = False,
) -> Tensor:
    """Targets of the guide on counterfactual images, for any graph and any set of interventions per image.

    Args:
        graph: The causal graph.
        intervened: Which variables each image's intervention sets, bool of shape (B, V).
        parents: Encoded factual attributes, shape (B, K).
        counterfactual_parents: Encoded counterfactual attributes, shape (B, K). Those in A* are the factual labels.
        factual_prediction: The guide's probabilities and means on the factual images, shape (B, K). No gradient passes.
        mode: ``"hard"``, ``"soft"`` or ``"matched"``.
        reference: For ``"matched"``.
        published: Whether descendants have labels although they keep their value.

    Returns:
        Encoded targets, shape (B, K): labels, probabilities or means.

    Raises:
        ValueError: If the mode is unknown, or there is no reference to match.
    """
    if mode == "hard":
        return counterfactual_parents
    factual_prediction = factual_prediction.detach()
    moves = moved_variables(graph, intervened, parents, counterfactual_parents, published)
    if mode == "soft":
        moved = counterfactual_parents
    elif mode == "matched":
        if reference is None:
            raise ValueError("mode 'matched' needs a reference: what the guide says of real images.")
        moved = matched_targets(graph, parents, counterfactual_parents, factual_prediction, reference)
        evidence = [[float(a == b or b in graph.blanket(a)) for a in graph.names] for b in graph.names]
        moves = moves.float() @ torch.tensor(evidence, device=moves.device) > 0
    else:
        raise ValueError(f"mode must be 'hard', 'soft' or 'matched', got {mode!r}.")
    return torch.where(graph.expand(moves), moved, factual_prediction)
