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
:func:`select_mimic_cxr`.

Images keep their proportions: the middle square is cut out. Published code squashes the whole image into a square.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, Value

from softcft.arguments import check_choice, check_whole
from softcft.data.pixels import list_problems, prepare_images
from softcft.data.splits import SPLITS

__all__ = ["MimicSelection", "read_mimic_cxr", "select_mimic_cxr"]

logger = logging.getLogger(__name__)

# In the order of the notebook's labels: sex 0 and 1, race 0, 1 and 2.
SEXES = {"M": "male", "F": "female"}
RACES = {"WHITE": "White", "ASIAN": "Asian", "BLACK/AFRICAN AMERICAN": "Black"}
DISEASES = {"No Finding": "no finding", "Pleural Effusion": "pleural effusion"}  # the second overrides
IDS = ("subject_id", "study_id", "dicom_id")

METADATA, LABELS = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-chexpert.csv"
ADMISSIONS, PATIENTS = "admissions.csv", "patients.csv"
SAMPLES = {split: f"mimic.sample.{name}.csv" for split, name in zip(SPLITS, ("train", "val", "test"), strict=True)}
DEPTH = 5  # of folders below root: physionet.org/files/mimiciv/3.1/hosp, as wget nests them

TEXT = ("sex", "race", "disease", *IDS)
FEATURES = Features({"image": Value("string"), "age": Value("float64")} | {name: Value("string") for name in TEXT})


class MimicSelection(NamedTuple):
    """What the tables say, before any image is read.

    Attributes:
        rows: One row per image: ``image`` (path), ``age`` (years), ``sex`` (male, female), ``race`` (White, Asian,
            Black), ``disease`` (no finding, pleural effusion), ``subject_id``, ``study_id``, ``dicom_id`` (text), and
            ``split`` (train, validation, test).
        funnel: The numbers that each rule leaves: columns ``step``, ``images``, ``subjects``.
        problems: One message for each row that was left out because it is damaged.
    """

    rows: pd.DataFrame
    funnel: pd.DataFrame
    problems: list[str]


def select_mimic_cxr(
    root: str | Path,
    *,
    sample_csv_dir: str | Path | None = None,
    on_error: Literal["skip", "raise"] = "skip",
) -> MimicSelection:
    """Filter and split MIMIC-CXR as the paper does, by its tables. No image needs to be there yet.

    Args:
        root: Folder with MIMIC-CXR-JPG (its ``files`` beside ``mimic-cxr-2.0.0-metadata.csv.gz`` and
            ``mimic-cxr-2.0.0-chexpert.csv.gz``) and MIMIC-IV's ``admissions.csv.gz`` and ``patients.csv.gz``, all in
            itself or up to five folders below. Tables may also be unpacked, as ``.csv``.
        sample_csv_dir: Folder with ``mimic.sample.train.csv``, ``.val.csv`` and ``.test.csv``, as the notebook of
            chexploration writes them. They replace rules 1 to 4 of this module, and all tables but the metadata.
        on_error: Leave out damaged rows with a warning (``"skip"``), or raise at the first (``"raise"``). Damaged
            tables always raise.

    Raises:
        FileNotFoundError: If a folder or table is missing.
        ValueError: If a table is damaged, lacks a column, is there twice or has a path as an id; if a split is left
            without images; if an argument is wrong; with ``on_error="raise"``, if a row is damaged.
    """
    check_choice("on_error", on_error, ("skip", "raise"))
    root, funnel = Path(root), _Funnel(on_error)
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is no folder; give the one that holds MIMIC-CXR-JPG and MIMIC-IV.")
    if sample_csv_dir is None:
        tables = _find(root, (METADATA, LABELS, ADMISSIONS, PATIENTS))
        rows = _filter_tables(tables, funnel)
    else:
        tables = _find(root, (METADATA,))
        rows = _read_samples(tables[METADATA], Path(sample_csv_dir), funnel)
    rows = funnel.keep("no finding or pleural effusion", rows, rows["disease"].isin(DISEASES.values()))
    for split in SPLITS:
        if not (rows["split"] == split).any():
            raise ValueError(
                f"The split {split!r} has no image. {root} has too few subjects, or its tables do not belong "
                f"together; what each rule left:\n{funnel.table().to_string(index=False)}"
            )
    files = str(tables[METADATA].parent / "files")
    subject, study, dicom = (rows[name] for name in IDS)
    rows = rows.assign(image=files + "/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + dicom + ".jpg")
    return MimicSelection(rows[[*FEATURES, "split"]].reset_index(drop=True), funnel.table(), funnel.problems)


def read_mimic_cxr(
    selection: MimicSelection,
    resolution: int = 224,
    *,
    on_error: Literal["skip", "raise"] = "skip",
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[DatasetDict, pd.DataFrame]:
    """Read the images of a selection, or take from the cache what an earlier run has read, finished or not.

    Args:
        selection: From :func:`select_mimic_cxr`.
        resolution: Height and width of the images in pixels.
        on_error: Leave out damaged images with a warning (``"skip"``), or raise at the first (``"raise"``).
        num_workers: Images decoded at the same time; the number of CPU cores if left out.
        cache_dir: Where the images are kept; the cache of Hugging Face datasets if left out.

    Returns:
        Splits ``train``, ``validation``, ``test`` with columns ``image`` (grey, 8 bit, see
        :func:`~softcft.data.pictures.fit_picture`) and those of the selection but ``split``; and the funnel with one
        step more: images that can be read.

    Raises:
        FileNotFoundError: If there is no folder of images.
        ValueError: If no image of a split can be read, or with ``on_error="raise"`` one cannot.
    """
    check_whole("resolution", resolution)
    files = Path(selection.rows["image"][0]).parents[3]  # of files/p10/p10000032/s50414267/<dicom_id>.jpg
    if not files.is_dir():
        raise FileNotFoundError(f"There is no folder {files}; put the images there, beside {METADATA}.")
    funnel = _Funnel(on_error)
    splits = DatasetDict()
    for split in SPLITS:
        rows = selection.rows[selection.rows["split"] == split]
        splits[split], problems = prepare_images(
            Dataset.from_pandas(rows[list(FEATURES)], features=FEATURES, preserve_index=False),
            resolution,
            channels=1,
            on_error=on_error,
            num_workers=num_workers,
            cache_dir=cache_dir,
            desc=split,
        )
        funnel.report(f"{split} images", problems)
    images = sum(len(rows) for rows in splits.values())
    subjects = len({subject for rows in splits.values() for subject in rows["subject_id"]})
    last = pd.DataFrame({"step": ["image can be read"], "images": [images], "subjects": [subjects]})
    return splits, pd.concat([selection.funnel, last], ignore_index=True)


class _Funnel:
    """Counts the images and subjects that each rule leaves, and collects the problems of damaged rows."""

    def __init__(self, on_error: Literal["skip", "raise"]) -> None:
        self.on_error = on_error
        self.steps: list[tuple[str, int, int]] = []
        self.problems: list[str] = []

    def count(self, step: str, rows: pd.DataFrame) -> None:
        self.steps.append((step, len(rows), rows["subject_id"].nunique()))

    def keep(
        self, step: str, rows: pd.DataFrame, mask: pd.Series, problem: Callable[[Any], str] | None = None
    ) -> pd.DataFrame:
        """The rows of ``mask``. If the others are damaged, ``problem`` describes one of them."""
        if problem is not None:
            self.report(step, [problem(row) for row in rows[~mask].itertuples()])
        rows = rows[mask].copy()
        self.count(step, rows)
        return rows

    def report(self, step: str, problems: list[str]) -> None:
        if not problems:
            return
        if self.on_error == "raise":
            raise ValueError(f"{problems[0]}. Repair or remove it, or leave out such rows by on_error='skip'.")
        self.problems += problems
        logger.warning("%s: %d left out:%s", step, len(problems), list_problems(problems))

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.steps, columns=["step", "images", "subjects"])


def _find(root: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """The path of each table, packed or not, wherever it is below ``root``."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder, folders, files in os.walk(root, followlinks=True):
        deep = len(Path(folder).relative_to(root).parts) >= DEPTH
        # Tens of thousands of folders of subjects hold nothing but images.
        folders[:] = [] if deep else [name for name in folders if not re.fullmatch(r"p\d\d", name)]
        for name in names:
            found[name] += [Path(folder, choice) for choice in (f"{name}.gz", name) if choice in files][:1]
    for name, paths in found.items():
        if not paths:
            raise FileNotFoundError(
                f"root {root} has no {name}.gz or {name}, neither in itself nor up to {DEPTH} folders below; needed "
                f"are {', '.join(f'{name}.gz' for name in names)}."
            )
        if len(paths) > 1:
            raise ValueError(f"root {root} has {' and '.join(map(str, paths))}; keep one, for versions differ.")
    return {name: paths[0] for name, paths in found.items()}


def _read(path: Path, columns: Sequence[str], either: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of a table and the first that it has of ``either``, as text or NaN: a bad number spoils one row only."""
    try:
        if path.suffix == ".csv" and not path.read_bytes().endswith(b"\n"):  # gzip has its own way to tell
            raise ValueError("its last line has no end")
        header = list(pd.read_csv(path, nrows=0))
        columns = [*columns, *[name for name in either if name in header][:1]]
        missing = [name for name in columns if name not in header]
        if either and columns[-1] not in either:
            missing.append(" or ".join(either))
        table = pd.DataFrame() if missing else pd.read_csv(path, usecols=columns, dtype=str)[columns]
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is cut short, damaged or no table ({error}); get it anew.") from error
    if missing:
        raise ValueError(f"{path} has no column {missing}; it has {header}; get it anew.")
    if table.empty:
        raise ValueError(f"{path} has no rows; get it anew.")
    return table


def _check_ids(path: Path, rows: pd.DataFrame) -> None:
    """Refuse ids that are paths: the paths of the images are made of them, and could lead out of their folder."""
    for name in IDS:
        for line, value in rows[name][rows[name].str.contains(r"[/\\]", na=False)].items():
            raise ValueError(f"{path}, line {int(str(line)) + 2}: {name} {value!r} is no id but a path; get it anew.")


def _read_unique(path: Path, keys: list[str], columns: Sequence[str], funnel: _Funnel) -> pd.DataFrame:
    """A table without the rows whose key an earlier row has; these are reported."""
    table = _read(path, [*keys, *columns])
    again = table.duplicated(keys)
    found = [f"{path}, line {line + 2}: {keys[-1]} {table[keys[-1]][line]} again" for line in table.index[again]]
    funnel.report("one row each", found)
    return table[~again].copy()


def _filter_tables(tables: dict[str, Path], funnel: _Funnel) -> pd.DataFrame:
    """Rules 1 to 4, in the order of the notebook."""
    path = tables[METADATA]
    rows = _read(path, [*IDS, "ViewPosition", "StudyDate"])
    _check_ids(path, rows)
    funnel.count("images in the metadata", rows)
    numbered = rows["subject_id"].str.fullmatch(r"\d+", na=False) & rows["study_id"].str.fullmatch(r"\d+", na=False)
    rows = funnel.keep(
        "ids are complete",
        rows,
        numbered & rows["dicom_id"].notna(),
        lambda row: (
            f"{path}, line {row.Index + 2}: subject_id and study_id must be numbers and dicom_id given, got "
            f"{row.subject_id}, {row.study_id}, {row.dicom_id}"
        ),
    )
    rows = funnel.keep(
        "one row per image",
        rows,
        ~rows.duplicated("dicom_id"),
        lambda row: f"{path}, line {row.Index + 2}: dicom_id {row.dicom_id} again",
    )

    study = ["subject_id", "study_id"]
    labels = _read_unique(tables[LABELS], study, list(DISEASES), funnel)
    labels["disease"] = "other"
    for label, disease in DISEASES.items():
        labels.loc[pd.to_numeric(labels[label], errors="coerce") == 1, "disease"] = disease
    rows = rows.merge(labels[[*study, "disease"]], on=study, how="left")
    rows = funnel.keep("study has labels", rows, rows["disease"].notna())

    admissions = _read(tables[ADMISSIONS], ["subject_id"], either=["race", "ethnicity"])
    admissions.columns = pd.Index(["subject_id", "race"])
    races = admissions.drop_duplicates().groupby("subject_id")["race"].agg(race="first", number="size")
    rows = rows.merge(races, left_on="subject_id", right_index=True, how="left")
    rows["race"] = rows["race"].map(RACES)
    rows = funnel.keep("subject has an admission", rows, rows["number"].notna())
    rows = funnel.keep("one race at all admissions", rows, rows["number"] == 1)
    rows = funnel.keep("White, Asian or Black", rows, rows["race"].notna())
    rows = funnel.keep("view AP or PA", rows, rows["ViewPosition"].isin(["AP", "PA"]))

    path = tables[PATIENTS]
    patients = _read_unique(path, ["subject_id"], ["gender", "anchor_age", "anchor_year"], funnel)
    rows = rows.merge(patients, on="subject_id", how="left", indicator="patient")
    rows = funnel.keep("subject is among the patients", rows, rows["patient"] == "both")

    # The split comes before anything is left out as damaged or for its disease, so that neither moves a subject into
    # another split. The legacy generator is what the notebook draws from, by shuffle of scikit-learn.
    subjects = rows["subject_id"].unique()
    shuffled = subjects[np.random.RandomState(42).permutation(len(subjects))]
    train, validation = round(0.6 * len(subjects)), round(0.1 * len(subjects))
    splits = ["train"] * train + ["validation"] * validation + ["test"] * (len(subjects) - train - validation)
    rows["split"] = rows["subject_id"].map(dict(zip(shuffled, splits, strict=True)))

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
        _is_age(rows["age"]),
        lambda row: (
            f"dicom_id {row.dicom_id}: anchor_age, anchor_year and StudyDate must give an age, got {row.anchor_age}, "
            f"{row.anchor_year}, {row.StudyDate}"
        ),
    )


def _read_samples(metadata: Path, folder: Path, funnel: _Funnel) -> pd.DataFrame:
    """The notebook's lists of images. Their ids come from the metadata, for a list may lack them."""
    columns = ["path_preproc", "age", "sex_label", "race_label", "disease"]
    parts = []
    for split, name in SAMPLES.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"sample_csv_dir {folder} has no {name}; needed are {', '.join(SAMPLES.values())}, as the notebook "
                "mimic.sample.ipynb of chexploration writes them."
            )
        parts.append(_read(folder / name, columns).assign(split=split))
    rows = pd.concat(parts, ignore_index=True)
    rows["dicom_id"] = rows["path_preproc"].str.extract(r"(?:^|/)s\d+_([^/]+)\.jpg$", expand=False)
    images = _read_unique(metadata, ["dicom_id"], ["subject_id", "study_id"], funnel).dropna()
    _check_ids(metadata, images)
    rows = rows.merge(images, on="dicom_id", how="left")
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
    return funnel.keep("age is known", rows, _is_age(rows["age"]), wrong("age must be a number of years"))


def _is_age(age: pd.Series) -> pd.Series:
    return np.isfinite(age) & (age >= 0)
