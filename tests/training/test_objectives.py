import math
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.nn import functional as F

from softcft.data.phantom import PHANTOM_GRAPH, draw_block, render
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.hvae import HVAEModel
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.vae import decode_latents, encode_latents
from softcft.training.config import TrainingConfig
from softcft.training.loop import train
from softcft.training.objectives import (
    ClassifierObjective,
    DiffusionObjective,
    HVAEObjective,
    SCMObjective,
    VAEObjective,
)
from tests.small_models import make_classifier, make_hvae, make_scm

PLAIN = PHANTOM_GRAPH.to_list()


@pytest.fixture(scope="module")
def phantoms() -> dict[str, Tensor]:
    parents, noise = draw_block("train", 0, 16, seed=0)
    return {"image": render(parents, noise)[:64], "parents": parents[:64]}


def denoiser(channels: int = 1) -> ConditionalDenoiser:
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        class_embed_type="identity",
    )
    return ConditionalDenoiser(unet, ParentEncoder(PLAIN, 32), DDIMScheduler(clip_sample=False))


def hvae() -> HVAEModel:
    return make_hvae(PLAIN)


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=4,
        out_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        latent_channels=2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def classifier() -> AttributeClassifier:
    return make_classifier(PLAIN)


def scm() -> AttributeSCM:
    return make_scm(PLAIN)


# ---- pretraining -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "learning_rate"),
    [
        (lambda: SCMObjective(scm()), 1e-2),
        (lambda: ClassifierObjective(classifier()), 1e-2),
        (lambda: HVAEObjective(hvae()), 3e-3),
        (lambda: VAEObjective(vae()), 3e-3),
        (lambda: DiffusionObjective(denoiser(), min_snr_gamma=None), 1e-2),
    ],
    ids=["scm", "classifier", "hvae", "vae", "diffusion"],
)
def test_loss_falls(make: Any, learning_rate: float, phantoms: dict[str, Tensor], tmp_path: Any) -> None:
    objective = make()
    with torch.no_grad():
        before = objective(phantoms)["loss"].item()
    dataset = [{key: values[i] for key, values in phantoms.items()} for i in range(64)]
    config = TrainingConfig(
        output_dir=str(tmp_path),
        max_train_steps=20,
        train_batch_size=16,
        learning_rate=learning_rate,
        lr_warmup_steps=0,
        ema_decay=0,
        checkpointing_steps=0,
        skip_grad_norm=math.inf,
    )
    train(objective, dataset, config, name="test")  # type: ignore[arg-type]
    with torch.no_grad():
        after = objective(phantoms)["loss"].item()
    assert after < before - 0.1


def test_a_diffusion_model_of_latents_sees_latents(phantoms: dict[str, Tensor]) -> None:
    """Folded, scaled, of unit variance where the VAE's factors say so; the VAE itself is left alone."""
    torch.manual_seed(0)
    encoder = vae()
    encoder.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    with torch.no_grad():
        latents = encode_latents(encoder, phantoms["image"])
    encoder.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    with torch.no_grad():
        scaled = encode_latents(encoder, phantoms["image"])
        assert decode_latents(encoder, scaled).shape == phantoms["image"].shape
    assert abs(scaled.mean()) < 1e-3
    assert scaled.std() == pytest.approx(1, abs=1e-3)
    model = denoiser(channels=latents.shape[1])
    objective = DiffusionObjective(model, encoder)
    objective.train()
    objective(phantoms)["loss"].backward()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_scm_objective_is_the_likelihood_per_image(phantoms: dict[str, Tensor]) -> None:
    objective = SCMObjective(scm())
    expected = -objective.scm.log_prob(phantoms["parents"]).mean()
    torch.testing.assert_close(objective(phantoms)["loss"], expected)
    assert objective({"parents": phantoms["parents"]})["loss"].isfinite()  # images are not needed


def test_classifier_objective_needs_no_weights(phantoms: dict[str, Tensor]) -> None:
    objective = ClassifierObjective(classifier())
    scalars = objective(phantoms)
    logits, parents = objective.classifier(phantoms["image"]).logits, phantoms["parents"]
    columns = PHANTOM_GRAPH.slices
    age, sex, race, disease = (logits[:, columns[name]] for name in ("age", "sex", "race", "disease"))
    # Of a normal density with the variance of ages that are guessed blindly, the constant left out.
    ages = torch.distributions.Normal(age, math.sqrt(1 / 3))
    expected = {
        "age": -ages.log_prob(parents[:, columns["age"]]).mean() - 0.5 * math.log(2 * math.pi),
        "sex": F.binary_cross_entropy_with_logits(sex, parents[:, columns["sex"]]),
        "race": F.cross_entropy(race, parents[:, columns["race"]]),
        "disease": F.binary_cross_entropy_with_logits(disease, parents[:, columns["disease"]]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(scalars[f"loss/{name}"], value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scalars["loss"], torch.stack([scalars[f"loss/{name}"] for name in expected]).sum())
    torch.testing.assert_close(scalars["squared_error/age"], (age - parents[:, columns["age"]]).square().mean())


def test_the_variance_of_a_classifier_follows_its_error() -> None:
    objective = ClassifierObjective(classifier())
    errors = [1 / 3]
    for error in (0.1, 0.4, *[0.02] * 100):
        objective.after_step({"squared_error/age": 0.3 * error, "known/age": 0.3, "loss": 0.0})
        errors.append(0.9 * errors[-1] + 0.1 * error)
        assert objective.squared_errors.item() == pytest.approx(errors[-1], rel=1e-4)
    assert errors[-1] == pytest.approx(0.02, rel=1e-2)
    objective.after_step({"squared_error/age": 0.0, "known/age": 0.0, "loss": 0.0})  # nobody's age was known
    assert objective.squared_errors.item() == pytest.approx(errors[-1], rel=1e-4)


@pytest.mark.parametrize("missing", [0.0, 0.5, 0.9])
def test_a_missing_value_has_no_part_in_the_variance(missing: float) -> None:
    """However many are missing, the variance is that of those that are known, and the gradient the likelihood's."""
    objective = ClassifierObjective(classifier())
    with torch.no_grad():
        objective.classifier.heads.weight.zero_()
        objective.classifier.heads.bias.zero_()  # predicts the middle for everybody
    age, generator = PHANTOM_GRAPH.slices["age"], torch.Generator().manual_seed(0)

    def batch() -> dict[str, Tensor]:
        parents = torch.rand(64, PHANTOM_GRAPH.width, generator=generator).round()
        parents[:, age] = torch.rand(64, 1, generator=generator) * 2 - 1
        parents[: round(64 * missing), age] = math.nan
        return {"image": torch.zeros(64, 1, 16, 16, dtype=torch.uint8), "parents": parents}

    for _ in range(80):
        scalars = objective(batch())
        objective.after_step({name: value.item() for name, value in scalars.items()})
    assert objective.squared_errors.item() == pytest.approx(1 / 3, rel=0.25)
    rows = batch()
    (gradient,) = torch.autograd.grad(objective(rows)["loss/age"], objective.classifier.heads.bias)
    ages = rows["parents"][:, age].nan_to_num()
    torch.testing.assert_close(gradient[age][0], -ages.sum() / objective.squared_errors[0] / 64)


def test_classifier_objective_leaves_out_what_is_missing(phantoms: dict[str, Tensor]) -> None:
    objective = ClassifierObjective(classifier())
    columns = PHANTOM_GRAPH.slices
    parents = phantoms["parents"].clone()
    parents[1:, columns["sex"]] = parents[:-1, columns["race"]] = parents[:, columns["disease"]] = math.nan
    scalars = objective({**phantoms, "parents": parents})
    logits = objective.classifier(phantoms["image"]).logits
    sex, race = logits[:1, columns["sex"]], logits[-1:, columns["race"]]
    labels = phantoms["parents"]
    expected = {  # the likelihood of what is known, by image
        "sex": F.binary_cross_entropy_with_logits(sex, labels[:1, columns["sex"]]) / 64,
        "race": F.cross_entropy(race, labels[-1:, columns["race"]]) / 64,
        "disease": torch.tensor(0.0),
        "age": objective(phantoms)["loss/age"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(scalars[f"loss/{name}"], value, rtol=1e-3, atol=1e-4)
    scalars["loss"].backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "make",
    [lambda: HVAEObjective(hvae()), lambda: ClassifierObjective(classifier()), lambda: VAEObjective(vae())],
)
def test_pixels_may_be_bytes(phantoms: dict[str, Tensor], make: Any) -> None:
    pixels = ((phantoms["image"] + 1) * 127.5).round().byte()
    losses = []
    for image in (pixels, pixels.float() / 127.5 - 1):
        objective = make()
        torch.manual_seed(1)
        losses.append(objective({**phantoms, "image": image})["loss"])
    torch.testing.assert_close(*losses)


def test_hvae_objective_is_the_bound(phantoms: dict[str, Tensor]) -> None:
    objective = HVAEObjective(hvae())
    torch.manual_seed(1)
    scalars = objective(phantoms)
    torch.manual_seed(1)
    output = objective.hvae(phantoms["image"], phantoms["parents"])
    torch.testing.assert_close(scalars["loss"], output.nelbo.mean())
    torch.testing.assert_close(scalars["loss"], scalars["nll"] + scalars["kl"])


def test_vae_objective_is_the_bound_with_the_scale_that_fits_best(phantoms: dict[str, Tensor]) -> None:
    objective = VAEObjective(vae())
    torch.manual_seed(1)
    scalars = objective({"image": phantoms["image"]})  # no attributes are needed
    torch.manual_seed(1)
    patches = F.pixel_unshuffle(phantoms["image"], 2)
    posterior = objective.vae.encode(patches).latent_dist
    mean = objective.vae.decode(posterior.sample()).sample
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3)) / 16**2
    torch.testing.assert_close(scalars["kl"], kl.mean())
    torch.testing.assert_close(scalars["loss"], scalars["nll"] + scalars["kl"])
    # No other scale makes the images more likely.
    best = (mean - patches).square().mean().sqrt()
    nll = {f: -torch.distributions.Normal(mean, f * best).log_prob(patches).mean() for f in (0.8, 1.0, 1.2)}
    torch.testing.assert_close(scalars["nll"], nll[1.0], rtol=1e-4, atol=1e-4)
    assert nll[1.0] < min(nll[0.8], nll[1.2])


def test_vae_objective_trains_every_parameter(phantoms: dict[str, Tensor]) -> None:
    objective = VAEObjective(vae())
    objective(phantoms)["loss"].backward()
    still = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_vae_objective_of_images_without_any_error_is_finite() -> None:
    objective = VAEObjective(vae())
    for parameter in objective.parameters():
        torch.nn.init.zeros_(parameter)
    scalars = objective({"image": torch.zeros(4, 1, 16, 16)})
    scalars["loss"].backward()
    assert scalars["loss"].isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: SCMObjective(scm().eval()),
        lambda: HVAEObjective(hvae().eval()),
        lambda: VAEObjective(vae().eval()),
        lambda: ClassifierObjective(classifier().eval()),
    ],
)
def test_pretraining_objectives_turn_training_on(make: Any) -> None:
    assert all(module.training for module in make().modules())
