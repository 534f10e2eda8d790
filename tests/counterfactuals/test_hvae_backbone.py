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


@pytest.fixture(params=["bottleneck", "light"])
def backbone(request: pytest.FixtureRequest) -> HVAEBackbone:
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
        block_type=request.param,
    )
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.x_log_scale.bias.sub_(2)  # sure of its pixels, as a trained model is
    return HVAEBackbone(model)


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
    loc, log_scale = backbone.model.decode(abducted.injections, other)
    output = backbone.counterfactual(image, factual, other, generator=seeded())
    inside = output.image.abs() < 1
    assert inside.float().mean() > 0.5
    expected = (image - abducted.loc) / abducted.log_scale.exp()
    torch.testing.assert_close(((output.image - loc) / log_scale.exp())[inside], expected[inside], rtol=1e-3, atol=1e-4)


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
