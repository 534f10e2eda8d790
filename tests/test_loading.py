"""Saving and loading through diffusers, with everything that it reads from softcft."""

import json
import tomllib
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils as loader

import softcft
from softcft import AttributeClassifier, AttributeSCM, DSCMPipeline, HVAEModel, _diffusers
from softcft.data.phantom import PHANTOM_GRAPH
from tests.pipelines.test_dscm import build, row
from tests.processes import run_python

ROOT = Path(softcft.__file__).parents[1]


@pytest.fixture(scope="module")
def pipe() -> DSCMPipeline:
    return build()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


def answer(pipe: Any) -> Any:
    image = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    return pipe(image, row(0), {"age": [20, 50, 90]}, generator=torch.Generator().manual_seed(0), output_type="np")


def test_model_index_names_classes_of_softcft(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "DSCMPipeline"
    assert index["hvae"] == ["softcft", "HVAEModel"]
    assert index["attribute_scm"] == ["softcft", "AttributeSCM"]
    assert index["classifier"] == ["softcft", "AttributeClassifier"]


def test_saved_pipelines_are_safetensors_and_json(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize("loading_class", [DSCMPipeline, DiffusionPipeline])
def test_loaded_pipeline_gives_the_same_answers(pipe, folder, loading_class):
    loaded = loading_class.from_pretrained(folder)
    assert type(loaded) is DSCMPipeline
    assert loaded.hvae.causal_graph == PHANTOM_GRAPH
    before, after = answer(pipe), answer(loaded)
    assert (before.images == after.images).all()
    assert np.abs(before.effects).max() > 1e-3
    assert before.parents == after.parents
    assert before.factual_predictions == after.factual_predictions
    assert before.counterfactual_predictions == after.counterfactual_predictions


@pytest.mark.parametrize("loading_class", [DSCMPipeline, DiffusionPipeline])
def test_the_classifier_can_be_left_out(pipe, folder, tmp_path, loading_class):
    loaded = loading_class.from_pretrained(folder, classifier=None)
    assert loaded.classifier is None
    loaded.save_pretrained(tmp_path)
    again = loading_class.from_pretrained(tmp_path)
    assert again.classifier is None
    assert (answer(again).images == answer(pipe).images).all()
    assert answer(again).factual_predictions is None


@pytest.mark.parametrize("loading_class", [DSCMPipeline, DiffusionPipeline])
def test_a_component_can_be_replaced_on_loading(pipe, folder, loading_class):
    assert loading_class.from_pretrained(folder, classifier=pipe.classifier).classifier is pipe.classifier


def test_components_load_alone(pipe, folder):
    hvae = HVAEModel.from_pretrained(folder, subfolder="hvae")
    assert all(torch.equal(a, b) for a, b in zip(hvae.parameters(), pipe.hvae.parameters(), strict=True))
    assert type(diffusers.AutoModel.from_pretrained(str(folder), subfolder="attribute_scm")) is AttributeSCM


def test_half_precision(folder):
    loaded = DSCMPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.hvae.dtype == torch.bfloat16
    # Mechanisms stay exact.
    assert {parameter.dtype for parameter in loaded.attribute_scm.parameters()} == {torch.float32}
    assert np.isfinite(answer(loaded).images).all()


def test_dtype_by_component(folder):
    loaded = DSCMPipeline.from_pretrained(folder, dtype={"hvae": torch.bfloat16, "default": torch.float32})
    assert loaded.hvae.dtype == torch.bfloat16
    assert loaded.classifier.dtype == torch.float32
    assert np.isfinite(answer(loaded).images).all()


# ---- another process, another folder ------------------------------------------------------------------------------


def test_import_and_plain_loading_from_another_process(folder, tmp_path):
    code = f"""
import sys
import softcft, diffusers
heavy = {{"datasets", "torchvision", "matplotlib", "pandas", "sklearn", "tensorboard"}} & set(sys.modules)
assert not heavy, heavy
pipe = diffusers.DiffusionPipeline.from_pretrained({str(folder)!r})
print(type(pipe).__name__, pipe.sample(2, do={{"sex": "female"}}).parents["sex"])
"""
    assert run_python("-c", code, cwd=tmp_path).strip() == "DSCMPipeline ['female', 'female']"


def test_importing_softcft_leaves_what_takes_seconds_to_later(tmp_path):
    slow = {"diffusers", "transformers", "torch", "networkx", "zuko"}
    assert run_python("-c", f"import sys, softcft; print({slow} & set(sys.modules))", cwd=tmp_path).strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import softcft; from diffusers.pipelines import pipeline_loading_utils as loader",
        "from diffusers.pipelines import pipeline_loading_utils as loader; import softcft",
        "import softcft.pipelines.dscm; from diffusers.pipelines import pipeline_loading_utils as loader",
    ],
)
def test_registered_whatever_is_imported_first(code, tmp_path):
    code += """
import diffusers
assert loader.LOADABLE_CLASSES["softcft"]
assert not hasattr(diffusers, "NoSuchPipeline")
print(diffusers.DSCMPipeline.__module__, diffusers.DiffusionDSCMPipeline.__module__)
"""
    assert run_python("-c", code, cwd=tmp_path).strip() == "softcft.pipelines.dscm softcft.pipelines.diffusion_dscm"


@pytest.mark.slow
def test_a_component_loads_alone_from_another_process(folder, tmp_path):
    code = f"""
import softcft
from diffusers import AutoModel
print(type(AutoModel.from_pretrained({str(folder)!r}, subfolder="attribute_scm")).__name__)
"""
    assert run_python("-c", code, cwd=tmp_path).strip() == "AttributeSCM"


@pytest.mark.slow
def test_custom_pipeline_needs_no_import_of_softcft(folder, tmp_path):
    entry = ROOT / "pipelines" / "dscm.py"
    code = f"""
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, custom_pipeline={str(entry)!r}, trust_remote_code=True)
print(type(pipe).__module__)
"""
    assert run_python("-c", code, cwd=tmp_path).strip() == "softcft.pipelines.dscm"


# ---- what loading leans on ----------------------------------------------------------------------------------------


def test_public_names_exist_and_hold_all_that_the_loader_looks_up():
    assert all(hasattr(softcft, name) for name in softcft.__all__)
    assert set(softcft.__all__) <= set(dir(softcft))
    assert all(hasattr(softcft, name) for name in _diffusers.PIPELINES)
    with pytest.raises(AttributeError, match="'softcft' has no attribute 'HVAE'"):
        softcft.HVAE  # noqa: B018
    assert softcft.ModelMixin is diffusers.ModelMixin
    for model in (HVAEModel, AttributeSCM, AttributeClassifier):
        assert loader._fetch_class_library_tuple(model) == ("softcft", model.__name__)
        assert getattr(softcft, model.__name__) is model
        assert issubclass(model, softcft.ModelMixin)


def test_the_loader_works_as_we_expect():
    """Fails when diffusers moves: then look at softcft/_diffusers.py again and at the range it supports."""
    assert loader._get_library_or_raise("softcft") is softcft
    assert diffusers.DSCMPipeline is DSCMPipeline
    index = {"_class_name": "DSCMPipeline", "hvae": ["softcft", "HVAEModel"]}
    # What a download from the Hub checks: no file hvae/softcft.py in the repository, and yet no complaint.
    assert loader._get_custom_components_and_folders("some/repository", index, ["hvae/config.json"]) == ({}, ["hvae"])
    del loader.LOADABLE_CLASSES["softcft"]
    try:
        with pytest.raises(ValueError, match="does not exist in some/repository"):
            loader._get_custom_components_and_folders("some/repository", index, ["hvae/config.json"])
    finally:
        _diffusers.register(DSCMPipeline)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LOADABLE_CLASSES", None, "LOADABLE_CLASSES has changed"),
        ("LOADABLE_CLASSES", {"diffusers": {"ModelMixin": ["save", "load"]}}, "LOADABLE_CLASSES has changed"),
        ("_fetch_class_library_tuple", lambda module: ("softcft.pipelines.dscm", "X"), "would be saved as"),
    ],
)
def test_an_unknown_loader_is_refused(monkeypatch, name, value, reason):
    monkeypatch.setattr(loader, name, value)
    with pytest.raises(ImportError, match=f"needs diffusers>=0.42,<0.43, but diffusers .*{reason}"):
        _diffusers.register(DSCMPipeline)


def test_a_loader_without_the_function_is_refused(monkeypatch):
    monkeypatch.delattr(loader, "_fetch_class_library_tuple")
    with pytest.raises(ImportError, match=r"is gone.*pip install .diffusers>=0\.42,<0\.43"):
        _diffusers.register(DSCMPipeline)


def test_version_and_supported_range_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert softcft.__version__ == project["version"]
    assert f"diffusers{_diffusers.SUPPORTED_DIFFUSERS}" in project["dependencies"]
