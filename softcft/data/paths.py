"""Refuse data sets that name files elsewhere on the machine.

Paths are checked as they are written; links in the file system are followed. A table may come from a stranger, a link
was made by somebody with access to the folder, for instance to pictures in a store. ``check_data.py`` counts the links
that leave the folder.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Image, config
from huggingface_hub.constants import HF_HUB_CACHE

__all__ = ["check_files", "check_paths", "find_repeats", "refuse_outside", "stored_pictures"]

FIX = "Correct it or leave it out: what a data set names must be inside of it."
BATCH = 1_000  # rows that are looked at together


def check_files(dataset_name: str, files: list[str]) -> None:
    """Refuse a data set whose own description or table of pictures leads out of it.

    ``files`` are those that it consists of, by its folders and its ``README.md``.

    Raises:
        ValueError: If one is elsewhere, or a ``metadata`` table beside the pictures names one elsewhere. The message
            has the row and the path.
    """
    folders = _folders(dataset_name)
    for file in files:
        # A data set of the Hub may consist of downloads from other places, but not of files of this machine.
        is_download = not os.path.isdir(dataset_name) and re.match(r"(hf|https?)://", file)
        if not is_download and not _is_inside(file, dataset_name, folders):
            raise ValueError(f"{dataset_name}: its README.md names the file {file}, which is elsewhere. {FIX}")
        if os.path.basename(file) in ("metadata.csv", "metadata.jsonl", "metadata.parquet") and os.path.isfile(file):
            try:
                names = list(_file_names(Path(file)))
            except (csv.Error, ValueError):  # no table: datasets refuses it
                continue
            for row, name in names:
                refuse_outside(name.strip(' "'), f"{file}, {row}")  # as after a comma and a space


def refuse_outside(name: str, where: str) -> str:
    """The name of a picture in a table, if it does not lead out of the table's folder.

    Raises:
        ValueError: If it does. The message has ``where`` the name stands.
    """
    if "://" in name or os.path.isabs(name) or os.path.normpath(name.replace("\\", "/")).startswith(".."):
        raise ValueError(f"{where}: the picture {name!r} is not in the folder of this table. {FIX}")
    return name


def check_paths(rows: Dataset, column: str, dataset_name: str, first: int = 0) -> None:
    """Refuse a table with pictures elsewhere, before any is read.

    Args:
        rows: A table.
        column: Its column of pictures, or of their paths.
        dataset_name: The folder that it was read from, or the name of a data set of the Hub.
        first: The number of its first row, for the message.

    Raises:
        ValueError: If the path of a picture leads out of the data set.
    """
    folders = _folders(dataset_name)
    for row, (path, _) in enumerate(stored_pictures(rows, column), start=first):
        if path is not None and not _is_inside(path, dataset_name, folders):
            raise ValueError(f"{dataset_name}, row {row}: the picture {path!r} is not in this data set. {FIX}")


def stored_pictures(rows: Dataset, column: str) -> Iterator[tuple[str | None, bool]]:
    """Where each picture of a column is: its path, None unless it is in a file, and whether the table itself holds it.

    No picture is decoded.
    """
    pictures = rows.select_columns([column]).cast_column(column, Image(decode=False)).with_format("arrow")
    for batch in pictures.iter(BATCH):
        # Not by pc.if_else, which in some releases of pyarrow mixes up the texts of a part of a table.
        held = pc.is_valid(pc.struct_field(batch[column], "bytes")).to_pylist()
        paths = pc.struct_field(batch[column], "path").to_pylist()
        yield from ((None if is_held else path, is_held) for is_held, path in zip(held, paths, strict=True))


def find_repeats(
    splits: Mapping[str, Dataset], column: str, values: Mapping[str, Mapping[str, Sequence[Any]]]
) -> list[str]:
    """A warning if files are in several rows, one for each finding for instance; empty if each has one row.

    Args:
        splits: Tables.
        column: Their column of pictures.
        values: By variable and split what all rows have; None is missing.
    """
    places: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, rows in splits.items():
        for row, (path, _) in enumerate(stored_pictures(rows, column)):
            if path:
                places[path].append((split, row))
    several = {path: found for path, found in places.items() if len(found) > 1}
    if not several:
        return []
    path, most = max(several.items(), key=lambda item: len(item[1]))
    apart = sum(len({split for split, _ in found}) > 1 for found in several.values())
    contradict = {
        name: sum(len({read[split][row] for split, row in found} - {None}) > 1 for found in several.values())
        for name, read in values.items()
    }
    said = ", ".join(f"{name!r} of {number}" for name, number in contradict.items() if number)
    return [
        f"{len(several)} pictures are in more than one row, {path} in {len(most)}, and {apart} in more than one split: "
        f"each row counts as a picture of its own{f', and they contradict each other in {said}' if said else ''}. Join "
        "them into one row for each picture."
    ]


def _folders(dataset_name: str) -> list[Path]:
    """The folders that the files of a data set may be in."""
    if os.path.isdir(dataset_name):
        own = [os.path.abspath(dataset_name), os.path.realpath(dataset_name)]
    else:
        own = [os.path.join(HF_HUB_CACHE, f"datasets--{dataset_name.replace('/', '--')}")]
    # Archives are unpacked there, and what has an address is downloaded there.
    return [Path(os.path.abspath(folder)) for folder in (*own, config.DOWNLOADED_DATASETS_PATH)]


def _is_inside(path: str, dataset_name: str, folders: list[Path]) -> bool:
    """Whether a path, perhaps one into an archive such as ``zip://a.png::/data/pictures.zip``, is of a data set."""
    if "://" in path:  # else :: are letters of a name
        *members, path = path.split("::")
        if not all(member.startswith("zip://") for member in members):
            return False
    if "://" in path:
        return path.startswith(f"hf://datasets/{dataset_name}@")
    return any(Path(os.path.abspath(path)).is_relative_to(folder) for folder in folders)


def _file_names(path: Path) -> Iterator[tuple[str, str]]:
    """The names of files in a table of pictures, each with its row."""

    def of(row: Any) -> Iterator[str]:
        for key, value in row.items() if isinstance(row, dict) else ():
            if isinstance(key, str) and key.strip().endswith(("file_name", "file_names")):
                yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))

    if path.suffix == ".parquet":
        names = [name for name in pq.read_schema(path).names if name.endswith(("file_name", "file_names"))]
        for number, row in enumerate(pq.read_table(path, columns=names).to_pylist()):
            yield from ((f"row {number}", name) for name in of(row))
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file)
            for row in reader:
                yield from ((f"line {reader.line_num}", name) for name in of(row))
        else:
            for number, line in enumerate(file, start=1):
                if "file_name" in line:
                    yield from ((f"line {number}", name) for name in of(json.loads(line)))
