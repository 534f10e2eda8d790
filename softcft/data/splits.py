"""Which folders, files or rows are training, validation and test.

Names of splits decide, and a name counts as a whole: ``Test``, ``testing`` and ``test_set`` are the test split,
``test_site`` and ``train_station`` are sites. Names that leave it open are an error that says what to rename, so that
no test picture is learned from. Splits that are missing are drawn (:func:`make_splits`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from softcft.data.config import SPLITS
from softcft.data.tables import as_text, is_missing

__all__ = [
    "make_splits",
    "name_splits",
    "names_splits",
    "rename_splits",
    "split_doubts",
    "split_files",
    "split_of",
]

WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NAMES = {word + end: split for split, words in WORDS.items() for word in words for end in ("", "set", "data", "split")}
# Of both, as published lists often are: validation images are then drawn from it.
NAMES |= {word + other: "train" for word in WORDS["train"] for other in WORDS["validation"]}
# The name of a table's column that says which split a row is in.
COLUMN = re.compile(
    r"(^|[^a-z])(split|splits|partition|folds?|subset|usage|is_?(train|test))([^a-z]|$)"
)  # of a table, by its name
FEW = 20  # different values of such a column
FRACTIONS = {"test": 0.2, "validation": 0.1}
SHARD = re.compile(r"[-_. ]*\d+([-_ ]of[-_ ]\d+.*)?$")  # of train-00000-of-00003 and train_0


def split_of(name: object) -> str | None:
    """The split that a name means, or None: ``"validation"`` for ``"Val"``, ``"train"`` for ``"train_val"``.

    Upper and lower case, spaces and punctuation do not matter.
    """
    return NAMES.get(re.sub(r"[\W_]+", "", str(name)).casefold())


def name_splits(names: Iterable[str], kind: str) -> dict[str, str]:
    """Which of some names belong to which split.

    ``kind`` is what they name, for messages: ``"folders"`` for instance.

    Returns:
        The split of each name that means one.

    Raises:
        ValueError: If two names mean one split; if only some names mean splits, unless train and another split are
            among them; or if two differ only by words for splits and numbers, such as ``xtrain_1`` and ``xtest_2``.
    """
    names = sorted(set(names))
    found = {name: split for name in names if (split := split_of(name)) is not None}
    _check_once(found, kind)
    others = [name for name in names if name not in found]
    if found and others and (len(found) == 1 or "train" not in found.values()):
        raise ValueError(
            f"Of the {kind}, {list(found)} would be splits by their names, and {_some(others)} would not. If all are "
            "splits, call them train, validation and test. If they are classes or sites, rename "
            f"{list(found)}, or put all into a folder train."
        )
    if not found:
        _check_words(names, kind)
    return found


def rename_splits(names: Iterable[str]) -> dict[str, str]:
    """The split that each split of a data set means; a single one is ``train``.

    Raises:
        ValueError: If two are the same, or none is the training split.
    """
    names = list(names)
    if len(names) == 1:
        return {names[0]: "train"}
    found = {name: split for name in names if (split := split_of(name)) is not None}
    _check_once(found, "splits")
    if "train" not in found.values():
        raise ValueError(f"The data set has the splits {sorted(names)}, but none is called 'train'; rename one.")
    return found


def split_files(files: Sequence[str], *, by_name: bool) -> dict[str, list[int]]:
    """Split the files of a folder, by the names of the first folders in which their paths differ.

    Args:
        files: Their paths below the folder, with slashes.
        by_name: Whether the names of the files count, too, without the number of a part and the ending.

    Returns:
        The positions of the files of each split; all are ``train`` if there are no splits.

    Raises:
        ValueError: If names leave it open, see :func:`name_splits`.
    """
    if not files:
        return {}
    parts = [_parts(file, by_name) for file in files]
    first, last = min(parts), max(parts)
    depth = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    if by_name and all(len(part) == depth for part in parts):  # shards of one file
        return {"train": list(range(len(files)))}
    kind = "files" if by_name and all(len(part) <= depth + 1 for part in parts) else "folders"
    tops = [part[depth] if len(part) > depth else "." for part in parts]
    named = {split_of(top) for top in tops} - {None}
    if len(named) < 2 and any(map(split_of, first[:depth])):  # classes in a folder train, one of them perhaps trains
        return {"train": list(range(len(files)))}
    splits = name_splits(tops, kind)
    if not splits:
        for level in range(depth + 1, max(map(len, parts), default=0)):
            deeper = {part[level] for part in parts if len(part) > level}
            named = {split_of(name) for name in deeper} - {None}
            if len(named) > 1:
                examples = sorted(name for name in deeper if split_of(name) is not None)
                raise ValueError(
                    f"There are {examples}, names of splits, in several folders ({_some(sorted(set(tops)))}). Make "
                    "them the folders at the top, or rename them if they are no splits."
                )
        return {"train": list(range(len(files)))}
    result: dict[str, list[int]] = {split: [] for split in SPLITS if split in splits.values()}
    for i, top in enumerate(tops):
        if top in splits:
            result[splits[top]].append(i)
    return result


def names_splits(column: str, texts: Sequence[str]) -> bool:
    """Whether a column of a table seems to say which split a row is in: by its name, or as its values name splits."""
    different = set(texts)
    if len({split_of(text) for text in different} - {None}) > 1 and None not in map(split_of, different):
        return True
    return COLUMN.search(column.casefold()) is not None and 1 < len(different) <= FEW


def split_doubts(splits: Mapping[str, Dataset]) -> list[str]:
    """Warnings about columns that seem to say which split a row is in, and are not what the rows were split by."""
    doubts = []
    for column, feature in next(iter(splits.values())).features.items():
        if not isinstance(feature, Value | ClassLabel):
            continue
        found: dict[str, Counter[str]] = {}
        for split, rows in splits.items():
            if column in rows.column_names:
                label = feature.int2str if isinstance(feature, ClassLabel) else as_text
                found[split] = Counter(label(value) for value in rows[column][:] if not is_missing(value))
        total = sum(found.values(), Counter[str]())
        is_used = len(found) > 1 and sum(map(len, found.values())) == len(total)  # each value is in one split only
        if is_used or not names_splits(column, list(total)):
            continue
        counts = ", ".join(f"{text} in {number:,} rows" for text, number in total.most_common(5))
        values = ", ".join(f"{text}: {split_of(text) or '...'}" for text in list(total)[:5])
        doubts.append(
            f"Column {column!r} seems to say which split a row is in ({counts}), and the splits are others: "
            f"{' and '.join(splits)}. To use it, pass split_column {column!r}, and say what its values mean by "
            f"columns: {{{column}: {{column: {column}, values: {{{values}}}}}}}."
        )
    return doubts


def make_splits(
    splits: DatasetDict, numbers: Mapping[str, int] | None = None, group_column: str | None = None, seed: int = 0
) -> DatasetDict:
    """Make sure that there are train, validation and test.

    A split that is missing is drawn at random from the training rows: 10 % of them for validation, 20 % for test.

    Args:
        splits: What :func:`~softcft.data.own.read_table` returned.
        numbers: Numbers of rows by name of split, drawn at random; all rows of the splits that are not named.
        group_column: Rows with the same value in this column, of one patient for instance, stay in one split. A row
            without a value is on its own.
        seed: Seed of what is random.

    Raises:
        ValueError: If there is no such column in a split, or there are not enough rows (or groups) for the numbers.
    """
    rows, numbers = splits["train"], numbers or {}
    lacking = [name for name, others in splits.items() if group_column not in (None, *others.column_names)]
    if lacking:
        where = "the data set has" if len(lacking) == len(splits) else f"{' and '.join(lacking)} of the data set have"
        raise ValueError(f"group_column {group_column}: {where} no such column; correct the name, or add it.")
    order = np.random.default_rng(seed).permutation(len(rows))
    ends = np.arange(1, len(rows))
    if group_column is not None:  # groups in random order, and their rows one after the other
        names = [f"none {i}" if is_missing(name) else as_text(name) for i, name in enumerate(rows[group_column][:])]
        codes = np.unique(np.asarray(names), return_inverse=True)[1]
        order = np.argsort(np.random.default_rng(seed).permutation(codes.max() + 1)[codes], kind="stable")
        ends = np.flatnonzero(np.diff(codes[order])) + 1
    start, result = 0, dict(splits)
    for name, fraction in FRACTIONS.items():
        if name in splits:
            continue
        wanted = numbers.get(name) or max(1, round(fraction * len(rows)))
        stops = ends[ends >= start + wanted]
        if not len(stops):
            raise ValueError(
                f"The {len(rows)} training rows are too few to draw {wanted} for {name} from"
                + (f", if rows of one {group_column} stay together." if group_column else ".")
            )
        result[name] = rows.select(np.sort(order[start : stops[0]]))
        start = int(stops[0])
    if start:
        result["train"] = rows.select(np.sort(order[start:]))
    for name, number in numbers.items():
        if number > len(result[name]):
            raise ValueError(f"num_{name} is {number}, but there are {len(result[name])} rows in that split; lower it.")
        if number < len(result[name]):
            chosen = np.random.default_rng(seed).permutation(len(result[name]))[:number]
            result[name] = result[name].select(np.sort(chosen))
    return DatasetDict({name: result[name] for name in SPLITS})


def _parts(file: str, by_name: bool) -> list[str]:
    *folders, name = file.split("/")
    return [*folders, SHARD.sub("", os.path.splitext(name)[0]) or name] if by_name else folders


def _check_once(found: Mapping[str, str], kind: str) -> None:
    for split in SPLITS:
        same = [name for name, other in found.items() if other == split]
        if len(same) > 1:
            raise ValueError(f"The {kind} {same} are all names of the split {split!r}; rename or merge all but one.")


def _check_words(names: Sequence[str], kind: str) -> None:
    """Refuse names such as trainA and testA, or 1_train and 2_test: they may well be splits, and may be classes."""
    rests: dict[str, dict[str, str]] = {}
    for name in names:
        plain = re.sub(r"[\W\d_]+", "", name.casefold())
        for word, split in NAMES.items():
            for found in re.finditer(word, plain):
                rests.setdefault(plain[: found.start()] + plain[found.end() :], {})[split] = name
    for alike in rests.values():
        if len(set(alike.values())) > 1:
            raise ValueError(
                f"The {kind} {sorted(set(alike.values()))} differ by the names of splits. If they are splits, call "
                "them train, validation and test. If they are not, rename one of them."
            )


def _some(names: Sequence[str]) -> str:
    return str(list(names[:5]))[:-1] + (f", ... {len(names) - 5} more]" if len(names) > 5 else "]")
