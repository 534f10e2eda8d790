from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from softcft.counterfactuals.backbone import BackboneOutput
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.evaluation import axioms
from softcft.evaluation.axioms import (
    axiom_rows,
    composition,
    counterfactual_latent_divergence,
    reconstruction,
    reversibility,
    value_groups,
)
from softcft.evaluation.bootstrap import bootstrap_weights
from softcft.graph import CausalGraph
from softcft.models.hvae import HVAEModel
from softcft.models.normals import normal_kl
from tests.small_models import make_hvae, perturb

GRAPH = CausalGraph(
    [
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
    ]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(n: int) -> list[torch.Generator]:
    return [seeded(i) for i in range(n)]


def draw_parents(n: int, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    site = torch.eye(3)[torch.randint(3, (n,), generator=generator)]
    age = 2 * torch.rand(n, 1, generator=generator) - 1
    return torch.cat([site, age, torch.randint(2, (n, 1), generator=generator).float()], dim=1)


def draw_images(n: int) -> Tensor:
    return torch.randint(256, (n, 1, 16, 16), generator=seeded(9)) / 127.5 - 1


def hvae() -> HVAEModel:
    return perturb(make_hvae(GRAPH.to_list(), channels=[8, 16, 16], z_dim=3), 0.1, seeded(1)).eval()


class Shift:
    """Adds to every pixel the change of age, a constant, and noise."""

    def __init__(self, constant: float = 0.0, noise: float = 0.0) -> None:
        self.constant, self.noise = constant, noise
        self.seen: list[Tensor] = []

    def counterfactual(
        self, image: Tensor, parents: Tensor, counterfactual_parents: Tensor, generator: Any = None
    ) -> BackboneOutput:
        self.seen.append(image)
        change = (counterfactual_parents - parents)[:, 3] + self.constant
        noise = torch.stack([torch.randn(image.shape[1:], generator=g) for g in generator])
        return BackboneOutput(image=image + change[:, None, None, None] + self.noise * noise, fidelity=torch.zeros(()))


# ---- composition and reversibility -----------------------------------------------------------------------------------


def test_composition_compares_with_the_factual_image() -> None:
    image = 0.5 * draw_images(3)
    drift = composition(Shift(noise=0.01), image, draw_parents(3), 3, generators(3))
    current, expected = image, []
    noises = generators(3)
    for _ in range(3):
        current = current + 0.01 * torch.stack([torch.randn(image.shape[1:], generator=g) for g in noises])
        expected.append([np.abs(127.5 * (c - x).numpy()).mean() for c, x in zip(current, image, strict=True)])
    np.testing.assert_allclose(drift.T, expected, rtol=1e-4)


def test_there_and_back_undoes_what_can_be_undone() -> None:
    parents, other = draw_parents(4, seed=1), draw_parents(4, seed=2)
    parents[:, 3], other[:, 3] = 0.0, torch.tensor([-0.3, 0.1, 0.2, 0.4])
    drift = reversibility(Shift(), 0.5 * draw_images(4), parents, other, 3, generators(4))
    assert drift.shape == (4, 3)
    assert drift.max() < 1e-4
    # What only one of the two ways adds stays: twice in each cycle.
    drift = reversibility(Shift(1 / 127.5), 0.5 * draw_images(4), parents, other, 3, generators(4))
    torch.testing.assert_close(drift, torch.tensor([[2.0, 4.0, 6.0]]).expand(4, -1), rtol=1e-3, atol=0)


def test_images_never_leave_their_range() -> None:
    # White plus something is white; on the way back that is missing.
    parents, other = draw_parents(2, seed=1), draw_parents(2, seed=2)
    parents[:, 3], other[:, 3] = 0.0, 0.2
    backbone = Shift()
    drift = reversibility(backbone, torch.ones(2, 1, 4, 4), parents, other, 3, generators(2))
    assert all(image.abs().max() <= 1 for image in backbone.seen)
    torch.testing.assert_close(drift, torch.full((2, 3), 0.2 * 127.5))
    drift = composition(Shift(0.5), torch.zeros(2, 1, 4, 4), parents, 5, generators(2))
    torch.testing.assert_close(drift, 127.5 * torch.tensor([[0.5, 1, 1, 1, 1]]).expand(2, -1))


@pytest.mark.parametrize("measure", ["composition", "reversibility", "reconstruction"])
def test_noise_does_not_depend_on_the_batch(measure: str) -> None:
    model, image, parents, other = hvae(), draw_images(4), draw_parents(4, 1), draw_parents(4, 2)
    calls: dict[str, Any] = {
        "composition": lambda i: composition(Shift(noise=0.1), image[i], parents[i], 3, noises[i]),
        "reversibility": lambda i: reversibility(HVAEBackbone(model), image[i], parents[i], other[i], 3, noises[i]),
        "reconstruction": lambda i: reconstruction(model, image[i], parents[i], 3, noises[i]),
    }
    noises = generators(4)
    together = calls[measure](slice(0, 4))
    assert not together.requires_grad
    assert len(together.unique()) == together.numel()  # images and cycles have noise of their own
    noises = generators(4)
    halves = torch.cat([calls[measure](slice(2, 4)), calls[measure](slice(0, 2))]).roll(2, dims=0)
    torch.testing.assert_close(together, halves, rtol=1e-3, atol=1e-3)


def test_the_residual_makes_composition_exact_and_reconstruction_does_not_have_it() -> None:
    model, image, parents = hvae(), draw_images(3), draw_parents(3)
    exact = composition(HVAEBackbone(model), image, parents, 10, generators(3))
    assert exact.max() < 0.01
    means = reconstruction(model, image, parents, 2, generators(3))
    noises = generators(3)
    with torch.no_grad():
        once = model(image, parents, generator=noises).loc.clamp(-1, 1)
        twice = model(once, parents, generator=noises).loc.clamp(-1, 1)
    expected = [127.5 * (x - image).abs().mean(dim=(1, 2, 3)) for x in (once, twice)]
    torch.testing.assert_close(means, torch.stack(expected, dim=1))
    assert means.min() > 1


# ---- minimality ------------------------------------------------------------------------------------------------------


def draw_posteriors(n: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return (
        torch.randn(n, dimensions, generator=generator),
        0.4 * torch.randn(n, dimensions, generator=generator) - 1,
    )


def distributions(normal: tuple[Tensor, Tensor]) -> Any:
    return [Independent(Normal(loc.double(), log_scale.double().exp()), 1) for loc, log_scale in zip(*normal)]  # noqa: B905


@pytest.mark.parametrize("chunk", [2, 7, 1000])
@pytest.mark.parametrize("stayed", [False, True])
def test_cld_is_what_a_double_loop_counts(chunk: int, stayed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axioms, "CHUNK", chunk)
    n = 60
    factual = draw_posteriors(n, 5, seed=1)
    # Somewhere between its own image and another one: neither all nor none of the others are nearer.
    other, way = draw_posteriors(n, 5, seed=2), 1.5 * torch.rand(n, 1, generator=seeded(5))
    counterfactual = (torch.lerp(factual[0], other[0], way), torch.lerp(factual[1], other[1], way))
    groups = torch.randint(3, (n,), generator=seeded(3))
    new_groups = groups if stayed else (groups + torch.randint(1, 3, (n,), generator=seeded(4))) % 3

    real, fake = distributions(factual), distributions(counterfactual)
    expected = []
    for i in range(n):
        distance = kl_divergence(fake[i], real[i])
        to = {j: kl_divergence(real[j], real[i]) for j in range(n) if j != i}
        rivals = [kl <= distance for j, kl in to.items() if groups[j] == new_groups[i]]
        own = [kl >= distance for j, kl in to.items() if groups[j] == groups[i]]
        expected.append(np.log(0.7 * np.exp(np.mean(rivals)) + 0.3 * np.exp(np.mean(own))))
    result = counterfactual_latent_divergence(factual, counterfactual, groups, new_groups, weights=(0.7, 0.3))
    assert result.dtype == torch.float32
    assert len(np.unique(np.round(expected, 6))) > n // 4  # no lucky constant
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_extreme_posteriors_keep_their_order() -> None:
    # Sure latents far from the origin: the expanded square loses digits, but not those that a comparison needs.
    generator = seeded(5)
    loc = 20 + torch.randn(30, 64, generator=generator, dtype=torch.double)
    log_scale = -6 + torch.randn(30, 64, generator=generator, dtype=torch.double)
    pairwise = axioms._pairwise_kl(loc, log_scale, loc, log_scale)
    expected = torch.stack(
        [normal_kl(loc, log_scale, loc[[i]].expand(30, -1), log_scale[[i]].expand(30, -1)) for i in range(30)]
    )
    torch.testing.assert_close(pairwise, expected, rtol=1e-7, atol=1e-5)
    assert (pairwise >= 0).all()


def test_a_lonely_image_has_no_cld() -> None:
    factual, counterfactual = draw_posteriors(7, 3, seed=1), draw_posteriors(7, 3, seed=2)
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    new_groups = torch.tensor([1, 1, 3, 0, 2, 0, 0])  # nobody has 3; the last is alone with its own value
    result = counterfactual_latent_divergence(factual, counterfactual, groups, new_groups)
    assert result.isnan().tolist() == [False, False, True, False, False, False, True]
    assert ((result >= 0) & (result <= 1))[~result.isnan()].all()


def test_groups_are_categories_and_fifths() -> None:
    parents = draw_parents(500)
    names = GRAPH.decode(parents)
    site, ill = (value_groups(GRAPH, name, parents, parents) for name in ("site", "ill"))
    assert [["x", "y", "z"][i] for i in site] == names["site"]
    assert [["no", "yes"][i] for i in ill] == names["ill"]
    age = value_groups(GRAPH, "age", parents, parents)
    assert torch.bincount(age).tolist() == [100] * 5
    order = parents[:, 3].argsort()
    assert (age[order].diff() >= 0).all()
    # Other images are sorted into the fifths of the real ones, also those beyond them.
    other = parents[:4].clone()
    other[:, 3] = torch.tensor([-9.0, 9.0, parents[:, 3].median(), parents[:, 3].quantile(0.7)])
    assert value_groups(GRAPH, "age", other, parents).tolist() == [0, 4, 2, 3]
    with pytest.raises(ValueError, match="no variable 'height'"):
        value_groups(GRAPH, "height", parents, parents)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_rows_are_weighted_means() -> None:
    n = 30
    weights = bootstrap_weights(range(n), 200, seed=0)
    cycles, cld = torch.rand(n, 2, generator=seeded(1)), torch.rand(n, generator=seeded(2))
    cld[:5] = torch.nan
    rows = axiom_rows({"composition": {"none": cycles}, "cld": {"site": cld, "age": cld + 1}}, weights)
    assert list(rows.columns) == ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
    key = rows[["intervention", "variable", "predictor", "metric"]].itertuples(index=False, name=None)
    assert list(key) == [
        ("none", "image", "", "composition_1"),
        ("none", "image", "", "composition_2"),
        ("site", "image", "", "cld"),
        ("age", "image", "", "cld"),
    ]
    for values, row in zip([cycles[:, 0], cycles[:, 1], cld, cld + 1], rows.itertuples(), strict=True):
        known = ~values.isnan()
        means = [np.average(values[known], weights=w[known]) for w in weights]
        expected = [means[0], *np.percentile(means[1:], [2.5, 97.5])]
        np.testing.assert_allclose([row.value, row.low, row.high], expected, rtol=1e-6)


def test_a_measure_without_any_value_is_a_gap() -> None:
    row = axiom_rows({"cld": {"site": torch.full((8,), torch.nan)}}, bootstrap_weights(range(8), 20, seed=0)).iloc[0]
    assert np.isnan([row["value"], row["low"], row["high"]]).all()
