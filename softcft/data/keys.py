"""Recognise keys in tables and in names of pictures: numbers and codes of patients, studies and images.

A key that repeats, as a patient's does, says which images belong together. As a quantity it would mean nothing.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from datasets import Dataset, Image, Value

from softcft.data.columns import column_values
from softcft.data.entries import in_yaml
from softcft.data.paths import stored_pictures
from softcft.data.tables import as_text, is_missing
from softcft.data.value_patterns import YEARS, is_date

__all__ = ["group_doubts", "is_key", "lacks_group", "shared_names"]

PEOPLE = (
    *("patient", "patients", "pat", "pt", "subject", "subj", "sub", "participant", "person", "people", "individual"),
    *("proband", "volunteer", "client", "animal", "mouse", "paciente", "paziente", "patientin", "sujet", "soggetto"),
)
THINGS = (
    *("study", "exam", "examination", "image", "img", "picture", "sample", "record", "series", "scan", "case", "file"),
    *("session", "accession", "acc", "report", "instance", "row"),
)
NUMBERS = ("id", "ids", "uid", "no", "nr", "num", "number", "nummer", "numero", "key", "code", "index", "name")
KEYS = (
    *("id", "ids", "uid", "uuid", "guid", "idx", "key", "mrn", "rid", "eid", "pid", "ptid", "iid", "sid"),
    *("path", "filename", "identifier", "pseudonym", "accession", "dir", "folder"),
)
JOINED = re.compile(f"({'|'.join((*PEOPLE, *THINGS))})({'|'.join(NUMBERS)})")
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
FEW = 10  # so many different whole numbers are categories, more may be a key
LONG = 16  # digits of a number that is a name: more than a float holds
WIDE = 6  # digits that all keys of a register have
LARGE_GROUP = 20  # rows of one key, on average
# A part of a name that stands for somebody: patient00012, sub-03, p10000032, 00000001.
WHO = re.compile(rf"({'|'.join((*PEOPLE, 'case', 'p', 's', 'id'))})[-_ ]?\d+|0\d{{2,}}|\d{{4,}}", re.IGNORECASE)
CODE = re.compile(r"[A-Za-z]{1,8}(\d*[-_ ])?\d{2,}")  # P012, RAD-0012, BRCA1-0012
FEWEST_GROUPS = 5
MANY = 10  # times the images of the patient with the next most


def is_key(name: str, texts: Sequence[str]) -> bool:
    """Whether a column seems to hold numbers or names of something, by its name or by the texts of its values.

    More than 10 codes such as P012 are keys. Numbers are keys if they have more than 15 digits; if all have the same 6
    or more digits, and repeat; or if they count rows or groups of rows, one after the other. Dates are none.
    """
    words, different = _words(name), set(texts)
    if words and (
        words[-1] in KEYS or words[0] == "unnamed" or words == ["index"] or any(map(JOINED.fullmatch, words))
    ):
        return True
    if len(words) > 1 and words[-1] in NUMBERS and words[-2] in (*PEOPLE, *THINGS):
        return True
    if len(words) == 1 and words[0] in (*PEOPLE, "case", "name"):
        return len(different) > 2
    if len(different) > FEW and all(map(CODE.fullmatch, different)):
        return True
    if len(different) <= FEW or not all(map(str.isdecimal, different)) or all(map(is_date, different)):
        return False
    digits = set(map(len, different))
    if min(digits) >= LONG:
        return True
    has_repeats = len(different) < 0.9 * len(texts)
    if has_repeats and len(digits) == 1 and min(digits) >= WIDE and not all(text.endswith("0") for text in different):
        return True
    return _counts(texts, different)


def lacks_group(splits: Mapping[str, Dataset]) -> str | None:
    """A warning where no group column is given, and images may share a patient; None if nothing points to it.

    A column of keys that repeat points to it, or else the names of the pictures.
    """
    harm = (
        "else images of one patient are both learned from and tested on where splits are drawn, and intervals count "
        "images, as if each were of another patient."
    )
    texts = {}
    for column, feature in next(iter(splits.values())).features.items():
        if isinstance(feature, Value):
            there = [column_values(rows, column) for rows in splits.values() if column in rows.column_names]
            of_splits = [[as_text(value) for value in values if not is_missing(value)] for values in there]
            if _groups(column, [text for of_split in of_splits for text in of_split]):
                texts[column] = of_splits
    if texts:
        # Of people, if a name says so, else the largest groups.
        column = min(texts, key=lambda name: (not _people(name), len(set().union(*texts[name]))))
        number, splits_of = sum(map(len, texts[column])), Counter(text for some in texts[column] for text in set(some))
        shared = sum(count > 1 for count in splits_of.values())
        where = f", and {shared:,} of these are in several splits" if shared else ""
        return (
            f"There is no --group_column, but column {column!r} has {len(splits_of):,} different values in {number:,} "
            f"rows{where}, as a patient's number has. If it is one, pass --group_column {column!r}: {harm}"
        )
    images = [(rows, name) for rows in splits.values() for name, f in rows.features.items() if isinstance(f, Image)]
    paths = [
        path for rows, name in images[: len(splits)] for path, _ in stored_pictures(rows, name) if path is not None
    ]
    if (found := shared_names(paths)) is None:
        return None
    example, number = found
    return (
        f"There is no --group_column, but the names of {len(paths):,} pictures share {number:,} parts, as those of one "
        f"patient do, for instance {example!r}. If they are patients, give the table a column of them, and pass its "
        f"name as --group_column: {harm}"
    )


def group_doubts(splits: Mapping[str, Dataset], column: str | None) -> list[str]:
    """Warnings about patients: without a column, in several splits, written in several ways, or not known.

    Args:
        splits: The splits of a table.
        column: The column of patients, if one is given.
    """
    if column is None:
        return [doubt] if (doubt := lacks_group(splits)) else []
    if any(column not in rows.column_names for rows in splits.values()):
        return []  # which is an error elsewhere
    rows_of = {
        split: Counter(as_text(value) for value in rows[column][:] if not is_missing(value))
        for split, rows in splits.items()
    }
    doubts = []
    values = [value for rows in splits.values() for value in rows[column][:]]
    if rounded := [value for value in values if isinstance(value, float) and abs(value) > 2**53]:
        doubts.append(
            f"{len(rounded)} values of {column!r} were rounded, as spreadsheets do to long numbers, for instance "
            f"{rounded[0]!r}: several patients may have become one. Get the table anew, with all digits."
        )
    for one, other in combinations(rows_of, 2):
        if shared := rows_of[one].keys() & rows_of[other].keys():
            doubts.append(
                f"{len(shared)} values of {column!r} are in both {one} and {other}, for instance {min(shared)!r}: "
                "results would be too good. Remove their rows from one of them, or merge the splits into one, which "
                "--group_column then parts."
            )
    total = sum(rows_of.values(), Counter[str]())
    ways: defaultdict[str, list[str]] = defaultdict(list)
    for key in total:
        plain = re.sub(r"(?<!\d)0+(?=\d)|\.0+$", "", "_".join(re.split("[-_ ]+", key.strip().casefold())))
        ways[plain].append(key)
    if several := [keys for keys in ways.values() if len(keys) > 1]:
        doubts.append(
            f"{len(several)} values of {column!r} are written in several ways, it seems, for instance {several[0]}: "
            "these count as different ones, which may be in different splits. Write each in one way."
        )
    match total.most_common(2):  # against the second, for some patients have many images
        case [(key, number), (_, others)] if number >= MANY * others:
            doubts.append(
                f"{number} rows have the same {column!r}, {key!r}, where no other has more than {others}, and so count "
                "as one. If it stands for none, make it missing by columns: "
                f"{{{column}: {{values: {{{in_yaml({key: None})}}}}}}}."
            )
    return doubts


def shared_names(paths: Sequence[str]) -> tuple[str, int] | None:
    """A part that paths of pictures share as those of one patient do, and how many such parts there are, or None.

    It is the name of a folder, such as ``patient00012``, or what a file's name begins with, such as ``00000001`` of
    ``00000001_000.png``, where the rest counts pictures or says what each shows.
    """
    groups: defaultdict[tuple[int, bool], defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in paths:
        *folders, file = path.replace("\\", "/").split("/")
        for level, folder in enumerate(folders):
            if _is_somebody(folder):
                groups[level, False][folder].add(path)
        first, _, rest = re.sub("[-_ ]+", "_", os.path.splitext(file)[0]).partition("_")
        if first.casefold() in (*PEOPLE, "case"):  # sub-03_bold
            number, _, rest = rest.partition("_")
            first += number
        if rest and _is_somebody(first) and (not first.isdigit() or _tells_apart(rest)):
            groups[len(folders), True][first].add(path)
    for _, members in sorted(groups.items(), key=lambda item: item[0]):
        several = [name for name, pictures in members.items() if len(pictures) > 1]
        named = sum(map(len, members.values()))
        if len(several) >= FEWEST_GROUPS and 2 * named > len(paths) and named / len(members) <= LARGE_GROUP:
            return several[0], len(members)
    return None


def _words(name: str) -> list[str]:
    """The words of a column's name, in small letters: patient and id of json.PatientID and of patient_id."""
    return [word.casefold() for word in WORD.findall(name.rpartition(".")[2])]


def _people(name: str) -> set[str]:
    joined = [found[1] for word in _words(name) if (found := JOINED.fullmatch(word))]
    return {*_words(name), *joined} & {*PEOPLE, "mrn", "rid", "eid", "ptid"}


def _groups(column: str, texts: Sequence[str]) -> bool:
    """Whether a column's values seem to be keys, most of them of several rows."""
    different = set(texts)
    if len(different) == len(texts) or len(different) < 2 or (len(different) <= FEW and not _people(column)):
        return False
    if len(texts) > LARGE_GROUP * len(different) and not _people(column):
        return False
    return is_key(column, texts) or all(map(CODE.fullmatch, different))


def _counts(texts: Sequence[str], different: set[str]) -> bool:
    """Whether numbers go from 0 or 1 on without a gap, equal ones side by side."""
    numbers = set(map(int, different))
    if min(numbers) > 1 or len(numbers) != max(numbers) - min(numbers) + 1 or len(texts) > LARGE_GROUP * len(numbers):
        return False
    runs = sum(one != other for one, other in pairwise(texts)) + 1
    return runs == len(different)


def _is_somebody(part: str) -> bool:
    if not WHO.fullmatch(part) or is_date(part):
        return False
    return not (re.fullmatch(r"\d{4}", part) and YEARS[0] <= int(part) <= YEARS[1])


def _tells_apart(rest: str) -> bool:
    """Whether the rest of a name only tells pictures of one patient apart: a short number, or words."""
    parts = rest.split("_")
    return len(rest) <= 4 or any(not part.isdigit() for part in parts)
