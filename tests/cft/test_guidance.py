import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.cft.guidance import guidance_losses
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
    ]
)
SITE, AGE, ILL = slice(0, 3), slice(3, 4), slice(4, 5)
SCALES = torch.tensor([1.0, 1.0, 1.0, 0.25, 1.0])


def logits(n: int = 50, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def probabilities(values: Tensor) -> Tensor:
    return torch.cat([values[:, SITE].softmax(1), values[:, AGE], values[:, ILL].sigmoid()], dim=1)


def labels(values: Tensor) -> Tensor:
    site = F.one_hot(values[:, SITE].argmax(1), 3)
    return torch.cat([site, values[:, AGE], values[:, ILL] > 0], dim=1).float()


def test_zero_exactly_where_prediction_and_target_agree() -> None:
    predicted = logits().double()
    agreeing = guidance_losses(GRAPH, predicted, probabilities(predicted), SCALES)
    assert all(loss.abs().max() < 1e-9 for loss in agreeing.values())
    others = guidance_losses(GRAPH, predicted, probabilities(logits(seed=1).double()), SCALES)
    assert all(loss.mean() > 0.01 for loss in others.values())


@pytest.mark.parametrize("targets", [probabilities, labels])
def test_gradient_is_that_of_the_cross_entropy(targets: object) -> None:
    predicted, target = logits().requires_grad_(), targets(logits(seed=1))  # type: ignore[operator]
    losses = guidance_losses(GRAPH, predicted, target, SCALES)
    (actual,) = torch.autograd.grad((losses["site"] + losses["ill"]).mean(), predicted)
    reference = F.cross_entropy(predicted[:, SITE], target[:, SITE])
    reference = reference + F.binary_cross_entropy_with_logits(predicted[:, ILL], target[:, ILL])
    (expected,) = torch.autograd.grad(reference, predicted)
    torch.testing.assert_close(actual, expected)
    assert actual.isfinite().all()


def test_labels_cost_the_plain_cross_entropy() -> None:
    predicted, target = logits(), labels(logits(seed=1))
    losses = guidance_losses(GRAPH, predicted, target, SCALES)
    torch.testing.assert_close(
        losses["site"], F.cross_entropy(predicted[:, SITE], target[:, SITE].argmax(1), reduction="none")
    )
    torch.testing.assert_close(
        losses["ill"], F.binary_cross_entropy_with_logits(predicted[:, 4], target[:, 4], reduction="none")
    )


def test_means_cost_their_squared_error_in_standard_deviations() -> None:
    predicted, target = logits(), logits(seed=1)
    losses = guidance_losses(GRAPH, predicted, labels(target), SCALES)
    expected = (predicted[:, 3] - target[:, 3]) ** 2 / (2 * 0.25**2)
    torch.testing.assert_close(losses["age"], expected)


def test_each_variable_answers_to_its_own_columns() -> None:
    predicted = logits().requires_grad_()
    losses = guidance_losses(GRAPH, predicted, probabilities(logits(seed=1)), SCALES)
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss.sum(), predicted, retain_graph=True)
        own = torch.zeros(5, dtype=torch.bool)
        own[GRAPH.slices[name]] = True
        assert (gradient[:, own] != 0).all()
        assert (gradient[:, ~own] == 0).all()


def descend(target: float, steps: int = 400) -> float:
    """The probability to which gradient descent drives a prediction that starts at 0.65."""
    graph = CausalGraph([{"name": "ill", "kind": "binary", "categories": ["no", "yes"]}])
    logit = torch.tensor([[math.log(0.65 / 0.35)]], requires_grad=True)
    optimizer = torch.optim.SGD([logit], lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        guidance_losses(graph, logit, torch.tensor([[target]]), torch.ones(1))["ill"].backward()
        optimizer.step()
    return logit.sigmoid().item()


def test_a_soft_target_holds_what_a_label_amplifies() -> None:
    assert descend(0.65) == pytest.approx(0.65, abs=1e-6)
    assert descend(0.3) == pytest.approx(0.3, abs=1e-4)
    assert descend(1.0) > 0.99
