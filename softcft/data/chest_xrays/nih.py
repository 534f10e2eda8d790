"""NIH ChestX-ray14, from the files as the NIH Clinical Center gives them.

112,120 X-rays of 30,805 patients, their findings mined from reports (Wang, Peng, Lu, Lu, Bagheri, Summers,
"ChestX-ray8: Hospital-scale chest X-ray database and benchmarks", CVPR 2017). What columns mean is said by the official
``README_CHESTXRAY.pdf``, the lists of splits are the official ones. The pair of diseases is that of the paper, which
has it from MIMIC-CXR.

1. Pictures of ``Data_Entry_2017.csv`` (first release) or ``Data_Entry_2017_v2020.csv``, each once, with a patient.
2. ``train_val_list.txt`` and ``test_list.txt`` are the splits; validation is an eighth of the patients of the first,
   drawn in the order of their numbers, shuffled by NumPy's seed 42. A patient of both lists is only tested; the
   official ones have none. Without the lists patients are split 60 : 20 : 20, in the same order.
3. Views PA and AP: both, which are all that there are.
4. ``Finding Labels`` with ``Effusion``, whatever else there is: pleural effusion. ``No Finding``: no finding. Pictures
   with other findings only are left out.
5. Sex is M or F. Age is from 0 to 120 years; 411 occurs. The first release has units (``058Y``; ``003M``, months;
   days and weeks likewise), which become years; the second has years.
6. The picture is there, anywhere below the folder: who has some of the twelve archives has some of the pictures.

Patients are drawn into splits by the tables alone: a partial download and damaged rows move nobody.
There is no rule on age but rule 5, so children stay. The tables do not tell race.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from softcft.data.chest_xrays.common import (
    DIGITS,
    FILE,
    Funnel,
    Selection,
    find_pictures,
    find_tables,
    is_age,
    read_list,
    read_table,
    split_by_subject,
)

__all__ = ["select"]

logger = logging.getLogger(__name__)

RULES = 1
RELEASES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
LISTS = ("train_val_list.txt", "test_list.txt")
NAMES = {
    "Image Index": "image",
    "Finding Labels": "findings",
    "Patient ID": "subject_id",
    "Patient Age": "written_age",
    "Patient Gender": "gender",
    "View Position": "view",
}
SEXES = {"M": "male", "F": "female"}
OLDEST = 120
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # of a unit, as DICOM writes ages
COLUMNS = ["image", "age", "sex", "disease", "subject_id", "image_id", "view", "split"]


def select(root: str | Path, *, on_error: Literal["skip", "raise"] = "skip") -> Selection:
    """Filter and split NIH ChestX-ray14 by the rules of this module.

    Args:
        root: Folder with one of the two tables, the pictures and, for the official splits, both lists: all in itself or
            up to five folders below. Pictures are found by their names: ``images_001/images`` to ``images_012/images``
            or any other folders.
        on_error: Leave out damaged rows and missing pictures with a warning (``"skip"``), or raise at the first
            (``"raise"``). Damaged tables always raise.

    Returns:
        Rows with ``image``, ``age``, ``sex`` (male, female), ``disease`` (no finding, pleural effusion),
        ``subject_id``, ``image_id`` (name of the file), ``view`` (PA, AP) and ``split``.

    Raises:
        FileNotFoundError: If the folder or the table is missing, or one of the lists only.
        ValueError: If a table or list is damaged; if both tables are there, or a picture twice; if a split is left
            without pictures; with ``on_error="raise"``, if a row is damaged.
    """
    funnel = Funnel(root, on_error)
    files = find_tables(funnel.root, [RELEASES], LISTS)
    path = files[RELEASES[0]]
    rows = read_table(path, list(NAMES)).rename(columns=NAMES)
    rows["image_id"] = rows["image"]

    def where(row: Any) -> str:
        return f"{path}, line {row.Index + 2}"

    must = "Patient ID must be a number and Image Index a file name"
    rows = funnel.start("images in the table", rows, {"subject_id": DIGITS, "image": FILE}, where, must)
    rows = _split(rows, files, funnel)
    rows = funnel.keep("view PA or AP", rows, rows["view"].isin(["PA", "AP"]))

    findings = rows["findings"].fillna("").map(lambda text: {part.strip() for part in text.split("|")})
    rows["disease"] = findings.map(
        lambda found: "pleural effusion" if "Effusion" in found else "no finding" if "No Finding" in found else None
    )
    rows = funnel.keep("no finding or pleural effusion", rows, rows["disease"].notna())

    rows["sex"] = rows["gender"].map(SEXES)
    rows = funnel.keep(
        "sex is known",
        rows,
        rows["sex"].notna(),
        lambda row: f"{where(row)}: {row.image}: Patient Gender must be M or F, got {row.gender}",
    )
    age = rows["written_age"].str.extract(r"^\s*(\d+(?:\.\d+)?)\s*([YMWD]?)\s*$")
    rows["age"] = pd.to_numeric(age[0]) * age[1].replace("", "Y").map(YEARS)
    young = rows["written_age"][age[1].isin(["M", "W", "D"])]
    if len(young):
        logger.warning(
            "%d ages are in months, weeks or days, such as %s; they became years.", len(young), young.iloc[0]
        )
    rows = funnel.keep(
        "age is known",
        rows,
        is_age(rows["age"], OLDEST),
        lambda row: f"{where(row)}: {row.image}: Patient Age must be 0 to {OLDEST} years, got {row.written_age}",
    )
    found = find_pictures(funnel.root, rows["image_id"])
    rows["image"] = found.fillna(rows["image_id"])
    rows = funnel.keep_there(rows, found.notna(), "Put the archives' folders images_001 to images_012 there.")
    return funnel.select("nih", RULES, list(files.values()), rows[COLUMNS])


def _split(rows: pd.DataFrame, files: dict[str, Path], funnel: Funnel) -> pd.DataFrame:
    """Give each row its split, by the official lists if they are there."""
    lists = {name: files[name] for name in LISTS if name in files}
    if not lists:
        numbers = sorted(rows["subject_id"].unique(), key=int)  # not in the order of a release
        logger.warning("%s has no %s: patients are split at random, 60 : 20 : 20.", funnel.root, " and no ".join(LISTS))
        rows["split"] = rows["subject_id"].map(split_by_subject(numbers, {"train": 0.6, "validation": 0.2}, "test"))
        return rows
    if len(lists) == 1:
        (missing,) = set(LISTS) - set(lists)
        raise FileNotFoundError(
            f"root {funnel.root} has {next(iter(lists))} and no {missing}; add it for the official splits, or remove "
            "the other for random ones."
        )
    names = {name: set(read_list(path)) for name, path in lists.items()}
    if beside := len(set.union(*names.values()) - set(rows["image"])):
        logger.warning("%d names of the lists are not in %s.", beside, files[RELEASES[0]])
    rows = funnel.keep("in one of the lists", rows, rows["image"].isin(set.union(*names.values())))
    train, test = (rows["image"].isin(names[name]) for name in LISTS)
    tested = rows["subject_id"].isin(set(rows["subject_id"][test]))
    rows = funnel.keep(
        "patient is in one of the lists only",
        rows,
        test | ~tested,
        lambda row: f"{row.image}: {LISTS[1]} has other images of patient {row.subject_id}, who is tested only",
    )
    train = train[rows.index] & ~test[rows.index]
    learned = sorted(rows["subject_id"][train].unique(), key=int)
    drawn = split_by_subject(learned, {"train": 7 / 8}, "validation")
    rows["split"] = rows["subject_id"].map(drawn).where(train, "test")
    return rows
