"""What the Hub or softcft refuses, and what the user reads then."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub import constants

from softcft import (
    AttributeClassifier,
    AttributeSCM,
    DiffusionDSCMPipeline,
    DSCMPipeline,
    HVAEModel,
    ParentEncoder,
)
from softcft.hub.config import HubConfig, check_access
from softcft.hub.publish import model_files, publish, reserve
from softcft.models.weights import load_safetensors
from tests.hub.loopback import READER, STRANGER, LoopbackHub, Repository
from tests.recipes.small_pipeline import make_pipeline

# That of diffusers: it still hands this argument on when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning")

LOG_IN = r"log in \(hf auth login, or a token in the environment variable HF_TOKEN\)"
SETTINGS = {"data": {"dataset_name": "phantom", "sample_size": 16}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


def settings(folder: Path, dataset_name: str = "phantom") -> dict[str, Any]:
    graph = HVAEModel.load_config(folder / "hvae")["graph"]
    return {"graph": graph, "data": {"dataset_name": dataset_name, "sample_size": 16}}


def put(hub: LoopbackHub, folder: Path, **access: bool) -> None:
    """The pipeline as owner/pipe, and its HVAE alone as owner/hvae."""
    for name, part in (("owner/pipe", folder), ("owner/hvae", folder / "hvae")):
        files = {str(path.relative_to(part)): path.read_bytes() for path in part.rglob("*") if path.is_file()}
        hub.repositories[name] = Repository(commits=[files], **access)


LOADS = [(DSCMPipeline.from_pretrained, "owner/pipe"), (HVAEModel.from_pretrained, "owner/hvae")]


@pytest.mark.parametrize("token", [None, STRANGER, "hf_wrong"])
@pytest.mark.parametrize("access", ["private", "gated"])
def test_who_may_not_see_a_repository_is_told_what_to_do(
    access: str, token: str | None, hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, folder, is_private=access == "private", is_gated=access == "gated")
    monkeypatch.setenv("HF_TOKEN", READER)
    for load, name in LOADS:
        with monkeypatch.context() as change:
            change.setenv("HF_TOKEN", token) if token else change.delenv("HF_TOKEN")
            gated = f"^{name} is gated: ask for access on its page on the Hub, then {LOG_IN}"
            private = f"^There is no folder {name}, and no such repository on the Hub, or it is private: .*{LOG_IN}"
            wrong = f"^The Hub does not know your token, which may have expired: make a new one, then {LOG_IN}"
            expected = wrong if token == "hf_wrong" else gated if access == "gated" else private
            with pytest.raises(OSError, match=expected):
                load(name)
        assert load(name) is not None  # who may see it loads it


LOADING = [DSCMPipeline, DiffusionDSCMPipeline, HVAEModel, AttributeClassifier, AttributeSCM, ParentEncoder]


@pytest.mark.parametrize("reach", ["HF_HUB_OFFLINE", "local_files_only", "the Hub cannot be reached"])
@pytest.mark.parametrize("loading_class", LOADING)
def test_who_is_offline_is_told(
    loading_class: Any, reach: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reach == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif reach != "local_files_only":
        hub.close()
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between one attempt and the next
    with pytest.raises(OSError, match=f"^There is no folder owner/pipe, .*{reach}"):
        loading_class.from_pretrained("owner/pipe", local_files_only=reach == "local_files_only")


def test_a_folder_that_is_not_there_is_taken_for_a_repository(hub: LoopbackHub) -> None:
    for load, name in ((DSCMPipeline.from_pretrained, "outputs/sofd"), (HVAEModel.from_pretrained, "hvae")):
        with pytest.raises(OSError, match=f"^There is no folder {name}, and no such repository on the Hub"):
            load(name)


def test_pickles_on_the_hub_are_refused(hub: LoopbackHub, folder: Path) -> None:
    put(hub, folder)
    for repository in hub.repositories.values():
        for path in [path for path in repository.files if "hvae" in path or "/" not in path]:
            if path.endswith(".safetensors"):
                repository.files[path.replace(".safetensors", ".bin")] = repository.files.pop(path)
    refusal = r"has not all weights as \.safetensors: softcft reads no pickles"
    for load, name in [*LOADS, (lambda name: load_safetensors(AutoencoderKL, name), "owner/hvae")]:
        with pytest.raises(OSError, match=f"^{name} {refusal}"):
            load(name)
    assert not [request for request in hub.requests if request.startswith("GET") and request.endswith(".bin")]
    # That of diffusers downloads it, but it is not read.
    with pytest.raises(
        (OSError, ValueError), match=r"no file named \S+\.safetensors|has \S+\.bin, and no \.safetensors"
    ):
        DiffusionPipeline.from_pretrained("owner/pipe")


# ---- publishing -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_published_is_refused_without_a_request(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HubConfig() == HubConfig(push_to_hub=False, hub_model_id=None)
    for given in ({"push_to_hub": True}, {"hub_model_id": "owner/name"}):
        with pytest.raises(ValueError, match="push_to_hub and hub_model_id go together"):
            HubConfig(**given)
    for name in ("name", "a/b/c", "own er/name", "owner/../name", "", "owner/name.git"):
        with pytest.raises(ValueError, match="hub_model_id"):
            HubConfig(push_to_hub=True, hub_model_id=name)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=f"--repo_id owner/name needs a token of the Hub, and there is none: {LOG_IN}"):
        check_access("--repo_id", "owner/name")
    assert hub.requests == []


def test_a_public_repository_is_no_place_for_pictures_of_people(hub: LoopbackHub, folder: Path) -> None:
    hub.repositories["owner/pipe"] = Repository()
    with pytest.raises(ValueError, match=r"owner/pipe is public, but a model of these data is private unless"):
        publish(folder, "owner/pipe", settings(folder, "mimic_cxr"), is_private=True)
    assert len(hub.repositories["owner/pipe"].commits) == 1
    hub.repositories["owner/pipe"].is_private = True
    reserve("owner/pipe", is_private=False)  # what is private stays so
    assert hub.repositories["owner/pipe"].is_private


@pytest.mark.parametrize(("token", "name"), [(READER, "owner/pipe"), ("hf_wrong", "owner/pipe"), (None, "other/pipe")])
def test_who_may_not_write_is_told_before_anything_is_sent(
    token: str | None, name: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    told = "The Hub does not know your token" if token == "hf_wrong" else f"Your token may not write to {name}"
    with pytest.raises(OSError, match=told):
        HubConfig(push_to_hub=True, hub_model_id=name).reserve(SETTINGS)
    assert not hub.repositories


def test_a_hub_that_cannot_be_reached_is_told(hub: LoopbackHub) -> None:
    hub.close()
    with pytest.raises(OSError, match="The Hub did not take owner/pipe"):
        reserve("owner/pipe", is_private=True)


def test_a_folder_that_has_no_whole_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no model in"):
        model_files(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "hvae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"hvae/diffusion_pytorch_model\.safetensors is damaged"):
        model_files(broken)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"hvae has no \.safetensors, and nothing else is published"):
        model_files(broken)
    shutil.rmtree(broken / "hvae")
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json of its parts \['hvae'\]"):
        model_files(broken)
