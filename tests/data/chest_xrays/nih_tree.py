"""A made-up tree in the layout of NIH ChestX-ray14: its file and column names, and no data of it.

    tree = NIHTree(folder, release="first")
    name = tree.add("7", findings="Effusion|Mass", age="058Y")    # one picture more of patient 7
    tree.write()

:func:`make_nih_tree` makes one of 40 patients with lists of splits, every class in every split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# As published, commas in names included. The first release ends its lines by a comma.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
TABLES = {"first": "Data_Entry_2017.csv", "v2020": "Data_Entry_2017_v2020.csv"}


class NIHTree:
    """A table as a list of rows, lists of splits, and pictures that are written at once."""

    def __init__(self, root: Path, release: str = "v2020") -> None:
        self.root, self.release = root, release
        self.rows: list[dict[str, Any]] = []
        self.lists: dict[str, list[str]] = {}
        self.per_folder = 20  # pictures; of 4,999 to 10,000 in the archives
        self.line_end = "\n"

    @property
    def table(self) -> Path:
        return self.root / TABLES[self.release]

    def add(
        self,
        patient: str,
        *,
        findings: str = "No Finding",
        age: str | None = None,
        sex: str = "F",
        view: str = "PA",
        split: str | None = None,
        size: tuple[int, int] = (24, 24),
    ) -> Path:
        """One picture more of a patient; ``split`` is the list that names it, train_val or test. Returns its path."""
        number = sum(row["Patient ID"] == patient for row in self.rows)
        name = f"{int(patient):08d}_{number:03d}.png"
        age = age if age is not None else {"first": "058Y", "v2020": "58"}[self.release]
        self.rows.append(
            {
                "Image Index": name,
                "Finding Labels": findings,
                "Follow-up #": number,
                "Patient ID": patient,
                "Patient Age": age,
                "Patient Gender": sex,
                "View Position": view,
                "size": "2500,2048",
                "spacing": "0.168,0.168",
            }
        )
        if split is not None:
            self.lists.setdefault(split, []).append(name)
        path = self.root / f"images_{1 + len(self.rows) // self.per_folder:03d}" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(len(self.rows), size, "Effusion" in findings, sex == "F").save(path)
        return path

    def write(self) -> Path:
        """Write the table and the lists; returns the root."""
        end = "," if self.release == "first" else ""
        lines = [HEADER, *(",".join(map(str, row.values())) for row in self.rows)]
        self.table.write_text("".join(f"{line}{end}{self.line_end}" for line in lines), newline="")
        for name, names in self.lists.items():
            (self.root / f"{name}_list.txt").write_text("\n".join(names))  # without an end of the last line
        return self.root


def draw(seed: int, size: tuple[int, int], effusion: bool, female: bool) -> Image.Image:
    """A grey picture of ``size`` (height, width): two dark lungs, one filled from below by an effusion."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / np.reshape(size, (2, 1, 1))
    grey = np.full(size, 170.0)
    for middle in (0.28, 0.72):
        grey[np.hypot((x - middle) / 0.17, (y - 0.5) / 0.36) < 1] = 60
    if effusion:
        grey[(y > 0.6) & (x > 0.5)] = 190
    if female:
        grey[y > 0.8] += 40
    return Image.fromarray(np.clip(grey + rng.normal(0, 8, size), 0, 255).astype(np.uint8))


def make_nih_tree(root: Path, release: str = "v2020", *, size: tuple[int, int] = (24, 24)) -> Path:
    """Write 40 patients with two pictures each, of which 32 are in ``train_val_list.txt``; returns the root."""
    tree = NIHTree(root, release)
    unit = "Y" if release == "first" else ""
    for number in range(1, 41):
        for visit in range(2):
            tree.add(
                str(number),
                findings=("No Finding", "Effusion", "Effusion|Infiltration", "No Finding")[(number + visit) % 4],
                age=f"{20 + 7 * number % 60 + visit:03d}{unit}" if unit else str(20 + 7 * number % 60 + visit),
                sex="MF"[number // 2 % 2],
                view=("PA", "AP")[visit],
                split="train_val" if number <= 32 else "test",
                size=size,
            )
    return tree.write()
