"""What is in a folder and is not read: pictures without a row, and files that may be the table that is looked for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image

from softcft.data.folders import NOT_READ, TABLES, examples, is_picture, list_files, zipped_pictures
from softcft.data.paths import picture_files

__all__ = ["left_out", "unread_tables"]

TABULAR = re.compile(r"\.(csv|tsv|jsonl?|parquet|arrow|xlsx?|ods)(\.gz)?$", re.IGNORECASE)
TEXTS = (".txt", ".dat", ".mat")  # lists of pictures, or their table
ABOUT = re.compile(r"(readme|licen[cs]e|citation|changelog)", re.IGNORECASE)
IGNORED = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def left_out(dataset_name: str, splits: Mapping[str, Dataset]) -> list[str]:
    """What is in a folder and not in its rows, in words: pictures that no row names, and files that are not read.

    Args:
        dataset_name: A folder, or the name of a data set of the Hub, of which nothing is said.
        splits: What was read of it.
    """
    if not os.path.isdir(dataset_name):
        return []
    root, files = Path(dataset_name).resolve(), list_files(dataset_name)
    used, holds = _stored_pictures(splits)
    notes = []
    archives = {path.rpartition("::")[2] for path in used if path.startswith("zip://")}
    places = {str(root / file): file for file in files if is_picture(file)}
    for file in (file for file in files if str(root / file) in archives):
        places |= {f"zip://{name}::{root / file}": f"{file}/{name}" for name in zipped_pictures(root / file)[0]}
    pictures = list(places.values())
    unused = [file for place, file in places.items() if place not in used]
    if unused:
        counts = Counter(os.path.dirname(file) or "." for file in unused).most_common(3)
        most = ", ".join(f"{number} in {folder}" for folder, number in counts)
        notes.append(
            f"{len(unused)} of {len(pictures)} pictures in the folder are left out, for they are in no row that is "
            f"used: {examples(unused)} ({most}). If they are needed, add rows for them to a table; if they are in a "
            "folder beside those of the splits, move them into one of these."
        )
    tables = [] if holds or not used else _not_read(files, splits)
    if tables := [file for file in tables if str(root / file) not in archives]:
        notes.append(
            f"{len(tables)} files are left out, for beside pictures only {', '.join(TABLES)} are read: "
            f"{examples(tables)}. Rename or convert one, if it is the table."
        )
    return notes


def unread_tables(dataset_name: str, splits: Mapping[str, Dataset]) -> list[str]:
    """Files of a folder that may be the table of its pictures, where all that was read are the names of their folders.

    Args:
        dataset_name: A folder, or the name of a data set of the Hub, of which nothing is said.
        splits: What was read of it.
    """
    if not os.path.isdir(dataset_name) or not _has_only_folders(splits):
        return []
    return [file for file in _not_read(list_files(dataset_name), splits) if TABULAR.search(file)]


def _not_read(files: Sequence[str], splits: Mapping[str, Dataset]) -> list[str]:
    """Files beside pictures that are no pictures and none of the tables that are read."""
    endings = (*NOT_READ, *TEXTS) if _has_only_folders(splits) else NOT_READ  # one of the texts may be the table
    return [
        file
        for file in files
        if file.lower().endswith(endings)
        and os.path.basename(file) not in (*TABLES, *IGNORED)
        and not (file.lower().endswith(TEXTS) and ABOUT.match(os.path.basename(file)))
    ]


def _has_only_folders(splits: Mapping[str, Dataset]) -> bool:
    """Whether nothing is known of the pictures, or no more than the folders that they are in."""
    for rows in splits.values():
        if set(rows.column_names) == {"image"}:
            continue
        label = rows.features.get("label")
        if set(rows.column_names) != {"image", "label"} or not isinstance(label, ClassLabel):
            return False
        stored = rows.cast_column("image", Image(decode=False)).with_format(None)[:1]
        path = (stored["image"][0] or {}).get("path") if len(rows) else None
        if path is None or os.path.basename(os.path.dirname(path)) != label.int2str(stored["label"][0]):
            return False
    return True


def _stored_pictures(splits: Mapping[str, Dataset]) -> tuple[set[str], bool]:
    """The paths of the pictures in the rows, and whether rows hold pictures themselves."""
    used: set[str] = set()
    holds = False
    for rows in splits.values():
        for name in [name for name, feature in rows.features.items() if isinstance(feature, Image)]:
            stored = rows.select_columns([name]).cast_column(name, Image(decode=False)).with_format("arrow")
            for batch in stored.iter(1_000):
                found = picture_files(batch[name])
                used.update(path for path in found if path is not None)
                holds = holds or bool(pc.any(pc.is_valid(pc.struct_field(batch[name], "bytes"))).as_py())
    return used, holds
