import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from softcft.data.config import DataConfig
from softcft.data.report import DataReport, check_data
from softcft.graph import CausalGraph
from tests.data.picture_files import deep_png, dicom, saved, tiff

GRAPH = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 0, "high": 100, "unit": "years"},
        {"name": "sex", "kind": "binary", "categories": ["male", "female"]},
    ]
)


def png(shade: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    data = io.BytesIO()
    picture = PILImage.fromarray(np.full(size[::-1], shade % 256, "u1")).convert(mode)
    picture.putpixel((0, 0), (shade // 256,) * 3 if mode == "RGB" else shade // 256)  # no two are alike
    picture.save(data, "PNG")
    return data.getvalue()


def splits(n: int = 60, pictures: dict[int, Any] | None = None, **columns: Any) -> DatasetDict:
    """Half of the rows for training, a quarter each for validation and test; a column is a function of the row."""
    columns = {"age": lambda i: i % 50 + 25.0, "sex": lambda i: ["male", "female"][i % 2], **columns}
    stored = [(pictures or {}).get(i, {"bytes": png(i), "path": None}) for i in range(n)]
    rows = Dataset.from_dict({"image": stored}, features=Features({"image": Image()}))
    for name, column in columns.items():
        if column is not None:
            rows = rows.add_column(name, [column(i) for i in range(n)])
    parts = {"train": range(n // 2), "validation": range(n // 2, 3 * n // 4), "test": range(3 * n // 4, n)}
    return DatasetDict({name: rows.select(part) for name, part in parts.items()})


def check(table: DatasetDict, columns: dict[str, Any] | None = None, **settings: Any) -> DataReport:
    config = DataConfig(**{"dataset_name": "mine", "sample_size": 8, **settings})
    return check_data(table, config, GRAPH, columns)


def test_good_data_have_no_problems() -> None:
    report = check(splits(200))
    assert (report.errors, report.warnings) == ([], [])
    text = "\n".join(report.lines)
    assert text.startswith("Images: train 100, validation 50, test 50\n")
    assert "Complete rows, which image models and the evaluation use: train 100 of 100" in text
    assert "Pictures (200 of 200 read)\n  size in pixels: 8 x 8 (200 of them)\n  PIL modes: L 200" in text
    lines = [line.split() for line in report.lines]
    assert ["train", "25", "25", "49.5", "49.5", "74", "74", "0", "0"] in lines  # percentiles
    assert ["male", "50", "(", "50", "%)", "25", "(", "50", "%)", "25", "(", "50", "%)"] in lines


def test_all_problems_are_told_at_once() -> None:
    table = splits(200, age=lambda i: float(i), sex=lambda i: "m" if i % 2 else "male").remove_columns("image")
    scan, age, unknown = check(table, {"age": "age", "image": "scan"}).errors
    assert "'scan'" in scan
    assert "99 values of 'age'" in age
    assert "'m' (100 rows)" in unknown


@pytest.mark.parametrize(
    "column", [lambda i: "mf"[i % 2], lambda i: ["m", "male"][i % 2], lambda i: 1 + i % 2, lambda i: 1, lambda i: None]
)
def test_of_a_variable_that_is_not_understood_only_that_is_told(column) -> None:
    report = check(splits(60, sex=column))
    (error,) = report.errors
    assert "sex" in error
    assert not any("sex" in text for text in report.warnings)
    report = check(splits(60, sex=column, age=lambda i: "?"))
    assert len(report.errors) == 2
    assert report.warnings == []


def test_others_are_checked_beside_what_is_not_understood() -> None:
    report = check(splits(200, age=lambda i: "?", sex=lambda i: "male"))
    assert ["'?'" in report.errors[0], *["'female'" in text for text in report.errors[1:]]] == [True] * 3
    report = check(splits(200, age=None, sex=lambda i: "male"))
    assert ["age" in report.errors[0], *["'female'" in text for text in report.errors[1:]]] == [True] * 3


def test_a_missing_column_is_told_with_the_nearest_one() -> None:
    report = check(splits(sex=None, gender_sex=lambda i: "male"), {"sex": "gender"})
    (error,) = report.errors
    assert "'gender'" in error
    assert "{sex: gender_sex}" in error
    assert any(line.startswith("age (continuous") for line in report.lines)  # the others are still read


def test_a_split_that_lacks_a_column_is_named() -> None:
    table = splits()
    table["test"] = table["test"].remove_columns("age")
    assert "test" in check(table).errors[0]


@pytest.mark.parametrize("value", [float("inf"), "inf", "1e400"])
def test_infinite_numbers_are_no_numbers(value) -> None:
    (error,) = check(splits(age=lambda i: value if i == 7 else type(value)(i + 20))).errors
    assert "(1 rows)" in error


def test_missing_pictures_are_no_missing_values(tmp_path: Path) -> None:
    stored = {i: {"bytes": None, "path": str(tmp_path / f"{i}.png")} for i in range(60)}
    report = check(splits(60, stored), dataset_name=str(tmp_path))
    assert len(report.errors) == 1
    assert "0.png" in report.errors[0]


def test_missing_values_are_counted_and_the_rest_must_suffice() -> None:
    table = splits(200, age=lambda i: None if i % 4 == 0 else 30.0 + i % 50, sex=lambda i: "male" if i % 2 else "")
    report = check(table, {"sex": {"values": {"x": "female"}}})
    text = "\n".join(report.lines)
    assert "(missing)" in text
    assert "train 50 of 100, validation 25 of 50, test 25 of 50" in text
    report = check(splits(200, age=lambda i: None))
    assert "'age' has no value in any row; leave it out of the graph." in report.errors
    assert len(report.errors) == 1
    report = check(splits(200, age=lambda i: 40.0 + i % 9 if i < 151 else None))
    assert any(text.startswith("1 rows of test have a value for every variable") for text in report.errors)


def test_categories_of_test_are_counted_in_complete_rows() -> None:
    """The evaluation has no others."""
    report = check(splits(200, age=lambda i: None if i % 2 else 40.0 + i % 30))
    assert [text[:43] for text in report.errors] == ["'sex': no image of test is 'female', so that"[:43]]


def test_rare_categories_and_odd_ranges_are_warned_of() -> None:
    table = splits(200, sex=lambda i: "female" if i % 30 == 0 else "male", age=lambda i: 99.0 if i == 0 else 1 + i % 4)
    report = check(table)
    assert report.errors == []
    narrow, far, validation, train, test = report.warnings
    assert "99 (1 rows)" in far
    assert validation.startswith("'sex': validation")
    assert "98 % of the values of 'age' lie in 3 % of its range" in narrow
    assert "4 images of train are 'female'" in train
    assert "2 images of test are 'female'" in test
    assert any("'age' is 5 in all rows" in text for text in check(splits(age=lambda i: 5)).warnings)


def test_splits_are_drawn_and_groups_kept() -> None:
    table = DatasetDict({"train": splits(400, patient=lambda i: i // 4)["train"]})
    report = check(table, group_column="patient")
    assert "drawn at random" in report.lines[0]
    assert report.lines[1].startswith("patient: train 35, validation 5, test 10")
    (few,) = [text for text in report.warnings if "--num_validation" in text]  # 5 patients
    assert few.startswith("'age', 'sex': ")
    report = check(table, group_column="patient", num_validation=60)
    assert not any("patient" in text for text in report.warnings)
    report = check(splits(200, patient=lambda i: i // 4 % 40), group_column="patient")
    assert "10 values of 'patient' are in both train and test" in report.warnings[0]
    report = check(splits(200), num_test=60)
    assert "num_test is 60" in report.errors[0]
    assert report.lines[0].startswith("Images: train 100")


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    odd = io.BytesIO()
    PILImage.new("F", (8, 8), -1).save(odd, "TIFF")
    pictures = {
        3: {"bytes": b"no picture", "path": "broken.png"},
        4: {"bytes": odd.getvalue(), "path": "odd.tif"},
        5: {"bytes": None, "path": str(tmp_path / "where.png")},
    }
    report = check(splits(200, pictures), dataset_name=str(tmp_path))
    assert report.errors == []
    (unreadable,) = report.warnings
    for named in ("3 of 200 pictures", "broken.png: ", "odd.tif: ", f"{tmp_path}/where.png: "):
        assert named in unreadable
    assert check(splits(200, pictures), dataset_name=str(tmp_path), on_error="raise").errors[0].startswith("3 of 200")
    assert "40 of 40 pictures" in check(splits(40, {i: pictures[4] for i in range(40)})).errors[-1]


def test_what_is_white_is_told_and_mixtures_are_warned_of() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8))
    pixels[:, 0, 0] = 255
    twelve = {i: {"bytes": deep_png(pixels[i] << 4), "path": None} for i in range(200)}
    report = check(splits(200, twelve))
    assert report.warnings == []
    assert any("12 bits in 16: white is 4,095 (200" in line for line in report.lines)

    tags = [("MONOCHROME1", "MONOCHROME2")[i % 2] for i in range(200)]
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    scans = [dicom(pixels[i] << 4 if tag[-1] == "2" else 4095 - (pixels[i] << 4), 12, tag, **window)
             for i, tag in enumerate(tags)]  # fmt: skip
    report = check(splits(200, {i: {"bytes": scan, "path": None} for i, scan in enumerate(scans)}))
    assert report.warnings == []
    for tag in ("MONOCHROME1: 100, inverted", "MONOCHROME2: 100", "first window (200"):
        assert any(tag in line for line in report.lines), tag

    mixed = twelve | {i: {"bytes": deep_png(pixels[i] << 8), "path": None} for i in range(0, 200, 3)}
    mixed |= {i: {"bytes": scans[i], "path": None} for i in range(0, 200, 20)}
    (warning,) = check(splits(200, mixed)).warnings
    for white in ("4,095 (", "65,535 (", "first window (10 "):
        assert white in warning


def test_files_that_are_not_there_are_looked_for_beyond_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softcft.data.report_pictures.SAMPLE", 4)
    (tmp_path / "0.png").write_bytes(png(0))
    there = {"bytes": None, "path": str(tmp_path / "0.png")}
    pictures = {**dict.fromkeys(range(200), there), 55: {"bytes": None, "path": str(tmp_path / "where.png")}}
    warning = check(splits(200, pictures), dataset_name=str(tmp_path)).warnings[0]
    assert warning.startswith("1 pictures are not there")
    assert f"{tmp_path}/where.png" in warning


def test_the_first_picture_that_can_be_read_decides_on_colour() -> None:
    report = check(splits(200, {0: {"bytes": b"", "path": "empty.png"}}))
    assert report.errors == []
    assert "1 of 200 pictures" in report.warnings[0]
    assert "empty.png: " in report.warnings[0]


@pytest.mark.parametrize(("first", "named"), [("L", "colour"), ("RGB", "grey")])
@pytest.mark.parametrize("others", [1, 10, 199])
def test_grey_and_colour_together_are_told_whichever_is_first(first: str, named: str, others: int) -> None:
    modes = [first] * (200 - others) + [{"L": "RGB", "RGB": "L"}[first]] * others
    table = splits(200, {i: {"bytes": png(i, mode=mode), "path": None} for i, mode in enumerate(modes)})
    assert any(f"{others} of 200" in text and named in text for text in check(table).warnings)
    assert check(table, image_channels=1).warnings == check(table, image_channels=3).warnings == []


FORMS = {
    "TIFF": lambda pages: tiff(np.stack(pages), photometric="minisblack"),
    "GIF": lambda pages: saved(*map(PILImage.fromarray, pages[:1]), form="gif", **more(pages)),
    "PNG": lambda pages: saved(*map(PILImage.fromarray, pages[:1]), **more(pages)),
    "WebP": lambda pages: saved(*map(PILImage.fromarray, pages[:1]), form="webp", **more(pages)),
}


def more(pages: list[np.ndarray]) -> dict[str, Any]:
    return {"save_all": True, "append_images": list(map(PILImage.fromarray, pages[1:]))}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_several_pictures_are_told(form: str) -> None:
    random = np.random.default_rng(0)
    pages = list(random.integers(0, 256, (3, 16, 16), dtype="u1"))
    stored = [{"bytes": FORMS[form](some), "path": f"scan.{form}"} for some in (pages, pages[:1])]
    report = check(splits(200, {i: stored[0] for i in range(8)} | {i: stored[1] for i in range(8, 20)}))
    (several,) = [text for text in report.warnings if "several pictures" in text]
    assert several.startswith("8 of 200 files")
    assert f"scan.{form} has 3" in several


@pytest.mark.parametrize("most", [0, 1, 255])
def test_pictures_that_are_black_to_the_eye_are_told(most: int) -> None:
    """Masks of 0 and 1 are, among others."""
    random = np.random.default_rng(0)
    stored = {"bytes": saved(PILImage.fromarray(random.integers(0, most + 1, (8, 8), dtype="u1"))), "path": "mask.png"}
    report = check(splits(200, dict.fromkeys(range(40, 60), stored)))
    assert any("single shade" in text and "mask.png" in text for text in report.warnings) == (most < 255)


def test_negatives_are_told_with_their_number() -> None:
    def picture(i: int) -> dict[str, Any]:
        pixels = np.full((8, 8), 20 + i % 50, "u1")
        pixels[2:6, 2:6] = 180 + i // 50
        data = io.BytesIO()
        PILImage.fromarray(255 - pixels if i % 4 == 0 else pixels).save(data, "PNG")
        return {"bytes": data.getvalue(), "path": f"{i}.png"}

    (warning,) = check(splits(200, {i: picture(i) for i in range(200)})).warnings
    assert "50 of 200 pictures" in warning
    assert "0.png, 4.png" in warning


def test_sizes_are_told() -> None:
    report = check(splits(200, {7: {"bytes": png(7, (20, 10)), "path": None}}), sample_size=16)
    text = "\n".join(report.lines)
    for said in ("8 x 8 (199 of them)", "from 8 to 20", "become 16 x 16, grey; 200 are enlarged", "1 are no squares"):
        assert said in text
    (warning,) = report.warnings
    assert "--sample_size 16" in warning


def test_copies_in_two_splits_are_found() -> None:
    table = splits(200, {199: {"bytes": png(0), "path": "copy.png"}})
    assert "1 pictures are in several splits, for instance an image (train) and copy" in check(table).warnings[0]


def test_examples_go_over_categories_and_ranges() -> None:
    examples = check(splits(200, {i: {"bytes": png(i, (9, 8)), "path": None} for i in range(9)})).examples
    assert list(examples) == ["age", "sex: male", "sex: female"]
    assert [example.caption.split()[1] for example in examples["age"]] == ["25", "35", "45", "54", "64", "74"]
    assert {example.caption.split(", ")[1] for example in examples["sex: female"]} == {"female"}
    assert {example.pixels.shape for row in examples.values() for example in row} == {(8, 8)}
    examples = check(splits(200, age=lambda i: None if i < 4 else 3.14159)).examples
    assert examples["sex: male"][0].caption == "age ?, male"
    assert examples["sex: male"][-1].caption == "age 3.14 years, male"


def test_years_are_no_ages_and_lists_no_categories() -> None:
    table = splits(age=lambda i: 1930.0 + i, sex=lambda i: ["male", "male|female", "female"][i % 3])
    report = check(table)
    assert any("'age'" in error and "years" in error for error in report.errors)
    assert any("'sex'" in warning and "several labels" in warning for warning in report.warnings)


def test_a_sample_is_read_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softcft.data.report_pictures.SAMPLE", 20)
    table = splits(200)
    config = DataConfig(dataset_name="mine", sample_size=8)
    assert "Pictures (20 of 200 read)" in check_data(table, config, GRAPH).lines
    assert "Pictures (200 of 200 read)" in check_data(table, config, GRAPH, all_images=True).lines


def test_integers_are_told_as_what_they_are_read() -> None:
    assert "  read as: 0 -> male, 1 -> female" in check(splits(200, sex=lambda i: i % 2)).lines


@pytest.mark.parametrize(
    ("categories", "values", "translated", "told"),
    [
        (["AP", "PA", "LL"], [1, 2], None, "count from 0"),
        (["AP", "PA", "LL"], [0, 1], None, None),
        (["AP", "PA", "LL"], [1, 2], {1: "AP", 2: "PA"}, None),
        (["F", "female", "M"], ["F", "female", "M"], None, "{'F': 'female'}"),
        (["-1", "0", "1"], ["-1", "0", "1"], None, "-1: null"),
        (["F", "M", "unknown"], ["F", "M", "unknown"], None, "unknown: null"),
        (["F", "M"], ["F", "M", "unknown"], {"unknown": None}, None),
    ],
)
def test_doubts_about_categories_are_told(categories, values, translated, told) -> None:
    graph = CausalGraph([{"name": "x", "kind": "categorical", "categories": categories}])
    table = splits(x=lambda i: values[i % len(values)])
    columns = {"x": {"column": "x", "values": translated}} if translated else None
    report = check_data(table, DataConfig(dataset_name="mine", sample_size=8), graph, columns)
    told_of = [*report.warnings, *(text for text in report.errors if "count from" in text)]
    doubts = ("count from 0", "{'F': 'female'}", "-1: null", "unknown: null")
    assert [doubt for doubt in doubts if doubt in "\n".join(told_of)] == ([told] if told else [])


@pytest.mark.parametrize(
    ("age", "count", "examples"),
    [
        (lambda i: 99.0 if i == 30 else 20 + i % 30, 1, ["99 (1 rows)"]),
        (lambda i: {5: 0, 6: 0}.get(i, 30 + i % 40), 2, ["0 (2 rows)"]),
        (lambda i: {5: 0, 6: 99}.get(i, 30 + i % 20), 2, ["0 (1 rows)", "99 (1 rows)"]),
        (lambda i: 20 + i % 70, 0, []),
        (lambda i: i % 90, 0, []),
    ],
)
def test_numbers_far_from_all_others_are_told(age, count, examples) -> None:
    told = [text for text in check(splits(200, age=age)).warnings if "far from all others" in text]
    assert len(told) == bool(count)
    for text in told:
        assert text.startswith(f"{count} values of 'age'")
        assert all(example in text for example in examples)
        assert "0: null" in text or "99: null" in text
        assert f"row {5 if '0 (' in examples[0] else 30} of train" in text


def test_the_first_row_with_a_value_that_is_unknown_is_told() -> None:
    pictures = {7: {"bytes": None, "path": "seventh.png"}}
    report = check(splits(200, pictures, sex=lambda i: "diverse" if i in (7, 9) else ["male", "female"][i % 2]))
    assert any("'diverse' (2 rows)" in error and "seventh.png" in error for error in report.errors)


def test_a_variable_that_is_the_same_everywhere_is_told() -> None:
    assert any("'sex' is 'male' in all rows" in text for text in check(splits(200, sex=lambda i: "male")).warnings)


@pytest.mark.parametrize(
    ("column", "is_told"),
    [
        (lambda i: i % 3, True),  # 0 training, 1 validation, 2 test
        (lambda i: ["train", "val", "test"][i % 3], True),
        (lambda i: int(i >= 100) + int(i >= 150), False),  # as the splits are
        (lambda i: ["train", "val", "test"][int(i >= 100) + int(i >= 150)], False),
        (lambda i: 1, False),
    ],
)
def test_a_column_of_splits_that_is_not_used_is_told(column, is_told) -> None:
    told = [text for text in check(splits(200, split=column)).warnings if "split_column 'split'" in text]
    assert len(told) == is_told


def test_several_rows_of_one_picture_are_told(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    paths = {i: {"bytes": None, "path": str(tmp_path / f"{i % 3}.png")} for i in range(5)}
    report = check(splits(pictures=paths), dataset_name=str(tmp_path))
    (told,) = [text for text in report.warnings if "2 pictures are in more than one row" in text]
    assert "contradict each other in 'age' of 2, 'sex' of 2" in told
