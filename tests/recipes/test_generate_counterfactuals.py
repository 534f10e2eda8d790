"""Sets of counterfactuals, from a pipeline of toy size: what is in them, and that they can be made in pieces."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset, load_dataset

from softcft import DSCMPipeline, HVAEBackbone
from softcft.data.own import read_table
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.schema import ImageAttributeDataset
from softcft.evaluation import generation
from softcft.evaluation.effectiveness import image_generators
from tests.killed import run_until_killed
from tests.recipes.small_pipeline import RECIPES, TINY, load_recipe, make_pipeline

SHARD = 20  # of 64 training images: four files, the last one with four of them
OTHERS = {v.name: len(v.categories) - 1 for v in PHANTOM_GRAPH.variables if v.kind != "continuous"}

Generate = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests of this file run, with a pipeline runs/soft."""
    folder = tmp_path_factory.mktemp("generate")
    make_pipeline(folder / "runs" / "soft")
    return folder


@pytest.fixture(scope="module")
def factual(folder: Path) -> list[dict[str, Any]]:
    """The training images."""
    return list(load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["train"])


@pytest.fixture
def generate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Generate]:
    """Runs the recipe here, in an output folder of that name; returns where its sets are."""

    def generate(output: str, *flags: str, config: Path = TINY, **changes: Any) -> Path:
        recipe = load_recipe("generate_counterfactuals")
        command = ["--config", str(config), "--pipelines", "runs/soft", "--output_dir", output, *flags]
        monkeypatch.setattr(sys, "argv", ["generate_counterfactuals.py", *command])
        AcceleratorState._reset_state(reset_partial_state=True)
        with monkeypatch.context() as patch:
            for name, value in {"SHARD": SHARD, **changes}.items():
                patch.setattr(generation, name, value)
            recipe.main()
        return folder / output / "counterfactuals" / "soft"

    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    yield generate
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def read(folder: Path) -> Dataset:
    return load_dataset(str(folder), split="train")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("train-*.parquet"))}


def test_every_image_gets_every_other_category_once(generate: Generate, factual: list[dict[str, Any]]) -> None:
    """By default of all discrete variables; others keep their value, or follow as descendants."""
    sets = generate("all")
    assert {path.name for path in sets.iterdir()} == set(OTHERS)
    for name, others in OTHERS.items():
        rows = read(sets / name)
        assert rows.column_names == ["image", *PHANTOM_GRAPH.names, "source_row", "intervention"]
        assert isinstance(rows.features["image"], datasets.Image)
        assert Counter(rows["source_row"]) == dict.fromkeys(range(64), others)
        assert set(rows["intervention"]) == {name}
        assert len(set(zip(rows["source_row"], rows[name], strict=True))) == len(rows)
        for row in rows:
            source = factual[row["source_row"]]
            assert row[name] != source[name]
            assert all(row[other] == source[other] for other in ("sex", "race", "disease") if other != name)
            assert row["age"] == pytest.approx(source["age"], abs=1e-4)
            assert (row["image"].mode, row["image"].size) == ("L", (16, 16))
        assert ImageAttributeDataset(rows, PHANTOM_GRAPH)[0]["image"].shape == (1, 16, 16)
        files = sorted(path.name for path in (sets / name).glob("train-*.parquet"))
        assert files == [f"train-0000{i}-of-00004.parquet" for i in range(4)]
        assert pq.read_table(sets / name / files[1])["source_row"].to_pylist()[::others] == list(range(20, 40))


def test_an_image_is_that_of_its_labels(generate: Generate, factual: list[dict[str, Any]]) -> None:
    """Made on its own, with the same noise and the labels that are beside it."""
    sets = generate("alone", "--attributes", "race", "sex", "--seed", "3", "--mixed_precision", "no")
    backbone = HVAEBackbone(DSCMPipeline.from_pretrained("runs/soft").hvae)
    differences = []
    for name, number in (("race", 0), ("race", 1), ("race", 63), ("sex", 0), ("sex", 50)):
        row = read(sets / name)[number]
        source = factual[row["source_row"]]
        before, after = (PHANTOM_GRAPH.encode({k: x[k] for k in PHANTOM_GRAPH.names}) for x in (source, row))
        image = torch.tensor(np.asarray(source["image"])[None, None]) / 127.5 - 1
        with torch.no_grad():
            made = backbone.counterfactual(image, before, after, image_generators([row["source_row"]], seed=3)).image
        ours, theirs, real = (
            np.asarray(row["image"], float),
            (made[0, 0].numpy() + 1) * 127.5,
            np.asarray(source["image"], float),
        )
        np.testing.assert_allclose(ours, theirs, atol=1)  # grey levels, from rounding to 8 bits
        differences.append(abs(ours - real).mean())
    assert min(differences) > 2


def test_a_continuous_variable_takes_values_of_other_images(generate: Generate, factual: list[dict[str, Any]]) -> None:
    rows = read(generate("age", "--attributes", "age", "--values_per_image", "3", "--num_images", "30") / "age")
    chosen = set(rows["source_row"])
    assert Counter(rows["source_row"]) == dict.fromkeys(chosen, 3)
    assert len(chosen) == 30
    assert max(chosen) > 40  # of all over the table
    for row in rows:
        others = [factual[i]["age"] for i in chosen - {row["source_row"]}]
        assert min(abs(row["age"] - age) for age in others) < 1e-4
        assert row["sex"] == factual[row["source_row"]]["sex"]
    assert len(set(rows["age"])) > 20
    assert any(row["disease"] != factual[row["source_row"]]["disease"] for row in rows)  # an effect of age


def test_values_that_are_missing_leave_an_image_out(generate: Generate, folder: Path) -> None:
    rows = load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))
    some = rows["train"].select(range(12)).to_list()
    for i in (0, 5):
        some[i]["sex"] = None
    for name in ("train", "validation", "test"):
        rows[name] = Dataset.from_list(some, features=rows["train"].features)
    rows.save_to_disk(folder / "gaps")
    flags = ["--num_train", "12", "--num_validation", "12", "--num_test", "12", "--num_images", "6"]
    made = read(generate("gaps_out", "--dataset_name", "gaps", "--attributes", "race", *flags) / "race")
    assert len(set(made["source_row"])) == 6
    assert not {0, 5} & set(made["source_row"])


def test_a_run_that_was_stopped_goes_on_and_makes_the_same_files(
    generate: Generate, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contents(generate("whole", "--attributes", "race", "sex"))
    original = generation._generate

    def stop(made: Any, shard: int, *arguments: Any) -> Iterator[list[dict[str, list[Any]]]]:
        batches = original(made, shard, *arguments)
        yield next(batches)
        if shard == 1:
            raise KeyboardInterrupt
        yield from batches

    with pytest.raises(KeyboardInterrupt):
        generate("stopped", "--attributes", "race", "sex", _generate=stop)
    sets = folder / "stopped" / "counterfactuals" / "soft"
    assert list(contents(sets)) == [f"{name}/train-00000-of-00004.parquet" for name in ("race", "sex")]
    for hidden in sets.rglob(".*.parquet"):
        hidden.write_bytes(hidden.read_bytes()[:1000])  # as after a harder end
    (sets / "sex" / "train-00000-of-00004.parquet").unlink()  # or somebody's mistake
    assert len(read(sets / "race")) == 2 * SHARD
    first = (sets / "race" / "train-00000-of-00004.parquet").stat()
    assert contents(generate("stopped", "--attributes", "race", "sex")) == whole
    assert (sets / "race" / "train-00000-of-00004.parquet").stat() == first
    assert not list(sets.rglob(".*"))
    assert "Generated 152 images" in capsys.readouterr().out  # of 192: all but the first shard of race
    generate("stopped", "--attributes", "race", "sex")
    assert "Generated 0 images" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_half_file_and_goes_on(generate: Generate, folder: Path) -> None:
    whole = contents(generate("unkilled", "--attributes", "race", "sex"))
    script = folder / "generate.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(RECIPES)!r})\n"
        f"import generate_counterfactuals; from softcft.evaluation import generation\n"
        f"generation.SHARD = {SHARD}; generate_counterfactuals.main()\n"
    )
    flags = ["--config", str(TINY), "--pipelines", "runs/soft", "--output_dir", "killed", "--attributes", "race", "sex"]
    run_until_killed(script, flags, folder, "os.rename", ".train-", count=4)  # two sets have their first files
    sets = folder / "killed" / "counterfactuals" / "soft"
    left = [f"race/train-0000{i}-of-00004.parquet" for i in (0, 1)] + ["sex/train-00000-of-00004.parquet"]
    assert contents(sets) == {name: whole[name] for name in left}
    assert (sets / "sex" / ".train-00001-of-00004.parquet").is_file()
    assert len(read_table(str(sets / "sex"))["train"]) == SHARD  # what is hidden is no part of it
    recipe = load_recipe("train_classifier")
    real = ImageAttributeDataset(load_phantom(16, 64, 48, 40, cache_dir=str(folder / "data"))["train"], PHANTOM_GRAPH)
    with pytest.raises(ValueError, match=r"sex must have the counterfactuals .* has those of 20: .*let it finish"):
        recipe.utility_images(real, None, sets / "sex", 0)
    assert contents(generate("killed", "--attributes", "race", "sex")) == whole
    assert not list(sets.rglob(".*"))


def test_a_file_that_was_cut_short_is_refused(generate: Generate) -> None:
    path = generate("cut", "--attributes", "sex", "--num_images", "20") / "sex" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=path.name):
        generate("cut", "--attributes", "sex", "--num_images", "20")


@pytest.mark.slow
def test_two_processes_make_the_files_of_one(generate: Generate, folder: Path) -> None:
    one = contents(generate("one", "--attributes", "sex", "disease", "--num_images", "50"))
    (folder / "small.py").write_text(
        f"import sys; sys.path.insert(0, {str(RECIPES)!r})\n"
        f"import generate_counterfactuals; from softcft.evaluation import generation\n"
        f"generation.SHARD = {SHARD}; generate_counterfactuals.main()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "small.py"]
    flags = ["--config", str(TINY), "--pipelines", "runs/soft", "--output_dir", "two", "--num_images", "50"]
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "HF_HOME": str(folder / "huggingface"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(RECIPES.parent),
    }
    result = subprocess.run(
        [*torchrun, *flags, "--attributes", "sex", "disease"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Generated 100 images" in result.stdout
    assert contents(folder / "two" / "counterfactuals" / "soft") == one
    assert len(one) == 6


def test_a_set_is_not_mixed_of_two(generate: Generate, folder: Path) -> None:
    sets = generate("mixed", "--attributes", "sex", "--num_images", "30")
    before = contents(sets)
    stop = {"_generate": lambda *_: pytest.fail("It should not get this far.")}
    make_pipeline(folder / "retrained" / "soft", seed=1)
    for flags, named in (
        (["--seed", "1"], "sex/train-00000-of-00002.parquet .*seed = 0, now it is 1"),
        (["--num_images", "60"], "num_images = 30, now it is 60"),
        (["--mixed_precision", "no"], "mixed_precision = 'auto', now it is 'no'"),
        (["--data_seed", "5"], "data_seed = 0, now it is 5"),
        (["--pipelines", "retrained/soft"], "weights"),
    ):
        with pytest.raises(ValueError, match=named):
            generate("mixed", "--attributes", "sex", "--num_images", "30", *flags, **stop)
    assert contents(sets) == before
    # Another attribute is another set.
    generate("mixed", "--attributes", "race", "sex", "--num_images", "30")
    assert before.items() < contents(sets).items()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--attributes", "height"], "'height'"),
        (["--sample_size", "32"], "sample_size is 32, but runs/soft"),
        (["--pipelines", "runs/mine"], "runs/mine"),
        (["--pipelines", "runs/soft", "other/soft"], "folders must"),
        (["--num_images", "1"], "--num_images"),
        (["--num_images", "65"], "num_images is 65"),
        (["--values_per_image", "0"], "--values_per_image"),
        (["--seed", "-1"], "--seed"),
        (["--streaming", "--dataset_name", "folder"], "--streaming"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_it_before_anything_is_made(
    generate: Generate, folder: Path, flags: list[str], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        generate("refused", *flags)
    assert not (folder / "refused").exists()


def test_a_graph_that_does_not_fit_is_refused(generate: Generate, folder: Path) -> None:
    config = yaml.safe_load(TINY.read_text())
    config["graph"][0]["high"] = 99
    (folder / "wider.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"runs/soft was trained with another graph than that of the data"):
        generate("refused", config=folder / "wider.yaml")
    config["graph"] = [{"name": "intervention", "kind": "binary", "categories": ["a", "b"]}]
    (folder / "taken.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"The graph has a variable 'intervention', which is a column of its own here"):
        generate("refused", config=folder / "taken.yaml")


def test_a_missing_pipeline_is_told_with_the_command_that_makes_it(generate: Generate) -> None:
    with pytest.raises(
        SystemExit, match=r"no pipeline in gone/hard. (.*\n)+.*soft_cft.py --cft hard --output_dir gone$"
    ):
        generate("refused", "--pipelines", "gone/hard")
