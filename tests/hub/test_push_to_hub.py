"""The recipes that publish, from end to end."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from softcft import AttributeSCM, DSCMPipeline
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.evaluation.tables import COLUMNS
from tests.hub.loopback import LoopbackHub, Repository
from tests.recipes.small_pipeline import TINY, load_recipe, make_pipeline

# That of diffusers: it still hands this argument on when it loads a model.
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning")

Start = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Runs a recipe in this process and in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def start(script: str, *flags: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
        load_recipe(script).main()

    yield start
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as recipes leave it: a pipeline, its settings, results, and much that is nobody's business."""
    run = tmp_path / "runs"
    soft = make_pipeline(run / "soft")
    DSCMPipeline.from_pretrained(soft.resolve()).save_pretrained(soft)  # as after fine-tuning: it knows where it was
    assert str(tmp_path) in (soft / "hvae" / "config.json").read_text()
    config = yaml.safe_load(TINY.read_text())
    (soft / "config.yaml").write_text(yaml.safe_dump(config | {"cft": {"data_dir": "/home/someone/secret"}}))
    (soft / "metrics.jsonl").write_text("{}\n")
    (soft / "checkpoint-3").mkdir()
    (soft / "checkpoint-3" / "optimizer.bin").write_bytes(b"state")
    (soft / "checkpoint-3" / "model.safetensors").write_bytes(b"state")
    rows = []
    for number, cft in enumerate(("real", "none", "soft", "truth")):
        for variable in PHANTOM_GRAPH.names:
            metric = "mae" if variable == "age" else "auc"
            key = ("effectiveness", "phantom", 0, cft, "none" if cft == "real" else "sex", variable)
            rows += [(*key, "judge", metric, 10.125 + number, 10.0 + number, 10.5 + number)]
            rows += [(*key, "guide", metric, 77.7, 77.1, 77.9)]
    rows += [("truth", "phantom", 0, cft, "sex", "image", "", "error", 3.25, 3.0, 3.5) for cft in ("none", "soft")]
    pd.DataFrame([(*row, "image") for row in rows], columns=COLUMNS).to_csv(run / "metrics.csv", index=False)
    return run


PUSH = ("push_to_hub", "--output_dir", "runs", "--repo_id", "owner/name")


def test_a_pipeline_is_published_with_what_was_measured(
    run: Path, hub: LoopbackHub, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(*PUSH)
    assert capsys.readouterr().out.endswith(f"Published as {hub.address}/owner/name\n")
    repository = hub.repositories["owner/name"]
    assert not repository.is_private  # of the phantom
    assert len(repository.commits) == 2  # that with which a repository starts, and ours
    parts = ("hvae", "attribute_scm", "classifier")
    weights = {f"{part}/{name}" for part in parts for name in ("config.json", "diffusion_pytorch_model.safetensors")}
    assert set(repository.files) == {".gitattributes", "README.md", "model_index.json", "pipeline.py", *weights}
    assert b"from softcft import DSCMPipeline" in repository.files["pipeline.py"]
    private = (b"/home/someone", str(run.parent).encode())
    assert not any(path in content for path in private for content in repository.files.values())

    card = ModelCard(repository.files["README.md"].decode())
    values = {(result.metric_name, result.metric_value) for result in card.data.eval_results}
    assert values == {
        (f"{v}, {'mae' if v == 'age' else 'auc'} of the judge, do(sex)", 12.125) for v in PHANTOM_GRAPH.names
    }
    (table,) = re.findall(r"### Table 1: .*judge\n\n.*\n\n((?:\|.*\n)+)", card.text)
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == [
        "Real images",
        "Soft-CFT",
        "True counterfactuals",
    ]
    assert "3.25 [3.00, 3.50]" in card.text  # the error against the truth
    assert "77.7" not in card.text  # the guide is not the judge

    image = np.full((16, 16), 128, dtype=np.uint8)
    asked = {"parents": {"age": 60, "sex": "male", "race": "Asian", "disease": "no finding"}, "do": {"sex": "female"}}
    pipes = DSCMPipeline.from_pretrained(run / "soft"), DiffusionPipeline.from_pretrained("owner/name")
    one, other = (p(image, **asked, generator=torch.Generator().manual_seed(0), output_type="np").images for p in pipes)
    assert np.array_equal(one, other)


def test_models_of_patients_are_private_unless_it_is_said(run: Path, hub: LoopbackHub, start: Start) -> None:
    path = run / "soft" / "config.yaml"
    path.write_text(path.read_text().replace("dataset_name: phantom", "dataset_name: mimic_cxr"))
    start(*PUSH)
    assert hub.repositories["owner/name"].is_private
    assert b"can give away what they were trained on" in hub.repositories["owner/name"].files["README.md"]
    hub.repositories["owner/public"] = Repository()
    with pytest.raises(ValueError, match="owner/public is public, but a model of these data is private"):
        start(*PUSH[:-1], "owner/public")
    start(*PUSH[:-1], "owner/public", "--public")
    assert "model_index.json" in hub.repositories["owner/public"].files
    start(*PUSH[:-1], "owner/third", "--private")
    assert hub.repositories["owner/third"].is_private


def test_a_dry_run_writes_the_card_and_asks_nobody(
    run: Path, hub: LoopbackHub, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    start(*PUSH, "--dry_run")
    assert hub.requests == []
    assert "hvae/diffusion_pytorch_model.safetensors" in capsys.readouterr().out
    assert ModelCard.load(run / "soft" / "README.md").data.library_name == "diffusers"


def test_what_is_not_whole_is_refused_before_anything_is_sent(
    run: Path, hub: LoopbackHub, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="There is no model in runs/hard"):
        start(*PUSH, "--cft", "hard")
    shutil.copytree(run / "soft", run / "hard")
    (run / "hard" / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"runs/hard has no config\.yaml"):
        start(*PUSH, "--cft", "hard")
    path = run / "soft" / "config.yaml"
    path.write_text(path.read_text().replace("high: 92", "high: 93"))
    with pytest.raises(ValueError, match=r"runs/soft has another graph than its config\.yaml"):
        start(*PUSH)
    weights = run / "soft" / "hvae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"soft/hvae has no \.safetensors"):
        start(*PUSH)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="--repo_id owner/name needs a token of the Hub"):
        start(*PUSH)
    assert hub.requests == []


TRAIN = ("train_scm", "--config", str(TINY), "--push_to_hub", "--hub_model_id", "owner/scm")


def test_a_training_publishes_what_it_has_made(
    hub: LoopbackHub, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(*TRAIN)
    assert f"Published as {hub.address}/owner/scm" in capsys.readouterr().out
    before = AttributeSCM.from_pretrained(tmp_path / "runs" / "scm").state_dict()
    after = AttributeSCM.from_pretrained("owner/scm").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    card = ModelCard(hub.repositories["owner/scm"].files["README.md"].decode())
    assert 'AttributeSCM.from_pretrained("owner/scm")' in card.text
    for path in tmp_path.rglob("*.yaml"):
        assert "hf_" not in path.read_text()  # the token is no setting


def test_fine_tuning_publishes_a_pipeline_whose_card_claims_nothing(
    hub: LoopbackHub, start: Start, tmp_path: Path
) -> None:
    made = make_pipeline(tmp_path / "made")
    parts = {"--scm_dir": "attribute_scm", "--guide_dir": "classifier", "--hvae_dir": "hvae"}
    flags = [word for flag, name in parts.items() for word in (flag, str(made / name))]
    start("soft_cft", "--config", str(TINY), "--cft", "none", *flags, *TRAIN[3:-1], "owner/none")
    assert DSCMPipeline.from_pretrained("owner/none").causal_graph == PHANTOM_GRAPH
    assert "Nothing is known" in ModelCard(hub.repositories["owner/none"].files["README.md"].decode()).text


def test_a_training_that_cannot_be_published_does_not_start(
    hub: LoopbackHub, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="Your token may not write to other/scm"):
        start(*TRAIN[:-1], "other/scm")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="--hub_model_id owner/scm needs a token of the Hub, and there is none"):
        start(*TRAIN)
    assert not (tmp_path / "runs").exists()


def test_nothing_is_lost_if_the_hub_fails_after_a_training(
    hub: LoopbackHub, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails_to_commit = True
    with pytest.raises(SystemExit, match="out of order") as stopped:
        start(*TRAIN)
    told = str(stopped.value)
    assert "nothing is lost: it is in runs/scm" in told
    assert AttributeSCM.from_pretrained(tmp_path / "runs" / "scm") is not None
    hub.fails_to_commit = False
    command = told.rpartition("recipes/")[2].split()
    start(command[0].removesuffix(".py"), *command[1:])
    assert f"Published as {hub.address}/owner/scm" in capsys.readouterr().out
    assert "diffusion_pytorch_model.safetensors" in hub.repositories["owner/scm"].files
