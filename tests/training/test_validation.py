"""Early stopping: what is left of a training is what was best on images that it has not seen."""

import pytest
import torch

from softcft import AttributeClassifier, CausalGraph
from softcft.data.schema import scale_pixels
from softcft.training.config import ValidationConfig
from softcft.training.loop import train
from softcft.training.objectives import ClassifierObjective
from softcft.training.validation import ValidationLoss
from tests.training.test_loop import equal, lines, settings

GRAPH = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 0, "high": 10},
        {"name": "sex", "kind": "binary", "categories": ["male", "female"]},
    ]
)


def images(n, seed, noise=False, missing=0):
    """Pictures whose brightness tells both attributes, or nothing."""
    generator = torch.Generator().manual_seed(seed)
    parents = torch.stack([2 * torch.rand(n, generator=generator) - 1, (torch.arange(n) % 2).float()], dim=1)
    shown = parents if not noise else parents[torch.randperm(n, generator=generator)]
    pixels = 40 * torch.rand(n, 1, 8, 8, generator=generator)
    pixels[:, :, :4] += 50 + 50 * shown[:, 0, None, None, None]
    pixels[:, :, 4:] += 100 * shown[:, 1, None, None, None]
    parents[:missing, 0] = torch.nan
    return [{"image": x, "parents": y} for x, y in zip(pixels.to(torch.uint8), parents, strict=True)]


def make_objective():
    torch.manual_seed(0)
    trunk = {"model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [8], "depths": [1]}
    return ClassifierObjective(AttributeClassifier(GRAPH.to_list(), {**trunk, "layer_type": "basic"}))


def trained(folder, validation, every=5, **fields):
    objective = make_objective()
    monitor = ValidationLoss(objective.classifier, validation, every, seed=0)
    fields = {"max_train_steps": 30, "train_batch_size": 8, "learning_rate": 1e-2, **fields}
    train(objective, images(16, seed=1, noise=True), settings(folder, **fields), name="toy", monitor=monitor)
    return objective, monitor


def test_what_is_learned_by_heart_is_not_saved(tmp_path):
    """The training labels are of other pictures, so that after some steps each more is one away from the truth."""
    validation = images(60, seed=2)
    objective, monitor = trained(tmp_path, validation)
    logged = {line["step"]: line["validation/loss"] for line in lines(tmp_path) if "validation/loss" in line}
    assert logged == monitor.losses
    assert list(logged) == [0, 5, 10, 15, 20, 25, 30]
    assert monitor.best_step == min(logged, key=logged.get) < 30
    again = ValidationLoss(objective.classifier, validation, 1, seed=0)
    with torch.no_grad():
        assert again.look(0).metrics["validation/loss"] == pytest.approx(logged[monitor.best_step])


def test_the_loss_is_calibrated_over_all_images_without_missing_values():
    validation = images(300, seed=2, missing=100)  # two batches of different sizes
    objective = make_objective()
    monitor = ValidationLoss(objective.classifier, validation, 1, seed=0)
    look = monitor.look(0)
    logits = objective.classifier(scale_pixels(torch.stack([x["image"] for x in validation]))).logits
    parents = torch.stack([x["parents"] for x in validation])
    known = ~parents[:, 0].isnan()
    age = 0.5 * (logits[known, 0] - parents[known, 0]).square().mean().log()
    sex = min(
        torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 1] * factor, parents[:, 1])
        for factor in torch.linspace(0.01, 100, 10_000)
    )
    expected = {"validation/loss": age + sex, "validation/loss/age": age, "validation/loss/sex": sex}
    assert look.metrics == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-3)
    assert look.is_best
    assert not objective.classifier.training
    assert not monitor.look(1).is_best  # no better than before


def test_a_large_validation_split_is_looked_at_in_part():
    many = images(3000, seed=0)
    one, other = (ValidationLoss(make_objective().classifier, many, 1, seed=seed).images for seed in (0, 1))
    assert len(one) == 2048
    assert one.indices != other.indices


def test_a_loss_that_is_no_number_is_never_the_best():
    objective = make_objective()
    monitor = ValidationLoss(objective.classifier, images(10, seed=0), 1, seed=0)
    torch.nn.init.constant_(objective.classifier.heads.bias, torch.nan)
    assert not monitor.look(0).is_best
    assert monitor.best_step is None


def test_resumed_it_equals_a_run_that_was_not_stopped(tmp_path):
    validation = images(20, seed=2)
    whole, monitor = trained(tmp_path, validation, checkpointing_steps=15)
    for checkpoint in sorted(tmp_path.glob("checkpoint-*")):
        resumed, again = trained(tmp_path / checkpoint.name / "on", validation, resume_from_checkpoint=str(checkpoint))
        assert equal(whole, resumed)
        assert again.losses == monitor.losses
        assert again.best_step == monitor.best_step


def test_the_setting_is_checked():
    with pytest.raises(ValueError, match="validation_steps"):
        ValidationConfig(validation_steps=-1)
