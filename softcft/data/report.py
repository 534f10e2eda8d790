"""Report what is in a data set, and what would stop a training or spoil its results.

:func:`check_data` reads all attributes and a sample of the pictures, and lists all problems at once.
:mod:`softcft.data.draft` drafts a graph where there is none yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image

from softcft.data.columns import find_columns
from softcft.data.config import BUILT_IN, SPLITS, DataConfig
from softcft.data.entries import Entry
from softcft.data.keys import group_doubts
from softcft.data.lost_rows import absent_pictures, complete_rows, explain_lost
from softcft.data.report_pictures import DataReport, Example, check_pictures
from softcft.data.report_variables import check_variable
from softcft.data.schema import FEWEST_SUBJECTS
from softcft.data.splits import make_splits, split_doubts
from softcft.data.tables import is_missing
from softcft.data.unused_files import left_out, naming_unread
from softcft.graph import CausalGraph, Variable

__all__ = ["DataReport", "Example", "check_data"]

RARE = 10  # images of a category below which a number says little
EXAMPLES = 6  # pictures in a row of the figure
CATEGORIES = 12  # rows for one variable in the figure

Values = dict[str, dict[str, list[Any]]]  # by variable and split: numbers and categories, None where there is none


def check_data(
    table: DatasetDict,
    config: DataConfig,
    graph: CausalGraph,
    columns: Mapping[str, Any] | None = None,
    *,
    all_images: bool = False,
) -> DataReport:
    """Read a data set as training and evaluation do, and report what is in it and what is wrong.

    Args:
        table: What :func:`~softcft.data.own.read_table` returned.
        config: The settings of the data.
        graph: The causal graph.
        columns: Where the table has other names or values than the graph, see :mod:`softcft.data.columns`.
        all_images: Read all pictures, not a sample of 1,000.

    Raises:
        ValueError: If ``columns`` cannot be understood.
    """
    report = DataReport(warnings=split_doubts(table))
    if config.dataset_name not in BUILT_IN:
        report.warnings += left_out(config.dataset_name, table, config.table_file or ())
    entries = find_columns(graph, columns)
    splits = _split(table, config, report)
    _check_groups(splits, config, report)
    if empty := [name for name, rows in splits.items() if not len(rows)]:
        report.errors.append(f"There are no rows in {' and '.join(empty)}.")
        return report
    available = _check_columns(entries, splits, report)
    values: Values = {}
    understood: Values = {}
    for variable in graph.variables:
        if entries[variable.name].column in available:
            found, is_understood = check_variable(variable, splits, entries, report)
            values[variable.name] = found
            understood |= {variable.name: found} if is_understood else {}
    if "validation" in splits:  # else there are too few rows, which was said
        _check_validation(graph, understood, splits["validation"], config, report)
    if understood:
        _check_complete(graph, splits, entries["image"].column, understood, report)
    if entries["image"].column in available:
        shown = _choose(graph, {name: found["train"] for name, found in values.items()}) if "train" in splits else {}
        column = entries["image"].column
        check_pictures(splits, column, config, report, all_images=all_images, values=values, shown=shown)
    return report


def _split(table: DatasetDict, config: DataConfig, report: DataReport) -> DatasetDict:
    """The splits as training will have them, or those of the table if they cannot be made."""
    drawn = sorted(set(SPLITS) - set(table)) if len(table) > 1 else ["validation", "test"]
    try:
        with naming_unread(config.dataset_name, table):
            splits = make_splits(table, config.numbers, config.group_column, config.data_seed)
    except ValueError as error:
        report.errors.append(str(error))
        splits, drawn = table, []
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())
    how = f"; {' and '.join(drawn)} drawn at random from train" if drawn else ""
    report.lines.append(f"Images: {sizes}{how}")
    return splits


def _check_columns(entries: Mapping[str, Entry], splits: DatasetDict, report: DataReport) -> list[str]:
    """The columns that all splits have."""
    names = dict.fromkeys(name for rows in splits.values() for name in rows.column_names)
    available = [name for name in names if all(name in rows.column_names for rows in splits.values())]
    plain = {name.casefold(): name for name in available if not isinstance(splits["train"].features[name], Image)}
    for name, column in ((name, entry.column) for name, entry in entries.items()):
        if column in available:
            continue
        if column in names:
            lacking = [split for split, rows in splits.items() if column not in rows.column_names]
            report.errors.append(f"There is no column {column!r} in {' and '.join(lacking)}: add it to their tables.")
            continue
        near = [plain[found] for found in get_close_matches(column.casefold(), plain, n=1)]
        report.errors.append(
            f"There is no column {column!r}; the columns are {available}. Add to the graph's file: columns: "
            f"{{{name}: {near[0] if near else 'NAME_OF_THE_COLUMN'}}}, or rename the variable."
        )
    return available


def _check_groups(splits: DatasetDict, config: DataConfig, report: DataReport) -> None:
    if config.dataset_name not in BUILT_IN:
        report.warnings += group_doubts(splits, config.group_column)
    if config.group_column is not None and all(config.group_column in rows.column_names for rows in splits.values()):
        subjects = {split: rows[config.group_column][:] for split, rows in splits.items()}
        sizes = [f"{split} {len(set(found) - {None}):,}" for split, found in subjects.items()]
        none = sum(map(is_missing, chain(*subjects.values())))
        rest = f"; {none:,} rows have none, and are each of another one" if none else ""
        report.lines.append(f"{config.group_column}: {', '.join(sizes)}{rest}")


def _check_validation(
    graph: CausalGraph, values: Values, rows: Dataset, config: DataConfig, report: DataReport
) -> None:
    """Warn of too few validation images, or subjects, to tell whether a classifier sees a variable."""
    is_grouped = config.group_column in rows.column_names
    subjects = rows[config.group_column][:] if is_grouped else range(len(rows))
    unseen = []
    for name, found in values.items():
        categories = graph[name].categories
        known = [
            (value, subject) for value, subject in zip(found["validation"], subjects, strict=True) if value is not None
        ]
        having = [{subject for value, subject in known if value == category} for category in categories]
        others = [{subject for value, subject in known if value != category} for category in categories]
        fewest = min((len(some) for some in (*having, *others)), default=FEWEST_SUBJECTS)
        if len({subject for _, subject in known}) < 2 * FEWEST_SUBJECTS or fewest < FEWEST_SUBJECTS:
            unseen.append(f"'{name}'")
    if unseen:
        whose = f"values of {config.group_column!r}" if is_grouped else "images"
        report.warnings.append(
            f"{', '.join(unseen)}: validation has too few {whose} to tell whether a classifier sees it, and what is "
            f"not seen is not fine-tuned. Give it a few times as many images (now {len(rows)}); where it is drawn from "
            "the training images, by --num_validation."
        )


def _check_complete(graph: CausalGraph, splits: DatasetDict, image: str, values: Values, report: DataReport) -> None:
    """Count the rows that image models and the evaluation use, say why others are lost, and count categories.

    ``values`` are those of the variables that are understood; if there are others, it is not yet known what is used.
    """
    of_split = {split: {name: found[split] for name, found in values.items()} for split in splits}
    has_pictures = isinstance(splits["train"].features.get(image), Image)
    absent = {split: absent_pictures(rows, image) if has_pictures else set() for split, rows in splits.items()}
    complete = {split: complete_rows(found, absent[split]) for split, found in of_split.items()}
    known = {split: sum(complete_rows(found)) for split, found in of_split.items()}
    counted = {split: rows for split, rows in complete.items() if split == "validation" or sum(rows) >= 2}
    if len(values) == len(graph):
        report.lines += [
            "",
            "Complete rows, which image models and the evaluation use: "
            + ", ".join(f"{split} {sum(rows):,} of {len(rows):,}" for split, rows in complete.items()),
        ]
        lost = {split: explain_lost(found, absent[split]) for split, found in of_split.items()}
        report.lines += [f"  {split}: {why}" for split, why in lost.items() if why]
        report.errors += [
            f"{sum(rows)} rows of {split} have a value for every variable; at least 2 are needed. Leave out of the "
            "graph what is mostly missing."
            for split, rows in sorted(complete.items())
            if split not in counted and known[split] < 2  # else their pictures are not there, which is told elsewhere
        ]
    for variable in graph.variables:
        for split in counted if variable.kind != "continuous" and variable.name in values else ():
            found = values[variable.name][split]
            used = complete[split] if split == "test" else [True] * len(found)
            _check_counts(
                variable, split, Counter(v for v, is_used in zip(found, used, strict=True) if is_used), report
            )


def _check_counts(variable: Variable, split: str, counts: Counter[Any], report: DataReport) -> None:
    """Tell which categories a split lacks, or has in few images."""
    absent = [category for category in variable.categories if not counts[category] and split != "train"]
    rare = [category for category in variable.categories if counts[category] < RARE and category not in absent]
    if absent:
        report.errors.append(
            f"'{variable.name}': no image of {split} is {' or '.join(map(repr, absent))}, so that there is no AUC. Add "
            "images, or leave the category out (null it); a drawn split may have it with another --data_seed."
        )
    if rare and split != "validation":
        numbers = ", ".join(f"{counts[category]} images of {split} are {category!r}" for category in rare)
        harm = "to learn from" if split == "train" else "for an AUC to say much"
        report.warnings.append(
            f"'{variable.name}': {numbers}, too few {harm}. Add images, or merge it with another "
            "category, or make it null, by columns."
        )


def _choose(graph: CausalGraph, values: Mapping[str, list[Any]]) -> dict[str, dict[int, str]]:
    """Rows for the figure by heading, with captions, evenly over the table or the range of a continuous variable."""
    chosen = {}
    for variable in graph.variables:
        column = values.get(variable.name, [])
        if variable.kind == "continuous":
            groups = {variable.name: sorted((i for i, v in enumerate(column) if v is not None), key=column.__getitem__)}
        else:
            groups = {
                f"{variable.name}: {category}": [i for i, value in enumerate(column) if value == category]
                for category in variable.categories[:CATEGORIES]
            }
        for heading, rows in groups.items():
            if rows:
                places = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)
                chosen[heading] = {
                    row: graph.in_words({name: column[row] for name, column in values.items()})
                    for row in (rows[place] for place in places)
                }
    return chosen
