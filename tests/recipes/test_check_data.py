"""The report on a folder of generated pictures, as a user gets it."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.recipes.small_pipeline import load_recipe

# datasets leaves files open when it reads a folder.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs the recipe on 120 pictures; returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    Path("pictures").mkdir()
    lines = ["file_name,patient_id,form,width"]
    for i in range(120):
        pixels = random.integers(0, 256, (16, 16, 3), dtype="u1")
        Image.fromarray(pixels).save(f"pictures/{i}.png")
        lines.append(f"{i}.png,P{i // 2},{i % 2},{4 + i / 20}")
    Path("pictures/metadata.csv").write_text("\n".join(lines) + "\n")
    recipe = load_recipe("check_data")
    monkeypatch.setattr("softcft.run.estimate.estimate", lambda plan, sizes: defaultdict(lambda: 60.0))

    def check(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["check_data.py", *flags])
        with pytest.raises(SystemExit) as exit_:
            recipe.main()
        status = exit_.value.code
        if isinstance(status, str):
            return 1, status
        return int(status or 0), capsys.readouterr().out

    return check


def test_without_a_graph_one_is_drafted_which_passes_the_check(check: Check) -> None:
    flags = ["--dataset_name", "pictures", "--sample_size", "16", "--output_dir", "out"]
    status, printed = check(*flags)
    assert status == 0
    draft = Path("out/graph_draft.yaml")
    assert draft.read_text() in printed
    assert [variable["kind"] for variable in yaml.safe_load(draft.read_text())["graph"]] == ["binary", "continuous"]
    assert "patient_id: an identifier" in printed
    assert "Next: copy out/graph_draft.yaml" in printed
    with Image.open("out/check_data.png") as figure:
        assert min(figure.size) > 300
        assert figure.convert("L").getextrema() == (0, 255)

    draft.rename("graph.yaml")
    status, printed = check(*flags, "--graph", "graph.yaml", "--group_column", "patient_id")
    assert status == 0
    assert "0 problems that would stop a training\n\n0 warnings" in printed
    assert "patient_id: train 42, validation 6, test 12" in printed
    assert not draft.exists()


def test_how_long_a_run_takes_is_said_where_nothing_stops_it(check: Check) -> None:
    flags = ["--dataset_name", "pictures", "--output_dir", "out"]
    status, printed = check(*flags)
    assert status == 0
    told = printed.split("\nrun_all.py: ")[1]
    assert "hvae " in told
    assert "minutes on this machine" in told
    quick = check(*flags, "--preset", "quick")[1].split("\nrun_all.py: ")[1]
    assert "1,000 steps" in told  # of the VAE
    assert "300 steps" in quick
    assert "would stop: " in check(*flags, "--sample_size", "24")[1]  # the settings are for 64


def test_problems_are_listed_and_make_the_status_1(check: Check) -> None:
    Path("graph.yaml").write_text(
        "- {name: form, kind: binary, categories: [disc, square]}\n"
        "- {name: width, kind: continuous, low: 4, high: 8}\n"
        "- {name: weight, kind: continuous, low: 4, high: 8}\n"
    )
    status, printed = check("--dataset_name", "pictures", "--sample_size", "16", "--graph", "graph.yaml")
    assert status == 1
    assert "read as: 0 -> disc, 1 -> square" in printed
    problems = printed.split("problems that would stop a training")
    assert problems[0].endswith("\n2 ")
    assert "  1. There is no column 'weight'" in problems[1]
    assert "  2. 39 values of 'width' are outside [4, 8]: they go from 4 to 9.95. Widen low and high" in problems[1]


def test_a_data_set_that_comes_with_softcft(check: Check) -> None:
    few = ["--num_train", "300", "--num_validation", "90", "--num_test", "150", "--sample_size", "16"]
    status, printed = check("--data_dir", "data", "--output_dir", "out", *few)
    assert status == 0
    assert "phantom\nImages: train 300, validation 90, test 150\n" in printed
    assert "disease (binary)" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_name", "nowhere"], "--dataset_name nowhere is no folder"),
        (["--dataset_name", "pictures", "--graph", "cycle.yaml"], "The graph has a cycle"),
    ],
)
def test_what_cannot_be_looked_at_is_told_without_a_traceback(check: Check, flags: list[str], message: str) -> None:
    Path("cycle.yaml").write_text("- {name: form, kind: binary, categories: ['0', '1'], parents: [form]}\n")
    status, printed = check(*flags)
    assert status == 1
    assert message in printed


def test_a_table_that_is_not_read_is_named(check: Check) -> None:
    Path("pictures/metadata.csv").rename("pictures/labels.tsv")
    status, printed = check("--dataset_name", "pictures", "--sample_size", "16", "--output_dir", "out")
    assert status == 1
    assert "labels.tsv" in printed


def test_unknown_flags_are_refused(check: Check) -> None:
    for flags in (["--sampel_size", "16"], ["--streaming"]):
        with pytest.raises(ValueError, match=flags[0]):
            check("--dataset_name", "pictures", *flags)
    assert not Path("outputs").exists()
