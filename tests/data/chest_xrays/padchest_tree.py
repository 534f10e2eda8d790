"""A made-up tree in the layout of PadChest: its file and column names and its formats of values, and no data of it.

    tree = PadchestTree(folder)
    tree.add(7, labels="['pleural effusion', ' cardiomegaly']")    # a patient with one picture
    tree.rows[-1]["PatientSex_DICOM"] = "O"                        # rows are dictionaries until they are written
    tree.write()

:func:`make_padchest_tree` makes one of which every rule keeps every patient, with every class in every split.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tests.data.chest_xrays.mimic_cxr_tree import split_sizes

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = [
    "ImageID",
    "ImageDir",
    "StudyDate_DICOM",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "ViewPosition_DICOM",
    "Projection",
    "MethodProjection",
    "Pediatric",
    "Modality_DICOM",
    "Manufacturer_DICOM",
    "PhotometricInterpretation_DICOM",
    "PixelRepresentation_DICOM",
    "PixelAspectRatio_DICOM",
    "SpatialResolution_DICOM",
    "BitsStored_DICOM",
    "WindowCenter_DICOM",
    "WindowWidth_DICOM",
    "Rows_DICOM",
    "Columns_DICOM",
    "XRayTubeCurrent_DICOM",
    "Exposure_DICOM",
    "ExposureInuAs_DICOM",
    "ExposureTime",
    "RelativeXRayExposure_DICOM",
    "ReportID",
    "Report",
    "MethodLabel",
    "Labels",
    "Localizations",
    "LabelsLocalizationsBySentence",
    "labelCUIS",
    "LocalizationsCUIS",
]
PATIENT = 839860488694292331637988235681400000  # longer than any whole number of pandas
STUDY = 20536686640136348236148679891455000000


class PadchestTree:
    """The table as a list of rows, and 16-bit pictures that are written at once.

    Args:
        root: The folder that holds the table.
        flat: Name of one folder for all pictures; folders 0, 1, ... 53 if left out, as they are downloaded.
    """

    def __init__(self, root: Path, flat: str | None = None) -> None:
        self.root, self.flat = root, flat
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        number: int,
        *,
        labels: Any = "['normal']",
        sex: str | None = "F",
        birth: float | None = 1938.0,
        projections: tuple[str, ...] = ("PA",),
        size: tuple[int, int] = (20, 24),
    ) -> Path:
        """A patient with one study of some projections; returns the path of the last picture."""
        for i, projection in enumerate(projections):
            study, name = STUDY + number, f"{STUDY + number}_{i:02d}-{number:03d}.png"
            folder = number % 54
            row = {"ImageID": name, "ImageDir": folder, "StudyDate_DICOM": 20140915, "StudyID": str(study)}
            row |= {"PatientID": str(PATIENT + number), "PatientBirth": birth, "PatientSex_DICOM": sex}
            row |= {"ViewPosition_DICOM": "POSTEROANTERIOR", "Projection": projection, "Pediatric": "No"}
            row |= {"MethodProjection": "Manual review of DICOM fields", "Modality_DICOM": "CR"}
            row |= {"Manufacturer_DICOM": "PhilipsMedicalSystems", "PhotometricInterpretation_DICOM": "MONOCHROME2"}
            row |= {"PixelAspectRatio_DICOM": "['1', '1']", "BitsStored_DICOM": 12, "WindowCenter_DICOM": 2047.0}
            row |= {"WindowWidth_DICOM": 4095.0, "Rows_DICOM": size[0], "Columns_DICOM": size[1]}
            # As in the real table, a report holds commas and quotes, and may go on in the next line.
            row |= {"ReportID": 4765777 + number, "Report": 'sin cambi , "signific" .\nnormal .'}
            row |= {"MethodLabel": "Physician", "Labels": labels, "Localizations": "['loc cardiac', 'loc right']"}
            self.rows.append(row)
            path = self.root / (self.flat or str(folder)) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey16(number + i, size)).save(path)
        return path

    def write(self, name: str = TABLE) -> Path:
        """Write the table, packed if its name ends in .gz; returns the root."""
        self.root.mkdir(parents=True, exist_ok=True)
        text = pd.DataFrame(self.rows, columns=COLUMNS).to_csv().encode()  # its first column is a number without name
        (self.root / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return self.root


def grey16(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A grey picture of 16 bits and ``size`` (height, width): a bright disc somewhere on noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / np.reshape(size, (2, 1, 1))
    disc = np.hypot(y - rng.uniform(0.3, 0.7), x - rng.uniform(0.3, 0.7)) < 0.25
    return (45_000 * disc + rng.uniform(0, 15_000, size)).astype(np.uint16)


def make_padchest_tree(root: Path, num_patients: int = 30, *, size: tuple[int, int] = (20, 24)) -> Path:
    """Write a tree of at least 30 patients that every rule keeps, with one AP or PA view each and every class in every
    split; ``size`` is the height and width of the pictures in pixels. Returns the root."""
    assert num_patients >= 30  # a tenth of them must have both diseases
    tree = PadchestTree(root)
    # Who will be where is known: numbers within the split go round all classes.
    place = np.empty(num_patients, int)
    place[np.random.RandomState(42).permutation(num_patients)] = np.concatenate(
        [np.arange(size) for size in split_sizes(num_patients)]
    )
    for number in range(num_patients):
        i = int(place[number])
        tree.add(
            number,
            sex="MF"[i % 2],
            labels=("['normal']", "['pleural effusion', ' cardiomegaly']")[i // 2 % 2],
            birth=1930.0 + 13 * i % 60,
            projections=(("PA", "AP")[i // 4 % 2],),
            size=size,
        )
    return tree.write()
