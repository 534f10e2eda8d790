"""Recognise values that are no good variable as they are: dates, lists, codes, spellings of one category."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np

from softcft.data.entries import label_separator, split_labels
from softcft.data.tables import are_thousands

__all__ = ["are_codes", "are_years", "is_date", "looks_like", "mean_nothing", "one_hot_columns", "spelled_alike"]

YEARS = (1850, 2100)
DATE = re.compile(r"(\d{4})([-/.]?)(\d\d)\2(\d\d)([ T].*)?")
DAY_FIRST = re.compile(r"\d{1,2}([-/.])\d{1,2}\1(\d\d)?\d\d([ T].*)?")
MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
WITH_MONTH = re.compile(
    rf"{MONTH}[-/ ]\d{{1,2}}(st|nd|rd|th)?,?[-/ ]\d{{4}}|\d{{1,2}}[-/. ]{MONTH}[-/., ]+\d{{2,4}}", re.I
)
GROUPED = re.compile(r"[+-]?\d{1,3}([ \u00a0\u2009\u202f'\u2019]\d{3})+([.,]\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
SEPARATORS = "|;,"
# 170 cm, 45%; of ages 058Y of DICOM, 45 y, 45.5 years
UNIT = re.compile(r"[+-]?\d+(?:\.\d+)?(\s?\D{1,12})?")
AGE = re.compile(r"\s?(y(?:(?:ea)?rs?)?|m(?:o(?:nth)?s?)?|w(?:(?:ee)?ks?)?|d(?:ays?)?)", re.IGNORECASE)
SPECIAL, SLASH = r"([][.^$*+?{}|()\\])", r"\\\1"  # signs of expressions
FEW = 10  # so many different numbers with one unit may be names of categories, as 1a and 2a
MOST = 0.8  # part of the numbers that may have none where others have a unit
FACTORS = {"y": 1, "m": 0.0833, "w": 0.0192, "d": 0.00274}
FILE = re.compile(r"\S.*\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|nii|gz|npy|json|txt)", re.IGNORECASE)
UNKNOWN = re.compile(
    r"[?-]+|(unknown|uncertain|unclear|unspecified|undetermined|undefined|indeterminate|missing|not? ?(known|reported|"
    r"available|recorded|specified|stated|applicable|assessed|data)|other/unknown|n\.?a\.?|unk)\.?",
    re.IGNORECASE,
)
UNKNOWN_CODES = ("-1", "-9", "-99", "-999", "9", "99", "999")


def looks_like(texts: Sequence[str]) -> str | None:
    """What the known values of a column seem to be, and what to do; None if they are quantities or categories."""
    different = set(texts)
    if len(different) < 2:
        return None
    if all(map(is_date, different)):
        return "dates, it seems; make a number of them, an age for instance"
    if any(map(GROUPED.fullmatch, different)) and all(GROUPED.fullmatch(text) or text.isdigit() for text in different):
        return "numbers with signs between thousands, it seems; write them without"
    if any("," in text for text in different) and all(
        DECIMAL_COMMA.fullmatch(text) or re.fullmatch(r"[+-]?\d+", text) for text in different
    ):
        if are_thousands(different):
            return "numbers with commas, before thousands or before decimals; write them with points, and no other sign"
        return "numbers with decimal commas, it seems; write them with points"
    if all(map(FILE.fullmatch, different)):
        return "names of files, it seems"
    if _are_lists(different):
        separator = label_separator(different)
        most = Counter(label for text in texts for label in split_labels(text, separator)).most_common(2)
        labels = ", ".join(f"{label}: ..." for label, _ in most)
        return (
            "several labels in one cell, it seems; read some of them by columns: {NAME: {column: ..., contains: "
            f"{{{labels}}}, default: null}}}}"
        )
    found = [UNIT.fullmatch(text) for text in different]
    all_units = Counter(one[1] or "" for one in found if one is not None)
    units = sorted(all_units.keys() - {""})
    are_ages = all(map(AGE.fullmatch, units))
    is_one = len(units) == 1 and len(different) > FEW
    if all(found) and all_units[""] <= MOST * len(different) and units and (are_ages or is_one):
        number = r"[\d.+-]+" if any(re.search("[.+-]", text) for text in different) else r"\d+"
        units += [""] if all_units[""] else []
        patterns = {unit: json.dumps(f"({number}){re.sub(SPECIAL, SLASH, unit)}", ensure_ascii=False) for unit in units}
        factors = {unit: FACTORS[unit.strip()[0].casefold()] if are_ages and unit else 1 for unit in units}
        pairs = ", ".join(f"{pattern}: {factors[unit]}" for unit, pattern in patterns.items())
        return f"numbers with units, it seems; read them by columns: {{NAME: {{column: ..., pattern: {{{pairs}}}}}}}"
    return None


def are_years(numbers: Sequence[float]) -> bool:
    """Whether numbers seem to be years, of birth for instance."""
    first, last = YEARS
    return len(set(numbers)) > 1 and all(number == int(number) and first <= number <= last for number in numbers)


def are_codes(categories: Sequence[str]) -> bool:
    """Whether categories are numbers other than 0, 1, 2 and so on."""
    numbers = [text for text in categories if re.fullmatch(r"[+-]?\d+", text)]
    return len(numbers) == len(categories) and set(numbers) != {str(i) for i in range(len(categories))}


def mean_nothing(categories: Sequence[str]) -> list[str]:
    """Categories that seem to stand for a missing value: words such as unknown, O beside F and M, -1 or 9 beside 0."""
    if {"f", "m"} < {category.casefold() for category in categories} <= {"f", "m", "o", "u", "x"}:
        return [category for category in categories if category.casefold() not in ("f", "m")]
    if {"+", "-"} <= set(categories):
        return []
    words = [category for category in categories if UNKNOWN.fullmatch(" ".join(category.replace("_", " ").split()))]
    others = [category for category in categories if category not in UNKNOWN_CODES]  # a count, if these are codes
    if words or not others or are_codes(others) or not are_codes(categories):
        return words
    return [category for category in categories if category in UNKNOWN_CODES]


def one_hot_columns(columns: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Neighbouring columns of which each row has a 1 in exactly one: the categories of a single attribute.

    Args:
        columns: By name, the texts of columns of 0 and 1 (or False and True), in the order of the table.

    Returns:
        Groups of at least three names. (Two of them would be one binary attribute and its opposite.)
    """
    names, groups, first = list(columns), [], 0
    ones = np.array([[text in ("1", "True") for text in texts] for texts in columns.values()], dtype=int)
    while first < len(names):
        sums = ones[first:].cumsum(axis=0)
        whole = [last for last in range(2, len(sums)) if (sums[last] == 1).all()]
        if whole:
            groups.append(names[first : first + whole[-1] + 1])
        first += whole[-1] + 1 if whole else 1
    return groups


def spelled_alike(categories: Sequence[str]) -> list[list[str]]:
    """Groups of categories that seem to be one: they differ in capitals and spaces, or are a word and its initial."""
    plain = {category: " ".join(category.split()).casefold() for category in categories}
    words = set(plain.values())
    for category, word in plain.items():
        longer = [other for other in words if len(other) > 3 and other.startswith(word)] if len(word) == 1 else []
        if len(longer) == 1 and word.isalpha():
            plain[category] = longer[0]
    groups = [[c for c in categories if plain[c] == word] for word in dict.fromkeys(plain.values())]
    return [group for group in groups if len(group) > 1]


def is_date(text: str) -> bool:
    """Whether a text is a date, with or without a time: 20140915, 2014-09-15, 15.09.2014, Jan 5, 2014."""
    if DAY_FIRST.fullmatch(text) or WITH_MONTH.fullmatch(text):
        return True
    found = DATE.fullmatch(text)
    if not found or not YEARS[0] <= int(found[1]) <= YEARS[1]:
        return False
    try:
        date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return False
    return True


def _are_lists(different: set[str]) -> bool:
    """Whether some cells hold several words, in brackets or between separators, that other cells hold, too."""
    if all(text[:1] + text[-1:] in ("[]", "()", "{}") for text in different):
        try:
            return any(len(ast.literal_eval(text)) > 1 for text in different)
        except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
            return True  # words without quotes
    for mark in SEPARATORS:
        cells = [[part.strip().casefold() for part in text.split(mark)] for text in different]
        several = [parts for parts in cells if len(parts) > 1 and all(parts)]
        number = Counter(part for parts in cells for part in set(parts))
        shared = [part for parts in several for part in parts if number[part] > 1]
        if several and 2 * len(shared) > sum(map(len, several)):
            return True
    return False
