import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from softcft.data.pixels import encode_pixels
from softcft.data.schema import ImageAttributeDataset, check_known, random_part, scale_pixels, to_eight_bits
from softcft.graph import CausalGraph, Variable

GRAPH = CausalGraph(
    [
        Variable(name="grade", kind="categorical", categories=("a", "b", "c")),
        Variable(name="age", kind="continuous", low=0, high=100, unit="years"),
        Variable(name="ill", kind="binary", categories=("no", "yes"), parents=("age",)),
    ]
)
N, SIZE = 40, 8


def pictures(n: int = N, size: int = SIZE, channels: int = 1) -> np.ndarray:
    shape = (n, size, size) if channels == 1 else (n, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def table(images: list | None = None, **columns: list) -> Dataset:
    """Valid rows, but for what is given."""
    images = [encode_pixels(pixels) for pixels in pictures()] if images is None else images
    columns = {
        "age": [float(i) for i in range(N)],
        "grade": [["a", "b", "c"][i % 3] for i in range(N)],
        "ill": [["no", "yes"][i % 2] for i in range(N)],
        **columns,
    }
    rows = Dataset.from_dict({"image": images, **columns, "remark": ["none"] * N})
    return rows.cast_column("image", datasets.Image())


def replaced(values: list, row: int, value: object) -> list:
    return [value if i == row else v for i, v in enumerate(values)]


# ---- what comes out -----------------------------------------------------------------------------------------------


def test_images_and_parents_are_those_of_the_rows() -> None:
    rows = table()
    dataset = ImageAttributeDataset(rows, GRAPH)
    assert len(dataset) == N
    values = GRAPH.decode(dataset.parents)
    for i in (0, 7, N - 1):
        example = dataset[i]
        assert example["image"].shape == (1, SIZE, SIZE)
        assert (example["image"].dtype, example["parents"].dtype) == (torch.uint8, torch.float32)
        np.testing.assert_array_equal(example["image"][0].numpy(), pictures()[i])
        assert torch.equal(example["parents"], dataset.parents[i])
        assert {name: values[name][i] for name in GRAPH.names} == pytest.approx(
            {name: rows[i][name] for name in GRAPH.names}, abs=1e-5
        )


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=N))
def test_many_rows_at_once_are_the_rows_one_by_one(rows: list[int]) -> None:
    dataset = ImageAttributeDataset(table(), GRAPH)
    for row, example in zip(rows, dataset.__getitems__(rows), strict=True):
        assert torch.equal(example["image"], dataset[row]["image"])
        assert torch.equal(example["parents"], dataset[row]["parents"])


def test_a_data_loader_reads_each_row_once_and_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageAttributeDataset(table(), GRAPH)
    expected = torch.stack([dataset[i]["image"] for i in range(N)])
    # Batches must not fall back to single rows, which cost several times as much.
    monkeypatch.delattr(ImageAttributeDataset, "__getitem__")
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=16))
    assert [len(batch["image"]) for batch in batches] == [16, 16, 8]
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected)
    assert torch.equal(torch.cat([batch["parents"] for batch in batches]), dataset.parents)


def test_columns_follow_the_graph_and_not_the_table() -> None:
    rows = table()
    dataset = ImageAttributeDataset(rows, CausalGraph(GRAPH.variables[::-1]))
    parents = ImageAttributeDataset(rows, GRAPH).parents
    assert torch.equal(dataset.parents, parents[:, [4, 3, 0, 1, 2]])


def test_shuffled_and_formatted_rows_keep_image_and_attributes_together() -> None:
    images = [encode_pixels(np.full((SIZE, SIZE), i, np.uint8)) for i in range(N)]
    rows = table(images).shuffle(seed=1).select(range(10)).with_format("torch")
    dataset = ImageAttributeDataset(rows, GRAPH)
    ages = GRAPH.decode(dataset.parents)["age"]
    brightness = [dataset[i]["image"].float().mean().item() for i in range(10)]
    assert brightness == pytest.approx(ages, abs=1e-3)
    assert ages != sorted(ages)


# ---- what may go in -----------------------------------------------------------------------------------------------


def test_colour_is_kept() -> None:
    dataset = ImageAttributeDataset(table([encode_pixels(pixels) for pixels in pictures(channels=3)]), GRAPH)
    assert (dataset.image_channels, dataset.sample_size) == (3, SIZE)
    assert ImageAttributeDataset(table(), GRAPH).image_channels == 1
    np.testing.assert_array_equal(dataset[3]["image"].permute(1, 2, 0).numpy(), pictures(channels=3)[3])


def test_class_labels_are_read_by_name() -> None:
    rows = table()
    labels = rows.cast_column("grade", ClassLabel(names=["c", "a", "b"]))  # in another order than the graph's
    assert isinstance(labels[0]["grade"], int)
    assert torch.equal(ImageAttributeDataset(labels, GRAPH).parents, ImageAttributeDataset(rows, GRAPH).parents)


@pytest.mark.parametrize(("column", "missing"), [("age", float("nan")), ("age", None), ("grade", None), ("ill", None)])
def test_a_missing_value_is_nan_in_all_its_columns(column: str, missing: float | None) -> None:
    rows = table()
    dataset = ImageAttributeDataset(table(**{column: replaced(rows[column], 17, missing)}), GRAPH)
    expected = ImageAttributeDataset(rows, GRAPH).parents
    expected[17, GRAPH.slices[column]] = float("nan")
    torch.testing.assert_close(dataset.parents, expected, rtol=0, atol=0, equal_nan=True)
    assert dataset.complete == [i for i in range(N) if i != 17]


def test_a_missing_class_label_is_missing() -> None:
    features = Features({**table().features, "grade": ClassLabel(names=["a", "b", "c"])})
    columns = {**table().with_format("arrow")[:].to_pydict(), "grade": replaced([0] * N, 3, None)}
    dataset = ImageAttributeDataset(Dataset.from_dict(columns, features=features), GRAPH)
    assert dataset.parents[3, GRAPH.slices["grade"]].isnan().all()


@pytest.mark.parametrize("column", ["age", "grade", "ill"])
@pytest.mark.parametrize("known", [0, 1])
def test_a_variable_that_no_image_tells_is_named_with_its_split(column: str, known: int) -> None:
    values = table()[column][:known] + [None] * (N - known)
    images = ImageAttributeDataset(table(**{column: values}), GRAPH)
    if known:
        check_known(images, "validation")
    else:
        with pytest.raises(ValueError, match=f"'{column}'.*validation"):
            check_known(images, "validation")


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [("age", 101.0, "101.0"), ("grade", "d", "'d'"), ("ill", "maybe", "'maybe'")],
)
def test_a_bad_value_is_named_with_its_row_and_column(column: str, value: object, named: str) -> None:
    rows = table()
    rows = table(**{column: replaced(rows[column], 17, value)})
    with pytest.raises(ValueError, match=f"Row 17: '{column}' .*{named}"):
        ImageAttributeDataset(rows, GRAPH)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (lambda: table().remove_columns(["age", "image"]), r"\['image', 'age'\].*\['grade', 'ill', 'remark'\]"),
        (lambda: DatasetDict({"train": table()}), "DatasetDict"),
        (lambda: table().select([]), "rows is empty"),
        (lambda: table([PILImage.fromarray(pixels) for pixels in pictures()]), "rows must"),
    ],
)
def test_rows_of_another_kind_are_refused_at_once(rows, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ImageAttributeDataset(rows(), GRAPH)


def test_a_later_image_of_another_size_is_refused_when_read() -> None:
    images = replaced([encode_pixels(pixels) for pixels in pictures()], 23, encode_pixels(pictures(size=SIZE + 1)[0]))
    dataset = ImageAttributeDataset(table(images), GRAPH)
    dataset.__getitems__([22, 24])
    with pytest.raises(ValueError, match="rows must"):
        dataset.__getitems__([22, 23, 24])


def test_black_is_minus_one_and_white_is_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8)
    assert scale_pixels(pixels).tolist() == [-1, 1]
    assert torch.equal(scale_pixels(torch.tensor([-1.0, 0.3])), torch.tensor([-1.0, 0.3]))


def test_eight_bits_are_the_same_after_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_eight_bits(scale_pixels(pixels)), pixels)


def test_a_random_part_of_a_sorted_table_is_like_the_whole() -> None:
    rows = range(1000, 3000)  # the first half of one class, the others of another
    part = random_part(rows, 400, seed=0)
    assert part == sorted(set(part))
    assert set(part) <= set(rows)
    assert len(part) == 400
    assert sum(row < 2000 for row in part) == pytest.approx(200, abs=40)
    assert part != random_part(rows, 400, seed=1)
    assert set(random_part(rows, 300, seed=0)) < set(part)
    for number in (2000, 5000, None):
        assert random_part(rows, number, seed=0) == list(rows)
