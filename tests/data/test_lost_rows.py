import csv
import logging
from pathlib import Path

import pytest
from PIL import Image

from softcft.data.config import DataConfig
from softcft.data.lost_rows import complete_rows, explain_lost
from softcft.data.own import read_table
from softcft.data.report import check_data
from softcft.data.sources import load_data
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 0, "high": 100},
        {"name": "sex", "kind": "binary", "categories": ["F", "M"]},
    ]
)


def test_reasons_are_counted_each() -> None:
    values = {"age": [1.0, None, None, 4.0], "sex": ["F", "M", None, "F"]}
    assert complete_rows(values, {3}) == [True, False, False, False]
    assert explain_lost({"age": [1.0]}) == ""
    text = explain_lost(values, {3}, 7)
    assert [part.rpartition(" ")[2] for part in text.split(", ")] == ["2", "1", "1", "7"]


@pytest.mark.parametrize(
    ("ages", "absent", "broken", "named"),
    [
        ({3, 4, 5}, {6}, {7}, ["'age' is missing in 3", "not there in 1", "cannot be read in 1"]),
        (set(), {0, 1}, set(), ["not there in 2"]),
        ({3}, set(), set(), ["'age' is missing in 1"]),
        (set(), set(), set(), []),
    ],
)
def test_a_training_logs_what_is_lost_as_the_check_reports_it(
    ages: set[int],
    absent: set[int],
    broken: set[int],
    named: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    number = 24
    for split in ("train", "validation", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        with (tmp_path / "in" / split / "metadata.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "age", "sex"])
            for i in range(number):
                is_train = split == "train"
                table.writerow([f"{i}.png", "" if is_train and i in ages else 20 + i, "FM"[i % 2]])
                path = tmp_path / "in" / split / f"{i}.png"
                if is_train and i in broken:
                    path.write_bytes(b"no picture")
                elif not (is_train and i in absent):
                    Image.new("L", (8, 8), 10 * i).save(path)
    config = DataConfig(dataset_name=str(tmp_path / "in"), sample_size=8, data_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        load_data(config, GRAPH)
    logged = [line.getMessage() for line in caplog.records if "evaluation use" in line.getMessage()]
    report = check_data(read_table(config.dataset_name), config, GRAPH)
    told = [line for line in report.lines if line.startswith("  train: ")]
    if not named:
        assert logged == told == []
        return
    (log,) = logged
    assert log.startswith("train: ")
    assert f"{number - len(ages | absent | broken)} of {number} rows" in log
    assert all(reason in log for reason in named)
    # Whether a picture can be read is seen in a sample of them, which the report names elsewhere.
    assert all(reason in told[0] for reason in named if "cannot be read" not in reason)
