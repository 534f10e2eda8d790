"""Read tables from files, and join them to splits whose columns have the same types."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image

from softcft.data.integrity import check_whole

__all__ = ["TRUTH", "Table", "as_text", "is_missing", "join_tables", "read_file"]

logger = logging.getLogger(__name__)

# Words for a missing value, as pandas has them.
MISSING = frozenset(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"),
        *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)
WHOLE = re.compile(r"\s*[+-]?\d+\s*")
NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[iI]nf(inity)?)\s*")
TRUTH = {"true": True, "false": False}

Table = dict[str, list[Any]]  # columns of equal length


class _Cell(str):
    """Text of a CSV file, which may stand for a number."""

    __slots__ = ()


def is_missing(value: Any) -> bool:
    """Whether there is no value: none, an empty string, or not a number."""
    return value is None or value == "" or value != value  # NaN is not itself


def as_text(value: Any) -> str:
    """A value as text, and 1.0 as "1": columns of integers with a missing value hold floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_file(path: Path) -> Table:
    """Read a CSV file, JSON lines or a Parquet file.

    Raises:
        ValueError: If it is damaged or no such table, or has no rows. The message names the file, and the line.
    """
    try:
        if path.suffix.lower() == ".csv":
            table = _read_csv(path)
        elif path.suffix.lower() == ".jsonl":
            table = _read_json_lines(path)
        else:
            check_whole(path)
            table = pq.read_table(path).to_pydict()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it in that encoding.") from error
    except (csv.Error, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged or no table: {error}.") from error
    if not table or not next(iter(table.values())):
        raise ValueError(f"{path} has no rows.")
    return table


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # If names follow a comma and a space, so do the cells.
        is_spaced = any(name.startswith(" ") for name in next(csv.reader(file), []))
        file.seek(0)
        reader = csv.reader(file, strict=True, skipinitialspace=is_spaced)
        header = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(next(reader, []))]
        if len(header) == 1 and (others := [mark for mark in (";", "\t", "|") if mark in header[0]]):
            raise ValueError(f"{path} has its columns separated by {others[0]!r}; save it with commas.")
        if again := [name for name, number in Counter(header).items() if number > 1]:
            raise ValueError(f"{path} has the columns {again} twice; rename one of each.")
        columns: list[list[Any]] = [[] for _ in header]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, where the first line has {len(header)}; "
                    "correct it, with quotes around a cell that has a comma in it."
                )
            for column, cell in zip(columns, row, strict=True):
                column.append(_Cell(cell))
    return dict(zip(header, columns, strict=True))


def _read_json_lines(path: Path) -> Table:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
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


def join_tables(parts: Sequence[tuple[str, Table]], pictures: Iterable[str] = ()) -> DatasetDict:
    """Join tables to splits whose columns have the same types.

    Args:
        parts: Tables, each with its split. A column that one lacks is missing in its rows.
        pictures: Names of columns that hold the paths of pictures.
    """
    sizes = [len(next(iter(table.values()))) for _, table in parts]
    features, columns, words = Features(), {}, []
    for name in dict.fromkeys(name for _, table in parts for name in table):
        cells = [cell for (_, table), size in zip(parts, sizes, strict=True) for cell in table.get(name, [None] * size)]
        if name in pictures:
            features[name], columns[name] = Image(), cells
        else:
            array = _typed(cells)
            if pa.types.is_string(array.type):
                found = Counter(str(cell) for cell in cells if isinstance(cell, _Cell) and cell in MISSING)
                words += [f"{word!r} in {number} cells of {name!r}" for word, number in found.items() if word]
            features[name] = Features.from_arrow_schema(pa.schema([(name, array.type)]))[name]
            columns[name] = array.to_pylist()
    if words:
        logger.warning("Read as missing values: %s. Call a category otherwise.", ", ".join(words))
    split_of_row = [split for (split, _), size in zip(parts, sizes, strict=True) for _ in range(size)]
    splits = DatasetDict()
    for split in dict.fromkeys(split_of_row):
        rows = [row for row, other in enumerate(split_of_row) if other == split]
        names = dict.fromkeys(name for other, table in parts if other == split for name in table)
        splits[split] = Dataset.from_dict(
            {name: [columns[name][row] for row in rows] for name in names},
            features=Features({name: features[name] for name in names}),
        )
    return splits


def _typed(cells: Sequence[Any]) -> pa.Array:
    """A column of one type: whole numbers, numbers, truth values or texts, as all of its cells allow."""
    texts = [cell for cell in cells if isinstance(cell, _Cell) and cell not in MISSING]
    meant: Callable[[str], Any] = str
    if all(text.lower() in TRUTH for text in texts):
        meant = lambda text: TRUTH[text.lower()]  # noqa: E731
    elif all(WHOLE.fullmatch(text) for text in texts):
        meant = int if all(abs(int(text)) < 2**63 for text in texts) else str  # so long a number is a name
    elif all(NUMBER.fullmatch(text) for text in texts):
        meant = float
    values = [cell if not isinstance(cell, _Cell) else None if cell in MISSING else meant(cell) for cell in cells]
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # numbers and words
        array = pa.array([None if is_missing(value) else as_text(value) for value in values])
    return array.cast(pa.float64()) if pa.types.is_null(array.type) else array
