import logging
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from softcft.data import streaming as module
from softcft.data.columns import translate
from softcft.data.config import DataConfig
from softcft.data.own import read_table
from softcft.data.pixels import encode_pixels, prepare_images
from softcft.data.schema import ImageAttributeDataset, encode_rows
from softcft.data.sources import load_data, training_images
from softcft.data.streaming import StreamedImages, stream_splits
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 0, "high": 100},
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"]},
    ]
)
COLUMNS = {"age": "years", "ill": {"values": {0: "no", 1: "yes"}}}
N, SIZE = 30, 8


def rows(n: int = N, **changed: list) -> Dataset:
    """Every image has another brightness, by which it is known."""
    pictures = [encode_pixels(np.full((SIZE, SIZE), 8 * i, np.uint8)) for i in range(n)]
    columns = {"image": pictures, "years": [float(i) for i in range(n)], "ill": [i % 2 for i in range(n)], **changed}
    return Dataset.from_dict(columns).cast_column("image", datasets.Image())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(rows(), tmp_path / "parquet")


def save(table: Dataset, folder: Path, split: str = "train", files: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(files):
        table.shard(files, i).to_parquet(folder / f"{split}-{i}-of-{files}.parquet")
    return folder


def settings(folder: Path, **others: object) -> DataConfig:
    return DataConfig(**{"dataset_name": str(folder), "sample_size": SIZE, "streaming": True, **others})


def stream(folder: Path, **others: object) -> StreamedImages:
    rows = read_table(str(folder), streaming=True)["train"]
    return StreamedImages(rows, settings(folder, **others), GRAPH, COLUMNS)


def numbers(examples: list[dict]) -> list[int]:
    """Which images these are; each must come with its own attributes."""
    found = [int(example["image"][0, 0, 0]) // 8 for example in examples]
    for number, example in zip(found, examples, strict=True):
        assert (example["image"] == 8 * number).all()
        assert torch.equal(example["parents"], GRAPH.encode({"age": number, "ill": ["no", "yes"][number % 2]})[0])
    return found


def test_each_time_round_gives_each_image_once_in_another_order(folder: Path) -> None:
    images = stream(folder)
    examples = list(islice(images, 2 * N))
    assert (examples[0]["image"].shape, examples[0]["image"].dtype) == ((1, SIZE, SIZE), torch.uint8)
    order = numbers(examples)
    assert sorted(order[:N]) == sorted(order[N:]) == list(range(N))
    assert order[:N] != order[N:]
    assert order[:N] != sorted(order[:N])
    assert numbers(list(islice(images, 2 * N))) == order
    assert numbers(list(islice(stream(folder, data_seed=1), N))) != order[:N]


def test_examples_are_those_of_a_prepared_data_set(folder: Path, tmp_path: Path) -> None:
    table = translate(read_table(str(folder))["train"], GRAPH, COLUMNS)
    prepared = ImageAttributeDataset(prepare_images(table, 5, 3, cache_dir=tmp_path / "cache")[0], GRAPH)
    streamed = stream(folder, sample_size=5, image_channels=3)
    by_age = {float(example["parents"][0]): example for example in islice(streamed, N)}
    for i in range(N):
        for key, value in prepared[i].items():
            assert torch.equal(by_age[float(prepared.parents[i, 0])][key], value)
    assert (streamed.sample_size, streamed.image_channels) == (5, 3)
    torch.testing.assert_close(streamed.parents, prepared.parents)


@pytest.mark.parametrize("skipped", [1, 10, N - 1, N, N + 13])
def test_what_is_skipped_is_the_beginning(folder: Path, skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 7)
    images = stream(folder)
    assert numbers(list(islice(images.skip(skipped), N))) == numbers(list(islice(images, skipped, skipped + N)))


def test_halves_share_no_image_and_leave_none_out(folder: Path) -> None:
    images = stream(folder)
    even, odd = (numbers(list(islice(images.subset(half), N // 2))) for half in ("even", "odd"))
    assert sorted(even + odd) == list(range(N))
    assert not set(even) & set(odd)


def test_workers_share_the_work(folder: Path) -> None:
    loader = DataLoader(stream(folder), batch_size=5, num_workers=2, multiprocessing_context="fork")
    batches = list(islice(loader, 6))
    assert sorted(int(value) // 8 for batch in batches for value in batch["image"][:, 0, 0, 0]) == list(range(N))


def test_missing_values_are_kept_or_left_out(tmp_path: Path) -> None:
    years = [None if i % 3 == 0 else float(i) for i in range(N)]
    images = stream(save(rows(years=years), tmp_path / "parquet"))
    first = list(islice(images, N))
    assert sum(bool(example["parents"][0].isnan()) for example in first) == N // 3
    assert int(images.parents[:, 0].isnan().sum()) == N // 3
    complete = list(islice(images.subset(complete=True), 2 * N // 3))
    assert sorted(numbers(complete)) == [i for i in range(N) if i % 3]


def test_damaged_images_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = [None, {"bytes": b"no picture", "path": "ct7.png"}]
    table = rows(32, image=[*[encode_pixels(np.full((SIZE, SIZE), 8 * i, np.uint8)) for i in range(30)], *pictures])
    images = stream(save(table, tmp_path / "parquet"))
    with caplog.at_level(logging.WARNING):
        assert sorted(numbers(list(islice(images, 30)))) == list(range(30))
        next(islice(images, 30, 31))
    assert "ct7.png is left out: it is no picture" in caplog.text


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    images = stream(save(rows(years=[None] * N), tmp_path / "parquet"))
    with pytest.raises(ValueError, match=r"None of the 30 rows has an image that can be read and all values"):
        next(iter(images.subset(complete=True)))


def test_first_rows_are_checked_at_once(folder: Path) -> None:
    table = read_table(str(folder), streaming=True)["train"]
    unknown = {"age": "years", "ill": {"values": {0: "healthy", 1: "sick"}}}
    for rows, columns, named in ((table, None, "'age'"), (table, unknown, "'sick'"), (table.take(0), COLUMNS, "rows")):
        with pytest.raises(ValueError, match=named):
            StreamedImages(rows, settings(folder), GRAPH, columns)


SITE = CausalGraph([{"name": "site", "kind": "categorical", "categories": ["left", "right", "both"]}])
MASS = CausalGraph([{"name": "site", "kind": "binary", "categories": ["no", "yes"]}])
DOSE = CausalGraph([{"name": "site", "kind": "continuous", "low": 0, "high": 100}])


@pytest.mark.parametrize(
    ("graph", "values", "entry"),
    [
        (SITE, [0, 1, 2, 1, *[1, 2] * 4], {}),  # later rows are read as the first
        (SITE, [0, 0, 0, 0, 1, 2, 2, 2], {}),
        (SITE, [0, None, 0, 0, *[None] * 4, 2, 1, 2, 1], {}),
        (SITE, ["left", "both", "both", "left", "right", "right"], {}),
        (SITE, [1, 2, 1, 2, 3, 3, 3, 3], {"values": {1: "left", 2: "right", 3: "both"}}),
        (
            MASS,
            ["mass|node, left", "node", "mass", "node", "node, left", "left", "x", "mass"],
            {"contains": ["node, left"]},
        ),
        (MASS, ["['mass', 'node']", "['node']", "[]", "['mass']", "['mass', 'x']"], {"contains": ["mass"]}),
        (DOSE, ["1.234", "1.5", "2", "3", "1.234", "2.500", "7", "8"], {}),
    ],
)
def test_a_stream_is_read_as_the_table(graph, values: list, entry: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    folder, columns = save(rows(len(values), site=values), tmp_path / "parquet", files=1), {"site": entry}
    table = translate(read_table(str(folder))["train"], graph, columns)
    read = StreamedImages(read_table(str(folder), streaming=True)["train"], settings(folder), graph, columns)
    torch.testing.assert_close(read.parents, encode_rows(table, graph), equal_nan=True)


@pytest.mark.parametrize(
    ("graph", "values", "entry", "is_late"),
    [
        (SITE, [1, 2, 1, 2, 1, 2], {}, False),  # the first category has the number 0, or 1
        (SITE, [2, 2, 2, 2, 0, 1], {}, False),
        (SITE, [1, 2, 3, 1, 1, 2], {}, False),
        (SITE, [0, 1, 0, 1, 3, 3], {}, True),
        (SITE, [None] * 4 + [0, 1, 2, 2], {}, True),
        (SITE, [0, 1, 2, 2, -1, 1], {}, True),
        (MASS, ["mass, node"] * 4 + ["mass|node, left"] * 4, {"contains": ["mass"]}, True),
        (DOSE, ["1.234", "2.500", "7", "8", "9"], {}, False),
        (DOSE, ["1.5", "2.5", "7", "8", "9,5"], {}, True),
    ],
)
def test_a_stream_that_may_mean_something_else_is_refused(
    graph, values: list, entry: dict, is_late: bool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    folder = save(rows(len(values), site=values), tmp_path / "parquet", files=1)
    table = read_table(str(folder), streaming=True)["train"]
    images = StreamedImages(table, settings(folder), graph, {"site": entry}) if is_late else None
    with pytest.raises(ValueError, match="site"):
        list(images.tables(table)) if images else StreamedImages(table, settings(folder), graph, {"site": entry})


def test_labels_that_the_first_rows_lack_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(rows(6, site=["mass"] * 6), tmp_path / "parquet", files=1)
    table = read_table(str(folder), streaming=True)["train"]
    with caplog.at_level(logging.WARNING):
        StreamedImages(table, settings(folder), MASS, {"site": {"contains": ["mas"]}})
    assert "'mas'" in caplog.text


def test_splits_are_taken_off_the_training_rows(folder: Path, tmp_path: Path) -> None:
    made = {"num_train": 10, "num_validation": 4, "num_test": 6}
    splits = stream_splits(settings(folder, data_dir=str(tmp_path / "cache"), **made), GRAPH, COLUMNS)
    held_out = [ImageAttributeDataset(splits[name], GRAPH).parents for name in ("validation", "test")]
    train = StreamedImages(splits["train"], settings(folder), GRAPH, COLUMNS).parents
    assert [len(held_out[0]), len(held_out[1]), len(train)] == [4, 6, 10]
    assert len(torch.cat([*held_out, train]).unique(dim=0)) == 20


def test_splits_that_are_there_are_kept(folder: Path, tmp_path: Path) -> None:
    save(rows(6), folder, "test", files=1)
    save(rows(5), folder, "validation", files=1)
    config = DataConfig(dataset_name=str(folder), sample_size=SIZE, streaming=True, data_dir=str(tmp_path / "cache"))
    splits = load_data(config, GRAPH, COLUMNS)
    assert [len(splits[name]) for name in ("validation", "test")] == [5, 6]
    images = training_images(splits["train"], config, GRAPH, COLUMNS)
    assert isinstance(images, StreamedImages)
    assert len(images.parents) == N


@pytest.mark.parametrize("values", [{"dataset_name": "phantom"}, {"group_column": "years"}, {"on_error": "raise"}])
def test_streaming_where_it_cannot_be_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="streaming is for a folder or a data set of the Hub, got"):
        DataConfig(**{"dataset_name": "folder", "sample_size": 16, "streaming": True, **values})
