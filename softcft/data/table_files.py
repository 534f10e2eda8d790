"""Read tables from files as people have them: CSV with any separator and encoding, Excel, JSON lines, Parquet.

What a file does not say itself is guessed and logged: the separator from the first lines, the encoding from the bytes.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from softcft.data.integrity import check_whole
from softcft.data.tables import MISSING, Cell, Table

__all__ = ["TABLE_ENDINGS", "read_file"]

TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".xlsx", ".jsonl", ".parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# The first bytes of a text; those of UTF-32 begin as those of UTF-16.
BYTE_ORDER = {"UTF-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "UTF-16": (b"\xff\xfe", b"\xfe\xff")}
EXCEL_HINT = re.compile(r'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)
FIRST_LINES = 100  # that tell the separator

logger = logging.getLogger(__name__)


def read_file(path: Path) -> Table:
    """Read a table: ``.csv``, ``.tsv`` or ``.txt`` with any separator, ``.xlsx``, ``.jsonl`` or ``.parquet``.

    Raises:
        ValueError: If it is damaged or no such table, or has no rows. The message names the file, and the line.
    """
    ending = path.suffix.lower()
    try:
        if ending in (".csv", ".tsv", ".txt"):
            table = _read_csv(path)
        elif ending == ".xlsx":
            table = _read_excel(path)
        elif ending == ".jsonl":
            table = _read_json_lines(path)
        elif ending == ".parquet":
            check_whole(path)
            table = pq.read_table(path).to_pydict()
        else:
            raise ValueError(f"{path} is none of {', '.join(TABLE_ENDINGS)}; save it as one of them.")
    except (csv.Error, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged or no table: {error}.") from error
    if not table or not next(iter(table.values())):
        raise ValueError(f"{path} has no rows.")
    return table


def _columns(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(header)]
    if again := [name for name, number in Counter(names).items() if number > 1]:
        raise ValueError(f"{path} has the columns {again} twice; rename one of each.")
    columns: list[list[Any]] = [[] for _ in names]
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
    return dict(zip(names, columns, strict=True))


# ---- text -----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Table:
    text, encoding = _decode(path)
    text = (text if "\n" in text else text.replace("\r", "\n")).lstrip("\r\n")  # once a line ended so on a Mac
    if hint := EXCEL_HINT.match(text):
        text = text[hint.end() :]
    # If names follow a separator and a space, so do the cells.
    first = text.partition("\n")[0]
    separator = hint[1] if hint else _find_separator(path, text)
    is_spaced = any(name.startswith(" ") for name in next(csv.reader([first], delimiter=separator), []))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=is_spaced)
    header = next(reader, [])

    def rows() -> Iterable[list[Cell]]:
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, where the first line has {len(header)}; "
                    f"correct it, with quotes around a cell that has a {separator!r} in it."
                )
            yield [Cell(cell) for cell in row]

    table = _columns(path, header, rows())
    if separator != "," or encoding != "UTF-8":
        logger.warning("%s is read as text in %s with %s between columns.", path, encoding, SEPARATORS[separator])
    return table


def _decode(path: Path) -> tuple[str, str]:
    """The text of a file, and in which encoding it seems to be."""
    content = path.read_bytes()
    for encoding, marks in BYTE_ORDER.items():
        if content.startswith(marks):
            try:
                return content.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is damaged {encoding}: {error}; save it anew, in UTF-8.") from error
    if b"\0" in content:
        raise ValueError(f"{path} is no text: it has bytes that are 0; save it as CSV in UTF-8.")
    try:
        return content.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError as error:
        readable = content.decode(errors="replace").replace("\ufffd", "")
        if not readable.isascii():  # most of it is
            raise ValueError(f"{path} is damaged UTF-8: {error}; save it anew, in that encoding.") from error
    try:
        return content.decode("cp1252"), "Windows-1252 (Latin-1)"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"


def _find_separator(path: Path, text: str) -> str:
    """What is between columns: what parts the first line, and the others into as many cells."""
    lines = text.splitlines(keepends=True)[: FIRST_LINES + 1]
    if len(lines) > FIRST_LINES:
        lines.pop()  # which may end within quotes
    widths = {mark: [len(row) for row in csv.reader(lines, delimiter=mark) if row] for mark in SEPARATORS}
    parting = {mark: found for mark, found in widths.items() if found and found[0] > 1}
    fitting = [mark for mark, found in parting.items() if len(set(found)) == 1]
    if len(fitting) > 1:
        most = max(parting[mark][0] for mark in fitting)
        if len(best := [mark for mark in fitting if parting[mark][0] == most]) > 1:
            raise ValueError(
                f"{path} may have {' or '.join(SEPARATORS[mark] for mark in best)} between its columns: each parts all "
                "lines alike. Save it with quotes around cells that have such signs in them."
            )
        fitting = best
    return next(iter([*fitting, *parting]), ",")


def _read_json_lines(path: Path) -> Table:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it in that encoding.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no object {{...}} but {type(row).__name__}.")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


# ---- Excel ----------------------------------------------------------------------------------------------------------


def _read_excel(path: Path) -> Table:
    """The first sheet that is not empty. Cells keep their types: a number that is stored as text stays text."""
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no Excel file: {error}; save it anew, or as CSV.") from error
    try:
        sheets = {}
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # which some programs write wrongly
            rows = [list(row) for row in sheet.iter_rows(values_only=True)]
            if rows := [row for row in rows if any(cell is not None for cell in row)]:
                sheets[sheet.title] = rows
    finally:
        book.close()
    if not sheets:
        return {}
    (title, (first, *rows)), *others = sheets.items()
    if others:
        logger.warning("%s: only its sheet %r is read, and not %s.", path, title, [name for name, _ in others])
    while first[-1] is None:
        first.pop()
    width = len(first)
    for number, row in enumerate(rows, start=2):
        if any(cell is not None for cell in row[width:]):
            raise ValueError(f"{path}, row {number}: there are more cells than names of columns in the first row.")
    cells = ([_cell(cell) for cell in (row + [None] * width)[:width]] for row in rows)
    return _columns(path, ["" if name is None else str(name) for name in first], cells)


def _cell(value: Any) -> Any:
    return Cell(value) if isinstance(value, str) and value in MISSING else value
