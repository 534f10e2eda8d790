"""Files of a folder that are not read: pictures without a row, and files that may be the table of the pictures."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from datasets import ClassLabel, Dataset, Image

from softcft.data.folders import NOT_READ, is_picture, list_files, zipped_pictures
from softcft.data.paths import stored_pictures
from softcft.data.picture_tables import TABLES, examples
from softcft.data.splits import split_of

__all__ = ["left_out", "naming_unread", "unread_tables"]

TABULAR = re.compile(r"\.(csv|tsv|jsonl?|parquet|arrow|xlsx?|ods)(\.gz)?$", re.IGNORECASE)
TEXTS = (".txt", ".dat", ".mat")  # lists of pictures, or their table
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
ABOUT = re.compile(r"(readme|licen[cs]e|citation|changelog)", re.IGNORECASE)
MASK = re.compile(r"(.+?)[-_ ]+(masks?|seg|segmentation|annotation|contours?|gt)([-_ ]?\d+)?", re.IGNORECASE)
MASKS = ("mask", "masks", "segmentation", "segmentations", "annotations", "groundtruth")  # folders
IGNORED = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def left_out(dataset_name: str, splits: Mapping[str, Dataset], read: Sequence[str] = ()) -> list[str]:
    """Warnings about pictures of a folder that no row names, files that are not read, and masks; none about the Hub's.

    ``read`` are the files of ``--table_file``.
    """
    if not os.path.isdir(dataset_name):
        return []
    root, files = Path(dataset_name).resolve(), list_files(dataset_name)
    columns = [(rows, name) for rows in splits.values() for name, f in rows.features.items() if isinstance(f, Image)]
    stored = {picture for rows, name in columns for picture in stored_pictures(rows, name)}
    used = {path for path, _ in stored if path is not None}
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
        tops = sorted({file.split("/")[0] for file in unused if "/" in file})
        if named := [top for top in tops if (split := split_of(top)) is not None and split not in splits]:
            notes.append(
                f"The folder {' and '.join(named)} has the name of a split, but its pictures have no rows: they are "
                "not used, and that split is drawn from the training rows. If their attributes are known, add a table."
            )
    unread = [] if any(is_held for _, is_held in stored) or not used else _not_read(files, splits)
    tables = [file for file in unread if file not in map(os.path.normpath, read)]
    packed = [file for file in tables if file.lower().endswith(ARCHIVES) and str(root / file) not in archives]
    if packed:
        notes.append(
            f"{len(packed)} archives beside pictures or their table are not read: {examples(packed)}. If the pictures "
            "are in them, unpack them there."
        )
    if tables := [file for file in tables if file not in packed and str(root / file) not in archives]:
        notes.append(
            f"{len(tables)} files are left out, for beside pictures only {', '.join(TABLES)} are read: "
            f"{examples(tables)}. If one is the table, name it by --table_file."
        )
    tables += map(os.path.normpath, read)
    if used and (lists := [file for file in files if _names_split(file) and file not in tables]):
        notes.append(
            f"{examples(lists)}: not read, and by the names lists of the splits. If they are, give the table a column "
            "split that says which of train, validation and test each row is in."
        )
    if used and _has_only_folders(splits):
        notes += _about_folders(root, [file for place, file in places.items() if place in used], bool(unread))
    return notes


def _names_split(file: str) -> bool:
    """Whether a file is a text with the name of a split: train_val_list.txt."""
    stem, ending = os.path.splitext(os.path.basename(file).casefold())
    return ending == ".txt" and any(map(split_of, re.findall("[a-z]+", stem)))


def _about_folders(root: Path, pictures: Sequence[str], has_tables: bool) -> list[str]:
    """Warnings about pictures without a table: some that are masks of others, and a table in the folder above."""
    notes = []
    if masks := _masks(pictures):
        notes.append(
            f"{len(masks)} pictures are masks of others, by their names: {examples(masks)}. If they are, move them "
            "out of the folder, or name the others in a table."
        )
    names = os.listdir(root.parent) if os.access(root.parent, os.R_OK) else []
    if not has_tables and (above := sorted(name for name in names if TABULAR.search(name))):
        notes.append(
            f"The folder above has {examples(above)}. If that is the table of these pictures, pass --dataset_name "
            f"{root.parent} --table_file {above[0]}."
        )
    return notes


def _masks(files: Sequence[str]) -> list[str]:
    """Pictures called as another one beside them, with ``_mask`` or the like, or in a folder ``masks``."""
    stems = Counter(os.path.splitext(file)[0] for file in files)
    names = Counter(os.path.basename(stem) for stem in stems)
    masks = []
    for file in files:
        folder, name = os.path.split(os.path.splitext(file)[0])
        found = MASK.fullmatch(name)
        is_beside = found is not None and os.path.join(folder, found[1]) in stems
        is_apart = os.path.basename(folder).casefold() in MASKS and names[found[1] if found else name] > (not found)
        masks += [file] * (is_beside or is_apart)
    return masks


def unread_tables(dataset_name: str, splits: Mapping[str, Dataset]) -> list[str]:
    """Files of a folder that may be the table of its pictures, if all that was read of them are names of folders."""
    if not os.path.isdir(dataset_name) or not _has_only_folders(splits):
        return []
    return [file for file in _not_read(list_files(dataset_name), splits) if TABULAR.search(file)]


@contextmanager
def naming_unread(dataset_name: str, splits: Mapping[str, Dataset]) -> Iterator[None]:
    """Let an error within, such as that a column is not there, name the :func:`unread_tables`, if there are any."""
    try:
        yield
    except ValueError as error:
        if not splits or not (tables := unread_tables(dataset_name, splits)):
            raise
        raise ValueError(
            f"{error} Of these pictures only the names of folders are read: if their table is {examples(tables)}, pass "
            f"table_file {tables[0]}."
        ) from error


def _not_read(files: Sequence[str], splits: Mapping[str, Dataset]) -> list[str]:
    """Files beside pictures that are neither pictures nor tables that are read."""
    endings = (*NOT_READ, *TEXTS) if _has_only_folders(splits) else NOT_READ  # one of the texts may be the table
    return [
        file
        for file in files
        if file.lower().endswith(endings)
        and os.path.basename(file) not in (*TABLES, *IGNORED)
        and not (file.lower().endswith(TEXTS) and ABOUT.match(os.path.basename(file)))
    ]


def _has_only_folders(splits: Mapping[str, Dataset]) -> bool:
    """Whether the rows say at most which folder each picture is in."""
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
