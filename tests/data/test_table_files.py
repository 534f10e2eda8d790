"""One table in the formats that people save it in."""

import csv
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from openpyxl import Workbook

from softcft.data.table_files import read_file
from softcft.data.tables import join_tables

ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "id": "007", "age": 45.2, "town": "Köln", "n": 3},
    {"file_name": "b, c.png", "id": "012", "age": 7.25, "town": "München", "n": -1},
    {"file_name": "d.png", "id": "x13", "age": None, "town": "", "n": 12},
]


def text(separator: str = ",", comma: str = ".") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    for row in ROWS:
        writer.writerow(row | {"age": "" if row["age"] is None else str(row["age"]).replace(".", comma)})
    return file.getvalue()


def excel(path: Path) -> None:
    pd.DataFrame(ROWS).to_excel(path, index=False)


FORMATS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "commas": (".csv", lambda path: path.write_text(text(), "utf-8")),
    "semicolons": (".csv", lambda path: path.write_text(text(";"), "utf-8")),
    "semicolons and decimal commas": (".csv", lambda path: path.write_text(text(";", ","), "utf-8")),
    "quoted decimal commas": (".csv", lambda path: path.write_text(text(",", ","), "utf-8")),
    "tabs": (".tsv", lambda path: path.write_text(text("\t"), "utf-8")),
    "tabs in txt": (".txt", lambda path: path.write_text(text("\t", ","), "utf-8")),
    "bars": (".csv", lambda path: path.write_text(text("|"), "utf-8")),
    "BOM": (".csv", lambda path: path.write_text(text(), "utf-8-sig")),
    "BOM and semicolons": (".csv", lambda path: path.write_text(text(";", ","), "utf-8-sig")),
    "Latin-1": (".csv", lambda path: path.write_text(text(), "latin-1")),
    "Latin-1 and semicolons": (".CSV", lambda path: path.write_text(text(";", ","), "latin-1")),
    "UTF-16": (".txt", lambda path: path.write_text(text("\t"), "utf-16")),
    "UTF-32": (".csv", lambda path: path.write_text(text(), "utf-32")),
    "lines of an old Mac": (".csv", lambda path: path.write_bytes(text().replace("\r\n", "\r").encode())),
    "a hint of Excel": (".csv", lambda path: path.write_text("sep=;\r\n" + text(";"), "utf-8", newline="")),
    "empty lines and rows": (".csv", lambda path: path.write_text(f"\n\n{text()},,,,\n\n", "utf-8")),
    "UTF-16, big end first": (".csv", lambda path: path.write_bytes(b"\xfe\xff" + text(";").encode("utf-16-be"))),
    "Excel": (".xlsx", excel),
}


@pytest.mark.parametrize(("ending", "write"), FORMATS.values(), ids=FORMATS.keys())
def test_a_table_is_the_same_in_all_formats(ending: str, write: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / f"table{ending}"
    write(path)
    rows = join_tables([("train", read_file(path))])["train"]
    expected = [{**row, "town": row["town"] or None} for row in ROWS]
    assert rows.to_list() == expected


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        (text(), "utf-8", []),
        (text(";"), "utf-8", ["semicolons"]),
        (text("\t", ","), "utf-8", ["tabs", "decimal commas: 'age'"]),
        (text(), "cp1252", ["Windows-1252"]),
        (text(), "utf-16", ["UTF-16"]),
    ],
)
def test_what_is_guessed_is_said(content, encoding, said, tmp_path, caplog) -> None:
    (tmp_path / "table.csv").write_text(content, encoding)
    join_tables([("train", read_file(tmp_path / "table.csv"))])
    assert len(caplog.messages) == len(said)
    assert all(word in caplog.text for word in said)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1,5", "2,25", ""], [1.5, 2.25, None]),
        (["-1,5", "2", ",5"], [-1.5, 2.0, 0.5]),
        (["1,234", "45,2"], [1.234, 45.2]),  # decimals, as the other shows
        (["0,123", "0,456"], [0.123, 0.456]),  # no number of thousands begins with 0
        (["1,234", "5,678"], ["1,234", "5,678"]),
        (["1,234", "56"], ["1,234", "56"]),
        (["1,5", "2.5"], ["1,5", "2.5"]),
        (["1,5", "many"], ["1,5", "many"]),
        (["1,234,567", "2"], [1234567, 2]),
        (["1,234.5", "2,000"], [1234.5, 2000.0]),
        (["1.234,5", "12"], [1234.5, 12.0]),
        (["1.234", "56"], [1.234, 56.0]),  # as nothing in the table has decimal commas
        (["0012", "7"], ["0012", "7"]),
    ],
)
def test_commas_in_numbers(cells: list[str], values: list[Any], tmp_path: Path, caplog) -> None:
    (tmp_path / "table.csv").write_text("name;x\n" + "".join(f"a;{cell}\n" for cell in cells))
    assert join_tables([("train", read_file(tmp_path / "table.csv"))])["train"]["x"][:] == values
    assert ("thousands" in caplog.text) == (values[0] == "1,234")


def test_points_beside_decimal_commas_are_unclear(tmp_path: Path, caplog) -> None:
    (tmp_path / "table.csv").write_text("name;x;y;z\na;0,5;1.234;1.5\nb;7;;2\n")
    rows = join_tables([("train", read_file(tmp_path / "table.csv"))])["train"]
    assert (rows["x"][:], rows["y"][:], rows["z"][:]) == ([0.5, 7.0], ["1.234", None], [1.5, 2.0])
    assert "'y'" in caplog.text
    assert "'z'" not in caplog.text


@pytest.mark.parametrize(
    "header", ["a,b", '"a;b","c"', "a,OriginalImage[Width,Height],x,", '"x|y",b', "a|b,c,d"], ids=range(5)
)
def test_other_signs_in_names_do_not_part_columns(header: str, tmp_path: Path) -> None:
    columns = next(csv.reader([header]))
    cells = ",".join(str(i) for i in range(len(columns)))
    (tmp_path / "table.csv").write_text(f"{header}\n{cells}\n{cells}\n")
    assert list(map(list, read_file(tmp_path / "table.csv").values())) == [[str(i)] * 2 for i in range(len(columns))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.xlsx", b"no zip"),
        ("table.xlsx", b""),
        ("table.csv", b"a\0,\0b\0\n\0"),
        ("table.csv", b"\xff\xfea"),
        ("table.csv", "a,b\nKöln,K".encode() + b"\xf6ln\n"),
        ("table.csv", b"a;b,c\n1;2,3\n"),
        ("table.xls", b"a,b\n"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_file(tmp_path / name)


def save(path: Path, *sheets: list[list[Any]]) -> Path:
    book = Workbook()
    book.remove(book.active)
    for i, rows in enumerate(sheets):
        sheet = book.create_sheet(f"sheet {i}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_cells_of_excel_keep_their_types(tmp_path: Path) -> None:
    rows = [["a", "b", "c", "d"], ["01", 1, True, datetime(2020, 1, 2)], ["2", None, False, None], [None] * 4]
    table = read_file(save(tmp_path / "table.xlsx", rows))
    assert table == {"a": ["01", "2"], "b": [1, None], "c": [True, False], "d": [datetime(2020, 1, 2), None]}


def test_words_for_what_is_missing_are_missing_in_excel_too(tmp_path: Path, caplog) -> None:
    table = read_file(save(tmp_path / "table.xlsx", [["a", "b"], ["NA", "x"], ["y", "n/a"]]))
    rows = join_tables([("train", table)])["train"]
    assert rows.to_list() == [{"a": None, "b": "x"}, {"a": "y", "b": None}]
    assert "'NA'" in caplog.text


def test_the_first_sheet_with_rows_is_read_and_others_are_named(tmp_path: Path, caplog) -> None:
    path = save(tmp_path / "table.xlsx", [], [["a"], [1]], [["b"], [2]])
    assert read_file(path) == {"a": [1]}
    assert "sheet 2" in caplog.text


@pytest.mark.parametrize("sheet", [[["a", "a"], [1, 2]], [["a"], [1, 2]], [["a"]], []])
def test_sheets_that_are_no_table(sheet: list[list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table\.xlsx"):
        read_file(save(tmp_path / "table.xlsx", sheet, []))
