"""PadChest, from the files as BIMCV gives them.

More than 160,000 X-rays of 67,000 patients of the Hospital San Juan in Alicante (Bustos, Pertusa, Salinas, de la
Iglesia-Vayá, "PadChest: A large chest x-ray image dataset with multi-label annotated reports", Medical Image Analysis
2020). What columns and labels mean is said by the authors' https://github.com/auriml/Rx-thorax-automatic-captioning.
The pair of diseases is that of the paper, which has it from MIMIC-CXR.

1. Pictures of ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv``, each once, with a patient.
2. Nobody has published a split: patients are split 60 : 10 : 30, in the order of their numbers, shuffled by NumPy's
   seed 42. They are drawn by the table alone: a partial download and damaged rows move nobody.
3. ``Projection`` PA or AP. ``AP_horizontal``, of patients who lie, stays out, as do lateral, costal and other views.
4. ``Labels``, a list as text, has ``pleural effusion`` in it, whatever else there is: pleural effusion. It is nothing
   but ``normal``: no finding, which the authors write where no finding is left. Others are left out, and those without
   a list, which are counted for themselves. Labels of finer kinds, such as ``loculated pleural effusion``, are others.
5. ``PatientSex_DICOM`` is M or F: ``O`` (other) and blank are missing.
6. Age is the year of ``StudyDate_DICOM`` minus ``PatientBirth``, a year; it is from 0 to 120. The birth is missing in
   some rows. Children stay.
7. The picture is there, anywhere below the folder, by its name.

The PNG files have 16 bits. The authors have already applied the window of the DICOM header and stretched the result,
so ``WindowCenter_DICOM`` and ``WindowWidth_DICOM`` must not be applied again: the rule for pictures of 16 bits in
:mod:`softcft.data.pictures` holds. Nothing is inverted. The authors' code leaves out X-rays with ``MONOCHROME1``, for
many of these entries are wrong; if the table has some, they stay as they are, and their number is told, for a look.
"""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from softcft.data.chest_xrays.common import (
    DIGITS,
    FILE,
    Funnel,
    Selection,
    find_pictures,
    find_tables,
    is_age,
    read_table,
    split_by_subject,
)

__all__ = ["select"]

logger = logging.getLogger(__name__)

RULES = 1
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
NAMES = {
    "ImageID": "image",
    "PatientID": "subject_id",
    "StudyID": "study_id",
    "StudyDate_DICOM": "date",
    "PatientBirth": "birth",
    "PatientSex_DICOM": "written_sex",
    "Projection": "view",
    "PhotometricInterpretation_DICOM": "photometric",
    "Labels": "labels",
}
SEXES = {"M": "male", "F": "female"}
OLDEST = 120
COLUMNS = ["image", "age", "sex", "disease", "subject_id", "study_id", "image_id", "view", "split"]


def select(root: str | Path, *, on_error: Literal["skip", "raise"] = "skip") -> Selection:
    """Filter and split PadChest by the rules of this module.

    Args:
        root: Folder with the table (``.csv`` or ``.csv.gz``) and the pictures, all in itself or up to five folders
            below. Pictures are found by their names: folders ``0`` to ``54``, one folder ``images-224`` or others.
        on_error: Leave out damaged rows and missing pictures with a warning (``"skip"``), or raise at the first
            (``"raise"``). Damaged tables always raise.

    Returns:
        Rows with ``image``, ``age``, ``sex`` (male, female), ``disease`` (no finding, pleural effusion),
        ``subject_id``, ``study_id``, ``image_id`` (name of the file), ``view`` (PA, AP) and ``split``.

    Raises:
        FileNotFoundError: If the folder or the table is missing, or all pictures are.
        ValueError: If the table is damaged or there twice, or a picture is; if a split is left without pictures; with
            ``on_error="raise"``, if a row is damaged.
    """
    funnel = Funnel(root, on_error)
    files = find_tables(funnel.root, [TABLE])
    path = files[TABLE]
    rows = read_table(path, list(NAMES)).rename(columns=NAMES)
    rows["image_id"] = rows["image"]

    def where(row: Any) -> str:
        return f"{path}, row {row.Index + 1}"

    # 36 digits: a spreadsheet rounds them, to 8.39860488694292E+35, and so makes one patient of several.
    must = "PatientID must be all digits and ImageID a file name"
    rows = funnel.start("images in the table", rows, {"subject_id": DIGITS, "image": FILE}, where, must)
    numbers = sorted(rows["subject_id"].unique(), key=int)  # not in the order of the table
    rows["split"] = rows["subject_id"].map(split_by_subject(numbers, {"train": 0.6, "validation": 0.1}, "test"))
    rows = funnel.keep("view PA or AP", rows, rows["view"].isin(["PA", "AP"]))

    rows = funnel.keep("has labels", rows, rows["labels"].fillna("nan").str.strip() != "nan")
    labels = rows["labels"].map(_read_labels)
    rows = funnel.keep(
        "labels are a list",
        rows,
        labels.notna(),
        lambda row: f"{where(row)}: {row.image}: Labels must be a list such as ['normal'], got {row.labels}",
    )
    labels = labels[rows.index]
    normal = labels.map(lambda found: found == {"normal"}).astype(bool)
    effusion = labels.map(lambda found: "pleural effusion" in found).astype(bool)
    rows["disease"] = np.select([effusion, normal], ["pleural effusion", "no finding"], "other")
    rows = funnel.keep("no finding or pleural effusion", rows, rows["disease"] != "other")

    rows["sex"] = rows["written_sex"].map(SEXES)
    rows = funnel.keep("sex is M or F", rows, rows["sex"].notna())
    rows = funnel.keep("year of birth is known", rows, rows["birth"].notna())
    rows["age"] = pd.to_numeric(rows["date"].str.extract(r"^(\d{4})\d{4}(?:\.0)?$", expand=False)) - pd.to_numeric(
        rows["birth"], errors="coerce"
    )
    rows = funnel.keep(
        "age is known",
        rows,
        is_age(rows["age"], OLDEST),
        lambda row: (
            f"{where(row)}: {row.image}: the year of StudyDate_DICOM minus PatientBirth must be 0 to "
            f"{OLDEST}, got {row.date}, {row.birth}"
        ),
    )
    found = find_pictures(funnel.root, rows["image_id"])
    rows["image"] = found.fillna(rows["image_id"])
    rows = funnel.keep_there(rows, found.notna(), "Put the archives' folders 0 to 54 there.")
    dark = int((rows["photometric"] == "MONOCHROME1").sum())
    if dark:
        logger.warning(
            "PhotometricInterpretation_DICOM is MONOCHROME1 for %d of %d pictures. They are taken as they are, for "
            "many of these entries are wrong; look at some for bones that are black.",
            dark,
            len(rows),
        )
    return funnel.select("padchest", RULES, list(files.values()), rows[COLUMNS])


def _read_labels(text: str) -> set[str] | None:
    """The labels of a list as text, ``['pleural effusion', ' cardiomegaly', nan]``; None if it is no list."""
    try:
        labels = ast.literal_eval(re.sub(r"\bnan\b", "None", text))
    except (SyntaxError, ValueError):
        return None
    if not isinstance(labels, list):
        return None
    return {label.strip() for label in labels if isinstance(label, str)} - {""}
