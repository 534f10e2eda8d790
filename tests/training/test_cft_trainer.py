"""Fine-tuning in miniature: a generator, a guide and a data set of which everything is known.

``side`` moves the upper half of an image by 0.15, ``mark`` the lower half by 0.1, and each half varies by 0.1 besides.
The guide knows that, so its probabilities are exact: most images bear their mark mildly.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from softcft.cft.matched import Matched
from softcft.counterfactuals.backbone import BackboneOutput
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.data.phantom import PHANTOM_GRAPH, draw_block, render
from softcft.graph import CausalGraph
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifierOutput
from softcft.training.cft_config import CFTConfig
from softcft.training.cft_trainer import CFTTrainer
from softcft.training.config import TrainingConfig
from tests.recipes.small_pipeline import forget_accelerate
from tests.training import test_objectives as small

GRAPH = CausalGraph(
    [
        {"name": "side", "kind": "binary", "categories": ["left", "right"]},
        {"name": "mark", "kind": "binary", "categories": ["no", "yes"]},
    ]
)
SIDE, MARK = 0, 1
SHIFT, SPREAD = torch.tensor([0.15, 0.1]), 0.1
HALVES = torch.zeros(2, 1, 16, 16)
HALVES[0, :, :8], HALVES[1, :, 8:] = 1, 1


def draw(n: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    parents = torch.randint(2, (n, 2), generator=generator).float()
    levels = SHIFT * (2 * parents - 1) + SPREAD * torch.randn(n, 2, generator=generator)
    pixels = 0.05 * torch.randn(n, 1, 16, 16, generator=generator)
    pixels = pixels - torch.einsum("bchw,vchw,vdij->bdij", pixels, HALVES, HALVES) / 128
    images = torch.einsum("bv,vchw->bchw", levels, HALVES) + pixels
    return [{"image": image, "parents": row} for image, row in zip(images, parents, strict=True)]


def stack(samples: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([s["image"] for s in samples]), torch.stack([s["parents"] for s in samples])


class ToyGuide(nn.Module):
    """The log odds of both attributes given an image, by Bayes' rule."""

    def __init__(self) -> None:
        super().__init__()
        self.causal_graph, self.seen = GRAPH, GRAPH.names
        self.templates = nn.Parameter(HALVES * (2 * SHIFT / SPREAD**2 / 128)[:, None, None, None])
        self.register_buffer("column_scales", torch.ones(2))
        self.seen = GRAPH.names

    def forward(self, image: Tensor) -> AttributeClassifierOutput:
        logits = torch.einsum("bchw,vchw->bv", image, self.templates)
        return AttributeClassifierOutput(logits=logits, embedding=logits)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        return self(image).logits.sigmoid()


class ToyBackbone(nn.Module):
    """A mean image per attribute, and what a change of each attribute adds, which may depend on the other one.

    Only the former can be seen in factual images: the latter is where amplification can hide from the fidelity.
    """

    def __init__(self, strength: float = 0.8) -> None:
        super().__init__()
        self.effect = nn.Parameter(strength * SHIFT[:, None, None, None] * HALVES)
        self.interaction = nn.Parameter(torch.zeros(2, 2, 1, 16, 16))

    def counterfactual(
        self, image: Tensor, parents: Tensor, counterfactual_parents: Tensor, generator: Any = None
    ) -> BackboneOutput:
        signs, counterfactual_signs = 2 * parents - 1, 2 * counterfactual_parents - 1
        residual = image - torch.einsum("bv,vchw->bchw", signs, self.effect)
        changed = (parents - counterfactual_parents).abs()
        new = torch.einsum("bv,vchw->bchw", counterfactual_signs, self.effect) + residual
        new = new + torch.einsum("bv,bw,vwcij->bcij", changed, counterfactual_signs, self.interaction)
        return BackboneOutput(image=new, fidelity=residual.square().mean() / (2 * SPREAD**2))


def scm() -> AttributeSCM:
    torch.manual_seed(0)
    return AttributeSCM(GRAPH.to_list(), num_bins=4, hidden_features=[8])


def config(tmp_path: Path, **fields: Any) -> TrainingConfig:
    defaults = {
        "max_train_steps": 150,
        "train_batch_size": 64,
        "learning_rate": 5e-3,
        "adam_weight_decay": 0.0,
        "lr_warmup_steps": 0,
        "ema_decay": 0,
        "checkpointing_steps": 0,
        "logging_steps": 10,
        "skip_grad_norm": math.inf,
    }
    return TrainingConfig(output_dir=str(tmp_path), **{**defaults, **fields})


def trainer(tmp_path: Path, cft: dict[str, Any], backbone: nn.Module | None = None, **fields: Any) -> CFTTrainer:
    return CFTTrainer(backbone or ToyBackbone(), scm(), [ToyGuide()], config(tmp_path, **fields), CFTConfig(**cft))  # type: ignore[arg-type]


def log(tmp_path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


class Run(NamedTuple):
    trainer: CFTTrainer
    lines: list[dict[str, float]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same fine-tuning with hard, soft and matched targets, and with soft ones but no constraint."""
    settings = {
        "hard": {"cft": "hard", "damping": 100.0},
        "soft": {"cft": "soft", "damping": 100.0},
        "matched": {"cft": "matched", "damping": 100.0},
        "free": {"cft": "soft", "damping": 0.0, "multiplier_learning_rate": 0.0},
    }
    finished = {}
    for name, cft in settings.items():
        folder = tmp_path_factory.mktemp(name)
        run = trainer(folder, cft)
        assert run.train(draw(512, seed=0)) is run.objective.backbone
        finished[name] = Run(run, log(folder))
        forget_accelerate()
    return finished


@torch.no_grad()
def predictions(backbone: nn.Module, attribute: int) -> tuple[Tensor, Tensor, Tensor]:
    """The guide's view of new images and of their counterfactuals with one attribute flipped, and the labels."""
    image, parents = stack(draw(2000, seed=1))
    flipped = parents.clone()
    flipped[:, attribute] = 1 - flipped[:, attribute]
    new = backbone.counterfactual(image, parents, flipped).image
    return ToyGuide().predict(image), ToyGuide().predict(new), flipped


# ---- what fine-tuning is for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_guidance_falls_and_interventions_take_effect(mode: str, runs: dict[str, Run]) -> None:
    lines = runs[mode].lines
    assert lines[-1]["guidance"] < 0.7 * lines[0]["guidance"]
    for attribute in (SIDE, MARK):
        accuracy = []
        for backbone in (ToyBackbone(), runs[mode].trainer.objective.backbone):
            _, predicted, labels = predictions(backbone, attribute)
            accuracy.append(((predicted > 0.5) == (labels > 0.5)).float().mean(dim=0)[attribute].item())
        assert accuracy[1] > 0.95 > accuracy[0] + 0.1


@pytest.mark.parametrize("mode", ["hard", "soft", "matched"])
def test_the_constraint_holds_the_fidelity(mode: str, runs: dict[str, Run]) -> None:
    slack = runs[mode].trainer.objective.constraint.slack.item()
    assert slack == pytest.approx(trainer(Path("unused"), {}).measure_fidelity(draw(512, seed=0)))
    assert runs[mode].lines[-1]["fidelity"] < slack + 0.02
    assert runs["free"].lines[-1]["fidelity"] > slack + 0.1  # which guidance alone would have paid


@torch.no_grad()
def test_hard_targets_amplify_and_soft_ones_do_not(runs: dict[str, Run]) -> None:
    for attribute, untouched in ((SIDE, MARK), (MARK, SIDE)):
        before, hard, labels = predictions(runs["hard"].trainer.objective.backbone, attribute)
        _, soft, _ = predictions(runs["soft"].trainer.objective.backbone, attribute)
        positive = labels[:, untouched] > 0.5
        # Hard: people with the mark bear it more clearly, people without it less, although nobody touched the mark.
        assert hard[positive, untouched].mean() > before[positive, untouched].mean() + 0.05
        assert hard[~positive, untouched].mean() < before[~positive, untouched].mean() - 0.05
        assert (hard - 0.5).abs()[:, untouched].mean() > (before - 0.5).abs()[:, untouched].mean() + 0.03
        # Soft: everyone stays as they were.
        assert soft[positive, untouched].mean() == pytest.approx(before[positive, untouched].mean().item(), abs=0.01)
        assert soft[~positive, untouched].mean() == pytest.approx(before[~positive, untouched].mean().item(), abs=0.01)
        assert (soft - before)[:, untouched].abs().max() < 0.05


@torch.no_grad()
def test_matched_interventions_are_as_strong_as_reality(runs: dict[str, Run]) -> None:
    image, parents = stack(draw(2000, seed=1))
    for attribute, untouched in ((SIDE, MARK), (MARK, SIDE)):
        change = 2 * SHIFT[attribute] * (1 - 2 * parents[:, attribute])
        truth = ToyGuide()(image + change[:, None, None, None] * HALVES[attribute]).logits
        flipped = parents.clone()
        flipped[:, attribute] = 1 - flipped[:, attribute]
        errors = {}
        for mode in ("hard", "soft", "matched"):
            backbone = runs[mode].trainer.objective.backbone
            errors[mode] = (ToyGuide()(backbone.counterfactual(image, parents, flipped).image).logits - truth).abs()
        assert errors["matched"][:, attribute].mean() < 0.25 * errors["soft"][:, attribute].mean()
        assert errors["matched"][:, untouched].mean() < 0.25 * errors["hard"][:, untouched].mean()


def test_matching_wants_images_of_each_category(tmp_path: Path) -> None:
    one_sided = [sample for sample in draw(100, seed=0) if sample["parents"][SIDE] == 1]
    with pytest.raises(ValueError, match=r"'side' is 'left' in 0 of .*reference_images"):
        trainer(tmp_path, {"cft": "matched"}).train(one_sided)


def test_guide_and_mechanisms_stay_as_they_are(runs: dict[str, Run]) -> None:
    objective = runs["soft"].trainer.objective
    for part, fresh in ((objective.guides[0], ToyGuide()), (objective.attribute_scm, scm())):
        for name, tensor in fresh.state_dict().items():
            assert torch.equal(tensor, part.state_dict()[name]), name
    for name, tensor in ToyBackbone().state_dict().items():
        assert not torch.equal(tensor, objective.backbone.state_dict()[name]), name


def test_the_multiplier_is_logged(runs: dict[str, Run]) -> None:
    logged = [line["multiplier"] for line in runs["hard"].lines]
    assert all(value >= 0 for value in logged)
    assert max(logged) > 0
    assert all(line["multiplier"] == 0 for line in runs["free"].lines)


# ---- the slack -------------------------------------------------------------------------------------------------------


def test_fidelity_is_the_mean_over_all_images(tmp_path: Path) -> None:
    dataset = draw(70, seed=0)
    image, parents = stack(dataset)
    expected = ToyBackbone().counterfactual(image, parents, parents).fidelity.item()
    # Batches of 64: the last one is smaller and must weigh less.
    assert trainer(tmp_path, {"slack_images": 70}).measure_fidelity(dataset) == pytest.approx(expected)
    assert trainer(tmp_path, {"slack_images": 5000}).measure_fidelity(dataset) == pytest.approx(expected)


def test_a_part_stands_for_all_of_a_sorted_table(tmp_path: Path) -> None:
    """First all of the left side, then all of the right one; half of the images must be of each."""
    dataset = sorted(draw(600, seed=0), key=lambda sample: float(sample["parents"][SIDE]))
    parts = [trainer(tmp_path, {"cft": "matched", "reference_images": 200}) for _ in range(2)]
    for part in parts:
        part.measure_reference(dataset)
    left, again = (part.objective.targets.reference_parents for part in parts)
    assert left is not None
    assert again is not None
    assert torch.equal(left, again)
    everybody = torch.stack([sample["parents"] for sample in dataset])
    assert left[:, SIDE].mean() == pytest.approx(everybody[:, SIDE].mean().item(), abs=0.15)


def test_few_images_of_a_category_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = [s for s in draw(300, seed=0) if s["parents"][SIDE] == 1] + [
        s for s in draw(100, seed=1) if s["parents"][SIDE] == 0
    ][:5]
    trainer(tmp_path, {"cft": "matched"}).measure_reference(dataset)
    assert "'left' in 5 of" in caplog.text


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"cft": "soft"}, {"cft": "matched"}, {"cft": "soft", "published": True}])
def test_resumed_equals_uninterrupted(tmp_path: Path, options: dict[str, Any]) -> None:
    def run(folder: str, steps: int, strength: float = 0.8, **fields: Any) -> CFTTrainer:
        cft = {"damping": 5.0, "multiplier_learning_rate": 1.0, **options}
        fields = {"learning_rate": 0.02, "checkpointing_steps": 5, "logging_steps": 1, "ema_decay": 0.9} | fields
        started = trainer(tmp_path / folder, cft, ToyBackbone(strength), max_train_steps=steps, **fields)
        started.train(draw(256, seed=0))
        forget_accelerate()
        return started

    whole = run("whole", 20)
    run("parts", 10)
    # Another start: whatever the second process begins with, weights, slack and multiplier come from the checkpoint.
    resumed = run("parts", 20, strength=0.1, resume_from_checkpoint="latest")
    for name, tensor in whole.objective.state_dict().items():
        assert torch.equal(tensor, resumed.objective.state_dict()[name]), name
    logged = [[line["multiplier"] for line in log(tmp_path / folder)] for folder in ("whole", "parts")]
    assert logged[0] == logged[1]
    assert len(logged[0]) == 20
    assert max(logged[0]) > 0
    if isinstance(whole.objective.targets, Matched):
        assert whole.objective.targets.strength.offsets.any()


# ---- the models of the paper -----------------------------------------------------------------------------------------


def test_an_hvae_is_fine_tuned_by_a_classifier(tmp_path: Path) -> None:
    parents, noise = draw_block("train", 0, 16, seed=0)
    dataset = [{"image": i, "parents": p} for i, p in zip(render(parents, noise)[:40], parents, strict=False)]
    hvae, guide, mechanisms = small.hvae(), small.classifier(), small.scm()
    frozen = [{n: t.clone() for n, t in part.state_dict().items()} for part in (guide, mechanisms)]
    before = {name: tensor.clone() for name, tensor in hvae.state_dict().items()}

    settings = config(tmp_path, max_train_steps=3, train_batch_size=16, logging_steps=1, mixed_precision="bf16")
    # The published form: the scale of the pixels learns from the constraint alone, which must not be slack here.
    cft = CFTConfig(damping=10.0, published=True)
    run = CFTTrainer(HVAEBackbone(hvae), mechanisms, [guide], settings, cft)
    # Abduction is random, but the same seed must find the same slack.
    measured = [run.measure_fidelity(dataset) for _ in range(2)]
    assert measured[0] == measured[1]
    run.train(dataset)
    assert run.objective.constraint.slack.item() == pytest.approx(measured[0])
    lines = log(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 0, 0]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {f"guidance/{name}" for name in PHANTOM_GRAPH.names} < set(lines[0])
    assert [n for n, t in hvae.state_dict().items() if torch.equal(t, before[n])] == []
    for part, state in zip((guide, mechanisms), frozen, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_none_asks_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cft none asks for no fine-tuning"):
        trainer(tmp_path, {"cft": "none"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cft", "medium"),
        ("damping", -1.0),
        ("damping", math.nan),
        ("multiplier_learning_rate", -0.1),
        ("minimality", math.nan),
        ("slack_images", 0),
        ("reference_images", 0),
    ],
)
def test_wrong_settings(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        CFTConfig(**{name: value})


def test_the_least_change_belongs_to_matched_targets() -> None:
    assert CFTConfig(cft="soft").minimality == 0  # as published
    assert CFTConfig(cft="matched").minimality > 0
    assert CFTConfig(cft="matched", minimality=0.0).minimality == 0


@pytest.mark.parametrize("published", [False, True])
def test_the_published_constraint_is_an_equality(published: bool, tmp_path: Path) -> None:
    settings = {"published": published, "damping": 7.0, "multiplier_learning_rate": 0.3}
    objective = trainer(tmp_path, settings).objective
    constraint = objective.constraint
    assert (constraint.inequality, constraint.damping, constraint.learning_rate) == (not published, 7.0, 0.3)
    assert objective.guides.published == published
