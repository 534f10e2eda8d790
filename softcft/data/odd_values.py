"""Values that are far from all others of a column, or stand for a missing one: 411 and 0 among ages, -9, 999."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["far_values"]

CODES = (-1.0, *(sign * float(code) for sign in (-1, 1) for code in (9, 77, 88, 99, 777, 888, 999, 8888, 9999, 99999)))
FEWEST = 40  # numbers to compare with
FEW = 0.01  # part of the rows that may be mistakes, at least 3 rows and at most a tenth
FAR = 0.5  # of the range of the others, from the nearest of them
FAR_CODE = 0.1  # of 0 and the like, which often stand for a missing value
GAPS = 3  # times the largest gap among the others
TAIL = 2.5  # times the length of their tail, their last 5 %: long where numbers are skewed


def far_values(numbers: Sequence[float]) -> list[float]:
    """The different numbers of a column that are far from all others, and few; or codes, of any number below half.

    A number is far if the gap to its neighbour is larger than half of the range of the others (a tenth for 0 and codes
    such as 999), three times as large as any gap among these, and 2.5 times as long as the tail of these, their last
    5 %. Negative codes are, where all others are not negative.
    """
    known = np.sort(np.asarray(numbers, dtype=float))
    if len(known) < FEWEST:
        return []
    found: list[float] = []
    for sign in (1, -1):  # the largest, then the smallest
        found += (sign * _far_above(np.sort(sign * known), sign)).tolist()
    return sorted(found)


def _far_above(known: np.ndarray, sign: int) -> np.ndarray:
    """Of sorted numbers the different ones at the upper end that are far."""
    different, counts = np.unique(known, return_counts=True)
    few = min(max(3, FEW * len(known)), len(known) / 10)
    above = np.cumsum(counts[::-1])[::-1]  # rows with that number, or one above
    for place in range(len(different) // 2, len(different)):  # at least half of them are no mistakes
        top, number = different[place:], above[place]
        are_codes = all(sign * one in CODES for one in top)
        if number > (len(known) / 2 if are_codes else few):
            continue
        rest = known[int(few) : len(known) - number]  # without the few at the other end, which may be far, too
        gaps = np.diff(np.unique(rest))
        if not len(gaps):
            continue
        part = FAR_CODE if are_codes or (len(top) == 1 and top[0] == 0) else FAR
        least = max(GAPS * gaps.max(), TAIL * (rest[-1] - np.quantile(rest, 0.95)), part * (rest[-1] - rest[0]))
        if top[0] - rest[-1] > least or (are_codes and sign < 0 and -rest[-1] >= 0 > -top[0]):
            return top
    return different[:0]
