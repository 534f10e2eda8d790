"""MIMIC-CXR, from the files as PhysioNet gives them, filtered and split as in the paper.

The rules are those of the notebook ``mimic.sample.ipynb`` of https://github.com/biomedia-mira/chexploration (Glocker,
Jones, Bernhardt, Winzeck, "Algorithmic encoding of protected characteristics in chest X-ray disease detection models",
eBioMedicine 2023), which causal-gen and the paper follow, and of causal-gen, which keeps two of its diseases:

1. X-rays whose study has labels (CheXpert's) and whose subject has an admission in MIMIC-IV.
2. Subjects for whom all admissions give the same race, and it is ``ASIAN``, ``BLACK/AFRICAN AMERICAN`` or ``WHITE``.
3. Views AP and PA.
4. Subjects are split 60 : 10 : 30, in an order shuffled by NumPy's seed 42. All images of a subject are in one split.
5. Studies with a pleural effusion, whatever else they have, and studies without any finding. Uncertain is not positive.

There is no rule on age: subjects under 18 stay. Age is that in the year of the X-ray.

MIMIC-IV calls the race ``ethnicity`` up to version 1.0, on which the notebook was run, and ``race`` from 2.0 on, with
finer values such as ``WHITE - RUSSIAN``. Rule 2, kept as published, leaves these out, and subjects with a finer value
at one admission and a coarser one at another: there are fewer subjects, others in each split, and sizes that are not
the paper's. The lists of images that the notebook writes give exactly the paper's splits: see ``sample_csv_dir`` of
:func:`select`.

Images keep their proportions: the middle square is cut out. Published code squashes the whole image into a square.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from softcft.data.chest_xrays.common import (
    DIGITS,
    FILE,
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

# In the order of the notebook's labels: sex 0 and 1, race 0, 1 and 2.
SEXES = {"M": "male", "F": "female"}
RACES = {"WHITE": "White", "ASIAN": "Asian", "BLACK/AFRICAN AMERICAN": "Black"}
DISEASES = {"No Finding": "no finding", "Pleural Effusion": "pleural effusion"}  # the second overrides
IDS = ("subject_id", "study_id", "dicom_id")

METADATA, LABELS = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-chexpert.csv"
ADMISSIONS, PATIENTS = "admissions.csv", "patients.csv"
SAMPLES = {split: f"mimic.sample.{name}.csv" for split, name in zip(SPLITS, ("train", "val", "test"), strict=True)}

COLUMNS = ["image", "age", "sex", "race", "disease", *IDS, "split"]


def select(
    root: str | Path,
    *,
    sample_csv_dir: str | Path | None = None,
    on_error: Literal["skip", "raise"] = "skip",
) -> Selection:
    """Filter and split MIMIC-CXR as the paper does, by its tables. No image needs to be there yet.

    Args:
        root: Folder with MIMIC-CXR-JPG (its ``files`` beside ``mimic-cxr-2.0.0-metadata.csv.gz`` and
            ``mimic-cxr-2.0.0-chexpert.csv.gz``) and MIMIC-IV's ``admissions.csv.gz`` and ``patients.csv.gz``, all in
            itself or up to five folders below. Tables may also be unpacked, as ``.csv``.
        sample_csv_dir: Folder with ``mimic.sample.train.csv``, ``.val.csv`` and ``.test.csv``, as the notebook of
            chexploration writes them. They replace rules 1 to 4 of this module, and all tables but the metadata.
        on_error: Leave out damaged rows with a warning (``"skip"``), or raise at the first (``"raise"``). Damaged
            tables always raise.

    Returns:
        Rows with ``image``, ``age``, ``sex`` (male, female), ``race`` (White, Asian, Black), ``disease`` (no finding,
        pleural effusion), ``subject_id``, ``study_id``, ``dicom_id`` and ``split``.

    Raises:
        FileNotFoundError: If a folder or table is missing.
        ValueError: If a table is damaged, lacks a column, is there twice or has a path as an id; if a split is left
            without images; if an argument is wrong; with ``on_error="raise"``, if a row is damaged.
    """
    funnel = Funnel(root, on_error)
    names = (METADATA, LABELS, ADMISSIONS, PATIENTS) if sample_csv_dir is None else (METADATA,)
    tables = find_tables(funnel.root, names, skip=r"p\d\d")  # tens of thousands of folders of subjects hold only images
    used = list(tables.values())
    if sample_csv_dir is None:
        rows = _filter_tables(tables, funnel)
    else:
        rows = _read_samples(tables[METADATA], Path(sample_csv_dir), funnel)
        used += [Path(sample_csv_dir, name) for name in SAMPLES.values()]
    rows = funnel.keep("no finding or pleural effusion", rows, rows["disease"].isin(DISEASES.values()))
    return funnel.select("mimic_cxr", RULES, used, rows[COLUMNS])


def _image(metadata: Path, rows: pd.DataFrame) -> pd.Series:
    """The paths of the images, NaN where an id is missing."""
    subject, study, dicom = (rows[name] for name in IDS)
    return f"{metadata.parent / 'files'}/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + dicom + ".jpg"


def _check_ids(path: Path, rows: pd.DataFrame) -> None:
    """Refuse ids that are paths: the paths of the images are made of them, and could lead out of their folder."""
    for name in IDS:
        for line, value in rows[name][rows[name].str.contains(r"[/\\]", na=False)].items():
            raise ValueError(f"{path}, line {int(str(line)) + 2}: {name} {value!r} is no id but a path; get it anew.")


def _filter_tables(tables: dict[str, Path], funnel: Funnel) -> pd.DataFrame:
    """Rules 1 to 4, in the order of the notebook."""
    path = tables[METADATA]
    rows = read_table(path, [*IDS, "ViewPosition", "StudyDate"])
    _check_ids(path, rows)
    rows["image"] = _image(path, rows)
    rows = funnel.start(
        "images in the metadata",
        rows,
        {"subject_id": DIGITS, "study_id": DIGITS, "dicom_id": FILE},
        lambda row: f"{path}, line {row.Index + 2}",
        "subject_id and study_id must be numbers and dicom_id given",
    )
    study = ["subject_id", "study_id"]
    labels = read_unique(tables[LABELS], study, list(DISEASES), funnel)
    labels["disease"] = "other"
    for label, disease in DISEASES.items():
        labels.loc[pd.to_numeric(labels[label], errors="coerce") == 1, "disease"] = disease
    rows = rows.merge(labels[[*study, "disease"]], on=study, how="left")
    rows = funnel.keep("study has labels", rows, rows["disease"].notna())

    admissions = read_table(tables[ADMISSIONS], ["subject_id"], either=["race", "ethnicity"])
    admissions.columns = pd.Index(["subject_id", "race"])
    races = admissions.drop_duplicates().groupby("subject_id")["race"].agg(race="first", number="size")
    rows = rows.merge(races, left_on="subject_id", right_index=True, how="left")
    rows["race"] = rows["race"].map(RACES)
    rows = funnel.keep("subject has an admission", rows, rows["number"].notna())
    rows = funnel.keep("one race at all admissions", rows, rows["number"] == 1)
    rows = funnel.keep("White, Asian or Black", rows, rows["race"].notna())
    rows = funnel.keep("view AP or PA", rows, rows["ViewPosition"].isin(["AP", "PA"]))

    path = tables[PATIENTS]
    patients = read_unique(path, ["subject_id"], ["gender", "anchor_age", "anchor_year"], funnel)
    rows = rows.merge(patients, on="subject_id", how="left", indicator="patient")
    rows = funnel.keep("subject is among the patients", rows, rows["patient"] == "both")

    # The split comes before anything is left out as damaged or for its disease, so that neither moves a subject into
    # another split.
    splits = split_by_subject(rows["subject_id"].unique().tolist(), {"train": 0.6, "validation": 0.1}, "test")
    rows["split"] = rows["subject_id"].map(splits)

    rows["sex"] = rows["gender"].map(SEXES)
    rows = funnel.keep(
        "sex is known",
        rows,
        rows["sex"].notna(),
        lambda row: f"{path}: subject_id {row.subject_id}: gender must be M or F, got {row.gender}",
    )
    anchor_age, anchor_year, date = (
        pd.to_numeric(rows[name], errors="coerce") for name in ("anchor_age", "anchor_year", "StudyDate")
    )
    rows["age"] = anchor_age + (np.floor(date / 10_000) - anchor_year)
    return funnel.keep(
        "age is known",
        rows,
        is_age(rows["age"]),
        lambda row: (
            f"dicom_id {row.dicom_id}: anchor_age, anchor_year and StudyDate must give an age, got {row.anchor_age}, "
            f"{row.anchor_year}, {row.StudyDate}"
        ),
    )


def _read_samples(metadata: Path, folder: Path, funnel: Funnel) -> pd.DataFrame:
    """The notebook's lists of images. Their ids come from the metadata, for a list may lack them."""
    columns = ["path_preproc", "age", "sex_label", "race_label", "disease"]
    parts = []
    for split, name in SAMPLES.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"sample_csv_dir {folder} has no {name}; needed are {', '.join(SAMPLES.values())}, as the notebook "
                "mimic.sample.ipynb of chexploration writes them."
            )
        parts.append(read_table(folder / name, columns).assign(split=split))
    rows = pd.concat(parts, ignore_index=True)
    rows["dicom_id"] = rows["path_preproc"].str.extract(r"(?:^|/)s\d+_([^/]+)\.jpg$", expand=False)
    images = read_unique(metadata, ["dicom_id"], ["subject_id", "study_id"], funnel).dropna()
    _check_ids(metadata, images)
    rows = rows.merge(images, on="dicom_id", how="left")
    rows["image"] = _image(metadata, rows).fillna(rows["path_preproc"])
    several = rows.groupby("subject_id")["split"].nunique()
    if (several > 1).any():
        raise ValueError(
            f"sample_csv_dir {folder}: subject_id {several.index[several > 1][0]} is in more than one of "
            f"{', '.join(SAMPLES.values())}; take the three files of one run of the notebook."
        )
    rows["age"] = pd.to_numeric(rows["age"], errors="coerce")
    for name, values in (("sex", SEXES), ("race", RACES)):
        categories = dict(enumerate(values.values()))
        rows[name] = pd.to_numeric(rows[f"{name}_label"], errors="coerce").map(categories)
    rows["disease"] = rows["disease"].map(DISEASES)

    def wrong(what: str) -> Callable[[Any], str]:
        return lambda row: f"{SAMPLES[row.split]}: {row.path_preproc}: {what}"

    funnel.count("images in the sample CSVs", rows)
    known = rows["subject_id"].notna()
    rows = funnel.keep("image is in the metadata", rows, known, wrong(f"path_preproc must name an image of {metadata}"))
    rows = funnel.keep("one row per image", rows, ~rows.duplicated("dicom_id"), wrong("listed again"))
    rows = funnel.keep("sex is known", rows, rows["sex"].notna(), wrong("sex_label must be 0 or 1"))
    known = rows["race"].notna()
    rows = funnel.keep("race is White, Asian or Black", rows, known, wrong("race_label must be 0, 1 or 2"))
    return funnel.keep("age is known", rows, is_age(rows["age"]), wrong("age must be a number of years"))
