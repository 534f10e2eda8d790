"""What the sources of chest X-rays share: tables read as text, files found, rows counted, patients split."""

from __future__ import annotations

import csv
import gzip
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from softcft.arguments import check_choice
from softcft.data.config import SPLITS
from softcft.data.pixels import list_problems

__all__ = [
    "DIGITS",
    "FILE",
    "Funnel",
    "Selection",
    "find_pictures",
    "find_tables",
    "is_age",
    "read_list",
    "read_table",
    "read_unique",
    "split_by_subject",
]

logger = logging.getLogger(__name__)

DIGITS, FILE = r"\d+", r"[^/\\]+"  # what an id may be: a number, the name of a file
DEPTH = 5  # of folders below root: physionet.org/files/mimiciv/3.1/hosp, as wget nests them


@dataclass(frozen=True)
class Selection:
    """What the tables say, before any picture is read.

    Attributes:
        source: Name of the source, a key of :data:`~softcft.data.chest_xrays.SOURCES`.
        rules: Version of its rules: a higher one may select or split otherwise.
        root: The folder that was read.
        tables: Files that decided.
        rows: One row per picture: ``image`` (path), ``age`` (years), the other variables as names of categories,
            ``subject_id`` and further ids as text, and ``split`` (train, validation, test).
        funnel: The numbers that each rule leaves: columns ``step``, ``images``, ``subjects``.
        left_out: One row per picture that is left out: ``step`` of the funnel, ``path`` (its name where there is no
            path) and ``reason``, which is empty where the step says it all.
        problems: One message for each row or picture that was left out because it is damaged or missing.
    """

    source: str
    rules: int
    root: Path
    tables: list[Path]
    rows: pd.DataFrame
    funnel: pd.DataFrame
    left_out: pd.DataFrame
    problems: list[str]


class Funnel:
    """Counts the pictures and subjects that each rule leaves, and keeps those that it does not.

    Tables have the columns ``image``, a path or a name, and ``subject_id``.

    Args:
        root: Folder of the source.
        on_error: Leave out damaged rows with a warning (``"skip"``), or raise at the first (``"raise"``).

    Raises:
        FileNotFoundError: If ``root`` is no folder.
        ValueError: If ``on_error`` is unknown.
    """

    def __init__(self, root: str | Path, on_error: Literal["skip", "raise"]) -> None:
        check_choice("on_error", on_error, ("skip", "raise"))
        self.root, self.on_error = Path(root), on_error
        if not self.root.is_dir():
            raise FileNotFoundError(f"root {root} is no folder; give the one that holds the downloaded files.")
        self.steps: list[tuple[str, int, int]] = []
        self.left_out: list[pd.DataFrame] = []
        self.problems: list[str] = []

    def count(self, step: str, rows: pd.DataFrame) -> None:
        """Count the rows that a step leaves."""
        self.steps.append((step, len(rows), rows["subject_id"].nunique()))

    def start(
        self, step: str, rows: pd.DataFrame, ids: Mapping[str, str], where: Callable[[Any], str], must: str
    ) -> pd.DataFrame:
        """The first rules of all sources: ids are complete, and each image has one row.

        Args:
            step: What the rows are, which are counted first.
            rows: All of them.
            ids: For columns the regular expressions that their ids fit, that of the image last.
            where: Where a row, a named tuple, is written.
            must: What ids must be, in words.
        """
        self.count(step, rows)
        fits = [rows[name].str.fullmatch(expression, na=False) for name, expression in ids.items()]
        rows = self.keep(
            "ids are complete",
            rows,
            np.logical_and.reduce(fits),
            lambda row: f"{where(row)}: {must}, got {', '.join(str(getattr(row, name)) for name in ids)}",
        )
        image = list(ids)[-1]
        return self.keep(
            "one row per image",
            rows,
            ~rows.duplicated(image),
            lambda row: f"{where(row)}: {image} {getattr(row, image)} again",
        )

    def keep_there(self, rows: pd.DataFrame, there: pd.Series, put: str) -> pd.DataFrame:
        """The rows whose picture is there, the last rule.

        Raises:
            FileNotFoundError: If none is. The message ends with ``put``: what is to be put where.
        """
        if len(rows) and not there.any():
            raise FileNotFoundError(
                f"root {self.root} has none of the {len(rows):,} pictures, neither in itself nor below; the first is "
                f"{rows['image'].iloc[0]}. {put}"
            )
        return self.keep("image is there", rows, there, lambda row: f"{row.image}: not below {self.root}")

    def keep(
        self, step: str, rows: pd.DataFrame, mask: pd.Series, problem: Callable[[Any], str] | None = None
    ) -> pd.DataFrame:
        """The rows of ``mask``. If the others are damaged, ``problem`` describes one of them, a named tuple."""
        others = rows[~mask]
        reasons = [""] * len(others) if problem is None else [problem(row) for row in others.itertuples()]
        if problem is not None:
            self.report(step, reasons)
        self.drop(step, others, reasons)
        rows = rows[mask].copy()
        self.count(step, rows)
        return rows

    def drop(self, step: str, rows: pd.DataFrame, reasons: Sequence[str]) -> None:
        """Note the pictures that a step leaves out."""
        if len(rows):
            self.left_out.append(pd.DataFrame({"step": step, "path": rows["image"].to_numpy(), "reason": reasons}))

    def report(self, step: str, problems: Sequence[str]) -> None:
        """Warn of damaged rows, the first 20 by name; or raise ValueError."""
        if not problems:
            return
        if self.on_error == "raise":
            raise ValueError(f"{problems[0]}. Repair or remove it, or leave out such rows by on_error='skip'.")
        self.problems += problems
        logger.warning("%s: %d left out:%s", step, len(problems), list_problems(problems))

    def table(self) -> pd.DataFrame:
        """The steps, as in :class:`Selection`."""
        return pd.DataFrame(self.steps, columns=["step", "images", "subjects"])

    def left_out_table(self) -> pd.DataFrame:
        """The pictures that are left out, as in :class:`Selection`."""
        none = pd.DataFrame(columns=["step", "path", "reason"], dtype=str)
        return pd.concat(self.left_out, ignore_index=True) if self.left_out else none

    def select(self, source: str, rules: int, tables: Sequence[Path], rows: pd.DataFrame) -> Selection:
        """What is left, as a selection.

        Args:
            source: See :class:`Selection`.
            rules: See :class:`Selection`.
            tables: See :class:`Selection`.
            rows: All columns of the selection, and no others.

        Raises:
            ValueError: If a split has no picture.
        """
        for split in SPLITS:
            if not (rows["split"] == split).any():
                raise ValueError(
                    f"The split {split!r} has no image. {self.root} has too few subjects, or its files do not belong "
                    f"together; what each rule left:\n{self.table().to_string(index=False)}"
                )
        rows = rows.reset_index(drop=True)
        return Selection(
            source, rules, self.root, list(tables), rows, self.table(), self.left_out_table(), self.problems
        )


def find_tables(
    root: Path,
    needed: Sequence[str | tuple[str, ...]],
    optional: Sequence[str | tuple[str, ...]] = (),
    *,
    skip: str = r"(?!)",
) -> dict[str, Path]:
    """The path of each file, packed (``.gz``) or not, wherever it is in ``root`` or up to five folders below.

    Args:
        root: Where to look.
        needed: Names that must be there. Of a tuple of names, one: those are versions of one table.
        optional: Names that may be there, likewise.
        skip: Regular expression of the names of folders that hold nothing but pictures.

    Returns:
        Paths by name; of a tuple, by its first name.

    Raises:
        FileNotFoundError: If a file is missing. The message names all that are needed.
        ValueError: If a file is there twice, or two versions of one table are.
    """
    choices = [(name,) if isinstance(name, str) else name for name in (*needed, *optional)]
    found: dict[tuple[str, ...], list[Path]] = {names: [] for names in choices}
    for folder, folders, files in os.walk(root, followlinks=True):
        deep = len(Path(folder).relative_to(root).parts) >= DEPTH
        folders[:] = [] if deep else [name for name in folders if not re.fullmatch(skip, name)]
        for names in choices:
            for name in names:
                found[names] += [Path(folder, choice) for choice in _packed_or_not(name) if choice in files][:1]
    for i, (names, paths) in enumerate(found.items()):
        if not paths and i < len(needed):
            raise FileNotFoundError(
                f"root {root} has no {_either(names)}, neither in itself nor up to {DEPTH} folders below; needed are "
                f"{'; '.join(map(_either, choices[: len(needed)]))}."
            )
        if len(paths) > 1:
            raise ValueError(f"root {root} has {' and '.join(map(str, paths))}; keep one, for versions differ.")
    return {names[0]: paths[0] for names, paths in found.items() if paths}


def _packed_or_not(name: str) -> list[str]:
    return [f"{name}.gz", name] if name.endswith(".csv") else [name]


def _either(names: Sequence[str]) -> str:
    return " or ".join(choice for name in names for choice in _packed_or_not(name))


def find_pictures(root: Path, names: pd.Series) -> pd.Series:
    """The paths of pictures by their unique names, NaN where there is none; in ``root`` or up to five folders below.

    Raises:
        ValueError: If a name is there twice.
    """
    wanted = set(names)
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        if len(Path(folder).relative_to(root).parts) >= DEPTH:
            folders.clear()
        for name in wanted.intersection(files):
            path = os.path.join(folder, name)
            if name in found:
                raise ValueError(
                    f"root {root} has {found[name]} and {path}, two pictures of one name; keep one of the folders."
                )
            found[name] = path
    return names.map(found).astype(object)  # also where none is found, of which pandas would make numbers


def read_table(path: Path, columns: Sequence[str], either: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of a table, and the first that it has of ``either``, as text or NaN where nothing is written.

    A bad number so spoils one row only.

    Args:
        path: A file .csv, .csv.gz or .xlsx, with the names of the columns in its first line.
        columns: Those that are needed.
        either: Names that one column has in different versions.

    Raises:
        ValueError: If the file is damaged, has no rows, lacks a column, or has a row of more fields than columns.
    """
    read = _excel_lines if path.suffix == ".xlsx" else _csv_lines
    try:
        lines = read(path)
        header = next(lines, [])
        while header and not header[-1]:
            del header[-1]
        columns = [*columns, *[name for name in either if name in header][:1]]
        missing = [name for name in columns if name not in header]
        if either and columns[-1] not in either:
            missing.append(" or ".join(either))
        rows = [] if missing else _pick(lines, header, columns)
    except (EOFError, KeyError, OSError, ValueError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short, damaged or no table ({error}); get it anew.") from error
    if missing:
        raise ValueError(f"{path} has no column {missing}; it has {header}; get it anew.")
    if not rows:
        raise ValueError(f"{path} has no rows; get it anew.")
    return pd.DataFrame(rows, columns=pd.Index(columns), dtype=object)


def _csv_lines(path: Path) -> Iterator[list[str]]:
    """The lines of a file. The last may have no end, unless that is because it was cut off."""
    packed = path.suffix == ".gz"  # which has its own way to tell that it was cut
    with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        header: list[str] = []
        line: list[str] = []
        for line in csv.reader(file):
            header = header or line
            yield line
    if not packed and 0 < len(line) < len(header) and not path.read_bytes().endswith(b"\n"):
        raise ValueError("its last line has no end")


def _excel_lines(path: Path) -> Iterator[list[str]]:
    """The lines of the first sheet, as text."""
    sheet = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
    yield from sheet.to_numpy().tolist()


def _pick(lines: Iterable[list[str]], header: list[str], columns: Sequence[str]) -> list[list[Any]]:
    """The values of some columns, NaN where nothing is written.

    Fields that have no name are no harm where they are empty: the first release of NIH ends its lines by a comma. Else
    a comma within a value was not quoted, and all values after it are in the wrong columns.
    """
    places = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines, start=2):
        if any(line[len(header) :]):
            raise ValueError(f"line {number} has {len(line)} fields, the first has {len(header)} names")
        if line:
            rows.append([(line[place] if place < len(line) else "") or np.nan for place in places])
    return rows


def read_unique(path: Path, keys: list[str], columns: Sequence[str], funnel: Funnel) -> pd.DataFrame:
    """Columns of a table (:func:`read_table`) without the rows whose key an earlier row has; these are reported."""
    table = read_table(path, [*keys, *columns])
    again = table.duplicated(keys)
    found = [f"{path}, line {line + 2}: {keys[-1]} {table[keys[-1]][line]} again" for line in table.index[again]]
    funnel.report("one row each", found)
    return table[~again].copy()


def read_list(path: Path) -> list[str]:
    """The names of a list, one a line, without empty lines; ValueError if it is no text or has none."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no text ({error}); get it anew.") from error
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{path} has no names; get it anew.")
    return names


def split_by_subject(subjects: Sequence[str], shares: Mapping[str, float], rest: str, seed: int = 42) -> dict[str, str]:
    """Draw subjects into splits, in an order shuffled by NumPy.

    Args:
        subjects: Each once; their order counts.
        shares: The share of subjects of each split, rounded to whole ones.
        rest: Split of all others.
        seed: Of the shuffling.

    Returns:
        The split of each subject.
    """
    # The legacy generator is what the notebooks of chexploration draw from, by shuffle of scikit-learn.
    order = np.random.RandomState(seed).permutation(len(subjects))
    splits = [split for split, share in shares.items() for _ in range(round(share * len(subjects)))]
    splits += [rest] * (len(subjects) - len(splits))
    return {subjects[i]: split for i, split in zip(order, splits, strict=True)}


def is_age(age: pd.Series, most: float = np.inf) -> pd.Series:
    """Whether these are ages of people: numbers of years from 0 to ``most``."""
    return np.isfinite(age) & (age >= 0) & (age <= most)
