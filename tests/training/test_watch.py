"""Somebody watches fine-tuning in miniature; see test_cft_trainer.py for the generator and its guide."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from softcft.cft.verdict import WATCH
from softcft.models.attribute_scm import AttributeSCM
from softcft.training.cft_config import CFTConfig, WatchConfig
from softcft.training.cft_trainer import CFTTrainer
from softcft.training.watch import Watch
from tests.training.test_cft_trainer import (
    ToyBackbone,
    ToyGuide,
    config,
    draw,
    log,
    scm,
    stack,
)


def mean_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.mean(dim=0) - b.mean(dim=0)).square().sum().item()


def deceived() -> ToyGuide:
    """A guide that takes each attribute for its contrary."""
    guide = ToyGuide()
    guide.templates.data.neg_()
    return guide


def fine_tune(
    folder: Path, guides: list[Any], cft: str = "soft", images: int = 40, watch_steps: int | None = None, **fields: Any
) -> tuple[ToyBackbone, Watch]:
    backbone = ToyBackbone()
    training = config(folder, **{"max_train_steps": 40, "ema_decay": 0.5, "train_batch_size": 16, **fields})
    trainer = CFTTrainer(backbone, scm(), guides, training, CFTConfig(cft=cft, damping=0.0))  # type: ignore[arg-type]
    watcher: Any = ToyGuide()
    settings = WatchConfig(watch_steps=watch_steps)
    watch = Watch(trainer.objective, watcher, draw(images, seed=2), settings, training, mean_distance)  # type: ignore[arg-type]
    trainer.train(draw(256, seed=0), watch)  # type: ignore[arg-type]
    return backbone, watch


def test_labels_for_what_nobody_touched_are_told(tmp_path: Path) -> None:
    """Hard targets amplify: the images are clearer cases than real ones, which a watcher compares them with."""
    _, watch = fine_tune(tmp_path, [ToyGuide()], "hard", max_train_steps=200)
    verdict = watch.verdict()
    assert verdict.is_attack
    assert verdict.step_saved < 200


@pytest.mark.parametrize("cft", ["soft", "matched"])
def test_who_sees_the_same_as_the_guide_finds_that_it_helps(tmp_path: Path, cft: str) -> None:
    _, watch = fine_tune(tmp_path, [ToyGuide(), ToyGuide()], cft)
    steps = [look.step for look in watch.looks]
    assert steps == list(range(0, 41, 4))[: len(steps)]  # about ten looks, or fewer where it ends early
    if cft == "matched":
        for look in watch.looks:
            assert look.watcher == pytest.approx(look.guide, abs=1e-4)
        assert steps[-1] == 40
        assert not watch.verdict().is_attack
    assert min(look.means()["watcher"] for look in watch.looks) < watch.looks[0].means()["watcher"]
    assert watch.verdict().step_saved > 0


def test_a_deceived_guide_is_attacked_and_the_pretrained_model_left(tmp_path: Path) -> None:
    backbone, watch = fine_tune(tmp_path, [deceived()])
    verdict = watch.verdict()
    assert verdict.is_attack
    assert verdict.step_saved == 0
    for name, weight in ToyBackbone().named_parameters():
        assert torch.equal(weight, backbone.get_parameter(name))
    assert watch.looks[-1].means()["change"] > 0
    lines = [line for line in log(tmp_path) if "watch/watcher" in line]
    assert [line["step"] for line in lines] == [look.step for look in watch.looks]
    for line, look in zip(lines, watch.looks, strict=True):
        assert {key: line[f"watch/{key}"] for key in look.means()} == look.means()


def test_looks_show_always_the_same_and_what_it_is(tmp_path: Path) -> None:
    """The pretrained model, watched again: same images, interventions and noise, in whatever batches."""
    _, watch = fine_tune(tmp_path / "one", [ToyGuide()], max_train_steps=1, learning_rate=1e-12)
    assert watch.looks[0].watcher == pytest.approx(watch.looks[-1].watcher, abs=1e-5)
    _, other = fine_tune(tmp_path / "two", [ToyGuide()], max_train_steps=1, learning_rate=1e-12, train_batch_size=7)
    assert watch.looks[0].watcher == pytest.approx(other.looks[0].watcher, abs=1e-4)
    assert watch.looks[0].change == pytest.approx(other.looks[0].change, abs=1e-3)
    assert watch.looks[0].frechet == pytest.approx(other.looks[0].frechet, abs=1e-4)
    image, _ = stack(draw(40, seed=2))
    # Each image has one attribute flipped: half of it moves by twice the shift of that attribute times the strength.
    possible = [127.5 * 0.8 * shift for shift in (0.15, 0.1)]
    assert all(min(abs(change - one) for one in possible) < 0.1 for change in watch.looks[0].change)
    assert len(watch.looks[0].change) == len(image)


def test_it_looks_at_a_part_of_many_images(tmp_path: Path) -> None:
    _, watch = fine_tune(tmp_path, [ToyGuide()], images=300, max_train_steps=1, train_batch_size=64)
    assert len(watch.looks[0].watcher) == 256


@pytest.mark.parametrize("cft", ["soft", "matched"])
def test_who_looks_changes_nothing_and_survives(tmp_path: Path, cft: str) -> None:
    """The training goes on as without looks; resumed, it ends as it would have."""
    fields: dict[str, Any] = {"watch_steps": 4, "max_train_steps": 12, "checkpointing_steps": 5}
    whole, seen = fine_tune(tmp_path / "whole", [deceived()], cft, **fields)
    fine_tune(tmp_path / "rare", [deceived()], cft, **fields | {"watch_steps": 12})
    lines = [
        [{**line, "images_per_second": 0} for line in log(tmp_path / run) if "loss" in line]
        for run in ("whole", "rare")
    ]
    assert lines[0] == lines[1]
    for step in (5, 10):
        folder = tmp_path / str(step)
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        shutil.copy(tmp_path / "whole" / "metrics.jsonl", folder)
        resumed, again = fine_tune(folder, [deceived()], cft, **fields, resume_from_checkpoint="latest")
        assert again.looks == seen.looks
        for name, weight in whole.named_parameters():
            assert torch.equal(weight, resumed.get_parameter(name))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="watch_steps"):
        WatchConfig(watch_steps=0)
    with pytest.raises(ValueError, match="watch=False"):
        fine_tune(tmp_path, [ToyGuide()], images=1)
    training = config(tmp_path)
    trainer = CFTTrainer(ToyBackbone(), scm(), [ToyGuide()], training, CFTConfig())  # type: ignore[list-item]
    stranger: Any = ToyGuide()
    stranger.causal_graph = AttributeSCM([{"name": "x", "kind": "binary", "categories": ["a", "b"]}]).causal_graph
    with pytest.raises(ValueError, match="graph"):
        Watch(trainer.objective, stranger, draw(4, seed=0), WatchConfig(), training, mean_distance)  # type: ignore[arg-type]
    assert not list(tmp_path.glob(f"**/{WATCH}"))
