"""CheXpert, from the files as Stanford AIMI gives them, filtered and split as published.

224,316 X-rays of 65,240 patients, their findings mined from reports (Irvin, Rajpurkar and others, "CheXpert: A large
chest radiograph dataset with uncertainty labels and expert comparison", AAAI 2019). The rules are those of the
notebook ``chexpert.sample.ipynb`` and of the list ``chexpert_split_2021_08_20.csv`` of
https://github.com/biomedia-mira/chexploration (Glocker, Jones, Bernhardt, Winzeck, "Algorithmic encoding of protected
characteristics in chest X-ray disease detection models", eBioMedicine 2023):

1. X-rays of ``train.csv``. ``valid.csv``, whose 234 X-rays were labelled otherwise, by radiologists, stays out.
2. Patients of ``CHEXPERT DEMO.xlsx`` whose ``PRIMARY_RACE`` has ``Black``, ``White`` or ``Asian`` in it, which decide
   in this order, and whose ``ETHNICITY`` is ``Non-Hispanic/Non-Latino`` or ``Not Hispanic``.
3. Frontal views, AP and PA. The notebook asks for frontal ones; the list leaves out the 17 of them that are LL or RL.
4. Sex is Male or Female, and age is not 0. One X-ray has the sex ``Unknown``; three, the last of the table, have the
   age 0, which stands for none. No patient is younger than 18 otherwise, and 90 is 90 and over.
5. Patients are split 60 : 10 : 30, in the order of the table, shuffled by NumPy's seed 2021. For the list's 127,118
   X-rays of 42,884 patients this gives its very split. The list itself may be given too.
6. ``Pleural Effusion`` is 1: pleural effusion, whatever else there is. ``No Finding`` is 1: no finding. Uncertain (-1)
   is not positive, as published; such X-rays are left out, and counted for themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from softcft.data.chest_xrays.common import (
    DEPTH,
    Funnel,
    Selection,
    find_tables,
    is_age,
    read_table,
    read_unique,
    split_by_subject,
)
from softcft.data.config import SPLITS

__all__ = ["select"]

RULES = 1
TRAIN, VALID = "train.csv", "valid.csv"
DEMOGRAPHICS = ("CHEXPERT DEMO.xlsx", "CHEXPERT DEMO.csv", "CHEXPERT_DEMO.csv")
DEMOGRAPHICS_URL = "https://stanfordaimi.azurewebsites.net/datasets/192ada7c-4d43-466e-b8bb-b81992bb80cf"
LIST = "chexpert_split_2021_08_20.csv"
SAMPLES = {split: f"chexpert.sample.{name}.csv" for split, name in zip(SPLITS, ("train", "val", "test"), strict=True)}
SEED = 2021
NAMES = {
    "Path": "image",
    "Sex": "written_sex",
    "Age": "written_age",
    "Frontal/Lateral": "direction",
    "AP/PA": "view",
    "No Finding": "finding",
    "Pleural Effusion": "effusion",
}
DISEASES = ("pleural effusion", "no finding")  # the first overrides
SEXES = {"Male": "male", "Female": "female"}
RACES = ("Black", "White", "Asian")  # the first in a text decides
NOT_HISPANIC = ("Non-Hispanic/Non-Latino", "Not Hispanic")
VIEWS = ("AP", "PA")
PATH = r"^(?:[^/.][^/]*/)?(?:train|valid)/(patient\d+/study\d+/view\d+_(?:frontal|lateral))\.\w+$"
COLUMNS = ["image", "age", "sex", "race", "disease", "subject_id", "study_id", "image_id", "view", "split"]


def select(
    root: str | Path,
    *,
    sample_csv_dir: str | Path | None = None,
    on_error: Literal["skip", "raise"] = "skip",
) -> Selection:
    """Filter and split CheXpert as published.

    Args:
        root: Folder with ``train.csv``, ``CHEXPERT DEMO.xlsx`` (or the same table as ``.csv``) and the pictures, all in
            itself or up to five folders below: ``CheXpert-v1.0-small``, ``CheXpert-v1.0`` or the folder around it. A
            patient's folder may be in ``train`` or in the folder of any archive.
        sample_csv_dir: Folder with chexploration's ``chexpert_split_2021_08_20.csv``, or with the three lists that its
            notebook writes: ``chexpert.sample.train.csv``, ``.val.csv`` and ``.test.csv``. They replace rule 5.
        on_error: Leave out damaged rows and missing pictures with a warning (``"skip"``), or raise at the first
            (``"raise"``). Damaged tables always raise.

    Returns:
        Rows with ``image``, ``age``, ``sex`` (male, female), ``race`` (White, Asian, Black), ``disease`` (no finding,
        pleural effusion), ``subject_id``, ``study_id``, ``image_id``, ``view`` (AP, PA) and ``split``.

    Raises:
        FileNotFoundError: If a folder or table is missing, or all pictures are.
        ValueError: If a table or list is damaged or there twice, or a patient's folder is; if the list is not one of
            this ``train.csv``; if a split is left without pictures; with ``on_error="raise"``, if a row is damaged.
    """
    funnel = Funnel(root, on_error)
    files = _find(funnel.root)
    lists = [] if sample_csv_dir is None else _find_lists(Path(sample_csv_dir))
    rows = _read(files)

    def where(row: Any) -> str:
        return f"{files[row.table]}, line {row.line}"

    funnel.count("images in the tables", rows)
    rows = funnel.keep(
        "path is complete",
        rows,
        rows["image_id"].notna(),
        lambda row: (
            f"{where(row)}: Path must be CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg or alike, got "
            f"{row.image}"
        ),
    )
    rows = funnel.keep(
        "one row per image", rows, ~rows.duplicated("image_id"), lambda row: f"{where(row)}: Path {row.image} again"
    )
    rows = funnel.keep("in train.csv", rows, rows["table"] == TRAIN)
    if lists:
        rows["split"] = rows["image_id"].map(_read_split(lists, rows))
        rows = funnel.keep("in the published split", rows, rows["split"].notna())

    people = read_unique(files[DEMOGRAPHICS[0]], ["PATIENT"], ["PRIMARY_RACE", "ETHNICITY"], funnel)
    rows = rows.merge(people, left_on="subject_id", right_on="PATIENT", how="left")
    rows = funnel.keep("patient is in the demographics", rows, rows["PATIENT"].notna())
    rows["race"] = None
    for race in reversed(RACES):
        rows.loc[rows["PRIMARY_RACE"].str.contains(race, na=False), "race"] = race
    rows = funnel.keep("White, Asian or Black", rows, rows["race"].notna())
    rows = funnel.keep("not Hispanic", rows, rows["ETHNICITY"].isin(NOT_HISPANIC))
    rows = funnel.keep("frontal view", rows, rows["direction"] == "Frontal")
    rows = funnel.keep("view AP or PA", rows, rows["view"].isin(VIEWS))
    rows["sex"] = rows["written_sex"].map(SEXES)
    rows = funnel.keep("sex is known", rows, rows["sex"].notna())
    rows["age"] = pd.to_numeric(rows["written_age"], errors="coerce").astype(float)
    rows = funnel.keep("age is not 0, which means unknown", rows, rows["age"] != 0)

    # The split comes before anything is left out as damaged, missing or for its disease: that moves no patient into
    # another split.
    if not lists:
        patients = list(rows["subject_id"].unique())
        drawn = split_by_subject(patients, {"train": 0.6, "validation": 0.1}, "test", seed=SEED)
        rows["split"] = rows["subject_id"].map(drawn)
    rows = funnel.keep(
        "age is a number",
        rows,
        is_age(rows["age"]),
        lambda row: f"{where(row)}: Age must be a number of years, got {row.written_age}",
    )
    rows = _label(rows, funnel, where)

    folders = _find_patients(funnel.root)
    ids = rows["image_id"].str.split("_", n=2)  # patient00001_study1_view1_frontal
    ends = rows["image"].str.rpartition(".")[2]
    rows["image"] = [
        os.path.join(folders.get(patient, funnel.root / patient), study, f"{view}.{end}")
        for (patient, study, view), end in zip(ids, ends, strict=True)
    ]
    there = rows["image"].map(os.path.isfile).astype(bool)
    rows = funnel.keep_there(rows, there, "Put the folders of the patients there.")
    return funnel.select("chexpert", RULES, [*files.values(), *lists], rows[COLUMNS])


def _find(root: Path) -> dict[str, Path]:
    """The tables by their names."""
    files = find_tables(root, [TRAIN], [VALID, DEMOGRAPHICS], skip=r"train|valid|test|patient\d+")
    if DEMOGRAPHICS[0] not in files:
        raise FileNotFoundError(
            f"root {root} has no {' or '.join(DEMOGRAPHICS[:2])}, which tells race; get it from {DEMOGRAPHICS_URL}. "
            "For a graph without race, read train.csv as a table of your own: see docs/your_data.md."
        )
    return files


def _read(files: dict[str, Path]) -> pd.DataFrame:
    """The rows of both tables with ids, NaN if the path is wrong, the name of the table and the number of the line."""
    parts = []
    for name in (TRAIN, VALID):
        if name in files:
            rows = read_table(files[name], list(NAMES)).rename(columns=NAMES)
            parts.append(rows.assign(table=name, line=rows.index + 2))
    rows = pd.concat(parts, ignore_index=True)
    rows["image_id"] = _name(rows["image"])
    rows[["subject_id", "study_id"]] = rows["image_id"].str.extract(r"^((patient\d+)_study\d+)_")[[1, 0]]
    return rows


def _name(paths: pd.Series) -> pd.Series:
    """A name for each path, as chexploration makes it, without the end: ``patient00001_study1_view1_frontal``."""
    return paths.str.extract(PATH, expand=False).str.replace("/", "_")


def _label(rows: pd.DataFrame, funnel: Funnel, where: Callable[[Any], str]) -> pd.DataFrame:
    """Rule 6."""
    labels = rows[["finding", "effusion"]].apply(pd.to_numeric, errors="coerce")
    written = rows[["finding", "effusion"]].notna()
    rows = rows.assign(
        disease=np.select([labels["effusion"] == 1, labels["finding"] == 1], list(DISEASES), "other"),
        uncertain=labels["effusion"] == -1,
        readable=(~written | labels.isin([-1, 0, 1])).all(axis="columns"),
    )
    rows = funnel.keep(
        "labels are blank, -1, 0 or 1",
        rows,
        rows["readable"],
        lambda row: (
            f"{where(row)}: No Finding and Pleural Effusion must be blank, -1, 0 or 1, got {row.finding}, "
            f"{row.effusion}"
        ),
    )
    other = rows["disease"] == "other"
    rows = funnel.keep("pleural effusion is not uncertain", rows, ~(other & rows["uncertain"]))
    return funnel.keep("no finding or pleural effusion", rows, rows["disease"] != "other")


def _find_patients(root: Path) -> dict[str, str]:
    """The folder of each patient, in ``root`` or up to five folders below: archives differ in what is around it.

    Raises:
        ValueError: If a patient has two.
    """
    found: dict[str, str] = {}
    for folder, folders, _ in os.walk(root, followlinks=True):
        patients = [name for name in folders if re.fullmatch(r"patient\d+", name)]
        deep = len(Path(folder).relative_to(root).parts) >= DEPTH
        folders[:] = [] if deep else sorted(set(folders) - set(patients))
        for name in patients:
            path = os.path.join(folder, name)
            if name in found:
                raise ValueError(f"root {root} has {found[name]} and {path}, two folders of one patient; keep one.")
            found[name] = path
    return found


def _find_lists(folder: Path) -> list[Path]:
    """The list of chexploration, or the three that its notebook writes, in the order of SPLITS."""
    if (folder / LIST).is_file():
        return [folder / LIST]
    for name in SAMPLES.values():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"sample_csv_dir {folder} has neither {LIST}, which is in the repository chexploration, nor {name}; "
                f"needed are the first, or {', '.join(SAMPLES.values())}, as its notebook writes them."
            )
    return [folder / name for name in SAMPLES.values()]


def _read_split(lists: list[Path], rows: pd.DataFrame) -> pd.Series:
    """Splits by ``image_id``.

    Args:
        lists: From :func:`_find_lists`.
        rows: Those of ``train.csv``.
    """
    path = lists[0]
    if path.name == LIST:  # it has no names, but the numbers of the rows of train.csv, from 0
        listed = read_table(path, ["index", "split"])
        views = rows[(rows["direction"] == "Frontal") & rows["view"].isin(VIEWS)]
        names = pd.Series(views["image_id"].to_numpy(), index=(views["line"] - 2).astype(str))
        listed["image_id"] = listed["index"].map(names)
        listed["split"] = listed["split"].replace("validate", "validation")
        what = f"the numbers of frontal views, AP or PA, in the published {TRAIN} of 223,414 rows"
    else:
        parts = [read_table(path, ["Path"]).assign(split=split) for split, path in zip(SPLITS, lists, strict=True)]
        listed = pd.concat(parts, ignore_index=True)
        path = path.parent
        listed["image_id"] = _name(listed["Path"])
        listed["image_id"] = listed["image_id"].where(listed["image_id"].isin(rows["image_id"]))
        what = f"the paths of X-rays of {TRAIN}"
    wrong = listed[listed["image_id"].isna() | listed["image_id"].duplicated() | ~listed["split"].isin(SPLITS)]
    if len(wrong):
        raise ValueError(
            f"{path}: {len(wrong):,} of {len(listed):,} rows do not fit, the first is {wrong.iloc[0].to_dict()}. They "
            f"must be {what}, each once, in one of the splits."
        )
    patients = listed["image_id"].str.partition("_")[0]
    several = listed.groupby(patients)["split"].nunique()
    if (several > 1).any():
        raise ValueError(f"{path}: {several.index[several > 1][0]} is in more than one split; get the list anew.")
    return listed.set_index("image_id")["split"]
