"""Folders of pictures or of data files: which files there are, and which of them are which split.

Files are listed here, not by the patterns of datasets, to which brackets and stars in names mean something else. Tables
are read anew each time, as a cached one may have changed.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetBuilder, DatasetDict, Features, Image, load_dataset_builder
from datasets.data_files import DataFilesList
from huggingface_hub import metadata_load
from PIL import Image as PILImage
from yaml import YAMLError

from softcft.data.dicom import is_named_dicom
from softcft.data.integrity import check_whole, file_state
from softcft.data.paths import check_files
from softcft.data.splits import split_files, split_of
from softcft.data.tables import Table, join_tables, read_file

__all__ = [
    "NOT_READ",
    "TABLES",
    "examples",
    "find_builder",
    "has_readme",
    "is_picture",
    "list_files",
    "read_folder",
    "zipped_pictures",
]

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PACKED = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".zip": "imagefolder"}
PLAIN = (".csv", ".jsonl")
NOT_READ = (*PACKED, *PLAIN, ".tsv", ".xls", ".xlsx", ".ods", ".json", ".gz", ".npz", ".h5", ".hdf5")
MADE_BY_MACHINES = ("__MACOSX", "__pycache__")  # folders
EXAMPLES = 5

logger = logging.getLogger(__name__)


def list_files(folder: str | Path) -> list[str]:
    """All files below a folder but hidden ones, as sorted paths with slashes, links followed.

    Raises:
        ValueError: If a name is not UTF-8.
    """
    root = Path(folder).resolve()
    found = []
    above = {str(root): frozenset([os.path.realpath(root)])}  # a link to a folder above would never end
    for place, folders, files in os.walk(root, followlinks=True):
        kept = []
        for name in folders:
            real = os.path.realpath(os.path.join(place, name))
            if not name.startswith(".") and name not in MADE_BY_MACHINES and real not in above[place]:
                above[os.path.join(place, name)] = above[place] | {real}
                kept.append(name)
        folders[:] = kept
        found += [os.path.join(place, name) for name in files if not name.startswith(".")]
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ValueError(f"The name {os.fsencode(path)!r} is not UTF-8; rename the file or folder.") from None
    return sorted(Path(path).relative_to(root).as_posix() for path in found)


def read_folder(folder: str | Path) -> DatasetDict | DatasetBuilder:
    """Read a folder of pictures, with tables or with folders as labels, or of data files.

    Args:
        folder: With ``metadata.csv``, ``.jsonl`` or ``.parquet``; or with pictures only, in folders of their classes;
            or with ``.csv``, ``.jsonl``, ``.parquet``, ``.arrow``, WebDataset ``.tar`` or ``.zip`` files.

    Returns:
        The splits by the names of folders (or data files), see :mod:`softcft.data.splits`, else all in ``train``; for
        data files that are too large for the memory, a builder of such splits.

    Raises:
        ValueError: If a file cannot be read, is cut short or is elsewhere, or if names leave open what is a split.
    """
    root, files = Path(folder).resolve(), list_files(folder)
    tables = [file for file in files if os.path.basename(file) in TABLES]
    pictures = [file for file in files if is_picture(file)]
    packed = {ending: [file for file in files if file.lower().endswith(ending)] for ending in (*PACKED, *PLAIN)}
    ending, data = max(packed.items(), key=lambda item: len(item[1]))
    others = [file for other, some in packed.items() if other != ending for file in some]
    if others and not pictures and not tables:
        logger.warning("%s: only its %s files are read, and not %s.", root, ending, examples(others))
    check_files(str(root), [str(root / file) for file in tables or (pictures and ()) or data])
    if tables:
        return _read_pictures(root, tables, files)
    if len(pictures) >= max(1, len(data)):
        return _classes(root, pictures)
    if not data:
        raise ValueError(
            f"{root} has {len(files)} files, but no pictures and no data files ({', '.join((*PACKED, *PLAIN))})."
        )
    places = split_files(data, by_name=True)
    splits = {split: [data[i] for i in found] for split, found in places.items()}
    if unused := sorted({*data} - {file for some in splits.values() for file in some}):
        logger.warning(
            "%s: %d data files are left out, for they are in no split: %s.", root, len(unused), examples(unused)
        )
    for file in data:
        check_whole(root / file)
    if ending in PACKED:
        return _builder(root, ending, splits)
    read = {file: read_file(root / file) for file in data}
    return join_tables([(split, read[file]) for split, some in splits.items() for file in some])


def find_builder(dataset_name: str, config_name: str | None = None) -> DatasetDict | DatasetBuilder:
    """Find a data set of the Hub, or a folder whose ``README.md`` says which files are which split.

    Returns:
        Its builder; for a folder of pictures with tables, its splits.

    Raises:
        ValueError: If one of its files is elsewhere or cut short.
        Exception: Of many kinds, which datasets does not list, if it cannot be found.
    """
    builder = load_dataset_builder(dataset_name, config_name)
    splits = {split: list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    check_files(dataset_name, [file for files in splits.values() for file in files])
    for file in (file for files in splits.values() for file in files if os.path.isfile(file)):
        check_whole(file)
    if not os.path.isdir(dataset_name):
        return builder
    root = os.path.abspath(dataset_name)
    used = {split: files for split, files in splits.items() if split_of(split) is not None} or splits
    listed = {os.path.relpath(file, root): split for split, files in used.items() for file in files}
    if builder.name == "imagefolder" and (tables := [file for file in listed if os.path.basename(file) in TABLES]):
        if sum(map(len, used.values())) > len(listed):
            raise ValueError(f"{dataset_name}: its README.md has some files in several of the splits {list(used)}.")
        return _read_pictures(Path(root).resolve(), tables, list_files(root), listed)
    return load_dataset_builder(dataset_name, config_name, data_files=_as_they_are(splits))


def has_readme(folder: str | Path) -> bool:
    """Whether a ``README.md`` says which files are which split."""
    readme = Path(folder, "README.md")
    try:
        configs = (metadata_load(readme) or {}).get("configs") if readme.is_file() else None
    except (ValueError, YAMLError) as error:  # not in UTF-8, or its head is no YAML
        raise ValueError(f"its README.md cannot be read; correct or remove it: {error}") from error
    return any("data_files" in config for config in configs or ())


def examples(files: Sequence[str]) -> str:
    """The first files of several."""
    return ", ".join(files[:EXAMPLES]) + (", ..." if len(files) > EXAMPLES else "")


def is_picture(file: str) -> bool:
    """Whether a file, by its name, is a picture that Pillow reads, or DICOM."""
    endings = PILImage.registered_extensions()
    if file.lower().endswith(NOT_READ):  # as .h5, which Pillow knows and cannot read
        return False
    return is_named_dicom(file) or endings.get(os.path.splitext(file)[1].lower()) in PILImage.OPEN


# ---- pictures -------------------------------------------------------------------------------------------------------


def _classes(root: Path, pictures: Sequence[str]) -> DatasetDict:
    """Pictures without a table, labelled by their folders if there are several, all equally deep."""
    places = split_files(pictures, by_name=False)
    used = sorted(i for found in places.values() for i in found)
    labels = {i: os.path.basename(os.path.dirname(pictures[i])) for i in used}
    names = sorted(set(labels.values()))
    deep = {pictures[i].count("/") for i in used}
    is_labelled = len(names) > 1 and len(deep) == 1 and (len(places) == 1 or not all(map(split_of, names)))
    if len(names) > 1 and len(deep) > 1:
        logger.warning("%s: its folders are no labels, for the pictures are not all equally deep in folders.", root)
    types = {"image": Image()} | ({"label": ClassLabel(names=names)} if is_labelled else {})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [str(root / pictures[i]) for i in found]}
                | ({"label": [labels[i] for i in found]} if is_labelled else {}),
                features=Features(types),
            )
            for split, found in places.items()
        }
    )


def _read_pictures(
    root: Path, tables: Sequence[str], files: Sequence[str], listed: Mapping[str, str] | None = None
) -> DatasetDict:
    """Tables of pictures, each with a column ``file_name`` (or ``scan_file_name``, which becomes ``scan``).

    ``listed`` has the splits of the pictures; without it the names of folders say which they are.
    """
    if twice := [place for place, number in Counter(map(os.path.dirname, tables)).items() if number > 1]:
        raise ValueError(f"{root / twice[0]} has several of {', '.join(TABLES)}; keep one of them.")
    known = {unicodedata.normalize("NFC", file): file for file in files}
    read: list[Table] = []
    named: list[tuple[str, list[str | None]]] = []  # each table's pictures
    columns: set[str] = set()  # of pictures
    places: list[str] = []  # of each row's picture
    for file in tables:
        folder, table = os.path.dirname(file), read_file(root / file)
        names = {name: name[: -len("_file_name")] or "image" for name in table if name.endswith("_file_name")}
        names |= {"file_name": "image"} if "file_name" in table else {}
        if not names:
            raise ValueError(f"{root / file} has no column file_name, of the pictures' names; it has {list(table)}.")
        for name, column in names.items():
            if column in table:
                raise ValueError(f"{root / file} has the columns {name} and {column}; rename {column}.")
        paths = {name: [_find(root, folder, cell, known) for cell in table[name]] for name in names}
        main = paths["file_name" if "file_name" in names else next(iter(names))]
        places += [os.path.join(folder, "") if path is None else path for path in main]
        named.append((file, main))
        pictures = {name: [path and str(root / path) for path in found] for name, found in paths.items()}
        read.append({names.get(name, name): pictures.get(name, cells) for name, cells in table.items()})
        columns |= set(names.values())
    if listed is None:
        splits = {row: split for split, rows in split_files(places, by_name=False).items() for row in rows}
    else:
        splits = {row: listed[place] for row, place in enumerate(places) if place in listed}
    _check_rows(root, named, [place for row, place in enumerate(places) if row not in splits])
    parts, start = [], 0
    for table in read:
        end = start + len(next(iter(table.values())))
        for split in dict.fromkeys(splits[row] for row in range(start, end) if row in splits):
            rows = [row - start for row in range(start, end) if splits.get(row) == split]
            parts.append((split, {name: [cells[row] for row in rows] for name, cells in table.items()}))
        start = end
    return join_tables(parts, columns)


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


def _find(root: Path, folder: str, name: Any, known: Mapping[str, str]) -> str | None:
    """The path below the root of a picture that a table names; None for an empty cell."""
    if name is None or name == "":
        return None
    path = os.path.normpath(os.path.join(folder, str(name)))
    if not os.path.lexists(root / path):
        path = os.path.normpath(os.path.join(folder, str(name).replace("\\", "/")))
        path = known.get(unicodedata.normalize("NFC", path), path)  # é may be written as one letter or as two
    return path


# ---- data files -----------------------------------------------------------------------------------------------------


def _builder(root: Path, ending: str, splits: Mapping[str, Sequence[str]]) -> DatasetBuilder:
    """The builder of datasets for files that are too large for the memory."""
    for path in (str(root / file) for some in splits.values() for file in some):
        if "::" in path or os.path.expandvars(path) != path:
            raise ValueError(f"{path}: datasets would not take this name as it is; rename what has '::' or '$' in it.")
        if ending == ".zip":
            inside, has_table = zipped_pictures(path)
            if len(split_files(inside, by_name=False)) > 1 or (
                not has_table and len(set(map(os.path.dirname, inside))) > 1
            ):
                raise ValueError(f"{path} has folders of splits or of classes in it; unpack it.")
    files = _as_they_are({split: [str(root / file) for file in some] for split, some in splits.items()})
    return load_dataset_builder(PACKED[ending], data_files=files, features=_features(root, ending, splits))


def zipped_pictures(path: str | Path) -> tuple[list[str], bool]:
    """The names of pictures in an archive, and whether it has tables of them."""
    with ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    return [name for name in names if is_picture(name)], any(os.path.basename(name) in TABLES for name in names)


def _as_they_are(splits: Mapping[str, Sequence[str]]) -> dict[str, DataFilesList]:
    """Files that :mod:`datasets` reads by these names, and anew when their states change."""
    # Of plain lists the names would be patterns, and the states only the times of the last modifications.
    return {split: DataFilesList(list(files), list(map(file_state, files))) for split, files in splits.items()}


def _features(root: Path, ending: str, splits: Mapping[str, Sequence[str]]) -> Features | None:
    """The columns of all files together, if they differ: integers in one and floats in another become floats."""
    schemas = []
    for file in (file for some in splits.values() for file in some):
        if ending == ".parquet":
            schemas.append(pq.read_schema(root / file))
        elif ending == ".arrow":
            with pa.memory_map(str(root / file)) as source:
                try:
                    schemas.append(pa.ipc.open_stream(source).schema)
                except pa.ArrowInvalid:
                    schemas.append(pa.ipc.open_file(source).schema)
    if not schemas or all(schema.equals(schemas[0]) for schema in schemas):
        return None
    return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
