"""Tables that name pictures: which column has their names, where each one is, and which split each row is in."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from softcft.data.entries import Entry
from softcft.data.paths import refuse_outside
from softcft.data.splits import split_files
from softcft.data.table_files import read_file
from softcft.data.tables import Table, as_text, is_missing, join_tables

__all__ = ["TABLES", "PictureTables", "examples", "read_pictures"]

TABLES = tuple(f"metadata{ending}" for ending in (".csv", ".tsv", ".xlsx", ".jsonl", ".parquet"))
EXAMPLES = 5
TRIED = 50  # names that show whether a column is that of the pictures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureTables:
    """Which files of a folder are the table of its pictures, and what is in it.

    Attributes:
        files: Their paths below the folder; all that are called ``metadata`` if there are none.
        image: The column with the names of the pictures, if it is not ``file_name``.
        kept: Columns that are needed as they are, though they hold names of pictures.
    """

    files: Sequence[str] = ()
    image: Entry | None = None
    kept: Collection[str] = ()


def examples(files: Sequence[str]) -> str:
    """The first files of several."""
    return ", ".join(files[:EXAMPLES]) + (", ..." if len(files) > EXAMPLES else "")


def read_pictures(
    root: Path,
    tables: PictureTables,
    files: Sequence[str],
    pictures: Iterable[str],
    listed: Mapping[str, str] | None = None,
) -> DatasetDict:
    """Read tables that name pictures in ``file_name`` (or ``scan_file_name``, of ``scan``), or in another column.

    What ``file_name`` names is beside its table or below. What another column names is also searched from the folder of
    the data set on, and by its name anywhere in it. The ending may be left out.

    Args:
        root: The folder of the data set.
        tables: Which of its files to read.
        files: All files in it.
        pictures: Those that are pictures.
        listed: The splits of the pictures; without it the names of several tables, or of folders, say which they are.

    Raises:
        ValueError: If a table cannot be read, names no pictures or one elsewhere, or if names leave something open.
    """
    is_named = not all(os.path.basename(file) in TABLES for file in tables.files)
    if twice := [place for place, n in Counter(map(os.path.dirname, tables.files)).items() if n > 1 and not is_named]:
        raise ValueError(f"{root / twice[0]} has several of {', '.join(TABLES)}; keep one of them.")
    finder = _Finder(root, files, pictures)
    read: list[Table] = []
    named: list[tuple[str, list[str | None]]] = []  # each table's pictures
    columns: set[str] = set()  # of pictures
    places: list[str] = []  # of each row's picture
    lost: set[int] = set()  # rows whose picture may be anywhere
    for file in tables.files:
        table = read_file(root / file)
        if (names := _named_columns(root / file, table, tables.image)) is None:
            main, missing = _search(finder, root / file, table, tables.image)
            pictures_of = {"image": main}
            lost |= {len(places) + row for row in missing}
            dropped = {} if tables.image is None else {tables.image.column}
        else:
            folder = os.path.dirname(file)
            found = {name: [finder.beside(folder, cell, f"{root / file}") for cell in table[name]] for name in names}
            main = found["file_name" if "file_name" in names else next(iter(names))]
            pictures_of, dropped = {names[name]: paths for name, paths in found.items()}, set(names)
        places += [os.path.join(os.path.dirname(file), "") if path is None else path for path in main]
        named.append((file, main))
        dropped = {*dropped, *pictures_of} - set(tables.kept)
        shown = {column: [path and str(root / path) for path in paths] for column, paths in pictures_of.items()}
        read.append(shown | {name: cells for name, cells in table.items() if name not in {*dropped, *shown}})
        columns |= set(shown)
    _note_lacking(tables.files, read)
    splits = _split(tables.files if is_named else (), read, places, lost, listed)
    _check_rows(root, named, [place for row, place in enumerate(places) if row not in splits])
    parts, start = [], 0
    for table in read:
        end = start + len(next(iter(table.values())))
        for split in dict.fromkeys(splits[row] for row in range(start, end) if row in splits):
            rows = [row - start for row in range(start, end) if splits.get(row) == split]
            parts.append((split, {name: [cells[row] for row in rows] for name, cells in table.items()}))
        start = end
    return join_tables(parts, columns)


def _note_lacking(files: Sequence[str], read: Sequence[Table]) -> None:
    """Log which tables lack columns that others have."""
    names = dict.fromkeys(name for table in read for name in table)
    lacking = {file: [name for name in names if name not in table] for file, table in zip(files, read, strict=True)}
    if some := [f"{file} {missing}" for file, missing in lacking.items() if missing]:
        logger.warning("Tables lack columns that others have, which are missing in their rows: %s.", examples(some))


def _named_columns(path: Path, table: Table, image: Entry | None) -> dict[str, str] | None:
    """The columns ``file_name`` and the like, each with that of its pictures; None if another column has the names."""
    names = {name: name[: -len("_file_name")] or "image" for name in table if name.endswith("_file_name")}
    names |= {"file_name": "image"} if "file_name" in table else {}
    is_searched = image is not None and image.column in table and image.column not in names.values()
    if not is_searched and names:
        for name, column in names.items():
            if column in table:
                raise ValueError(f"{path} has the columns {name} and {column}; rename {column}.")
        return names
    return None


def _search(finder: _Finder, path: Path, table: Table, image: Entry | None) -> tuple[list[str | None], list[int]]:
    """The pictures that a column names, and the rows whose picture is not there."""
    folder = os.path.relpath(path.parent, finder.root)
    folder = "" if folder == os.curdir else folder
    if image is None or image.column not in table:
        image = _guess(finder, path, folder, table)
    if "image" in table and image.column != "image":
        raise ValueError(f"{path} has a column image, and {image.column} names the pictures; rename image.")
    found: list[str | None] = []
    missing, unfit = [], []
    name_of: dict[str, str] = {}
    for row, cell in enumerate(table[image.column]):
        try:
            name = image.name(cell)
        except KeyError:
            unfit.append(as_text(cell))
            continue
        place = None if name is None else finder.anywhere(folder, name, f"{path}")
        if name is not None and place is None:
            missing.append(row)
            place = os.path.normpath(os.path.join(folder, name))
        elif name is not None and place is not None and (other := name_of.setdefault(place, name)) != name:
            raise ValueError(f"{path} names the picture {place} twice, as {other!r} and {name!r}; correct one of them.")
        found.append(place)
    if unfit:
        raise ValueError(
            f"{path}: the pattern of image does not fit {len(unfit)} of {len(table[image.column])} cells of "
            f"{image.column!r}, for instance {unfit[0]!r}; correct it in columns, or give it default: null."
        )
    if missing:
        named = [str(found[row]) for row in missing]
        if len(missing) == len(found):
            raise ValueError(
                f"{path}: none of the pictures that {image.column!r} names is in {finder.root}: {examples(named)}. The "
                f"pictures there: {examples(finder.pictures) or 'none'}. A part of the names is read by columns: "
                f"{{image: {{column: {image.column}, pattern: '...'}}}}."
            )
        logger.warning(
            "%s: %d of %d pictures that %r names are not in the folder: %s.",
            path,
            len(missing),
            len(found),
            image.column,
            examples(named),
        )
    return found, missing


def _guess(finder: _Finder, path: Path, folder: str, table: Table) -> Entry:
    """The one column whose cells are names of pictures that are there."""
    candidates = []
    why = ""
    for column, cells in table.items():
        if os.path.splitext(column)[1] and finder.has(column):
            raise ValueError(
                f"{path}: its first line has no names of columns, it seems, but that of the picture {column!r}; add a "
                "line with names above it, file_name and others."
            )
        names = list(dict.fromkeys(as_text(cell) for cell in cells if not is_missing(cell)))[:TRIED]
        try:
            is_found = [finder.anywhere(folder, name, f"{path}") is not None for name in names]
        except ValueError as error:  # names of no picture, or of several
            why = why or f" {column}? {error}"
            continue
        if len(names) > 1 or len(cells) == 1:
            candidates += [column] * (any(is_found) and 2 * sum(is_found) >= len(names))
    if len(candidates) != 1:
        which = f"several that may name the pictures, {candidates}" if candidates else "no column file_name"
        raise ValueError(
            f"{path} has {which}; it has {list(table)}. Say which one names the pictures by columns: {{image: COLUMN}}."
            + why
        )
    logger.warning("%s: the pictures are those that the column %r names.", path, candidates[0])
    return Entry(candidates[0])


def _split(
    tables: Sequence[str],
    read: Sequence[Table],
    places: Sequence[str],
    lost: Collection[int],
    listed: Mapping[str, str] | None,
) -> dict[int, str]:
    """The split of each row, if it is in one: of its picture, of its table, or of its picture's folder."""
    if listed is not None:
        return {row: listed[place] for row, place in enumerate(places) if place in listed}
    if len(tables) > 1:
        by_table = {tables[i]: split for split, found in split_files(tables, by_name=True).items() for i in found}
        if len(set(by_table.values())) > 1:
            ends = [len(next(iter(table.values()))) for table in read]
            of_row = [file for file, n in zip(tables, ends, strict=True) for _ in range(n)]
            return {row: by_table[file] for row, file in enumerate(of_row) if file in by_table}
    there = [row for row in range(len(places)) if row not in lost]
    by_folder = split_files([places[row] for row in there], by_name=False)
    if len(by_folder) == 1 and len(next(iter(by_folder.values()))) == len(there):
        return dict.fromkeys(range(len(places)), next(iter(by_folder)))
    return {there[i]: split for split, rows in by_folder.items() for i in rows}


def _check_rows(root: Path, named: Sequence[tuple[str, Sequence[str | None]]], unused: Sequence[str]) -> None:
    """Refuse pictures that several tables name; warn of rows that are in no split and whose pictures are missing."""
    table_of: dict[str, str] = {}
    for file, paths in named:
        for path in filter(None, paths):
            if (other := table_of.setdefault(path, file)) != file:
                raise ValueError(f"{root / path} has rows in two tables, {other} and {file}; leave it in one of them.")
    if lost := [place or "''" for place in unused if not os.path.isfile(root / place)]:
        logger.warning(
            "%s: %d rows are left out, for they are in no split, and their pictures are not there: %s.",
            root,
            len(lost),
            examples(lost),
        )


class _Finder:
    """Finds pictures of a folder by what a table calls them."""

    def __init__(self, root: Path, files: Iterable[str], pictures: Iterable[str]) -> None:
        self.root, self.pictures = root, list(pictures)
        self._known: defaultdict[str, list[str]] = defaultdict(list)
        self._stems: defaultdict[str, list[str]] = defaultdict(list)  # without their endings
        self._names: defaultdict[str, list[str]] = defaultdict(list)  # without their folders
        for file in files:
            self._known[_normal(file)].append(file)
        for file in self.pictures:
            path = _normal(file)
            stem = os.path.splitext(path)[0]
            self._stems[stem].append(file)
            for name in {os.path.basename(path), os.path.basename(stem)}:
                self._names[name].append(file)

    def has(self, name: str) -> bool:
        """Whether there is a picture of this name in any folder."""
        return _normal(os.path.basename(name)) in self._names

    def beside(self, folder: str, name: Any, table: str) -> str | None:
        """The path of a picture that ``file_name`` names, below the folder of its table; None for an empty cell."""
        if is_missing(name):
            return None
        path = os.path.normpath(os.path.join(folder, refuse_outside(as_text(name).strip(), table)))
        return self._at(path, table) or self._slashed(path)

    def anywhere(self, folder: str, name: str, table: str) -> str | None:
        """The path of a picture: from the table's folder, from the root, or by the end of its path; None if not there.

        First folders that are not there are left out: CheXpert's tables begin with the name of the data set.
        """
        name = refuse_outside(name, table).strip()
        for place in dict.fromkeys([folder, ""]):
            if (found := self._at(os.path.normpath(os.path.join(place, name)), table)) is not None:
                return found
        path = _normal(self._slashed(name))
        ends = [
            file
            for file in self._names[os.path.basename(path)]
            if f"/{_normal(file)}".endswith(f"/{path}") or f"/{os.path.splitext(_normal(file))[0]}".endswith(f"/{path}")
        ]
        if ends:
            return _one(ends, self._slashed(name), table)
        first, _, rest = path.partition("/")
        while rest and not any(os.path.isdir(self.root / place / first) for place in (folder, "")):
            if (found := self._at(rest, table)) is not None:
                return found
            first, _, rest = rest.partition("/")
        return None

    def _at(self, path: str, table: str) -> str | None:
        """The file of this path, or the picture of this path and any ending."""
        if os.path.lexists(self.root / path) and not os.path.isdir(self.root / path):
            return path
        path = self._slashed(path)
        found = self._known.get(_normal(path)) or self._stems.get(_normal(path))
        return None if found is None else _one(found, path, table)

    @staticmethod
    def _slashed(path: str) -> str:
        return os.path.normpath(path.replace("\\", "/"))


def _one(files: Sequence[str], name: str, table: str) -> str:
    if len(files) > 1:  # capitals may tell them apart
        exact = [file for file in files if Path(name).name in (Path(file).name, Path(file).stem)]
        if len(exact) == 1:
            return exact[0]
        raise ValueError(
            f"{table}: {name!r} may be any of {examples(files)}; name its folder or its ending in the table, or remove "
            "all but one."
        )
    return files[0]


def _normal(path: str) -> str:
    """A path without regard to capitals, spaces around it, and to whether é is one letter or two."""
    return unicodedata.normalize("NFC", path.strip().casefold())
