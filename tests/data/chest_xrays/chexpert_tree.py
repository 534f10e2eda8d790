"""A made-up tree in the layout of CheXpert: its file and column names and its formats of values, and no data of it.

    tree = ChexpertTree(folder)
    tree.add("patient00001", race="Asian", sex="Male")    # a patient with one study of one frontal view
    tree.train[-1]["Age"] = 0                             # rows are dictionaries until they are written
    tree.write()

:func:`make_chexpert_tree` makes one of which every rule keeps every patient, with every class in every split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.data.chest_xrays.mimic_cxr_tree import picture, split_sizes

LABELS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
DEMO = ["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"]
RACES = ["White", "Asian", "Black or African American"]
NOT_HISPANIC = "Non-Hispanic/Non-Latino"


class ChexpertTree:
    """Tables as lists of rows (train.csv, valid.csv, CHEXPERT DEMO.xlsx), and pictures that are written at once.

    Args:
        root: The folder that holds ``train.csv``.
        prefix: First part of the paths in the tables: that of the small version or of the full one.
    """

    def __init__(self, root: Path, prefix: str = "CheXpert-v1.0-small") -> None:
        self.root, self.prefix = root, prefix
        self.train: list[dict[str, Any]] = []
        self.valid: list[dict[str, Any]] = []
        self.demo: list[dict[str, Any]] = []

    def add(
        self,
        patient: str,
        *,
        race: str | None = "White",
        ethnicity: str | None = NOT_HISPANIC,
        sex: str = "Female",
        age: int = 60,
        labels: dict[str, Any] | None = None,
        views: tuple[str, ...] = ("PA",),
        split: str = "train",
        size: tuple[int, int] = (20, 24),
    ) -> Path:
        """A patient with one study of some views (``AP``, ``PA``, ``LL``, ``lateral``); the path of the last one.

        ``labels`` are those that are not blank; ``{"No Finding": 1.0}`` if left out.
        """
        self.demo.append(dict(zip(DEMO, [patient, sex, age, race, ethnicity], strict=True)))
        for number, view in enumerate(views, 1):
            kind = "lateral" if view == "lateral" else "frontal"
            name = f"{split}/{patient}/study1/view{number}_{kind}.jpg"
            row: dict[str, Any] = {"Path": f"{self.prefix}/{name}", "Sex": sex, "Age": age}
            row |= {"Frontal/Lateral": kind.title(), "AP/PA": None if kind == "lateral" else view}
            getattr(self, split).append(row | ({"No Finding": 1.0} if labels is None else labels))
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(int(patient[7:]) + number, size))
        return path

    def write(self, demo: str = "CHEXPERT DEMO.xlsx") -> Path:
        """Write the tables, the demographics as ``demo``; returns the root."""
        self.root.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train.csv", self.train), ("valid.csv", self.valid)):
            if rows:
                pd.DataFrame(rows, columns=COLUMNS).to_csv(self.root / name, index=False)
        table, path = pd.DataFrame(self.demo, columns=DEMO), self.root / demo
        table.to_excel(path, index=False) if path.suffix == ".xlsx" else table.to_csv(path, index=False)
        return self.root


def make_chexpert_tree(root: Path, num_patients: int = 30, *, size: tuple[int, int] = (20, 24)) -> Path:
    """Write a tree of at least 30 patients that every rule keeps, with one AP or PA view each and every class in every
    split; ``size`` is the height and width of the pictures in pixels. Returns the root."""
    assert num_patients >= 30  # a tenth of them must have three races
    tree = ChexpertTree(root)
    # Who will be where is known: numbers within the split go round all classes.
    place = np.empty(num_patients, int)
    place[np.random.RandomState(2021).permutation(num_patients)] = np.concatenate(
        [np.arange(size) for size in split_sizes(num_patients)]
    )
    for number in range(num_patients):
        i = int(place[number])
        tree.add(
            f"patient{number + 1:05d}",
            race=RACES[i % 3],
            sex=("Male", "Female")[i % 2],
            labels=({"No Finding": 1.0}, {"Pleural Effusion": 1.0, "Edema": -1.0})[i // 2 % 2],
            age=25 + 13 * i % 60,
            views=(("PA", "AP")[i // 4 % 2],),
            size=size,
        )
    return tree.write()
