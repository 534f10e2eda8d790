"""The estimate of a run: every training of the settings can be measured, and what follows from that."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from softcft.data.config import DataConfig
from softcft.run.estimate import COUNTERFACTUAL, estimate, measure, number_of_steps, split_sizes, tell
from softcft.run.plan import Plan, RunConfig, make_plan
from softcft.training.parsing import parse_config
from tests.recipes.small_pipeline import TINY, forget_accelerate

SIZES = {"train": 600, "validation": 20, "test": 40}


def plan_of(folder: Path, *flags: str, hvae: bool = True, **run: object) -> Plan:
    config = yaml.safe_load(TINY.read_text())
    del config["diffusion" if hvae else "hvae"]
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(config))
    argv = ["--config", str(path), *flags]
    sections, _, settings = parse_config("data", DataConfig, RunConfig, default_config=path, argv=argv)
    return make_plan(sections, replace(settings, output_dir=str(folder / "run"), **run), argv, path)


@pytest.mark.parametrize("hvae", [True, False])
def test_each_training_is_measured_at_its_size(tmp_path: Path, hvae: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, hvae=hvae, utility=True)
    for section in [*plan.trainings, COUNTERFACTUAL]:
        forget_accelerate()
        seconds, _ = measure(plan, section)
        assert 0 < seconds < 60
    forget_accelerate()
    assert not plan.folder.exists()  # what was learned is thrown away


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes 2 seconds, a pass over an image 1, and to start 10. Nothing is measured."""

    class Pool:
        def __init__(self, processes: int, context: object) -> None: ...
        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, function: object, sections: list[str]) -> list[tuple[float, float]]:
            return [(1.0 if section == COUNTERFACTUAL else 2.0, 10.0) for section in sections]

    monkeypatch.setattr("softcft.run.estimate.ProcessPoolExecutor", Pool)


def test_every_step_is_estimated_and_told(tmp_path: Path, measured: None) -> None:
    for run in {"utility": True, "cft": ["none", "soft", "matched"]}, {"jobs": 1}:
        plan = plan_of(tmp_path, **run)
        seconds = estimate(plan, SIZES)
        names = [step.name for group in plan.groups for step in group]
        assert list(seconds) == names
        assert min(seconds.values()) >= 10
        told = tell(plan, SIZES, seconds)
        assert all(f" {name} " in told for name in names)
        assert seconds["none"] == 10
        assert seconds["hvae"] == pytest.approx(10 + 2 * plan.trainings["hvae"].training.max_train_steps)
    assert sum(estimate(plan_of(tmp_path, jobs=1), SIZES).values()) >= sum(estimate(plan_of(tmp_path), SIZES).values())


def test_few_images_and_flags_take_fewer_steps(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    guide = plan.trainings["guide"]
    training = replace(guide.training, max_train_steps=1000, max_train_epochs=3, train_batch_size=10)
    half = any(getattr(other, "half", "all") != "all" for other in guide.others.values())
    assert number_of_steps(plan, replace(guide, training=training), 100) == (15 if half else 30)
    assert number_of_steps(plan_of(tmp_path, max_train_steps=7), replace(guide, training=training), 100) == 7


def test_sizes_are_known_before_any_picture_is_read() -> None:
    data = DataConfig(dataset_name="phantom", sample_size=16, num_test=7)
    assert split_sizes(data, {}) == {"train": 20_000, "validation": 2_000, "test": 7}
