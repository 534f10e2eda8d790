import math
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.interventions import draw_interventions
from softcft.counterfactuals.backbone import BackboneOutput
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.data.augmentation import AugmentationConfig
from softcft.data.phantom import PHANTOM_GRAPH, draw_block, render
from softcft.graph import Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.hvae import HVAEModel
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.sight import Sight
from softcft.models.vae import decode_latents, encode_latents
from softcft.training.config import TrainingConfig
from softcft.training.loop import train
from softcft.training.objectives import (
    CFTObjective,
    ClassifierObjective,
    DiffusionObjective,
    HVAEObjective,
    SCMObjective,
    VAEObjective,
)

PLAIN = PHANTOM_GRAPH.to_list()


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    """Accelerate fixes precision and gradient state once per process; each test starts from nothing."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
    torch.manual_seed(0)
    return HVAEModel(
        PLAIN,
        sample_size=16,
        resolutions=[16, 4, 1],
        channels=[8, 8, 16],
        encoder_blocks=[1, 1, 1],
        decoder_blocks=[1, 1, 1],
        z_dim=4,
    )


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
    torch.manual_seed(0)
    trunk = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return AttributeClassifier(PLAIN, {**trunk, "layer_type": "basic"})


def scm() -> AttributeSCM:
    torch.manual_seed(0)
    return AttributeSCM(PLAIN, num_bins=4, hidden_features=[8])


def constraint() -> LagrangianConstraint:
    return LagrangianConstraint(slack=5.0, damping=10.0, learning_rate=0.5)


def cft(mode: Any = "soft", backbone: nn.Module | None = None, guides: int = 1, **options: Any) -> CFTObjective:
    backbone = backbone or HVAEBackbone(hvae())
    return CFTObjective(backbone, scm(), [classifier() for _ in range(guides)], constraint(), mode, **options)  # type: ignore[arg-type]


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


# ---- counterfactual fine-tuning --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "options"),
    [("hard", {}), ("soft", {}), ("soft", {"guides": 2, "augmentation": AugmentationConfig(random_noise=0.2)})],
)
def test_only_the_backbone_gets_gradients(mode: str, options: dict[str, Any], phantoms: dict[str, Tensor]) -> None:
    objective = cft(mode, **options)
    objective(phantoms)["loss"].backward()
    names = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert names == {f"backbone.{name}" for name, _ in objective.backbone.named_parameters()}
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (name in names), name
    assert objective.backbone.training
    assert not any(m.training for part in (objective.guides[0], objective.attribute_scm) for m in part.modules())


def test_scalars_add_up(phantoms: dict[str, Tensor]) -> None:
    objective = cft()
    objective.constraint.multiplier.fill_(0.7)
    objective.constraint.violation.fill_(0.1)
    objective.constraint.ascend(5.1)
    scalars = objective(phantoms)
    assert set(scalars) == {
        "loss",
        "guidance",
        "fidelity",
        "multiplier",
        "change",
        *(f"guidance/{name}" for name in PHANTOM_GRAPH.names),
    }
    assert all(value.ndim == 0 for value in scalars.values())
    total = torch.stack([scalars[f"guidance/{name}"] for name in PHANTOM_GRAPH.names]).sum()
    torch.testing.assert_close(scalars["guidance"], total)
    expected = scalars["guidance"] + (0.7 + 0.5 * 0.1 + 10 * 0.1) * (scalars["fidelity"] - 5)
    torch.testing.assert_close(scalars["loss"], expected)
    assert scalars["multiplier"].item() == pytest.approx(0.75)


def test_after_step_moves_the_multiplier() -> None:
    objective = cft()
    objective.after_step({"fidelity": 6.5, "loss": 0.0})
    assert objective.constraint.multiplier.item() == pytest.approx(0.75)


class Recorder(nn.Module):
    """A backbone that changes nothing and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def counterfactual(
        self, image: Tensor, parents: Tensor, counterfactual_parents: Tensor, generator: Any = None
    ) -> BackboneOutput:
        self.asked = parents, counterfactual_parents
        return BackboneOutput(image=image + self.shift, fidelity=self.shift.square())


def test_an_unchanged_image_costs_only_what_should_have_changed(
    phantoms: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_interventions(PHANTOM_GRAPH, phantoms["parents"], phantoms["parents"].roll(1, dims=0))
    # The prediction on an image that stayed itself is its own soft target; a hard label is not.
    objective = cft(backbone=Recorder())
    for i in range(20):
        one = {key: values[i : i + 1] for key, values in phantoms.items()}
        own = Intervention(drawn.values[i : i + 1], drawn.mask[i : i + 1])
        monkeypatch.setattr("softcft.training.objectives.draw_interventions", lambda *_, own=own: own)
        costs = {}
        for objective.mode in ("hard", "soft"):
            torch.manual_seed(i)
            scalars = objective(one)
            costs[objective.mode] = {name: scalars[f"guidance/{name}"].item() for name in PHANTOM_GRAPH.names}
        free = {name for name, cost in costs["soft"].items() if abs(cost) < 1e-6}
        # A do() leaves at least two variables alone: all but age and, through it, disease.
        assert 2 <= len(free) <= 3
        assert all(costs["hard"][name] > costs["soft"][name] for name in free)
        assert all(costs["hard"][name] == costs["soft"][name] for name in set(costs["soft"]) - free)


def test_counterfactual_attributes_come_from_the_mechanisms(phantoms: dict[str, Tensor]) -> None:
    objective = cft("soft", Recorder())
    objective(phantoms)
    parents, counterfactual = objective.backbone.asked
    assert torch.equal(parents, phantoms["parents"])
    moved = {n: (parents[:, c] != counterfactual[:, c]).any(dim=1) for n, c in PHANTOM_GRAPH.slices.items()}
    per_image = torch.stack([moved[name] for name in PHANTOM_GRAPH.names]).sum(dim=0)
    assert all(changed.any() for changed in moved.values())
    # One variable of each image, and disease beside age where age moves it.
    assert (per_image <= 1 + (moved["age"] & moved["disease"])).all()


def test_a_backbone_must_be_a_module() -> None:
    class Plain:
        counterfactual = Recorder.counterfactual

    with pytest.raises(ValueError, match=r"must be an nn.Module to be trained, got Plain"):
        cft("soft", Plain())  # type: ignore[arg-type]


def test_mechanisms_and_guide_must_share_their_graph() -> None:
    other = AttributeSCM(PLAIN[:3], num_bins=4, hidden_features=[8])
    with pytest.raises(ValueError, match="different graphs"):
        CFTObjective(Recorder(), other, [classifier()], constraint(), "soft")


def with_sight(objective_guides: list[AttributeClassifier], *unseen: set[str]) -> list[AttributeClassifier]:
    """Guides that do not see these variables."""
    for guide, names in zip(objective_guides, unseen, strict=True):
        guide.store_sight(
            {
                v.name: Sight(
                    "skill" if v.kind == "continuous" else "auc", *((0.0,) * 3 if v.name in names else (0.9,) * 3)
                )
                for v in PHANTOM_GRAPH.variables
            }
        )
    return objective_guides


def blind(mode: Any, *unseen: set[str], backbone: nn.Module | None = None) -> CFTObjective:
    guides = with_sight([classifier() for _ in unseen], *unseen)
    return CFTObjective(backbone or HVAEBackbone(hvae()), scm(), guides, constraint(), mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("name", PHANTOM_GRAPH.names)
def test_a_guide_is_not_asked_for_what_it_does_not_see(mode: str, name: str, phantoms: dict[str, Tensor]) -> None:
    """Neither where it is moved nor where it is untouched: its head has no part in the gradient of the images."""
    gradients = []
    for weight in (1.0, -50.0):
        objective = blind(mode, {name})
        with torch.no_grad():  # whatever the guide says of the variable
            objective.guides[0].heads.weight[PHANTOM_GRAPH.slices[name]] *= weight
        torch.manual_seed(1)
        scalars = objective(phantoms)
        assert {key for key in scalars if key.startswith("guidance/")} == {
            f"guidance/{other}" for other in PHANTOM_GRAPH.names if other != name
        }
        scalars["loss"].backward()
        gradients.append([parameter.grad for parameter in objective.backbone.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    objective = blind(mode, set(PHANTOM_GRAPH.names) - {name})  # and that alone
    torch.manual_seed(1)
    objective(phantoms)["guidance"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in objective.backbone.parameters())


def test_each_guide_is_asked_for_what_it_sees_and_the_log_has_the_same_keys(phantoms: dict[str, Tensor]) -> None:
    objective = blind("soft", {"sex", "race"}, {"sex", "age", "disease"}, backbone=Recorder())
    assert objective.seen == ("age", "race", "disease")
    keys = set()
    for seed in range(12):
        torch.manual_seed(seed)
        scalars = objective({key: values[seed : seed + 1] for key, values in phantoms.items()})
        keys.add(frozenset(scalars))
        asked = {name for name in objective.seen if scalars[f"guidance/{name}"].grad_fn is not None}
        assert asked in ({"age", "disease"}, {"race"})
        scalars["loss"].backward()  # every parameter has a part in it, whichever guide was drawn
    assert len(keys) == 1


def test_strength_and_effect_are_held_of_what_a_guide_sees(phantoms: dict[str, Tensor]) -> None:
    objective = blind("matched", {"sex", "race"}, {"sex"})
    assert objective.strength is not None
    assert objective.effect is not None
    for held in (objective.strength, objective.effect):
        assert [variable.name for variable in held.variables] == ["race", "disease"]
    objective.reference_parents = phantoms["parents"]
    with torch.no_grad():
        said = [guide.predict(phantoms["image"]) for guide in objective.guides]
    objective.reference_predictions = torch.stack(said)
    objective.effect.observe(phantoms["image"], phantoms["parents"])
    objective.effect.fit()
    scalars = objective(phantoms)
    assert {key for key in scalars if key.startswith("shortfall/")} == {"shortfall/race", "shortfall/disease"}
    scalars["loss"].backward()
    objective.after_step({key: x.item() if x.ndim == 0 else x.detach() for key, x in scalars.items()})
    assert objective.strength.offsets.isfinite().all()


def test_guides_that_see_nothing_have_nothing_to_steer_by() -> None:
    with pytest.raises(ValueError, match="no variable"):
        blind("soft", set(PHANTOM_GRAPH.names))


def test_there_must_be_a_guide() -> None:
    with pytest.raises(ValueError, match="at least one classifier"):
        cft(guides=0)


def test_guides_share_the_images(phantoms: dict[str, Tensor]) -> None:
    seeds = list(range(64))
    one, three = cft(backbone=Recorder()), cft(backbone=Recorder(), guides=3)
    alike = [objective({**phantoms, "seeds": seeds}) for objective in (one, three)]
    for key, value in alike[0].items():
        torch.testing.assert_close(alike[1][key], value)

    seen = [[] for _ in range(3)]
    for guide, images in zip(three.guides, seen, strict=True):
        guide.register_forward_pre_hook(lambda _, inputs, images=images: images.append(inputs[0]))
    three({**phantoms, "seeds": seeds})
    factual = [images[0] for images in seen]  # each guide sees its images, and then their counterfactuals
    assert sum(len(images) for images in factual) == 64
    assert all(10 < len(images) < 33 for images in factual)
    found = torch.cat(factual).flatten(1)
    assert torch.equal(found.sum(dim=1).sort().values, phantoms["image"].flatten(1).sum(dim=1).sort().values)


def test_an_image_keeps_its_guide_in_every_batch(phantoms: dict[str, Tensor]) -> None:
    objective = cft(backbone=Recorder(), guides=2)
    objective.guides[1].heads.bias.data += 1
    whole = objective({**phantoms, "seeds": list(range(64))})
    parts = [
        objective({key: values[half] for key, values in phantoms.items()} | {"seeds": list(range(64))[half]})
        for half in (slice(32), slice(32, 64))
    ]
    torch.testing.assert_close(whole["guidance"], (parts[0]["guidance"] + parts[1]["guidance"]) / 2)


class Adder(Recorder):
    """Adds a grey level."""

    def counterfactual(self, image: Tensor, *others: Any) -> BackboneOutput:
        return BackboneOutput(image=image + self.shift + 1 / 127.5, fidelity=self.shift)


def test_changes_cost_what_they_weigh(phantoms: dict[str, Tensor]) -> None:
    scalars = cft(backbone=Adder(), minimality=0.25)(phantoms)
    assert scalars["change"].item() == pytest.approx(1, rel=1e-4)
    assert (scalars["loss"] - scalars["guidance"]).item() == pytest.approx(0.25, rel=1e-3)


def test_images_before_and_after_are_changed_alike_before_a_guide_sees_them(phantoms: dict[str, Tensor]) -> None:
    """An image mechanism that changes nothing costs nothing under soft targets, however images are changed."""

    class Same(Recorder):
        def counterfactual(self, image: Tensor, parents: Tensor, *others: Any) -> BackboneOutput:
            return BackboneOutput(image=image + 0 * self.shift, fidelity=self.shift)

    augmentation = AugmentationConfig(random_flip=True, random_shift=0.1, random_noise=0.3)
    objective = cft(backbone=Same(), augmentation=augmentation)
    losses = objective({**phantoms, "seeds": list(range(64))})
    plain = cft(backbone=Same())({**phantoms, "seeds": list(range(64))})
    assert losses["guidance"] != plain["guidance"]  # what moves has a label for a target
    image, generators = phantoms["image"], [torch.Generator().manual_seed(i) for i in range(64)]
    changed = objective.random_change(image, generators)
    assert torch.equal(changed(image), changed(image))
