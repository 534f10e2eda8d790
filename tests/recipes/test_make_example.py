import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from softcft import DSCMPipeline
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from tests.recipes.small_pipeline import load_recipe, make_pipeline


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int = 5_000_000, *flags: str) -> None:
    recipe = load_recipe("make_example")
    monkeypatch.setattr("softcft.example_model", lambda: folder / "example")
    monkeypatch.setattr("softcft.data.phantom.load_phantom", partial(load_phantom, cache_dir=str(folder / "cache")))
    monkeypatch.setattr(recipe, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(sys, "argv", ["make_example.py", "--run_dir", str(folder / "run"), *flags])
    recipe.main()


def test_the_example_is_the_pipeline_in_half_precision_with_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = DSCMPipeline.from_pretrained(make_pipeline(tmp_path / "run" / "soft"))
    make(tmp_path, monkeypatch, 5_000_000, "--num_images", "3")
    weights = load_file(tmp_path / "example" / "hvae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    loaded = DSCMPipeline.from_pretrained(tmp_path / "example")
    for before, after in zip(made.hvae.parameters(), loaded.hvae.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(before.half().float(), after)
    rows = pd.read_csv(tmp_path / "example" / "examples" / "metadata.csv")
    assert list(rows.columns) == ["file_name", *PHANTOM_GRAPH.names]
    assert len(rows) == 3
    for row in rows.to_dict("records"):
        image = Image.open(tmp_path / "example" / "examples" / row.pop("file_name"))
        assert loaded(image, row, {"sex": "female"}).images[0].size == image.size


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make(tmp_path, monkeypatch)
    assert "has no pipeline in" in capsys.readouterr().err
    make_pipeline(tmp_path / "run" / "soft")
    with pytest.raises(SystemExit):
        make(tmp_path, monkeypatch, 5_000_000, "--num_images", "0")
    assert "--num_images must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="more than the 10 that the package may have"):
        make(tmp_path, monkeypatch, 10)
    assert not (tmp_path / "example").exists()  # nothing is replaced by what is refused
