"""Rows that models cannot learn from, by reason: what a training logs and what ``check_data.py`` reports."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import Dataset

from softcft.data.paths import stored_pictures

__all__ = ["absent_pictures", "complete_rows", "explain_lost"]


def absent_pictures(rows: Dataset, column: str) -> set[int]:
    """The rows whose picture is not there: no file is named, or there is none of that name."""
    return {
        row
        for row, (path, is_held) in enumerate(stored_pictures(rows, column))
        if not is_held and (path is None or ("://" not in path and not os.path.isfile(path)))
    }


def complete_rows(values: Mapping[str, Sequence[Any]], absent: Collection[int] = ()) -> list[bool]:
    """Whether each row has its picture and a value, which is not None, for every variable.

    Args:
        values: The values of each variable, of all rows.
        absent: The rows whose picture is not there.
    """
    rows = zip(*values.values(), strict=True)
    return [row not in absent and None not in found for row, found in enumerate(rows)]


def explain_lost(values: Mapping[str, Sequence[Any]], absent: Collection[int] = (), unread: int = 0) -> str:
    """Why rows are lost, with the number of each reason; empty if none is. A row may be lost for several.

    Args:
        values: The values of each variable, of all rows; None where one is missing.
        absent: The rows whose picture is not there.
        unread: How many pictures are there and cannot be read.
    """
    missing = {name: sum(value is None for value in found) for name, found in values.items()}
    reasons = [f"{name!r} is missing in {number:,}" for name, number in missing.items() if number]
    reasons += [f"the picture is not there in {len(absent):,}"] if absent else []
    reasons += [f"the picture cannot be read in {unread:,}"] if unread else []
    return ", ".join(reasons)
