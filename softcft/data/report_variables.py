"""The part of :mod:`softcft.data.report` about variables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image

from softcft.data.columns import column_values, doubt_places, explain_unknown, read_column
from softcft.data.entries import Entry, in_yaml
from softcft.data.odd_values import far_values
from softcft.data.paths import stored_pictures
from softcft.data.report_pictures import DataReport
from softcft.data.tables import as_text, is_missing
from softcft.data.value_patterns import are_years, looks_like, mean_nothing, spelled_alike
from softcft.graph import Variable

__all__ = ["check_variable"]

NARROW = 0.2  # part of the range that 98 % of the values should take up


def check_variable(
    variable: Variable, splits: DatasetDict, entries: Mapping[str, Entry], report: DataReport
) -> tuple[dict[str, list[Any]], bool]:
    """Report how a variable's column is read; return its values by split, and whether they are understood."""
    name, entry = variable.name, entries[variable.name]
    read = {split: read_column(rows, variable, entry, splits) for split, rows in splits.items()}
    values = {split: found for split, (found, _) in read.items()}
    has_none = all(value is None for value in chain(*values.values()))
    if wrong := sum((unknown for _, unknown in read.values()), Counter[str]()):
        explained = explain_unknown(variable, entry.column, wrong, chain(*values.values()))
        report.errors.append(f"{explained} The first is in {_first_row(splits, entries, entry.column, values, wrong)}.")
    elif has_none:
        report.errors.append(f"'{name}' has no value in any row; leave it out of the graph.")
    if doubt := doubt_places(splits, variable, entry):
        report.errors.append(doubt)
    texts = [as_text(v) for rows in splits.values() for v in column_values(rows, entry.column) if not is_missing(v)]
    is_said = bool(wrong) and variable.kind == "continuous"
    if not (is_said or entry.patterns or entry.contains) and (kind := looks_like(texts)):
        report.warnings.append(f"Column {entry.column!r} of '{name}' has {kind}.")
    _check_names(entry.column, variable, report)
    report.lines += ["", f"{name} ({variable.kind}{'' if entry.column == name else f', column {entry.column!r}'})"]
    is_understood = not (doubt or has_none or (wrong and variable.kind != "continuous"))
    told = report if is_understood else DataReport(lines=report.lines)  # not what only follows from it
    if variable.kind == "continuous":
        _check_numbers(variable, values, told)
        _check_far(splits, entries, variable, values, told)
    else:
        _note_translation(splits, entry.column, values, report)
        _check_categories(variable, values, told)
    return values, is_understood


def _check_names(column: str, variable: Variable, report: DataReport) -> None:
    """Warn of categories that are none, and of spellings of one."""
    if nothing := mean_nothing(variable.categories):
        report.warnings.append(
            f"'{variable.name}' has the categories {nothing}, which seem to say that nothing is known: take them out "
            f"of the graph, and make them missing by columns: {{{variable.name}: {{column: {column}, values: "
            f"{{{in_yaml(dict.fromkeys(nothing))}}}}}}}."
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
    nulls = in_yaml(dict.fromkeys(raw for raw, _ in raws.most_common(5)))
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
