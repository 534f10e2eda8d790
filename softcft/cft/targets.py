"""What the guide should see in a counterfactual image: all that hard, soft and matched fine-tuning differ in.

Algorithm 1 of the paper. Let A* be the attributes that the intervention cannot move (neither intervened on nor
descendants):

================  ================================================  ==========================================
mode              target of attributes outside A*                   target of attributes in A*
================  ================================================  ==========================================
``hard``          their counterfactual value, as a label            their own value, as a label
``soft``          their counterfactual value, as a label            the guide's prediction on the factual image
``matched``       what the guide says of a real image like that     the guide's prediction on the factual image;
                                                                    of their neighbours, as on the left
================  ================================================  ==========================================

A label asks for certainty: an image with a mild effusion (predicted at 0.65) is driven towards 1, although nobody
touched the disease. That is attribute amplification. The soft target asks for 0.65 again. For what *is* intervened on
it still asks for certainty, which real images do not give: the matched target, :func:`matched_targets`, does not.

Neighbours are attributes of which those that move are evidence, the variables that have one in their Markov blanket.
Who sees an effusion takes the patient for older than he is. Without it the same patient looks younger, though his age
is what it was: to hold the guide to his former looks would hold back the effusion.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from softcft.graph import CausalGraph
from softcft.variable import Variable

__all__ = ["NEIGHBOURS", "Reference", "TargetMode", "counterfactual_targets", "matched_targets"]

TargetMode = Literal["hard", "soft", "matched"]
NEIGHBOURS = 256
"""How many real images a prediction is ranked among, where some are more alike than others."""


class Reference(NamedTuple):
    """What the guide says of real images that it has not learned.

    Attributes:
        parents: Their encoded attributes, shape (N, K), with every category of every variable among them.
        predictions: The guide's probabilities and means, shape (N, K).
    """

    parents: Tensor
    predictions: Tensor

    def counts(self, graph: CausalGraph, name: str) -> list[int]:
        """Number of images of each category of a discrete variable."""
        values = self.parents[:, graph.slices[name]]
        ones = values.sum(dim=0)
        return ([len(values) - int(ones)] if graph[name].kind == "binary" else []) + [int(n) for n in ones]


def counterfactual_targets(
    graph: CausalGraph,
    intervened: Tensor,
    parents: Tensor,
    counterfactual_parents: Tensor,
    factual_prediction: Tensor,
    mode: TargetMode,
    reference: Reference | None = None,
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

    Returns:
        Encoded targets, shape (B, K): labels, probabilities or means.

    Raises:
        ValueError: If the mode is unknown, or there is no reference to match.
    """
    if mode == "hard":
        return counterfactual_parents
    factual_prediction = factual_prediction.detach()
    moves = graph.affected(intervened)
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


def matched_targets(
    graph: CausalGraph, parents: Tensor, counterfactual_parents: Tensor, prediction: Tensor, reference: Reference
) -> Tensor:
    """What the guide would say of each variable of a real image with the counterfactual attributes.

    Of which one? Of the one that holds the same place among its like as the factual image does among its own: an ill
    patient who looks less ill than 70 % of the ill ones of that age shall, made healthy, look less ill than 70 % of the
    healthy ones. For each variable,

    1. *peers* are the real images that are most like the factual one in this variable and its Markov blanket;
    2. the *place* is the number of peers whose prediction is lower, and a half between two of them;
    3. *donors* are those most like the counterfactual, and the target is the prediction of the donor at that place.

    Of a continuous variable it is not the prediction that is matched, but what the guide is off by: seldom is anybody
    just like the counterfactual (thin strokes as bright as thick ones), and its donors may differ from it in the value.

    This is optimal transport in one dimension: of all maps that give counterfactuals the guide's view of real images,
    the one that keeps their order. With more than two categories there are several log-odds: that of the new category
    against the old one, and those of the others against these two. Each has places of its own, but among peers and
    donors that are near in the first one only (the transport of Knothe and Rosenblatt): who is sure that an image is a
    3 doubts in the same breath that it is an 8.

    Args:
        graph: The causal graph.
        parents: Encoded factual attributes, shape (B, K).
        counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
        prediction: The guide's probabilities and means on the factual images, shape (B, K).
        reference: What the guide says of real images.

    Returns:
        Probabilities and means, shape (B, K).
    """
    continuous = torch.tensor([v.kind == "continuous" for v in graph.variables for _ in range(v.width)])
    value, new_value, real_value = (
        labels * continuous.to(labels.device) for labels in (parents, counterfactual_parents, reference.parents)
    )
    seen, seen_real = prediction - value, reference.predictions - real_value
    targets = torch.empty_like(prediction)
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        own = seen[:, None, columns]
        peers = seen_real[:, columns][_most_alike(graph, variable, parents, reference)]
        donors = seen_real[:, columns][_most_alike(graph, variable, counterfactual_parents, reference)]
        if variable.kind == "categorical":
            old, new = parents[:, None, columns], counterfactual_parents[:, None, columns]
            own, peers, donors = (_odds(probabilities, old, new) for probabilities in (own, peers, donors))
            against = torch.where((old == new).all(dim=2, keepdim=True), 1 / variable.width, old)
            peers, donors = _around(own, peers, donors, new - against)
        place, donors = _place(own, peers), donors.sort(dim=1).values
        target = ((donors.gather(1, place.floor().long()) + donors.gather(1, place.ceil().long())) / 2)[:, 0]
        targets[:, columns] = target.softmax(dim=1) if variable.kind == "categorical" else target
    return targets + new_value


def _place(own: Tensor, peers: Tensor) -> Tensor:
    """Places of predictions (B, 1, width) among m peers each, column by column: from 0 to m - 1, shape (B, 1, width).

    Who is one of the peers has his own place, who stands between two of them half of one more.
    """
    near = 1e-6 * own.abs()  # who is equal must not depend on how the last digit was rounded
    below, not_above = (peers < own - near).sum(dim=1, keepdim=True), (peers <= own + near).sum(dim=1, keepdim=True)
    return ((below + not_above - 1) / 2).clamp(0, peers.shape[1] - 1)


def _around(own: Tensor, peers: Tensor, donors: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The sixteenth of peers and donors nearest in the log-odds of the new category against the old one.

    If the category stays as it is, in its log-odds against all others.

    Args:
        own: Log-odds of the factual image, shape (B, 1, width).
        peers: Those of its peers, shape (B, m, width).
        donors: Those of its donors, shape (B, m, width).
        direction: What the first log-odds are of: a weight for each category, shape (B, 1, width).

    Returns:
        Peers and donors, each of shape (B, m / 16 rounded up, width).
    """
    own, *orders = ((odds * direction).sum(dim=2, keepdim=True) for odds in (own, peers, donors))
    number = peers.shape[1]
    window = -(-number // 16)  # more tears apart what belongs together, fewer leave more to chance: docs/matched.md
    start = (_place(own, orders[0]).long() - window // 2).clamp(0, number - window)
    rows = start + torch.arange(window, device=own.device)[:, None]
    near = []
    for odds, order in zip((peers, donors), orders, strict=True):
        index = order.argsort(dim=1, stable=True).gather(1, rows)
        near.append(odds.gather(1, index.expand(-1, -1, odds.shape[2])))
    return near[0], near[1]


def _odds(probabilities: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Log-odds of each category against the two that an intervention is about, the old and the new one.

    Against both alike: then those of the new one are half of its log-odds against the old one, and those of the others
    do not depend on which of the two it is.

    Args:
        probabilities: Shape (B, m, width).
        old: 1 for the old category, shape (B, 1, width).
        new: 1 for the new category, shape (B, 1, width).

    Returns:
        Shape (B, m, width); their softmax over the categories gives back the probabilities.
    """
    logs = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
    return logs - ((old + new) / 2 * logs).sum(dim=2, keepdim=True)


def _most_alike(graph: CausalGraph, variable: Variable, parents: Tensor, reference: Reference) -> Tensor:
    """Which real images are nearest in a variable and its blanket, shape (B, m)."""

    def distance(name: str) -> Tensor:  # not by matrix products, whose rounding hides who is equal
        columns = graph.slices[name]
        return (parents[:, None, columns] - reference.parents[:, columns]).square().sum(dim=2)

    blanket, own, number = sorted(graph.blanket(variable.name)), distance(variable.name), NEIGHBOURS
    if variable.kind != "continuous":
        # No image of another category, however rare the category is; and as many as there are, if all are alike.
        number = min(number if blanket else len(own[0]), *reference.counts(graph, variable.name))
        own = own.masked_fill(own > 0, torch.inf)
    return sum(map(distance, blanket), own).topk(min(number, len(own[0])), largest=False).indices
