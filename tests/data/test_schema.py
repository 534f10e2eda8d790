import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from softcft.data.schema import ImageAttributeDataset
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
    if images is None:
        images = [PILImage.fromarray(pixels) for pixels in pictures()]
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
    dataset = ImageAttributeDataset(rows, GRAPH, SIZE)
    assert len(dataset) == N
    values = GRAPH.decode(dataset.parents)
    for i in (0, 7, N - 1):
        example = dataset[i]
        assert example["image"].shape == (1, SIZE, SIZE)
        assert example["image"].dtype == example["parents"].dtype == torch.float32
        restored = ((example["image"][0] + 1) * 127.5).round().byte().numpy()
        np.testing.assert_array_equal(restored, pictures()[i])
        assert torch.equal(example["parents"], dataset.parents[i])
        assert {name: values[name][i] for name in GRAPH.names} == pytest.approx(
            {name: rows[i][name] for name in GRAPH.names}, abs=1e-5
        )


def test_black_is_minus_one_and_white_is_one() -> None:
    images = [PILImage.new("L", (SIZE, SIZE), color) for color in (0, 255)] * (N // 2)
    dataset = ImageAttributeDataset(table(images), GRAPH, SIZE)
    assert (dataset[0]["image"] == -1).all()
    assert (dataset[1]["image"] == 1).all()


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=N))
def test_many_rows_at_once_are_the_rows_one_by_one(rows: list[int]) -> None:
    dataset = ImageAttributeDataset(table(), GRAPH, SIZE)
    for row, example in zip(rows, dataset.__getitems__(rows), strict=True):
        assert torch.equal(example["image"], dataset[row]["image"])
        assert torch.equal(example["parents"], dataset[row]["parents"])


def test_a_data_loader_reads_each_row_once_and_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageAttributeDataset(table(), GRAPH, SIZE)
    expected = torch.stack([dataset[i]["image"] for i in range(N)])
    # Batches must not fall back to single rows, which cost several times as much.
    monkeypatch.delattr(ImageAttributeDataset, "__getitem__")
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=16))
    assert [len(batch["image"]) for batch in batches] == [16, 16, 8]
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected)
    assert torch.equal(torch.cat([batch["parents"] for batch in batches]), dataset.parents)


def test_columns_follow_the_graph_and_not_the_table() -> None:
    rows = table()
    dataset = ImageAttributeDataset(rows, CausalGraph(GRAPH.variables[::-1]), SIZE)
    parents = ImageAttributeDataset(rows, GRAPH, SIZE).parents
    assert torch.equal(dataset.parents, parents[:, [4, 3, 0, 1, 2]])


def test_shuffled_and_formatted_rows_keep_image_and_attributes_together() -> None:
    images = [PILImage.new("L", (SIZE, SIZE), i) for i in range(N)]
    rows = table(images).shuffle(seed=1).select(range(10)).with_format("torch")
    dataset = ImageAttributeDataset(rows, GRAPH, SIZE)
    ages = GRAPH.decode(dataset.parents)["age"]
    brightness = [((dataset[i]["image"].mean().item() + 1) * 127.5) for i in range(10)]
    assert brightness == pytest.approx(ages, abs=1e-3)
    assert ages != sorted(ages)


# ---- what may go in -----------------------------------------------------------------------------------------------


def test_colour_becomes_grey_and_grey_becomes_colour() -> None:
    colour = [PILImage.fromarray(pixels) for pixels in pictures(channels=3)]
    as_grey = ImageAttributeDataset(table(colour), GRAPH, SIZE)[3]["image"]
    grey = ImageAttributeDataset(table([picture.convert("L") for picture in colour]), GRAPH, SIZE)[3]["image"]
    assert torch.equal(as_grey, grey)

    as_colour = ImageAttributeDataset(table(colour), GRAPH, SIZE, image_channels=3)[3]["image"]
    np.testing.assert_array_equal(
        ((as_colour + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), pictures(channels=3)[3]
    )
    grey_in_colour = ImageAttributeDataset(table(), GRAPH, SIZE, image_channels=3)[3]["image"]
    assert grey_in_colour.shape == (3, SIZE, SIZE)
    assert torch.equal(grey_in_colour[0], grey_in_colour[2])


def test_class_labels_are_read_by_name() -> None:
    rows = table()
    labels = rows.cast_column("grade", ClassLabel(names=["c", "a", "b"]))  # in another order than the graph's
    assert isinstance(labels[0]["grade"], int)
    assert torch.equal(
        ImageAttributeDataset(labels, GRAPH, SIZE).parents, ImageAttributeDataset(rows, GRAPH, SIZE).parents
    )


def test_paths_serve_as_images(tmp_path: Path) -> None:
    paths = []
    for i, pixels in enumerate(pictures()):
        paths.append(str(tmp_path / f"{i}.png"))
        PILImage.fromarray(pixels).save(paths[-1])
    images = [{"bytes": None, "path": path} for path in paths]
    columns = {name: table()[name] for name in GRAPH.names}
    for column in (paths, images):  # a column of strings, as a CSV file gives it, and a column of images
        dataset = ImageAttributeDataset(Dataset.from_dict({"image": column, **columns}), GRAPH, SIZE)
        restored = ((dataset[5]["image"][0] + 1) * 127.5).round().byte().numpy()
        np.testing.assert_array_equal(restored, pictures()[5])


# ---- errors -------------------------------------------------------------------------------------------------------


def test_missing_columns_are_named_with_those_there_are() -> None:
    rows = table().remove_columns(["age", "image"])
    with pytest.raises(ValueError, match=r"no column \['image', 'age'\]; it has \['grade', 'ill', 'remark'\]"):
        ImageAttributeDataset(rows, GRAPH, SIZE)


def test_a_dict_of_splits_is_no_split() -> None:
    with pytest.raises(ValueError, match="got DatasetDict; of a DatasetDict pass one split"):
        ImageAttributeDataset(DatasetDict({"train": table()}), GRAPH, SIZE)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="rows is empty"):
        ImageAttributeDataset(table().select([]), GRAPH, SIZE)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_image_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"image_channels must be 1 \(grey\) or 3 \(RGB\), got {channels}"):
        ImageAttributeDataset(table(), GRAPH, SIZE, image_channels=channels)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("age", float("nan"), r"Row 17: 'age' must lie in \[0, 100\] years, got nan"),
        ("age", None, r"Row 17: 'age' must be a number years, got None"),
        ("age", 101.0, r"Row 17: 'age' must lie in \[0, 100\] years, got 101.0"),
        ("grade", "d", r"Row 17: 'grade' has no category 'd'; use one of \['a', 'b', 'c'\]"),
        ("ill", None, r"Row 17: 'ill' has no category None"),
    ],
)
def test_a_bad_value_is_named_with_its_row_and_column(column: str, value: object, message: str) -> None:
    rows = table()
    rows = table(**{column: replaced(rows[column], 17, value)})
    with pytest.raises(ValueError, match=message):
        ImageAttributeDataset(rows, GRAPH, SIZE)


def test_the_first_bad_row_is_named_whatever_its_column() -> None:
    rows = table()
    rows = table(grade=replaced(rows["grade"], 9, "d"), age=replaced(rows["age"], 4, -1.0))
    with pytest.raises(ValueError, match="Row 4: 'age'"):
        ImageAttributeDataset(rows, GRAPH, SIZE)


def test_a_missing_class_label_is_a_bad_value() -> None:
    features = Features({**table().features, "grade": ClassLabel(names=["a", "b", "c"])})
    columns = {**table().with_format("arrow")[:].to_pydict(), "grade": replaced([0] * N, 3, None)}
    with pytest.raises(ValueError, match="Row 3: 'grade' has no category None"):
        ImageAttributeDataset(Dataset.from_dict(columns, features=features), GRAPH, SIZE)


def test_the_first_image_is_checked_at_once() -> None:
    with pytest.raises(ValueError, match=r"Row 0: the image is 8 x 8 pixels .* but sample_size is 16; resize"):
        ImageAttributeDataset(table(), GRAPH, sample_size=16)


def test_a_later_image_of_another_size_is_named_when_read() -> None:
    images = [PILImage.fromarray(pixels) for pixels in pictures()]
    dataset = ImageAttributeDataset(table(replaced(images, 23, PILImage.new("L", (SIZE, SIZE + 1)))), GRAPH, SIZE)
    dataset.__getitems__([22, 24])
    with pytest.raises(ValueError, match=r"Row 23: the image is 8 x 9 pixels \(width x height\)"):
        dataset.__getitems__([22, 23, 24])


def test_a_missing_image_is_named() -> None:
    images = [PILImage.fromarray(pixels) for pixels in pictures()]
    dataset = ImageAttributeDataset(table(replaced(images, 23, None)), GRAPH, SIZE)
    with pytest.raises(ValueError, match="Row 23 has no image"):
        dataset[23]


def test_a_broken_image_is_named_among_others() -> None:
    buffer = io.BytesIO()
    PILImage.fromarray(pictures()[0]).save(buffer, "png")
    cells = [{"bytes": buffer.getvalue(), "path": None}] * N
    dataset = ImageAttributeDataset(table(replaced(cells, 23, {"bytes": b"no image", "path": None})), GRAPH, SIZE)
    with pytest.raises(ValueError, match="Row 23: the image cannot be read"):
        dataset.__getitems__([22, 23, 24])


def test_sixteen_bits_are_refused_and_not_clipped() -> None:
    images = [PILImage.fromarray(pixels.astype(np.uint16) * 200) for pixels in pictures()]
    with pytest.raises(ValueError, match="Row 0: the image has more than 8 bits per channel"):
        ImageAttributeDataset(table(images), GRAPH, SIZE)
