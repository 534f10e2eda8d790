"""Join tables to splits whose columns have the same types."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image

__all__ = [
    "MISSING",
    "NUMBER",
    "TRUTH",
    "Cell",
    "Table",
    "are_thousands",
    "as_number",
    "as_text",
    "is_missing",
    "join_tables",
]

logger = logging.getLogger(__name__)

# Words for a missing value, as pandas has them.
MISSING = frozenset(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"),
        *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)
WHOLE = re.compile(r"\s*[+-]?\d+\s*")
PADDED = re.compile(r"\s*0\d+\s*")
# Whole numbers and decimals, perhaps with the other sign between thousands.
DECIMALS = {
    ".": re.compile(r"\s*[+-]?(\d*|[1-9]\d{0,2}(,\d{3})+)(\.\d+)?\s*"),
    ",": re.compile(r"\s*[+-]?(\d*|[1-9]\d{0,2}(\.\d{3})+)(,\d+)?\s*"),
}
THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}([.,]\d{3})+\s*")
NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[iI]nf(inity)?)\s*")
TRUTH = {"true": True, "false": False}

Table = dict[str, list[Any]]  # columns of equal length


class Cell(str):
    """Text of a file that has no types, which may stand for a number."""

    __slots__ = ()


def is_missing(value: Any) -> bool:
    """Whether there is no value: none, an empty string, or not a number."""
    return value is None or value == "" or value != value  # NaN is not itself


def as_text(value: Any) -> str:
    """A value as text, and 1.0 as "1": columns of integers with a missing value hold floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_number(value: Any) -> float:
    """A number, perhaps as text.

    Raises:
        TypeError: If it is of a kind that is none, as a date.
        ValueError: If it is none: a truth value, infinite, or a text that is no plain number, as 1_000, which Python
            reads.
    """
    is_plain = not isinstance(value, bool) and (not isinstance(value, str) or NUMBER.fullmatch(value))
    if not is_plain or not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def are_thousands(values: Iterable[Any]) -> bool:
    """Whether texts are numbers such as ``1.234``, which may be a thousand or one, and whole ones.

    In a table that is text, such a column stays text where others have decimal commas.
    """
    texts = [value for value in values if isinstance(value, str) and value]
    marked = [text for text in texts if not WHOLE.fullmatch(text)]
    return bool(marked) and all(map(THOUSANDS.fullmatch, marked))


def join_tables(parts: Sequence[tuple[str, Table]], pictures: Iterable[str] = ()) -> DatasetDict:
    """Join tables to splits whose columns have the same types.

    Args:
        parts: Tables, each with its split. A column that one lacks is missing in its rows.
        pictures: Names of columns that hold the paths of pictures.
    """
    sizes = [len(next(iter(table.values()))) for _, table in parts]
    cells_of = {
        name: [cell for (_, table), size in zip(parts, sizes, strict=True) for cell in table.get(name, [None] * size)]
        for name in dict.fromkeys(name for _, table in parts for name in table)
    }
    pictures = set(pictures)
    marks = {name: _decimal_marks(cells) for name, cells in cells_of.items() if name not in pictures}
    commas = [name for name, found in marks.items() if found == ","]
    unclear = [name for name, found in marks.items() if found == ".," or (found == "1.234" and commas)]
    features, columns, words = Features(), {}, []
    for name, cells in cells_of.items():
        if name in pictures:
            features[name], columns[name] = Image(), cells
        else:
            plain = _plain if name in unclear else partial(_with_point, mark=marks[name])
            array = _typed(list(map(plain, cells)))
            if pa.types.is_string(array.type):
                found = Counter(str(cell) for cell in cells if isinstance(cell, Cell) and cell in MISSING)
                words += [f"{word!r} in {number} cells of {name!r}" for word, number in found.items() if word]
            features[name] = Features.from_arrow_schema(pa.schema([(name, array.type)]))[name]
            columns[name] = array.to_pylist()
    if commas:
        logger.warning("Read with decimal commas: %s.", ", ".join(map(repr, commas)))
    if unclear:
        logger.warning(
            "Columns %s stay text: what parts thousands and what decimals is unclear, as in 1,234. Write such numbers "
            "without a sign between thousands.",
            ", ".join(map(repr, unclear)),
        )
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


def _decimal_marks(cells: Sequence[Any]) -> str:
    """What may part decimals in a column of texts, ``.`` or ``,``; ``.,`` if a comma may be before thousands, too.

    ``1.234`` if points may be that, but commas are not there; empty if nothing is to be changed.
    """
    texts = [cell for cell in cells if isinstance(cell, Cell) and cell not in MISSING]
    has_commas = any("," in text for text in texts)
    if not has_commas and not any("." in text for text in texts):
        return ""
    found = "".join(mark for mark, form in DECIMALS.items() if all(map(form.fullmatch, texts)))
    return found if has_commas else "1.234" if found == ".," else ""


def _plain(cell: Any) -> Any:
    """Text that stays text."""
    return (None if cell in MISSING else str(cell)) if isinstance(cell, Cell) else cell


def _with_point(cell: Any, mark: str) -> Any:
    """A number with a decimal point and nothing between thousands."""
    if not isinstance(cell, Cell) or mark not in DECIMALS:
        return cell
    return Cell(cell.replace("." if mark == "," else ",", "").replace(mark, "."))


def _typed(cells: Sequence[Any]) -> pa.Array:
    """A column of one type: whole numbers, numbers, truth values or texts, as all of its cells allow."""
    texts = [cell for cell in cells if isinstance(cell, Cell) and cell not in MISSING]
    meant: Callable[[str], Any] = str
    if all(text.lower() in TRUTH for text in texts):
        meant = lambda text: TRUTH[text.lower()]  # noqa: E731
    elif all(WHOLE.fullmatch(text) for text in texts):
        # 0012 and so long a number are names.
        is_name = any(PADDED.fullmatch(text) or abs(int(text)) >= 2**63 for text in texts)
        meant = str if is_name else int
    elif all(NUMBER.fullmatch(text) for text in texts):
        meant = float
    values = [cell if not isinstance(cell, Cell) else None if cell in MISSING else meant(cell) for cell in cells]
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # numbers and words
        array = pa.array([None if is_missing(value) else as_text(value) for value in values])
    return array.cast(pa.float64()) if pa.types.is_null(array.type) else array
