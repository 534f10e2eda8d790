"""Report what is in a data set, and what would stop a training or spoil its results.

:func:`check_data` reads all attributes and a sample of the pictures, and lists all problems at once.
:mod:`softcft.data.draft` drafts a graph where there is none yet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from difflib import get_close_matches
from itertools import chain, combinations
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image

from softcft.data.columns import column_values, doubt_places, explain_unknown, find_columns, read_column
from softcft.data.config import BUILT_IN, DataConfig
from softcft.data.entries import Entry
from softcft.data.keys import lacks_group
from softcft.data.lost_rows import absent_pictures, complete_rows, explain_lost
from softcft.data.odd_values import far_values
from softcft.data.paths import stored_pictures
from softcft.data.report_pictures import DataReport, Example, check_pictures
from softcft.data.schema import FEWEST_SUBJECTS
from softcft.data.splits import SPLITS, make_splits, split_doubts
from softcft.data.tables import as_text, is_missing
from softcft.data.unused_files import left_out
from softcft.data.value_patterns import are_years, looks_like, mean_nothing, spelled_alike
from softcft.graph import CausalGraph, Variable

__all__ = ["DataReport", "Example", "check_data"]

RARE = 10  # images of a category below which a number says little
EXAMPLES = 6  # pictures in a row of the figure
CATEGORIES = 12  # rows for one variable in the figure
NARROW = 0.2  # part of the range that 98 % of the values should take up

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
    for variable in graph.variables:
        entry, column = entries[variable.name], entries[variable.name].column
        if column not in available:
            continue
        read = {split: read_column(rows, variable, entry, splits) for split, rows in splits.items()}
        found = values[variable.name] = {split: understood for split, (understood, _) in read.items()}
        if wrong := sum((unknown for _, unknown in read.values()), Counter[str]()):
            explained = explain_unknown(variable, column, wrong, chain(*found.values()))
            report.errors.append(f"{explained} The first is in {_first_row(splits, entries, column, found, wrong)}.")
        if doubt := doubt_places(splits, variable, entry):
            report.errors.append(doubt)
        _check_doubts(splits, entry, variable, report)
        _check_validation(variable, found["validation"], splits["validation"], config, report)
        named = "" if column == variable.name else f", column {column!r}"
        report.lines += ["", f"{variable.name} ({variable.kind}{named})"]
        if variable.kind == "continuous":
            _check_numbers(variable, found, report)
            _check_far(splits, entries, variable, found, report)
        else:
            _note_translation(splits, column, found, report)
            _check_categories(variable, found, report)
    if len(values) == len(graph):  # otherwise nothing is complete
        _check_complete(graph, splits, entries["image"].column, values, report)
    if entries["image"].column in available:
        shown = _choose(graph, {name: found["train"] for name, found in values.items()}) if "train" in splits else {}
        check_pictures(splits, entries["image"].column, config, report, all_images=all_images, shown=shown)
    return report


def _split(table: DatasetDict, config: DataConfig, report: DataReport) -> DatasetDict:
    """The splits as training will have them, or those of the table if they cannot be made."""
    drawn = sorted(set(SPLITS) - set(table)) if len(table) > 1 else ["validation", "test"]
    try:
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
    available = [name for name in splits["train"].column_names if all(name in s.column_names for s in splits.values())]
    for name, column in ((name, entry.column) for name, entry in entries.items()):
        if column not in available:
            near = get_close_matches(column, available, n=1)
            report.errors.append(
                f"There is no column {column!r}; the columns are {available}. Add to the graph's file: columns: "
                f"{{{name}: {near[0] if near else 'NAME_OF_THE_COLUMN'}}}, or rename the variable."
            )
    return available


def _check_groups(splits: DatasetDict, config: DataConfig, report: DataReport) -> None:
    column = config.group_column
    if column is None and config.dataset_name not in BUILT_IN and (doubt := lacks_group(splits)):
        report.warnings.append(doubt)
    if column is None or any(column not in rows.column_names for rows in splits.values()):
        return
    groups = {split: set(rows[column]) - {None} for split, rows in splits.items()}
    report.lines.append(f"{column}: " + ", ".join(f"{split} {len(group):,}" for split, group in groups.items()))
    for one, other in combinations(groups, 2):
        if shared := groups[one] & groups[other]:
            report.warnings.append(
                f"{len(shared)} values of {column!r} are in both {one} and {other}, for instance "
                f"{min(shared, key=str)!r}: results would be too good. Remove their rows from one of them, or merge "
                "the splits into one, which --group_column then parts."
            )


def _check_validation(
    variable: Variable, values: list[Any], rows: Dataset, config: DataConfig, report: DataReport
) -> None:
    """Warn of too few validation images, or subjects, to tell whether a classifier sees a variable."""
    is_grouped = config.group_column in rows.column_names
    subjects = rows[config.group_column][:] if is_grouped else range(len(rows))
    known = [(value, subject) for value, subject in zip(values, subjects, strict=True) if value is not None]
    having = [{subject for value, subject in known if value == category} for category in variable.categories]
    others = [{subject for value, subject in known if value != category} for category in variable.categories]
    is_enough = len({subject for _, subject in known}) >= 2 * FEWEST_SUBJECTS
    if variable.kind != "continuous":
        is_enough &= any(min(len(a), len(b)) >= FEWEST_SUBJECTS for a, b in zip(having, others, strict=True))
    if not is_enough:
        whose = f"values of {config.group_column!r}" if is_grouped else "images"
        report.warnings.append(
            f"'{variable.name}': validation has too few {whose} to tell whether a classifier sees it, and what is not "
            f"seen is not fine-tuned. Give it a few times as many images (now {len(rows)}); where it is drawn from the "
            "training images, by --num_validation."
        )


def _check_doubts(splits: DatasetDict, entry: Entry, variable: Variable, report: DataReport) -> None:
    """Warn of values that seem to be neither quantities nor categories, and of spellings of one category."""
    column = entry.column
    values = [as_text(v) for rows in splits.values() for v in column_values(rows, column) if not is_missing(v)]
    if not (entry.patterns or entry.contains) and (doubt := looks_like(values)):
        report.warnings.append(f"Column {column!r} of '{variable.name}' has {doubt}.")
    if nothing := mean_nothing(variable.categories):
        report.warnings.append(
            f"'{variable.name}' has the categories {nothing}, which seem to say that nothing is known: take them out "
            f"of the graph, and make them missing by columns: {{{variable.name}: {{column: {column}, values: "
            f"{{{', '.join(f'{category}: null' for category in nothing)}}}}}}}."
        )
    for group in spelled_alike(variable.categories):
        kept = max(group, key=lambda category: len(category.strip()))
        others = {category: kept for category in group if category != kept}
        report.warnings.append(
            f"'{variable.name}' has the categories {group}, which seem to be spellings of one: leave one in the graph, "
            f"and translate the others by columns: {{{variable.name}: {{column: {column}, values: {others}}}}}."
        )


def _first_row(
    splits: DatasetDict,
    entries: Mapping[str, Entry],
    column: str,
    found: Mapping[str, list[Any]],
    wanted: Container[Any],
    *,
    as_read: bool = False,
) -> str:
    """The first row with one of some texts that were not understood, or with one of some values as they were read."""
    for split, rows in splits.items():
        for row, (raw, value) in enumerate(zip(column_values(rows, column), found[split], strict=True)):
            is_unknown = value is None and not is_missing(raw)
            if value in wanted if as_read else is_unknown and as_text(raw) in wanted:
                return _row_name(rows, entries["image"].column, split, row)
    return "a row that is not known"


def _row_name(rows: Dataset, image: str, split: str, row: int) -> str:
    """A row by its picture, or by its number where there is no file of the picture."""
    if isinstance(rows.features.get(image), Image):
        path = next(stored_pictures(rows.select([row]), image))[0]
        if path is not None:
            return f"the row of {path}"
    return f"row {row} of {split}, from 0 on"


def _check_far(
    splits: DatasetDict,
    entries: Mapping[str, Entry],
    variable: Variable,
    values: Mapping[str, list[Any]],
    report: DataReport,
) -> None:
    """Warn of a few numbers that are far from all others, or stand for missing ones."""
    known = [value for column in values.values() for value in column if value is not None]
    usable = [math.log(value) for value in known if value > 0] if variable.log else known
    if not (far := set(far_values(usable))):
        return
    far = {value for value in known if value > 0 and math.log(value) in far} if variable.log else far
    column = entries[variable.name].column
    raws = Counter(
        as_text(raw)
        for split, rows in splits.items()
        for raw, value in zip(column_values(rows, column), values[split], strict=True)
        if value in far
    )
    rest = [value for value in known if value not in far]
    examples = ", ".join(f"{raw} ({number} rows)" for raw, number in raws.most_common(5))
    nulls = ", ".join(f"{raw}: null" for raw, _ in raws.most_common(5))
    report.warnings.append(
        f"{raws.total()} values of '{variable.name}' are far from all others, which go from {min(rest):g} to "
        f"{max(rest):g}: {examples}; the first is in {_first_row(splits, entries, column, values, far, as_read=True)}. "
        f"Correct the table, or make them missing by columns: {{{variable.name}: {{column: {column}, values: "
        f"{{{nulls}}}}}}}."
    )


def _check_numbers(variable: Variable, values: Mapping[str, list[Any]], report: DataReport) -> None:
    least, most = variable.bounds
    slack = 1e-5 * (most - least)  # as Variable.encode allows

    def is_outside(numbers: np.ndarray) -> np.ndarray:
        return (numbers < least - slack) | (numbers > most + slack)

    report.lines.append(
        f"  {'range ' + f'[{least:g}, {most:g}]':<24}{'min':>9}{'1 %':>9}{'median':>9}{'mean':>9}"
        f"{'99 %':>9}{'max':>9}{'outside':>9}{'missing':>9}"
    )
    everything = []
    for split, column in values.items():
        known = np.array([value for value in column if value is not None], dtype=float)
        everything.append(known)
        outside = int(is_outside(known).sum())
        texts = ["-"] * 6
        if len(known):
            numbers = [*np.quantile(known, [0, 0.01, 0.5]), known.mean(), *np.quantile(known, [0.99, 1])]
            texts = [f"{float(f'{number:.4g}'):g}" for number in numbers]
        report.lines.append(
            f"  {split:<24}{''.join(f'{text:>9}' for text in texts)}{outside:>9,}{len(column) - len(known):>9,}"
        )
    known = np.concatenate(everything)
    if not len(known):
        report.errors.append(f"'{variable.name}' has no value in any row; leave it out of the graph.")
        return
    low, high = known.min(), known.max()
    if count := int(is_outside(known).sum()):
        years = ", which are years, it seems, and no ages" if are_years(known.tolist()) else ""
        report.errors.append(
            f"{count} values of '{variable.name}' are outside [{least:g}, {most:g}]: they go from "
            f"{low:g} to {high:g}{years}. Widen low and high, or correct the table, or null them by columns: "
            f"{{{variable.name}: {{values: {{{as_text(float(low if low < least else high))}: null}}}}}}."
        )
    elif low == high:
        report.warnings.append(f"'{variable.name}' is {low:g} in all rows: leave it out of the graph.")
    else:
        first, last = variable.encode(np.quantile(known, [0.01, 0.99])).flatten().tolist()
        if (last - first) / 2 < NARROW:
            report.warnings.append(
                f"98 % of the values of '{variable.name}' lie in {50 * (last - first):.0f} % of its range: correct "
                "outliers, narrow low and high, or set log: true if it spans several powers of ten."
            )


def _check_categories(variable: Variable, values: Mapping[str, list[Any]], report: DataReport) -> None:
    counts = {split: Counter(column) for split, column in values.items()}
    report.lines.append(f"  {'':<24}" + "".join(f"{split:>18}" for split in counts))
    present = set().union(*counts.values()) - {None}
    if len(present) == 1:
        report.warnings.append(f"'{variable.name}' is {present.pop()!r} in all rows: leave it out of the graph.")
    for category in [*variable.categories, None]:
        if category is None and not any(count[None] for count in counts.values()):
            continue
        cells = []
        for count in counts.values():
            known = count.total() if category is None else count.total() - count[None]
            cells.append(f"{count[category]:,} ({100 * count[category] / max(known, 1):3.0f} %)")
        report.lines.append(f"  {category or '(missing)':<24}" + "".join(f"{cell:>18}" for cell in cells))


def _note_translation(splits: DatasetDict, column: str, values: Mapping[str, list[Any]], report: DataReport) -> None:
    """Report how values were read that are no names of categories, positions for instance."""
    pairs = {}
    for split, rows in splits.items():
        for raw, value in zip(column_values(rows, column), values[split], strict=True):
            if value is not None and as_text(raw) != value:
                pairs[as_text(raw)] = value
    if pairs:
        report.lines.append("  read as: " + ", ".join(f"{raw} -> {value}" for raw, value in sorted(pairs.items())[:20]))


def _check_complete(graph: CausalGraph, splits: DatasetDict, image: str, values: Values, report: DataReport) -> None:
    """Count the rows that image models and the evaluation use, say why others are lost, and count categories."""
    of_split = {split: {name: found[split] for name, found in values.items()} for split in splits}
    has_pictures = isinstance(splits["train"].features.get(image), Image)
    absent = {split: absent_pictures(rows, image) if has_pictures else set() for split, rows in splits.items()}
    complete = {split: complete_rows(found, absent[split]) for split, found in of_split.items()}
    report.lines += [
        "",
        "Complete rows, which image models and the evaluation use: "
        + ", ".join(f"{split} {sum(rows):,} of {len(rows):,}" for split, rows in complete.items()),
    ]
    lost = {split: explain_lost(found, absent[split]) for split, found in of_split.items()}
    report.lines += [f"  {split}: {why}" for split, why in lost.items() if why]
    for split in sorted({"train", "test"} & set(complete)):
        if sum(complete[split]) < 2:
            report.errors.append(
                f"{sum(complete[split])} rows of {split} have a value for every variable; at least 2 are needed. Leave "
                "out of the graph what is mostly missing."
            )
    for variable in graph.variables:
        for split, found in values[variable.name].items():
            rows = complete[split] if split == "test" else [True] * len(found)
            counts = Counter(value for value, used in zip(found, rows, strict=True) if used)
            for category in variable.categories:
                if not counts[category] and split != "train":
                    report.errors.append(
                        f"'{variable.name}': no image of {split} is {category!r}, so that there is no AUC. Add images, "
                        "or leave the category out (null it); a drawn split may have it with another --data_seed."
                    )
                elif counts[category] < RARE and split != "validation":
                    report.warnings.append(
                        f"'{variable.name}': {counts[category]} images of {split} are {category!r}, too few "
                        f"{'to learn from' if split == 'train' else 'for an AUC to say much'}. Add images, or merge it "
                        "with another category, or make it null, by columns."
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
