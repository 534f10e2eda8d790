"""Test images beside a pipeline."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from softcft import CausalGraph
from softcft.app.models import Model, read_examples
from softcft.data.examples import save_examples
from softcft.data.pixels import encode_pixels
from softcft.data.schema import ImageAttributeDataset
from softcft.pipelines.query import ImageFormat

GRAPH = CausalGraph(
    [
        {"name": "size", "kind": "continuous", "low": 0, "high": 10},
        {"name": "state", "kind": "binary", "categories": ["off", 'on, "well"']},
        {"name": "site", "kind": "categorical", "categories": ["a", "b", "é"]},
    ]
)
STATES, SITES = GRAPH["state"].categories, GRAPH["site"].categories


def images(number: int, channels: int = 1) -> ImageAttributeDataset:
    """Every third image lacks a value."""
    pixels = np.random.default_rng(0).integers(0, 256, (number, 8, 8, channels), dtype=np.uint8)
    rows = {
        "image": [encode_pixels(p[:, :, 0] if channels == 1 else p) for p in pixels],
        "size": [None if i % 3 == 2 else 0.1 * i for i in range(number)],
        "state": [STATES[i % 2] for i in range(number)],
        "site": [SITES[i % 3] for i in range(number)],
    }
    features = Features({"image": Image(), "size": Value("float32"), "state": Value("string"), "site": Value("string")})
    return ImageAttributeDataset(Dataset.from_dict(rows, features=features), GRAPH)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "examples" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("channels", [1, 3])
def test_they_are_whole_images_from_all_over_the_table(tmp_path: Path, channels: int) -> None:
    dataset = images(30, channels)
    save_examples(tmp_path, dataset, 5)
    rows = read(tmp_path)
    assert len(rows) == 5
    assert float(rows[-1]["size"]) > 2
    for row in rows:
        number = round(float(row["size"]) * 10)
        assert number % 3 != 2
        assert row["state"] == STATES[number % 2]
        assert row["site"] == SITES[number % 3]
        stored = np.asarray(PILImage.open(tmp_path / "examples" / row["file_name"]))
        assert (stored.reshape(8, 8, channels) == dataset[number]["image"].permute(1, 2, 0).numpy()).all()


def test_they_replace_older_ones_and_leave_the_rest_alone(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    save_examples(tmp_path, images(30), 5)
    save_examples(tmp_path, images(6), 10)  # of which 4 are whole
    assert len(read(tmp_path)) == 4
    assert {path.name for path in (tmp_path / "examples").iterdir()} == {
        "metadata.csv",
        *(f"{i}.png" for i in range(4)),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "model_index.json"}


@pytest.mark.parametrize("number", [0, -1])
def test_none_are_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match="number"):
        save_examples(tmp_path, images(3), number)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_app_shows_them(tmp_path: Path, channels: int) -> None:
    save_examples(tmp_path, images(30, channels), 3)
    pipeline = SimpleNamespace(causal_graph=GRAPH, image_format=ImageFormat(channels, 8))
    examples = read_examples(Model("own", str(tmp_path), pipeline))
    assert [set(example.parents) for example in examples] == [set(GRAPH.names)] * 3
    assert examples[0].picture.shape == ((8, 8) if channels == 1 else (8, 8, 3))
