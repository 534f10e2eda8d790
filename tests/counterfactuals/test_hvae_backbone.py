from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.models.hvae import HVAEModel

GRAPH = [
    {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
    {"name": "age", "kind": "continuous", "low": 20, "high": 90},
    {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(**config: Any) -> HVAEModel:
    torch.manual_seed(0)
    model = HVAEModel(
        GRAPH,
        sample_size=16,
        resolutions=[16, 4, 1],
        channels=[8, 16, 16],
        encoder_blocks=[1, 1, 1],
        decoder_blocks=[1, 2, 1],
        z_dim=3,
        z_max_resolution=8,
        **config,
    )
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.x_log_scale.bias.sub_(2)  # sure of its pixels, as a trained model is
    return model


@pytest.fixture(
    params=[{}, {"block_type": "light"}, {"conditional_prior": True}], ids=["bottleneck", "light", "conditional prior"]
)
def backbone(request: pytest.FixtureRequest) -> HVAEBackbone:
    return HVAEBackbone(make_model(**request.param))


def parents(n: int, seed: int) -> Tensor:
    generator = seeded(seed)
    site = F.one_hot(torch.randint(3, (n,), generator=generator), 3).float()
    age = 2 * torch.rand(n, 1, generator=generator) - 1
    return torch.cat([site, age, torch.randint(2, (n, 1), generator=generator).float()], dim=1)


def images(n: int) -> Tensor:
    return torch.randint(256, (n, 1, 16, 16), generator=seeded(2)) / 127.5 - 1


@torch.no_grad()
def test_the_same_parents_give_the_same_image(backbone: HVAEBackbone) -> None:
    image, factual = images(4), parents(4, seed=3)
    output = backbone.counterfactual(image, factual, factual)
    torch.testing.assert_close(output.image, image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_other_parents_give_another_image(backbone: HVAEBackbone) -> None:
    image, factual, other = images(4), parents(4, seed=3), parents(4, seed=4)
    change = (backbone.counterfactual(image, factual, other).image - image).flatten(1).abs().amax(dim=1)
    assert (change > 1e-3).all()


@torch.no_grad()
def test_prediction_keeps_the_residual_in_standard_deviations(backbone: HVAEBackbone) -> None:
    image, factual, other = 0.5 * images(4), parents(4, seed=3), parents(4, seed=4)
    abducted = backbone.model(image, factual, generator=seeded())
    walked = backbone.model.walk_prior(other, abducted.latents)
    loc, log_scale = backbone.model.decode(walked.injections, other)
    output = backbone.counterfactual(image, factual, other, generator=seeded())
    inside = output.image.abs() < 1
    assert inside.float().mean() > 0.5
    expected = (image - abducted.loc.clamp(-1, 1)) / abducted.log_scale.exp()
    torch.testing.assert_close(
        ((output.image - loc.clamp(-1, 1)) / log_scale.exp())[inside], expected[inside], rtol=1e-3, atol=1e-4
    )


@torch.no_grad()
def test_fidelity_is_the_bound_on_factual_images(backbone: HVAEBackbone) -> None:
    image, factual = images(4), parents(4, seed=3)
    output = backbone.counterfactual(image, factual, parents(4, seed=4), generator=seeded())
    abducted = backbone.model(image, factual, generator=seeded())
    assert output.fidelity.ndim == 0
    assert torch.equal(output.fidelity, abducted.nelbo.mean())
    torch.testing.assert_close(output.latents, abducted.latents, rtol=0, atol=0)


@torch.no_grad()
def test_images_stay_in_range(backbone: HVAEBackbone) -> None:
    backbone.model.x_loc.weight.mul_(30)
    output = backbone.counterfactual(images(4), parents(4, seed=3), parents(4, seed=4))
    assert output.image.min() == -1
    assert output.image.max() == 1


@torch.no_grad()
def test_each_image_has_its_own_counterfactual(backbone: HVAEBackbone) -> None:
    image, factual, other = images(3), parents(3, seed=3), parents(3, seed=4)
    together = backbone.counterfactual(image, factual, other, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        row = slice(i, i + 1)
        alone = backbone.counterfactual(image[row], factual[row], other[row], generator=seeded(i))
        torch.testing.assert_close(together.image[row], alone.image, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_abduction_serves_several_predictions(backbone: HVAEBackbone) -> None:
    image, factual, others = images(3), parents(3, seed=3), [parents(3, seed=4), parents(3, seed=5)]
    together = backbone.counterfactual(image, factual, torch.stack(others, dim=1), generator=seeded())
    assert together.image.shape == (3, 2, *image.shape[1:])
    for i, other in enumerate(others):
        alone = backbone.counterfactual(image, factual, other, generator=seeded())
        torch.testing.assert_close(together.image[:, i], alone.image)
        torch.testing.assert_close([z[:, i] for z in together.latents], alone.latents)
        assert torch.equal(together.fidelity, alone.fidelity)


def test_images_alone_train_every_parameter(backbone: HVAEBackbone) -> None:
    output = backbone.counterfactual(0.5 * images(8), parents(8, seed=3), parents(8, seed=4))
    output.image.square().mean().backward()
    # Only the ratio of the two scales matters to an image, and a common factor cancels.
    assert backbone.model.x_log_scale.bias.grad.abs() < 1e-6
    still = [n for n, p in backbone.named_parameters() if p.grad is None or (p.grad == 0).all()]
    assert set(still) <= {"model.x_log_scale.bias"}
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


def test_the_same_parents_leave_the_model_alone(backbone: HVAEBackbone) -> None:
    # An image that must not change gives no gradient: what it would have is cancelled by its residual.
    factual = parents(4, seed=3)
    backbone.counterfactual(0.5 * images(4), factual, factual).image.square().sum().backward()
    assert max(parameter.grad.abs().max() for parameter in backbone.parameters()) < 1e-2


@torch.no_grad()
def test_a_mean_beyond_black_leaves_no_residual(backbone: HVAEBackbone) -> None:
    # The likelihood of a black pixel only asks that its mean be low: a surplus is no noise to carry over.
    backbone.model.x_loc.weight.zero_()
    backbone.model.x_loc.bias.fill_(-3)
    black = -torch.ones(2, 1, 16, 16)
    assert torch.equal(backbone.counterfactual(black, parents(2, seed=3), parents(2, seed=4)).image, black)


# ---- a mediator ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_effects_take_their_own_paths() -> None:
    model = make_model(conditional_prior=True)
    image, factual, other = images(3), parents(3, seed=3), parents(3, seed=4)
    outputs = {
        effect: HVAEBackbone(model, effect).counterfactual(image, factual, other, generator=seeded())
        for effect in ("direct", "indirect", "total")
    }
    mediated, latents = outputs["total"].latents, outputs["direct"].latents
    torch.testing.assert_close(outputs["indirect"].latents, mediated, rtol=0, atol=0)
    assert all((one - two).abs().min() > 0 for one, two in zip(mediated, latents, strict=True))
    for one, two in (("direct", "indirect"), ("direct", "total"), ("indirect", "total")):
        assert (outputs[one].image - outputs[two].image).flatten(1).abs().amax(dim=1).min() > 1e-3

    # What is decoded under which parents, with the residual of the factual world.
    abducted = model(image, factual, generator=seeded())
    residual = (image - abducted.loc.clamp(-1, 1)) / abducted.log_scale.exp()
    for effect, seen in (("direct", other), ("indirect", factual), ("total", other)):
        loc, log_scale = model.decode(model.walk_prior(seen, outputs[effect].latents).injections, seen)
        expected = (loc.clamp(-1, 1) + log_scale.exp() * residual).clamp(-1, 1)
        torch.testing.assert_close(outputs[effect].image, expected)


@torch.no_grad()
def test_the_mediator_mixes_posterior_and_prior() -> None:
    # Half-way between their means, with the noise of both. The first latent, for its prior is the same in every draw.
    model = make_model(conditional_prior=True)
    n = 4000
    image, factual, other = images(1).expand(n, -1, -1, -1), parents(1, 3).expand(n, -1), parents(1, 4).expand(n, -1)
    z = HVAEBackbone(model, "total").counterfactual(image, factual, other, generator=seeded()).latents[0]
    q_loc, q_log_scale = model(image[:1], factual[:1]).posteriors[0]
    p_loc, p_log_scale = model.walk_prior(other[:1]).priors[0]
    spread = 0.5 * (q_log_scale.exp().square() + p_log_scale.exp().square()).sqrt()[0]
    assert (z.mean(dim=0) - 0.5 * (q_loc + p_loc)[0]).abs().max() < 4 * spread.max() / n**0.5
    torch.testing.assert_close(z.std(dim=0), spread, rtol=0.06, atol=0)


@pytest.mark.parametrize("effect", ["indirect", "total"])
def test_an_exogenous_prior_has_no_mediator(effect: Any) -> None:
    with pytest.raises(ValueError, match=f"effect is '{effect}', but this model has an exogenous prior"):
        HVAEBackbone(make_model(), effect)


def test_unknown_effects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"effect must be one of \['direct', 'indirect', 'total'\], got 'natural'"):
        HVAEBackbone(make_model(conditional_prior=True), "natural")  # type: ignore[arg-type]
