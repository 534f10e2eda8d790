"""Folders of pictures or of data files: which files there are, and which of them are which split.

Files are listed here, not by the patterns of datasets, to which brackets and stars in names mean something else. Tables
are read anew each time, as a cached one may have changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
from softcft.data.picture_tables import TABLES, PictureTables, examples, read_pictures
from softcft.data.splits import split_files, split_of
from softcft.data.table_files import TABLE_ENDINGS, read_file
from softcft.data.tables import join_tables

__all__ = [
    "NOT_READ",
    "find_builder",
    "has_readme",
    "is_picture",
    "list_files",
    "read_folder",
    "zipped_pictures",
]

PACKED = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".zip": "imagefolder"}
PLAIN = (".csv", ".jsonl")
NOT_READ = (*PACKED, *PLAIN, ".tsv", ".xls", ".xlsx", ".ods", ".json", ".gz", ".npz", ".h5", ".hdf5")
MADE_BY_MACHINES = ("__MACOSX", "__pycache__")  # folders

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


def read_folder(folder: str | Path, wanted: PictureTables | None = None) -> DatasetDict | DatasetBuilder:
    """Read a folder of pictures, with tables or with folders as labels, or of data files.

    Args:
        folder: With ``metadata.csv``, ``.tsv``, ``.xlsx``, ``.jsonl`` or ``.parquet``; or with pictures only, in
            folders of their classes; or with ``.csv``, ``.jsonl``, ``.parquet``, ``.arrow``, WebDataset ``.tar`` or
            ``.zip`` files.
        wanted: Which files are the table of the pictures, and what is in it.

    Returns:
        The splits by the names of folders (or data files), see :mod:`softcft.data.splits`, else all in ``train``; for
        data files that are too large for the memory, a builder of such splits.

    Raises:
        ValueError: If a file cannot be read, is cut short or is elsewhere, or if names leave open what is a split.
    """
    root, files = Path(folder).resolve(), list_files(folder)
    wanted = wanted or PictureTables()
    tables = list(wanted.files) or [file for file in files if os.path.basename(file) in TABLES]
    if unknown := [file for file in tables if not os.path.isfile(root / file)]:
        raise ValueError(
            f"table_file {' '.join(unknown)}: there is no such file in {root}. It has the tables "
            f"{examples([file for file in files if file.lower().endswith(TABLE_ENDINGS)]) or 'none'}."
        )
    pictures = [file for file in files if is_picture(file)]
    packed = {ending: [file for file in files if file.lower().endswith(ending)] for ending in (*PACKED, *PLAIN)}
    ending, data = max(packed.items(), key=lambda item: len(item[1]))
    others = [file for other, some in packed.items() if other != ending for file in some]
    if others and not pictures and not tables:
        logger.warning("%s: only its %s files are read, and not %s.", root, ending, examples(others))
    check_files(str(root), [str(root / file) for file in tables or (pictures and ()) or data])
    if tables:
        return read_pictures(root, replace(wanted, files=tables), files, pictures)
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
        files = list_files(root)
        return read_pictures(Path(root).resolve(), PictureTables(tables), files, filter(is_picture, files), listed)
    return load_dataset_builder(dataset_name, config_name, data_files=_as_they_are(splits))


def has_readme(folder: str | Path) -> bool:
    """Whether a ``README.md`` says which files are which split."""
    readme = Path(folder, "README.md")
    try:
        configs = (metadata_load(readme) or {}).get("configs") if readme.is_file() else None
    except (ValueError, YAMLError) as error:  # not in UTF-8, or its head is no YAML
        raise ValueError(f"its README.md cannot be read; correct or remove it: {error}") from error
    return any("data_files" in config for config in configs or ())


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
