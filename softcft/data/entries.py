r"""The entries of a section ``columns``: which column of a table something is in, and how its values are read.

An entry is the name of a column, or a mapping with some of these keys:

- ``column``: its name, if it is another one.
- ``values``: a mapping from values of the table to those that are meant; ``null`` is a missing one, ``""`` an empty
  cell.
- ``pattern``: a regular expression with one group, which is searched in the text and whose group is read in its place.
  Of a number it must cover all of the text, so that ``10Y5`` is not 10. Or a mapping from such expressions to factors,
  for units: ``{'(\d+)Y': 1, '(\d+)M': 0.0833}``.
- ``factor``: what a number is multiplied by: 0.001 makes kilograms of grams.
- ``contains``: the cell is a set of labels. A mapping from labels to categories, of which the first that the cell has
  counts; or a list of labels, for a binary variable: its second category if the cell has any of them, else its first.
  Capitals do not matter.
- ``default``: what all other values mean, ``null`` for missing ones. Without it they are an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from softcft.arguments import is_finite, shown
from softcft.data.tables import as_text, is_missing

__all__ = ["REFUSED", "SEPARATORS", "Entry", "in_yaml", "label_separator", "read_entry", "split_labels"]

KEYS = ("column", "values", "pattern", "factor", "contains", "default")
REFUSED = object()
"""The ``default`` of an entry without one."""

SEPARATORS = "|;,"
"""What may be between labels, the strongest first."""

QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


@dataclass(frozen=True)
class Entry:
    """How a column is read, see :mod:`softcft.data.entries`.

    Attributes:
        column: Its name in the table.
        values: What texts of the table mean.
        patterns: Expressions with one group, each with the factor of the number in it.
        factor: What a number is multiplied by where there is no pattern.
        contains: The category of each label, in their order; or labels, which mean the second of two categories.
        default: What values mean that nothing else explains; :data:`REFUSED` if they are an error.
    """

    column: str
    values: Mapping[str, Any] = field(default_factory=dict)
    patterns: Sequence[tuple[re.Pattern[str], float]] = ()
    factor: float = 1.0
    contains: Mapping[str, Any] | Sequence[str] = ()
    default: Any = REFUSED

    def meaning(self, raw: Any, *, whole: bool = False) -> tuple[Any, float | None]:
        """What a value of the table means, by ``values`` and ``pattern``.

        ``whole`` says whether a pattern must cover all of the text.

        Returns:
            The value, and the factor of a number; None if ``values`` gives it.

        Raises:
            KeyError: If no pattern fits.
        """
        text = "" if is_missing(raw) else as_text(raw)
        if text in self.values:
            return self.values[text], None
        if not self.patterns or not text:
            return raw, self.factor
        for pattern, factor in self.patterns:
            found = pattern.fullmatch(text) if whole else pattern.search(text)
            if found is not None and found[1] is not None:
                return (self.values[found[1]], None) if found[1] in self.values else (found[1], factor)
        raise KeyError(text)

    def name(self, raw: Any) -> str | None:
        """What a value of the table means as a name, of a patient, a split or a file; None if it is missing.

        Raises:
            KeyError: If no pattern fits, and there is no ``default``.
        """
        try:
            value = self.meaning(raw)[0]
        except KeyError:
            if self.default is REFUSED:
                raise
            value = self.default
        return None if is_missing(value) else as_text(value)


def read_entry(name: str, entry: Any) -> Entry:
    """Read an entry of ``columns``.

    Raises:
        ValueError: If it has an unknown key or a value of the wrong kind. The message names the entry.
    """
    entry = {"column": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping) or not set(entry) <= set(KEYS):
        raise ValueError(
            f"columns: {name} must be the name of a column or a mapping with some of {', '.join(KEYS)}, got "
            f"{shown(entry)}."
        )
    values, pattern, contains = (entry.get(key) for key in ("values", "pattern", "contains"))
    if not isinstance(values, Mapping | None):
        raise ValueError(f"columns: {name}: values must be a mapping from old to new values, got {shown(values)}.")
    if contains is not None and (pattern is not None or values is not None):
        raise ValueError(f"columns: {name}: contains explains all labels; take out values and pattern.")
    factor = entry.get("factor")
    if factor is not None and (not is_finite(factor) or factor == 0 or isinstance(pattern, Mapping)):
        raise ValueError(
            f"columns: {name}: factor must be a number other than 0, and not beside a pattern for each unit, got "
            f"{shown(factor)}."
        )
    default = entry.get("default", REFUSED)
    if default is not REFUSED and not isinstance(default, str | int | float | None):
        raise ValueError(f"columns: {name}: default must be one value or null, got {shown(default)}.")
    return Entry(
        column=str(entry.get("column", name)),
        values={"" if old is None else as_text(old): new for old, new in (values or {}).items()},
        patterns=_patterns(name, pattern, 1.0 if factor is None else float(factor)),
        factor=1.0 if factor is None else float(factor),
        contains=_contains(name, contains),
        default=default,
    )


def _patterns(name: str, given: Any, factor: float) -> list[tuple[re.Pattern[str], float]]:
    """Expressions and factors, of one expression or a mapping."""
    given = {} if given is None else {given: factor} if isinstance(given, str) else given
    if not isinstance(given, Mapping):
        raise ValueError(
            f"columns: {name}: pattern must be a regular expression, or a mapping from them to factors, got "
            f"{shown(given)}."
        )
    patterns = []
    for text, unit in given.items():
        try:
            pattern = re.compile(str(text))
        except re.error as error:
            raise ValueError(f"columns: {name}: pattern {text!r} is no regular expression: {error}.") from error
        if pattern.groups != 1:
            raise ValueError(
                f"columns: {name}: pattern {text!r} must have one group, (...), around what is read, got "
                f"{pattern.groups}. (?:...) is no group."
            )
        if not is_finite(unit) or unit == 0:
            raise ValueError(f"columns: {name}: the factor of {text!r} must be a number other than 0, got {unit!r}.")
        patterns.append((pattern, float(unit)))
    return patterns


def _contains(name: str, given: Any) -> Mapping[str, Any] | Sequence[str]:
    if isinstance(given, Mapping):
        return {as_text(label).strip(): category for label, category in given.items()}
    if isinstance(given, list) and given and all(isinstance(label, str | int | float) for label in given):
        return [as_text(label).strip() for label in given]
    if given is not None:
        raise ValueError(
            f"columns: {name}: contains must be a mapping from labels to categories, or a list of labels, got "
            f"{shown(given)}."
        )
    return ()


def in_yaml(values: Mapping[str, Any]) -> str:
    """A mapping from texts of a table as it is to be written in ``values``: quoted where YAML would read another text.

    A value ``...`` is for the user to fill in.
    """
    return ", ".join(f"{_scalar(old)}: {new if new == '...' else _scalar(new)}" for old, new in values.items())


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    try:
        (key,) = yaml.safe_load(f"{{{value}: 0}}")
        if key is not None and as_text(key) == value:
            return value
    except (yaml.YAMLError, TypeError, ValueError):
        pass
    return json.dumps(value, ensure_ascii=False)


# ---- sets of labels -------------------------------------------------------------------------------------------------


def label_separator(cells: Iterable[Any]) -> str | None:
    """What is between the labels of a column's cells: the first of ``|``, ``;`` and ``,`` that any of them has.

    Lists as text do not count.
    """
    marks = {
        mark for cell in cells if isinstance(cell, str) and not _is_list(cell) for mark in SEPARATORS if mark in cell
    }
    return next((mark for mark in SEPARATORS if mark in marks), None)


def split_labels(cell: Any, separator: str | None) -> set[str]:
    """The labels of a cell: of a list, of a list as text, ``"['a', 'b']"``, or of a text with separators."""
    if not isinstance(cell, str):
        parts = [as_text(part) for part in cell if part is not None] if isinstance(cell, Iterable) else [as_text(cell)]
    elif _is_list(cell):
        # Not by a parser of Python: NumPy writes ['a' 'b'], which is one word there, and others leave out the quotes.
        quoted = [one or other for one, other in QUOTED.findall(cell)]
        parts = quoted or re.split(r"[|;,]", cell.strip()[1:-1])
    else:
        parts = cell.split(separator) if separator else [cell]
    return {part.strip() for part in parts} - {""}


def _is_list(text: str) -> bool:
    return text.strip()[:1] + text.strip()[-1:] in ("[]", "()", "{}")
