"""Time and memory of the filter and the split of MIMIC-CXR at full size, on made-up tables.

    python benchmarks/mimic_cxr_tables.py

The tables have the rows, columns and sizes of MIMIC-CXR-JPG 2 and MIMIC-IV 2.2 (377,110 images of 65,379 subjects,
227,827 studies, 431,231 admissions, 299,712 patients) and random contents; no image is needed or made. The selection
runs in a process of its own, whose peak memory (ru_maxrss, with all imports) is reported. Exits with 1 if it takes more
than two minutes or 4 GiB.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from softcft.data.chest_xrays import mimic_cxr

IMAGES, SUBJECTS, STUDIES = 377_110, 65_379, 227_827
ADMISSIONS, PATIENTS = 431_231, 299_712
SECONDS, GIB = 120, 4
RACES = {
    "WHITE": 0.62,
    "BLACK/AFRICAN AMERICAN": 0.14,
    "OTHER": 0.05,
    "UNKNOWN": 0.04,
    "WHITE - OTHER EUROPEAN": 0.03,
    "HISPANIC/LATINO - PUERTO RICAN": 0.03,
    "ASIAN": 0.03,
    "ASIAN - CHINESE": 0.03,
    "WHITE - RUSSIAN": 0.03,
}
VIEWS = ("AP", "PA", "LATERAL", "LL", None)
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)


def main() -> None:
    """Make the tables, select, report."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root, ProcessPoolExecutor(1, context, max_tasks_per_child=1) as child:
        print("Making the tables", flush=True)
        child.submit(make_tables, Path(root)).result()
        seconds, gib, funnel = child.submit(measure, Path(root)).result()
    print(f"\n{funnel.to_string(index=False)}\n\n{seconds:.1f} s (limit {SECONDS}), {gib:.2f} GiB (limit {GIB})")
    sys.exit(seconds > SECONDS or gib > GIB)


def measure(root: Path) -> tuple[float, float, pd.DataFrame]:
    """Seconds, peak GiB of this process, and the funnel."""
    start = time.perf_counter()
    funnel = mimic_cxr.select(root).funnel
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, funnel  # KiB on Linux


def make_tables(root: Path) -> None:
    """Write the four tables that the selection reads, as .csv.gz."""
    rng = np.random.default_rng(0)
    patients = 10_000_000 + np.sort(rng.choice(9_999_999, PATIENTS, replace=False))
    subjects = np.sort(rng.choice(patients, SUBJECTS, replace=False))
    # Everybody has one, and who has the others is random.
    study_subjects = np.sort(np.concatenate([subjects, rng.choice(subjects, STUDIES - SUBJECTS)]))
    studies = 50_000_000 + rng.choice(9_999_999, STUDIES, replace=False)
    image_studies = np.sort(np.concatenate([np.arange(STUDIES), rng.integers(0, STUDIES, IMAGES - STUDIES)]))
    words = rng.integers(0, 2**32, (IMAGES, 5), dtype=np.uint64)

    write(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        {
            "dicom_id": ["-".join(f"{word:08x}" for word in row) for row in words.tolist()],
            "subject_id": study_subjects[image_studies],
            "study_id": studies[image_studies],
            "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
            "ViewPosition": rng.choice(np.array(VIEWS, object), IMAGES, p=[0.39, 0.25, 0.22, 0.09, 0.05]),
            "Rows": 3056,
            "Columns": 2544,
            "StudyDate": rng.integers(2110, 2200, STUDIES)[image_studies] * 10_000 + 506,
            "StudyTime": rng.uniform(0, 240_000, IMAGES).round(3),
            "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
            "ViewCodeSequence_CodeMeaning": "postero-anterior",
            "PatientOrientationCodeSequence_CodeMeaning": "Erect",
        },
    )
    labels = rng.choice(np.array([np.nan, 1.0, 0.0, -1.0]), (STUDIES, len(FINDINGS)), p=[0.7, 0.2, 0.05, 0.05])
    write(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        {"subject_id": study_subjects, "study_id": studies} | dict(zip(FINDINGS, labels.T, strict=True)),
    )
    admitted = np.concatenate(
        [rng.choice(patients, 180_000, replace=False), rng.choice(patients, ADMISSIONS - 180_000)]
    )
    race_of = dict(zip(patients.tolist(), rng.choice(list(RACES), PATIENTS, p=list(RACES.values())), strict=True))
    races = np.array([race_of[patient] for patient in admitted.tolist()], object)
    races[rng.random(ADMISSIONS) < 0.02] = "UNKNOWN"
    write(
        root / "admissions.csv.gz",
        {
            "subject_id": admitted,
            "hadm_id": 20_000_000 + np.arange(ADMISSIONS),
            "admittime": "2180-05-06 22:23:00",
            "dischtime": "2180-05-07 17:15:00",
            "deathtime": None,
            "admission_type": "URGENT",
            "admit_provider_id": "P00000",
            "admission_location": "TRANSFER FROM HOSPITAL",
            "discharge_location": "HOME",
            "insurance": "Other",
            "language": "ENGLISH",
            "marital_status": "WIDOWED",
            "race": races,
            "edregtime": "2180-05-06 19:17:00",
            "edouttime": "2180-05-06 23:30:00",
            "hospital_expire_flag": 0,
        },
    )
    write(
        root / "patients.csv.gz",
        {
            "subject_id": patients,
            "gender": rng.choice(["F", "M"], PATIENTS),
            "anchor_age": rng.integers(18, 92, PATIENTS),
            "anchor_year": 2110,
            "anchor_year_group": "2014 - 2016",
            "dod": None,
        },
    )


def write(path: Path, columns: dict[str, object]) -> None:
    """Write a table. Columns of one value repeat it."""
    pd.DataFrame(columns).to_csv(path, index=False, compression={"method": "gzip", "compresslevel": 1})


if __name__ == "__main__":
    main()
