import sys
from pathlib import Path

import numpy as np
import pytest

from softcft.data.morphomnist import load_morphomnist
from tests.data.test_morphomnist import NUM_TEST, folder, images
from tests.recipes.small_pipeline import load_recipe

__all__ = ["folder"]

RECIPE = load_recipe("weaken_morphomnist")


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["weaken_morphomnist.py", *flags])
    RECIPE.main()


def test_only_the_images_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--data_dir", str(folder), "--output_dir", str(folder / "weak"))
    clear, weak = (load_morphomnist(path, num_validation=5) for path in (folder, folder / "weak"))
    for split, rows in weak.items():
        assert rows.remove_columns("image").to_dict() == clear[split].remove_columns("image").to_dict()
    changed = [np.asarray(row["image"])[2:30, 2:30] for row in weak["test"]]
    assert len(changed) == NUM_TEST
    assert not any(np.array_equal(new, old) for new, old in zip(changed, images(NUM_TEST), strict=True))


def test_blur_and_noise_are_those_asked_for() -> None:
    point = np.zeros((2000, 28, 28), np.uint8)
    point[:, 14, 14] = 255
    blurred = RECIPE.weaken(point[:1], blur=1.0, noise=0.0, seed=0)[0].astype(float)
    spread = (blurred.sum(axis=0) * (np.arange(28) - 14) ** 2).sum() / blurred.sum()
    assert spread == pytest.approx(1, abs=0.1)
    noisy = RECIPE.weaken(np.full_like(point, 128), blur=3.0, noise=10.0, seed=0).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=0.1)
    assert noisy.std() == pytest.approx(10, rel=0.01)
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.15  # each image has noise of its own
    assert np.array_equal(RECIPE.weaken(point, 1.0, 5.0, seed=3), RECIPE.weaken(point, 1.0, 5.0, seed=3))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--blur", "-1"], "--blur"),
        (["--noise", "inf"], "--noise"),
        (["--output_dir", "."], "--output_dir . is there already and not empty"),
        (["--data_dir", "nowhere"], "data_dir nowhere is no folder"),
    ],
)
def test_mistakes_end_the_program(flags: list[str], match: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=match):
        run(monkeypatch, "--data_dir", ".", "--output_dir", "weak", *flags)
    assert not Path("weak").exists()
