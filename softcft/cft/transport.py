r"""What the guide would say of a real image with the counterfactual attributes: the targets of matched fine-tuning.

An ill patient who looks less ill than 70 % of the ill patients of that age should, made healthy, look less ill than 70
% of the healthy people of that age. For each variable and each image,

1. *peers* are real images with the factual attributes, *donors* real images with the counterfactual ones;
2. the image's *place* is the share of its peers whose score is lower;
3. its target is the score at the same place among the donors.

This is optimal transport in one dimension: of all maps that give counterfactuals the scores of real images, the one
that keeps their order.

A *score* is the guide's prediction on an unbounded scale: the log-odds of a category, or the prediction of a continuous
variable minus its value. (The prediction itself would not do: hardly any donor has the same value as the
counterfactual.)

Peers and donors have the image's category of the variable, if it is discrete, and agree with it in the variable's
Markov blanket: its causes, its effects and their other causes. Categories of the blanket are equal, unless fewer than
32 images have all of them; then as few differ as possible. Continuous values are near: peers and donors have Gaussian
weights by distance. Where a category is rare they are not very near. So their scores are corrected by two linear
regressions: first on all attributes, fitted to all real images of the category; then on the continuous ones, fitted to
what the first leaves in the near images. Neither extrapolates beyond the real images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softcft.graph import CausalGraph
from softcft.variable import Variable

__all__ = ["FEWEST", "Reference", "matched_targets"]

FEWEST = 32
"""Images that a distribution is estimated from, at least, if there are so many."""
NEAREST = 256
"""Images that a distribution is estimated from, at most, where distances differ."""
PENALTY = 4
"""Ridge penalty of slopes: as much as this many images at one standard deviation."""
WINDOW = 1 / 32
"""Share of peers and donors on either side that count as near in the first log-odds, see docs/matched_method.md."""


class Reference(NamedTuple):
    """What guides say of real images that they were not trained on.

    Attributes:
        parents: Their encoded attributes, shape (N, K), with every category of every variable among them.
        predictions: Probabilities and means by each of G guides, shape (G, N, K).
    """

    parents: Tensor
    predictions: Tensor

    def counts(self, graph: CausalGraph, name: str) -> list[int]:
        """Number of images of each category of a discrete variable."""
        return [int(n) for n in graph[name].category_probabilities(self.parents[:, graph.slices[name]]).sum(dim=0)]


class _Sample(NamedTuple):
    """Real images for each image of a batch: scores of shape (B, m, width), and weights of shape (B, m)."""

    scores: Tensor
    weights: Tensor


def matched_targets(
    graph: CausalGraph,
    parents: Tensor,
    counterfactual_parents: Tensor,
    prediction: Tensor,
    guide: Tensor,
    reference: Reference,
) -> Tensor:
    """What the guide would say of each variable of a real image with the counterfactual attributes.

    With more than two categories there are several log-odds: that of the new category against the old one, and those of
    the others against these two. The first is matched among all peers and donors, the others only among those that are
    near in the first one (Knothe-Rosenblatt transport), for log-odds depend on each other: an image that is surely a 3
    is surely no 8.

    Args:
        graph: The causal graph.
        parents: Encoded factual attributes, shape (B, K).
        counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
        prediction: Probabilities and means on the factual images, each by its guide, shape (B, K).
        guide: The guide of each image, shape (B,), in [0, G).
        reference: What the guides say of real images.

    Returns:
        Probabilities and means, shape (B, K).
    """
    targets = torch.empty_like(prediction)
    both, guides = torch.cat([parents, counterfactual_parents]), guide.repeat(2)
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        old, new = parents[:, columns], counterfactual_parents[:, columns]
        own = _scores(variable, prediction[:, columns], old)[:, None]
        peers, donors = map(_Sample, *(x.chunk(2) for x in _alike(graph, variable, both, guides, reference)))
        if variable.kind == "categorical":
            own, peers, donors = _near_in_first_odds(own, peers, donors, old[:, None], new[:, None])
        score = _quantile(donors, _place(own, peers))[:, 0]
        if variable.kind == "continuous":
            targets[:, columns] = score + new
        else:
            targets[:, columns] = score.sigmoid() if variable.kind == "binary" else score.softmax(dim=1)
    return targets


def _scores(variable: Variable, prediction: Tensor, value: Tensor) -> Tensor:
    """Log-odds or log probabilities; of a continuous variable the guide's error. Shapes (..., N, width)."""
    if variable.kind == "continuous":
        return prediction - value
    logs = prediction.clamp_min(torch.finfo(prediction.dtype).tiny).log()
    if variable.kind == "categorical":
        return logs
    return logs - (1 - prediction).clamp_min(torch.finfo(prediction.dtype).eps / 2).log()


def _alike(graph: CausalGraph, variable: Variable, parents: Tensor, guide: Tensor, reference: Reference) -> _Sample:
    """Real images like those with the attributes ``parents`` (B, K), their scores moved to these attributes."""
    real = reference.parents
    around = [graph[name] for name in sorted(graph.blanket(variable.name) | {variable.name})]
    continuous = [graph.slices[v.name] for v in around if v.kind == "continuous"]
    discrete = [graph.slices[v.name] for v in around if v.kind != "continuous" and v != variable]
    columns = graph.slices[variable.name]
    mine, theirs = (variable.category_probabilities(x[:, columns]) for x in (parents, real))
    scores = _scores(variable, reference.predictions[..., columns], real[:, columns])

    # 1. Equal categories. Those of the blanket may differ in ever more variables until there are enough images.
    same = mine @ theirs.T > 0
    if discrete:
        differing = torch.stack([(parents[:, None, s] != real[:, s]).any(dim=2) for s in discrete]).sum(dim=0)
        enough = same.sum(dim=1, keepdim=True).clamp_max(FEWEST)
        allowed = torch.zeros_like(enough)
        for number in range(len(discrete)):
            allowed += (same & (differing <= number)).sum(dim=1, keepdim=True) < enough
        same &= differing <= allowed

    # 2. Near continuous values, in standard deviations. Without continuous variables all weights are equal.
    spread = real.std(dim=0, correction=0).clamp_min(1e-6)
    distances = torch.zeros_like(same, dtype=real.dtype)
    for s in continuous:
        distances += ((parents[:, None, s] - real[:, s]) / spread[s]).square().sum(dim=2)
    distances.masked_fill_(~same, torch.inf)
    count = same.sum(dim=1, keepdim=True)
    nearest = torch.maximum(count // 2, count.clamp_max(FEWEST)).clamp_max(NEAREST)
    reach = distances.topk(min(NEAREST, len(real)), largest=False).values.gather(1, nearest - 1)
    most = int((distances <= reach).sum(dim=1).max())  # ties with the last one included
    distances, rows = distances.topk(most, largest=False)
    weights = torch.where(distances <= reach, (-2 * distances / reach.clamp_min(1e-12)).exp(), 0)

    # 3. Linear regressions: on all that may differ, in all images; then on continuous values, in the near ones.
    x, own = real / spread, parents / spread
    own = own.clamp(x.amin(dim=0), x.amax(dim=0))

    def displacements(slices: list[slice]) -> tuple[Tensor, Tensor]:
        """Values of real images (N, k); own values, within the range of these, minus those of near ones (B, m, k)."""
        values, others = (torch.cat([tensor[:, :0], *(tensor[:, s] for s in slices)], dim=1) for tensor in (own, x))
        return others, values[:, None] - others[rows]

    x_all, away = displacements(continuous + discrete)
    slopes = _slopes(x_all, scores, theirs)[guide]
    moved = scores[guide[:, None], rows] + away @ torch.einsum("bc,bckw->bkw", mine, slopes)
    _, away = displacements(continuous)
    return _Sample(moved + away @ _local_slopes(-away, moved, weights), weights)


def _slopes(x: Tensor, scores: Tensor, categories: Tensor) -> Tensor:
    """Slopes of scores (G, N, width) on x (N, k) within each category, shape (G, C, k, width).

    Where a category has few images they shrink towards the slopes within all categories.
    """
    x, scores, categories = x.double(), scores.double(), categories.double()
    number = categories.sum(dim=0).clamp_min(1)[:, None, None]
    mean_x = torch.einsum("nc,nk->ck", categories, x)[:, None] / number
    mean_scores = torch.einsum("nc,gnw->gcw", categories, scores)[:, :, None] / number
    products = torch.einsum("nc,nk,nl->ckl", categories, x, x) - number * mean_x.mT @ mean_x
    moments = torch.einsum("nc,nk,gnw->gckw", categories, x, scores) - number * mean_x.mT @ mean_scores
    in_all = moments.sum(dim=1, keepdim=True)
    common = _ridge(torch.zeros_like(in_all), products.sum(dim=0), in_all)
    return _ridge(common, products, moments).to(torch.float32)


def _local_slopes(x: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """Slopes in the near images of each image, of scores (B, m, width) on x (B, m, k), shape (B, k, width)."""
    weights = weights[:, :, None]
    x, scores = (v - (weights * v).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True) for v in (x, scores))
    moments = (weights * x).mT @ scores
    return _ridge(torch.zeros_like(moments), (weights * x).mT @ x, moments)


def _ridge(slopes: Tensor, products: Tensor, moments: Tensor) -> Tensor:
    """Ridge regression that shrinks towards given slopes (..., k, width), from sums of products."""
    penalty = PENALTY * torch.eye(products.shape[-1], dtype=products.dtype, device=products.device)
    return slopes + torch.linalg.solve(products + penalty, moments - products @ slopes)


def _near_in_first_odds(
    own: Tensor, peers: _Sample, donors: _Sample, old: Tensor, new: Tensor
) -> tuple[Tensor, _Sample, _Sample]:
    """All log-odds, and the peers and donors that have about the same place in the first log-odds.

    These are those of the new category against the old one or, if the category stays, against all others.

    Args:
        own: Log probabilities of the factual image, shape (B, 1, width).
        peers: Those of its peers.
        donors: Those of its donors.
        old: 1 for the old category, shape (B, 1, width).
        new: 1 for the new category, shape (B, 1, width).
    """
    against = torch.where((old == new).all(dim=2, keepdim=True), 1 / old.shape[2], old)

    def odds(logs: Tensor) -> Tensor:
        """Log-odds of each category against the old and the new one. Their softmax is the probabilities again."""
        return logs - ((old + new) / 2 * logs).sum(dim=2, keepdim=True)

    def first(logs: Tensor) -> Tensor:
        return ((new - against) * logs).sum(dim=2, keepdim=True)

    place = _place(first(own), _Sample(first(peers.scores), peers.weights))[:, 0]
    near = []
    for scores, weights in (peers, donors):
        shares = weights / weights.sum(dim=1, keepdim=True)
        width = shares.max(dim=1, keepdim=True).values.clamp_min(WINDOW)  # never empty
        gap = (_ranks(first(scores)[:, :, 0], shares) - place).abs()
        weights = weights * (gap <= width + 1e-5)  # against rounding
        weights, rows = weights.topk(int((weights > 0).sum(dim=1).max()))
        near.append(_Sample(odds(scores.gather(1, rows[:, :, None].expand(-1, -1, scores.shape[2]))), weights))
    return odds(own), near[0], near[1]


def _ranks(scores: Tensor, shares: Tensor) -> Tensor:
    """The share of each row's scores (B, m) that is lower than each of them, equals by half."""
    ordered, order = scores.sort(dim=1)
    below = torch.cat([shares[:, :1] * 0, shares.gather(1, order).cumsum(dim=1)], dim=1)
    lower, not_higher = (torch.searchsorted(ordered, scores.contiguous(), right=right) for right in (False, True))
    return (below.gather(1, lower) + below.gather(1, not_higher)) / 2


def _place(own: Tensor, peers: _Sample) -> Tensor:
    """The weighted share of peers with lower scores than ``own`` (B, 1, width), equals by half; of the same shape."""
    equal = 1e-6 * own.abs()  # against rounding
    weights = peers.weights[:, :, None]
    lower, not_higher = (
        (weights * (peers.scores < limit)).sum(dim=1, keepdim=True) for limit in (own - equal, own + equal)
    )
    return (lower + not_higher) / (2 * weights.sum(dim=1, keepdim=True))


def _quantile(donors: _Sample, place: Tensor) -> Tensor:
    """The donors' scores at places (B, 1, width) in [0, 1]; between two of them in proportion. The same shape.

    With as many peers as donors of equal weights, the third of the peers maps to the third of the donors.
    """
    scores, weights = donors.scores, donors.weights[:, :, None].expand_as(donors.scores)
    highest = scores.masked_fill(weights == 0, -torch.inf).amax(dim=1, keepdim=True)
    ordered, order = torch.where(weights > 0, scores, highest).mT.sort(dim=2)
    weights = weights.mT.gather(2, order)
    up_to = weights.cumsum(dim=2)
    middle = up_to - weights / 2
    wanted = place.mT * up_to[:, :, -1:]
    after = torch.searchsorted(middle, wanted).clamp_max(middle.shape[2] - 1)
    before = (after - 1).clamp_min(0)
    (low, high), (start, end) = ((x.gather(2, before), x.gather(2, after)) for x in (ordered, middle))
    part = ((wanted - start) / (end - start).clamp_min(torch.finfo(end.dtype).tiny)).clamp(0, 1)
    return torch.lerp(low, high, part).mT
