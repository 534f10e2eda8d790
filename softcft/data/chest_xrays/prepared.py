"""The pictures of a selection at one size, and the folder that keeps them with what they are and what was left out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from datasets import Dataset, DatasetDict, Features, Value

from softcft.arguments import check_whole
from softcft.data.chest_xrays.common import Selection
from softcft.data.config import SPLITS
from softcft.data.pixels import list_problems, prepare_images

__all__ = ["Prepared", "check_prepared", "read_pictures", "save_prepared"]

logger = logging.getLogger(__name__)

FUNNEL, LEFT_OUT, PROVENANCE = "funnel.csv", "left_out.csv", "provenance.json"


@dataclass(frozen=True)
class Prepared:
    """The pictures of a selection at one size.

    Attributes:
        splits: ``train``, ``validation``, ``test`` with columns ``image`` (grey, 8 bit, see
            :func:`~softcft.data.pictures.fit_picture`) and those of the selection but ``split``.
        resolution: Height and width of the pictures in pixels.
        funnel: That of the selection with one step more: image can be read.
        left_out: That of the selection, with the pictures that cannot be read.
    """

    splits: DatasetDict
    resolution: int
    funnel: pd.DataFrame
    left_out: pd.DataFrame


def read_pictures(
    selection: Selection,
    resolution: int = 224,
    *,
    on_error: Literal["skip", "raise"] = "skip",
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
) -> Prepared:
    """Read the pictures of a selection, or take from the cache what an earlier run has read, finished or not.

    Args:
        selection: From the function ``select`` of a source.
        resolution: Height and width of the results in pixels.
        on_error: Leave out damaged pictures with a warning (``"skip"``), or raise at the first (``"raise"``).
        num_workers: Pictures decoded at the same time; the number of CPU cores if left out.
        cache_dir: Where the results are kept; the cache of Hugging Face datasets if left out.

    Raises:
        FileNotFoundError: If there is no folder of pictures.
        ValueError: If no picture of a split can be read, or with ``on_error="raise"`` one cannot.
    """
    check_whole("resolution", resolution)
    rows = selection.rows
    common = Path(os.path.commonpath({os.path.dirname(path) for path in rows["image"]}))
    for folder in (*reversed(common.parents), common):
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}; put the images there.")
    step, splits, left_out = "image can be read", DatasetDict(), [selection.left_out]
    for split in SPLITS:
        part = rows[rows["split"] == split].drop(columns="split").reset_index(drop=True)
        features = Features({name: Value("float64" if name == "age" else "string") for name in [*part, "row"]})
        features["row"] = Value("int64")  # to tell which are left out
        prepared, problems = prepare_images(
            Dataset.from_pandas(part.assign(row=part.index), features=features, preserve_index=False),
            resolution,
            channels=1,
            on_error=on_error,
            num_workers=num_workers,
            cache_dir=cache_dir,
            desc=split,
        )
        if problems:
            logger.warning("%s images: %d left out:%s", split, len(problems), list_problems(problems))
            paths = part["image"].drop(index=prepared["row"][:])
            left_out.append(pd.DataFrame({"step": step, "path": paths, "reason": problems}))
        splits[split] = prepared.remove_columns("row")
    images = sum(map(len, splits.values()))
    subjects = len({subject for prepared in splits.values() for subject in prepared["subject_id"]})
    last = pd.DataFrame({"step": [step], "images": [images], "subjects": [subjects]})
    funnel = pd.concat([selection.funnel, last], ignore_index=True)
    return Prepared(splits, resolution, funnel, pd.concat(left_out, ignore_index=True))


def save_prepared(selection: Selection, prepared: Prepared, folder: str | Path) -> None:
    """Write a data set that all recipes take as ``--data_dir``.

    It has ``funnel.csv``, ``left_out.csv`` and ``provenance.json``: the source, the tables with their checksums, the
    version of the rules, the resolution, the version of softcft, the date and the numbers. It is written beside its
    place and moved there whole: what has the name of a data set is one.

    Args:
        selection: What was prepared.
        prepared: From :func:`read_pictures`.
        folder: New or empty.
    """
    folder = Path(folder)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    prepared.splits.save_to_disk(unfinished)
    prepared.funnel.to_csv(unfinished / FUNNEL, index=False)
    prepared.left_out.to_csv(unfinished / LEFT_OUT, index=False)
    text = json.dumps(_provenance(selection, prepared), indent=2, ensure_ascii=False)
    (unfinished / PROVENANCE).write_text(text + "\n", encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)


def _provenance(selection: Selection, prepared: Prepared) -> dict[str, Any]:
    tables = []
    for path in selection.tables:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        tables.append({"name": path.name, "bytes": path.stat().st_size, "sha256": checksum})
    return {
        "source": selection.source,
        "rules": selection.rules,
        "resolution": prepared.resolution,
        "softcft": version("softcft"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tables": tables,
        "numbers": {
            split: {"images": len(rows), "subjects": len(set(rows["subject_id"][:]))}
            for split, rows in prepared.splits.items()
        },
        "left_out": prepared.left_out["step"].value_counts(sort=False).to_dict(),
    }


def check_prepared(folder: str | Path, source: str, size: int) -> None:
    """Refuse a folder that is not one of :func:`save_prepared`, or not of this source, or of smaller pictures.

    Args:
        folder: The folder.
        source: Name of the source.
        size: Height and width of the pictures that are wanted. Larger ones are resized.

    Raises:
        FileNotFoundError: If it was not made by :func:`save_prepared`.
        ValueError: If it is of another source, or its pictures are smaller.
    """
    path = Path(folder, PROVENANCE)
    if not path.is_file() or not Path(folder, "dataset_dict.json").is_file():
        raise FileNotFoundError(
            f"data_dir {folder} was not made by prepare_chest_xrays.py: it has no {PROVENANCE} or no data set. Run "
            f"python recipes/prepare_chest_xrays.py --source {source} --root DOWNLOADED --output_dir OUT and give OUT."
        )
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
        found, resolution = str(provenance["source"]), int(provenance["resolution"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again.") from error
    if found != source:
        raise ValueError(
            f"dataset_name {source}, but data_dir {folder} holds {found} ({PROVENANCE}); correct one of them."
        )
    if size > resolution:
        raise ValueError(
            f"sample_size must be at most {resolution}, to which the pictures of {folder} were brought, got {size}; "
            f"for larger ones prepare them by prepare_chest_xrays.py --resolution {size}."
        )
