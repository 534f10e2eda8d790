"""Steps side by side: how long a run takes, and how far it is."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Clock", "duration", "is_bar", "read_bar", "span"]

BAR = re.compile(r"([^:]*): +(\d+)%\|[^|]*\|.*\[(?:[\d:]+)<([\d:?]+)")
"""A progress bar of tqdm: what it is of, percent, and the time that is left."""


def duration(seconds: float) -> str:
    """A duration in words."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds)):d} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def span(groups: Iterable[Sequence[float]], places: int) -> float:
    """How long groups of steps take one after the other, those of a group in so many places, in their order."""
    total = 0.0
    for group in groups:
        busy = [0.0] * places
        for seconds in group:
            busy[busy.index(min(busy))] += seconds
        total += max(busy)
    return total


def is_bar(line: str) -> bool:
    """Whether a line of output is a progress bar of tqdm."""
    return re.search(r"\d%\||\d ?(it|s|examples?|files?)/(s|it|examples?|files?)[,\]]", line) is not None


def read_bar(text: str) -> tuple[str, int, float | None] | None:
    """Of the last progress bar in some output: what it is of, percent, seconds left; None if it ends otherwise."""
    last = next((line for line in reversed(re.split(r"[\r\n]", text)) if line.strip()), "")
    if (found := BAR.search(last)) is None:
        return None
    what, percent, left = found.groups()
    if "?" in left:
        return what, int(percent), None
    seconds = 0
    for part in left.split(":"):
        seconds = 60 * seconds + int(part)
    return what, int(percent), float(seconds)


class Clock:
    """How much of a run is left: first by the estimates, then by how long steps really take.

    Args:
        groups: Names of the steps that are to run.
        estimates: Seconds of each; empty if they are not known.
        places: Number of steps side by side.
    """

    def __init__(self, groups: Sequence[Sequence[str]], estimates: Mapping[str, float], places: int) -> None:
        self.groups, self.estimates, self.places = groups, dict(estimates), places
        self.started: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.bars: dict[str, float] = {}

    def start(self, name: str) -> None:
        """A step begins."""
        self.started[name] = time.monotonic()

    def end(self, name: str) -> float:
        """A step has ended; the seconds that it took."""
        self.took[name] = time.monotonic() - self.started[name]
        return self.took[name]

    def left(self) -> float | None:
        """Seconds that are left, None if nobody knows."""
        if not self.estimates:
            return None
        # The more is done, the more it says of the rest: a short step that came first says little.
        whole = sum(self.estimates.values())
        late = sum(took - self.estimates.get(name, 0.0) for name, took in self.took.items())
        scale = max(0.0, 1 + late / whole) if whole else 1.0
        return span([[self._left(name, scale) for name in group] for group in self.groups], self.places)

    def _left(self, name: str, scale: float) -> float:
        if name in self.took:
            return 0.0
        expected = scale * self.estimates.get(name, 0.0)
        if name not in self.started:
            return expected
        return max(self.bars.get(name, 0.0), expected - (time.monotonic() - self.started[name]))
