"""Which steps of a run are done already, so that they are skipped without anything being loaded."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path

import softcft
from softcft.data.config import BUILT_IN, FOLDERS, DataConfig
from softcft.run.plan import Plan, RunConfig, Step
from softcft.training.writing import replace_file

__all__ = ["Records"]


class Records:
    """A file for each step that has ended well, ``logs/NAME.done``.

    A step is done if it was done with the same settings, flags, pictures and version of softcft, and what it made is
    still there.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        of_run = {field.name for field in fields(RunConfig)}  # the flags of a step say what of these it needs
        data = {name: value for name, value in plan.sections["data"].items() if name not in of_run}
        self.common = [softcft.__version__, plan.sections | {"data": data}, _state(plan.trainings["scm"].data)]

    def is_done(self, step: Step) -> bool:
        """Whether a step need not run."""
        path = self._path(step)
        if not path.is_file() or not (self.plan.folder / step.makes).exists():
            return False
        return path.read_text(encoding="utf-8") == self._mark(step)

    def keep(self, step: Step) -> None:
        """Record that a step has ended well."""
        replace_file(self._path(step), self._mark(step))

    def forget(self, step: Step) -> None:
        """Have a step run again."""
        self._path(step).unlink(missing_ok=True)

    def _path(self, step: Step) -> Path:
        return self.plan.folder / "logs" / f"{step.name}.done"

    def _mark(self, step: Step) -> str:
        text = json.dumps([*self.common, step.recipe, step.flags], default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def _state(data: DataConfig) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a data set; the phantom follows from its settings."""
    folder = Path(str(data.data_dir) if data.dataset_name in FOLDERS else data.dataset_name)
    if data.dataset_name in BUILT_IN - set(FOLDERS) or not folder.is_dir():
        return []
    files = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            known = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
            files.append((str(path), known.st_size, known.st_mtime_ns))
    return sorted(files)
