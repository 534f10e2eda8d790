"""Over HTTP to a server that speaks the Hub's protocol, and back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from huggingface_hub import HfApi

import softcft
from softcft import (
    AttributeClassifier,
    AttributeSCM,
    CounterfactualPipeline,
    DiffusionDSCMPipeline,
    DSCMPipeline,
    HVAEModel,
    ParentEncoder,
)
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.models.weights import load_safetensors
from tests.hub.loopback import READER, WRITER, LoopbackHub
from tests.own_models import Additive
from tests.pipelines.test_counterfactual import make as make_own
from tests.pipelines.test_diffusion_dscm import build, make_vae
from tests.recipes.small_pipeline import make_pipeline
from tests.stock_pipelines import make_stock

# That of diffusers: it still hands this argument on when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning")

ROOT = Path(softcft.__file__).parents[1]
PHANTOM = {"age": 60, "sex": "male", "race": "Asian", "disease": "no finding"}
KINDS = ("hvae", "diffusion", "diffusion with vae")


def make(kind: str, folder: Path) -> Any:
    """A pipeline as it is read from a disk: weights that lie elsewhere in memory may add up in another order."""
    if kind == "hvae":
        return DSCMPipeline.from_pretrained(make_pipeline(folder))
    build(vae=make_vae() if kind == "diffusion with vae" else None).save_pretrained(folder)
    return DiffusionDSCMPipeline.from_pretrained(folder)


def answer(pipe: Any) -> Any:
    """Counterfactuals and what the classifier sees in them, of an image that every run has."""
    pipe.set_progress_bar_config(disable=True)
    size = pipe.image_format.size
    image = np.linspace(0.3, 0.7, size * size, dtype=np.float32).reshape(size, size)
    is_hvae = isinstance(pipe, DSCMPipeline)
    parents, do = (PHANTOM, {"sex": "female"}) if is_hvae else ({"size": 2.0, "state": "off", "site": "b"}, {"size": 9})
    settings = {} if is_hvae else {"num_inference_steps": 4}
    return pipe(image, parents, do, generator=torch.Generator().manual_seed(0), output_type="np", **settings)


def assert_same(before: Any, after: Any) -> None:
    assert np.array_equal(before.images, after.images)
    assert np.abs(before.effects).max() > 1e-4
    assert before.parents == after.parents
    assert before.counterfactual_predictions == after.counterfactual_predictions


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_comes_back_bit_by_bit(kind: str, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = make(kind, tmp_path / "made")
    pipe.push_to_hub("owner/pipe", private=True)
    assert hub.repositories["owner/pipe"].is_private
    expected = answer(pipe)
    for loading_class in (type(pipe), DiffusionPipeline):
        loaded = loading_class.from_pretrained("owner/pipe")
        assert type(loaded) is type(pipe)
        assert_same(expected, answer(loaded))
    without = type(pipe).from_pretrained("owner/pipe", classifier=None)
    assert np.array_equal(answer(without).images, expected.images)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_pipeline_of_diffusers_is_adopted(kind: str, hub: LoopbackHub, tmp_path: Path) -> None:
    make_stock(kind).save_pretrained(tmp_path / "stock")
    HfApi(hub.address, WRITER).create_repo("owner/stock")
    HfApi(hub.address, WRITER).upload_folder(repo_id="owner/stock", folder_path=tmp_path / "stock")
    there, here = (softcft.adopt(name, PHANTOM_GRAPH, "a scan") for name in ("owner/stock", tmp_path / "stock"))
    for ours, theirs in zip(there, here, strict=True):
        if isinstance(ours, torch.nn.Module):
            expected = theirs.state_dict()
            named = {name for name in expected if not name.startswith("encoders.")}  # drawn at random
            assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items() if name in named)


def test_a_model_of_ones_own_comes_back_where_its_module_was_imported(hub: LoopbackHub) -> None:
    pipe = make_own(Additive())
    pipe.push_to_hub("owner/own", private=True)
    for loading_class in (CounterfactualPipeline, DiffusionPipeline):
        loaded = loading_class.from_pretrained("owner/own")
        assert type(loaded.backbone) is Additive
        assert torch.equal(loaded.backbone.patterns.weight, pipe.backbone.patterns.weight)
    other = Additive()
    assert CounterfactualPipeline.from_pretrained("owner/own", backbone=other).backbone is other


@pytest.mark.parametrize(
    ("kind", "part", "load"),
    [
        ("hvae", "hvae", HVAEModel.from_pretrained),
        ("hvae", "attribute_scm", AttributeSCM.from_pretrained),
        ("hvae", "classifier", AttributeClassifier.from_pretrained),
        ("diffusion", "parent_encoder", ParentEncoder.from_pretrained),
        ("diffusion", "unet", lambda name, **where: load_safetensors(UNet2DModel, name, **where)),
    ],
)
def test_a_model_comes_back_alone_and_out_of_a_pipeline(
    kind: str, part: str, load: Any, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make(kind, tmp_path / "made")
    model = getattr(pipe, part)
    model.push_to_hub("owner/model", private=True)
    pipe.push_to_hub("owner/pipe", private=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    for loaded in (load("owner/model"), load("owner/pipe", subfolder=part)):
        assert type(loaded) is type(model)
        configs = [json.dumps({k: v for k, v in one.config.items() if k[0] != "_"}) for one in (loaded, model)]
        assert configs[0] == configs[1]
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


# ---- a process that has imported nothing ----------------------------------------------------------------------------


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(cwd / "modules")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "entry"), [("hvae", "dscm"), ("diffusion", "diffusion_dscm")])
def test_remote_code_needs_no_import_of_softcft(kind: str, entry: str, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = make(kind, tmp_path / "made")
    pipe.push_to_hub("owner/pipe")
    hub.repositories["owner/pipe"].files["pipeline.py"] = (ROOT / "pipelines" / f"{entry}.py").read_bytes()
    code = """
from huggingface_hub import snapshot_download
from diffusers import DiffusionPipeline
folder = snapshot_download("owner/pipe")
try:
    DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline")
except ValueError as error:
    print("trust_remote_code=True" in str(error))
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
print(type(pipe).__module__, type(pipe).__name__)
"""
    result = python(code, tmp_path)
    assert result.stdout.split() == ["True", type(pipe).__module__, type(pipe).__name__], result.stderr


def test_the_code_of_a_repository_is_not_run_by_itself(hub: LoopbackHub, tmp_path: Path) -> None:
    make("hvae", tmp_path / "made").push_to_hub("owner/pipe")
    ran = tmp_path / "ran"
    hub.repositories["owner/pipe"].files["pipeline.py"] = f"open({str(ran)!r}, 'w')".encode()
    for loading_class in (DSCMPipeline, DiffusionPipeline):
        assert type(loading_class.from_pretrained("owner/pipe")) is DSCMPipeline
    assert not ran.exists()


@pytest.mark.slow
def test_without_the_import_diffusers_says_what_it_lacks(hub: LoopbackHub, tmp_path: Path) -> None:
    """docs/hub.md tells of this message: that the import is missing."""
    make("hvae", tmp_path / "made").push_to_hub("owner/pipe")
    result = python(
        "from diffusers import DiffusionPipeline\nDiffusionPipeline.from_pretrained('owner/pipe')\n", tmp_path
    )
    assert result.returncode == 1
    assert "softcft.py as defined in `model_index.json` does not exist in owner/pipe" in result.stderr
