"""A made-up tree in the layout of MIMIC-CXR-JPG and MIMIC-IV: its file and column names, and no data of it.

    tree = MimicTree(folder)
    image = tree.add("40000001", race="ASIAN", gender="F")    # a subject with one study of one image
    tree.metadata[-1]["ViewPosition"] = "LATERAL"             # rows are dictionaries until they are written
    tree.write()

:func:`make_mimic_tree` makes one of which every rule keeps every subject, with every class in every split.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

# A few of the columns that nothing reads are among them.
METADATA = ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "StudyDate", "StudyTime"]
FINDINGS = ["Atelectasis", "Edema", "No Finding", "Pleural Effusion", "Pleural Other", "Support Devices"]
ADMISSIONS = ["subject_id", "hadm_id", "admittime", "insurance", "ethnicity"]
PATIENTS = ["subject_id", "gender", "anchor_age", "anchor_year", "dod"]
RACES = ["WHITE", "ASIAN", "BLACK/AFRICAN AMERICAN"]


class MimicTree:
    """Tables as lists of rows (of mimic-cxr-2.0.0-metadata.csv.gz, ...), and images that are written at once.

    The column of races is ``ethnicity`` as in MIMIC-IV 1.0, or ``race`` as in later versions.
    """

    def __init__(self, root: Path, hospital: str = "hosp") -> None:
        self.root, self.hospital, self.race_column = root, hospital, "ethnicity"
        self.metadata: list[dict[str, Any]] = []
        self.chexpert: list[dict[str, Any]] = []
        self.admissions: list[dict[str, Any]] = []
        self.patients: list[dict[str, Any]] = []

    def add(
        self,
        subject_id: str,
        *,
        race: str | list[str] = "WHITE",
        gender: str = "F",
        finding: str | None = "No Finding",
        anchor_age: int = 60,
        views: tuple[str, ...] = ("PA",),
        size: tuple[int, int] = (20, 24),
    ) -> Path:
        """A subject with one study, and an admission for each race; returns the path of the last image."""
        study_id, number = str(50_000_000 + int(subject_id) % 10_000_000), int(subject_id)
        subject = {"subject_id": subject_id}
        self.patients.append(subject | {"gender": gender, "anchor_age": anchor_age, "anchor_year": 2150})
        for one in [race] if isinstance(race, str) else race:
            self.admissions.append(subject | {"admittime": "2150-03-01 12:00:00", "ethnicity": one})
        self.chexpert.append(subject | {"study_id": study_id} | ({finding: 1.0} if finding else {}))
        for i, view in enumerate(views):
            dicom_id = f"{number:08x}-{i:08x}-00000000-00000000-00000000"
            ids = {"dicom_id": dicom_id, "subject_id": subject_id, "study_id": study_id}
            seen = {"ViewPosition": view, "Rows": size[0], "StudyDate": 21520506, "StudyTime": 213014.531}
            self.metadata.append(ids | seen)
            path = self.root / "files" / f"p{subject_id[:2]}" / f"p{subject_id}" / f"s{study_id}" / f"{dicom_id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number + i, size))
        return path

    def write(self) -> Path:
        """Write the tables; returns the root."""
        hospital = self.root / self.hospital
        write_table(self.root / "mimic-cxr-2.0.0-metadata.csv.gz", self.metadata, METADATA)
        write_table(self.root / "mimic-cxr-2.0.0-chexpert.csv.gz", self.chexpert, ["subject_id", "study_id", *FINDINGS])
        write_table(hospital / "admissions.csv.gz", self.admissions, ADMISSIONS, {"ethnicity": self.race_column})
        write_table(hospital / "patients.csv.gz", self.patients, PATIENTS)
        return self.root


def write_table(
    path: Path, rows: list[dict[str, Any]], columns: list[str], rename: dict[str, str] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = pd.DataFrame(rows, columns=columns).rename(columns=rename or {}).to_csv(index=False)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def picture(seed: int, size: tuple[int, int]) -> bytes:
    """A grey JPEG of ``size`` (height, width): a bright disc somewhere on noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / np.reshape(size, (2, 1, 1))
    disc = np.hypot(y - rng.uniform(0.3, 0.7), x - rng.uniform(0.3, 0.7)) < 0.25
    file = io.BytesIO()
    Image.fromarray((120.0 * disc + rng.uniform(0, 60, size)).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def split_sizes(num_subjects: int) -> list[int]:
    """Numbers of subjects in the splits of the published rule."""
    train, validation = round(0.6 * num_subjects), round(0.1 * num_subjects)
    return [train, validation, num_subjects - train - validation]


def make_mimic_tree(root: Path, num_subjects: int = 30, *, size: tuple[int, int] = (20, 24)) -> Path:
    """Write a tree of at least 30 subjects that every rule keeps, with one AP or PA view each and every class in every
    split; ``size`` is the height and width of the images in pixels. Returns the root."""
    assert num_subjects >= 30  # a tenth of them must have three races
    tree = MimicTree(root)
    # Who will be where is known: numbers within the split go round all classes.
    place = np.empty(num_subjects, int)
    place[np.random.RandomState(42).permutation(num_subjects)] = np.concatenate(
        [np.arange(size) for size in split_sizes(num_subjects)]
    )
    for number in range(num_subjects):
        i = int(place[number])
        tree.add(
            str(10_000_000 + 10_007 * (number + 1)),
            race=RACES[i % 3],
            gender="MF"[i % 2],
            finding=("No Finding", "Pleural Effusion")[i // 2 % 2],
            anchor_age=25 + 13 * i % 60,
            views=(("PA", "AP")[i // 4 % 2],),
            size=size,
        )
    return tree.write()
