import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.graph import CausalGraph
from softcft.models.classifier import AttributeClassifier, attribute_losses
from softcft.models.sight import Sight
from tests.small_models import TRUNK

GRAPH = [
    {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
    {"name": "age", "kind": "continuous", "low": 20, "high": 90},
    {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
]
SITE, AGE, ILL = slice(0, 3), slice(3, 4), slice(4, 5)
SCALES = {"site": 2.0, "age": 0.25, "ill": 0.5}
CONVNEXT = {"model_type": "convnextv2", "num_channels": 1, "hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}
IMAGE = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(backbone: dict[str, Any] = TRUNK, scales: dict[str, float] | None = None) -> AttributeClassifier:
    torch.manual_seed(0)
    model = AttributeClassifier(GRAPH, backbone, scales)
    with torch.no_grad():
        model.heads.bias.copy_(torch.linspace(-1, 1, 5))
    return model.eval()


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Labels that follow the probabilities, (N, 1) or one-hot (N, C)."""
    if probabilities.shape[1] == 1:
        return (torch.rand(probabilities.shape, generator=generator) < probabilities).float()
    return F.one_hot(torch.multinomial(probabilities, 1, generator=generator)[:, 0], probabilities.shape[1]).float()


def calibrated_data(n: int = 20_000, error: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits of a perfectly calibrated classifier, and labels."""
    generator = seeded(1)
    logits = 1.5 * torch.randn(n, 5, generator=generator)
    age = logits[:, AGE] + error * torch.randn(n, 1, generator=generator)
    parents = [draw(logits[:, SITE].softmax(1), generator), age, draw(logits[:, ILL].sigmoid(), generator)]
    return logits, torch.cat(parents, dim=1)


# ---- prediction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [TRUNK, CONVNEXT], ids=["resnet", "convnextv2"])
@torch.no_grad()
def test_predictions_have_the_graph_s_columns(backbone: dict[str, Any]) -> None:
    model = build(backbone)
    output = model(IMAGE)
    assert output.logits.shape == (6, 5)
    assert output.embedding.shape == (6, backbone["hidden_sizes"][-1])
    prediction = model.predict(IMAGE)
    torch.testing.assert_close(prediction[:, SITE], output.logits[:, SITE].softmax(dim=1))
    torch.testing.assert_close(prediction[:, AGE], output.logits[:, AGE])
    torch.testing.assert_close(prediction[:, ILL], output.logits[:, ILL].sigmoid())
    torch.testing.assert_close(prediction[:, SITE].sum(dim=1), torch.ones(6))
    assert not torch.allclose(prediction[0], prediction[1])


@torch.no_grad()
def test_scales_divide_the_logits_of_discrete_variables_alone() -> None:
    plain, scaled = build()(IMAGE), build(scales=SCALES)(IMAGE)
    torch.testing.assert_close(scaled.logits[:, SITE], plain.logits[:, SITE] / 2)
    torch.testing.assert_close(scaled.logits[:, AGE], plain.logits[:, AGE], rtol=0, atol=0)
    torch.testing.assert_close(scaled.logits[:, ILL], plain.logits[:, ILL] / 0.5)
    torch.testing.assert_close(scaled.embedding, plain.embedding, rtol=0, atol=0)
    torch.testing.assert_close(build(scales=SCALES).column_scales, torch.tensor([2.0, 2.0, 2.0, 0.25, 0.5]))


@torch.no_grad()
def test_plain_tuple_has_the_logits_first() -> None:
    model = build()
    logits, embedding = model(IMAGE, return_dict=False)
    assert torch.equal(logits, model(IMAGE).logits)
    assert torch.equal(embedding, model(IMAGE).embedding)


def test_a_frozen_classifier_passes_gradients_to_the_image() -> None:
    model = build(scales=SCALES).requires_grad_(False)
    for column in range(5):
        image = IMAGE.clone().requires_grad_()
        model(image).logits[:, column].sum().backward()
        assert image.grad.isfinite().all()
        assert (image.grad.flatten(1).abs().amax(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_images_are_judged_one_by_one() -> None:
    model = build()
    torch.testing.assert_close(model(IMAGE[2:3]).logits, model(IMAGE).logits[2:3], rtol=1e-4, atol=1e-5)


# ---- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [3.0, 1.0, 0.4])
@pytest.mark.parametrize("before", [None, {"site": 5.0, "age": 3.0, "ill": 0.2}])
def test_calibration_recovers_temperature_and_error(before: dict[str, float] | None, factor: float) -> None:
    logits, parents = calibrated_data(error=0.2)
    overconfident = torch.cat([logits[:, SITE] * factor, logits[:, AGE], logits[:, ILL] * factor], dim=1)
    model = build(scales=before)
    # What the model puts out is divided by its present scales.
    outputs = torch.where(model.is_continuous, overconfident, overconfident / model.column_scales)
    model.calibrate(outputs, parents)
    assert model.config.scales["site"] == pytest.approx(factor, rel=0.05)
    assert model.config.scales["ill"] == pytest.approx(factor, rel=0.05)
    assert model.config.scales["age"] == pytest.approx(0.2, rel=0.02)
    assert model.column_scales.tolist() == pytest.approx(
        [model.config.scales[n] for n in ["site"] * 3 + ["age", "ill"]]
    )


def test_each_variable_has_its_own_temperature() -> None:
    logits, parents = calibrated_data()
    model = build()
    model.calibrate(torch.cat([logits[:, SITE] * 2, logits[:, AGE], logits[:, ILL] * 4], dim=1), parents)
    assert model.config.scales["site"] == pytest.approx(2, rel=0.05)
    assert model.config.scales["ill"] == pytest.approx(4, rel=0.05)


@torch.no_grad()
def test_calibration_lowers_the_loss_and_keeps_the_order() -> None:
    model = build()
    with torch.no_grad():
        model.heads.weight.mul_(20)
    before = model(IMAGE).logits
    parents = draw_parents(before)
    model.calibrate(before, parents)
    after = model(IMAGE).logits
    graph = model.causal_graph
    for name in ("site", "ill"):
        losses = [attribute_losses(graph, logits, parents)[name].mean() for logits in (before, after)]
        assert losses[1] <= losses[0] + 1e-6
    assert torch.equal(before[:, SITE].argmax(1), after[:, SITE].argmax(1))
    assert torch.equal(before[:, 4].argsort(), after[:, 4].argsort())


def draw_parents(logits: Tensor) -> Tensor:
    generator = seeded(3)
    site = draw((logits[:, SITE] / 9).softmax(1), generator)
    return torch.cat([site, logits[:, AGE] + 0.1, draw((logits[:, ILL] / 9).sigmoid(), generator)], dim=1)


def test_calibration_goes_by_what_is_known() -> None:
    logits, parents = calibrated_data(600)
    model, other = build(), build()
    model.calibrate(logits[:400], parents[:400])
    gaps = parents.clone()
    gaps[400:, [*range(*SITE.indices(gaps.shape[1])), 3, 4]] = math.nan
    other.calibrate(logits, gaps)
    assert other.config.scales == pytest.approx(model.config.scales)
    gaps[:, AGE] = math.nan
    with pytest.raises(ValueError, match="'age' is missing in all 600 images"):
        other.calibrate(logits, gaps)


def test_calibrating_a_useless_or_perfect_classifier_stays_finite() -> None:
    logits, parents = calibrated_data(500)
    model = build()
    model.calibrate(-logits, parents)  # worse than chance: as unsure as possible
    assert model.config.scales["ill"] == pytest.approx(100)
    model.calibrate(torch.where(model.is_continuous, logits, (2 * parents - 1) * 50) / model.column_scales, parents)
    assert all(math.isfinite(scale) and scale > 0 for scale in model.config.scales.values())


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [TRUNK, CONVNEXT], ids=["resnet", "convnextv2"])
@torch.no_grad()
def test_saved_and_loaded_is_the_same_classifier(tmp_path: Path, backbone: dict[str, Any]) -> None:
    model = build(backbone)
    model.calibrate(*calibrated_data(2000))
    model.save_pretrained(tmp_path)
    loaded = AttributeClassifier.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.causal_graph == model.causal_graph
    assert loaded.config.scales == model.config.scales
    assert loaded.config.backbone == model.config.backbone
    assert torch.equal(loaded.column_scales, model.column_scales)
    assert torch.equal(loaded.is_continuous, model.is_continuous)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    # A copy, because loaded weights lie unaligned in memory, where kernels may add in another order.
    assert torch.equal(copy.deepcopy(loaded)(IMAGE).logits, model(IMAGE).logits)


def test_what_it_sees_is_saved_with_it_and_old_classifiers_load(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "old")
    settings = json.loads((tmp_path / "old" / "config.json").read_text())
    del settings["sees"]  # as versions before saved it
    (tmp_path / "old" / "config.json").write_text(json.dumps(settings))
    old = AttributeClassifier.from_pretrained(tmp_path / "old")
    assert old.config.sees is None
    assert old.seen == ("site", "age", "ill")

    old.store_sight(
        {
            "site": Sight("auc", 0.8, 0.7, 0.9),
            "age": Sight("skill", 0.04, 0.01, 0.06),
            "ill": Sight("auc", 0.9, None, None),
        }
    )
    assert old.seen == ("site", "age")
    old.save_pretrained(tmp_path / "new")
    loaded = AttributeClassifier.from_pretrained(tmp_path / "new")
    assert loaded.sight == old.sight
    assert loaded.seen == ("site", "age")
    with pytest.raises(ValueError, match="sees must"):
        old.store_sight({"site": Sight("auc", 0.8, 0.7, 0.9)})


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_losses_take_probabilities_as_targets() -> None:
    logits, _ = calibrated_data(64)
    targets = torch.cat([torch.full((64, 3), 1 / 3), logits[:, AGE], torch.full((64, 1), 0.65)], dim=1)
    losses = attribute_losses(CausalGraph(GRAPH), logits, targets)
    torch.testing.assert_close(losses["site"], F.cross_entropy(logits[:, SITE], targets[:, SITE], reduction="none"))
    p = logits[:, 4].sigmoid()
    torch.testing.assert_close(losses["ill"], -0.65 * p.log() - 0.35 * (1 - p).log())
    assert (losses["age"] == 0).all()


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "vit_mae", "videomae"])
def test_a_backbone_that_makes_no_vector_of_an_image_is_refused(model_type: str) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(ValueError, match=f"backbone has the model_type '{model_type}'"):
        AttributeClassifier(GRAPH, {"model_type": model_type, **sizes})
