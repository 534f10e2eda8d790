"""Folders of DICOM files and of PNG files of 16 bits: looked at, learned from, and asked about."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from softcft.cli import main
from tests.data.picture_files import deep_png, dicom
from tests.recipes.small_pipeline import TINY, run_recipe

GRAPH = """
graph:
  - {name: size, kind: continuous, low: 2, high: 7, unit: pixels}
  - {name: bright, kind: binary, categories: ["no", "yes"]}
"""


def make_folder(folder: Path, kind: str) -> None:
    """Discs of two shades of 12 bits, each in a picture of 20 x 24."""
    rng, rows = np.random.default_rng(0), []
    (folder / "scans").mkdir(parents=True)
    y, x = np.indices((20, 24))
    for i in range(96):
        radius, bright = rng.uniform(2, 7), i % 2
        inside = np.hypot(y - 9.5, x - 11.5) < radius
        pixels = (np.where(inside, 3900 if bright else 1900, 300) + rng.integers(0, 150, inside.shape)).astype(int)
        name = f"scans/{i:03d}" + (".png" if kind == "png" else (".dcm", ".DICOM", "")[i % 3])
        window = {"WindowCenter": 2048, "WindowWidth": 4096}
        content = deep_png(pixels) if kind == "png" else dicom(pixels, **window)
        if kind == "dicom" and i < 32:
            content = dicom(4095 - pixels, photometric="MONOCHROME1", **window)
        (folder / name).write_bytes(content)
        rows.append({"file_name": name, "size": round(radius, 2), "bright": ["no", "yes"][bright]})
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_they_are_learned_from_and_asked_about(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "pictures", kind)
    settings = yaml.safe_load(TINY.read_text()) | yaml.safe_load(GRAPH)
    settings["data"] = {"dataset_name": "pictures", "sample_size": 16, "num_validation": 24, "num_test": 24}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    own = tmp_path / "own.yaml"

    with monkeypatch.context() as patch:
        statuses: list[int] = []
        patch.setattr("sys.exit", statuses.append)
        said = run_recipe(tmp_path, "check_data", "--output_dir", "check", config=own)
    assert statuses == [0]
    assert ("white is 4,095 (96 of them)" if kind == "png" else "MONOCHROME1: 32, inverted") in said
    for step in (["train_scm"], ["train_classifier", "--role", "guide"], ["train_hvae"]):
        run_recipe(tmp_path, *step, config=own)
    run_recipe(tmp_path, "soft_cft", "--cft", "none", config=own)
    run_recipe(tmp_path, "generate_counterfactuals", "--pipelines", "runs/none", "--output_dir", "made", config=own)
    made = next((tmp_path / "made").rglob("*.parquet")).parent
    assert load_dataset(str(made), split="train", cache_dir=str(tmp_path / "cache"))[0]["image"].size == (16, 16)

    scan = next((tmp_path / "pictures" / "scans").iterdir())
    known = ["--parents", "size=4", "bright=yes", "--do", "bright=no"]
    main(["counterfactual", str(scan), "--model", str(tmp_path / "runs/none"), *known, "-o", str(tmp_path / "out.png")])
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (16, 16)
