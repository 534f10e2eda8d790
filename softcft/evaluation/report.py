"""Effectiveness and amplification as the paper's Table 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

__all__ = ["CFT_NAMES", "table1_markdown", "write_table1"]

COLUMNS = ("dataset", "seed", "cft", "intervention", "variable", "predictor", "metric", "value", "baseline", "change")
CFT_NAMES = {"none": "No CFT", "hard": "Hard-CFT", "soft": "Soft-CFT"}
METRICS = ("auc", "mae")


def table1_markdown(df: pd.DataFrame, units: Mapping[str, str] | None = None) -> str:
    """Lay out results as Table 1: rows by intervention and CFT, a column per variable, changes in brackets.

    Each data set and predictor has a table of the discrete variables (AUC in %) and, where there are any, one of the
    continuous variables (MAE, to three significant digits of the baseline). With several seeds a cell shows the mean,
    the smallest and largest value, and the mean change: ``98.7 [98.5, 98.9] (↑ 4.9)``.

    Args:
        df: The columns of :func:`~softcft.evaluation.effectiveness.effectiveness_table` and ``dataset``, ``seed`` and
            ``cft`` (``none``, ``hard`` or ``soft``). Variables and interventions are shown in the order of their rows.
        units: Units of the continuous variables, by name.

    Returns:
        Markdown, one section per data set and predictor.

    Raises:
        ValueError: If a column is missing, ``cft`` or ``metric`` has another value, a result is given twice, there are
            no results, or the CFTs of a seed were not compared with the same baseline.
    """
    _check(df)
    sections = []
    for dataset in df["dataset"].unique():
        for predictor in df["predictor"].unique():
            results = df[(df["dataset"] == dataset) & (df["predictor"] == predictor)]
            if len(results):
                sections.append(_section(f"{dataset}, predictor: {predictor}", results, units or {}))
    return "\n".join(sections)


def write_table1(df: pd.DataFrame, output_dir: str | Path, units: Mapping[str, str] | None = None) -> None:
    """Write all results to ``table1.csv`` and their :func:`table1_markdown` to ``table1.md``.

    Args:
        df: As in :func:`table1_markdown`.
        output_dir: The folder, made if there is none.
        units: As in :func:`table1_markdown`.

    Raises:
        ValueError: As :func:`table1_markdown`, before anything is written.
    """
    markdown = table1_markdown(df, units)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    df.to_csv(output_dir / "table1.csv", index=False)
    (output_dir / "table1.md").write_text(markdown, encoding="utf-8")


def _check(df: pd.DataFrame) -> None:
    if missing := [column for column in COLUMNS if column not in df.columns]:
        raise ValueError(f"df lacks the columns {missing}; it needs {list(COLUMNS)}.")
    if df.empty:
        raise ValueError("df has no rows: there are no results to show.")
    for column, known in (("cft", tuple(CFT_NAMES)), ("metric", METRICS)):
        if unknown := sorted(set(df[column]) - set(known)):
            raise ValueError(f"df['{column}'] must be one of {list(known)}, got {unknown}.")
    key = ["dataset", "seed", "cft", "intervention", "variable", "predictor"]
    if (twice := df.duplicated(key)).any():
        raise ValueError(f"df has more than one result for {df.loc[twice, key].iloc[0].to_dict()}.")
    # The table shows one row of real images: it must be the row that every change was measured from.
    group = ["dataset", "seed", "variable", "predictor"]
    baselines = df.groupby(group)["baseline"].agg(["min", "max"])
    differ = baselines["max"] - baselines["min"] > 1e-3 * baselines["max"]
    if differ.any():
        where = dict(zip(group, baselines.index[differ][0], strict=True))
        raise ValueError(f"The baselines of {where} differ: measure every CFT with one predictor on the same images.")


def _section(title: str, results: pd.DataFrame, units: Mapping[str, str]) -> str:
    seeds = results["seed"].nunique()
    note = f" Mean over {seeds} seeds, smallest and largest value in square brackets." if seeds > 1 else ""
    lines = [f"### {title}", ""]
    discrete, continuous = results[results["metric"] == "auc"], results[results["metric"] == "mae"]
    if len(discrete):
        text = f"AUC in % on counterfactual images, in round brackets the change from real images.{note}"
        lines += [text, "", *_rows(discrete, _title, lambda baseline: 1), ""]
    if len(continuous):

        def heading(variable: str) -> str:
            return f"{_title(variable)} ({units[variable]})" if units.get(variable) else _title(variable)

        text = f"Mean absolute error on counterfactual images, in round brackets the change from real images.{note}"
        lines += [text, "", *_rows(continuous, heading, _three_digits), ""]
    return "\n".join(lines)


def _rows(results: pd.DataFrame, heading: Callable[[str], str], decimals_for: Callable[[float], int]) -> list[str]:
    """The lines of one table; ``decimals_for`` a column, given its baseline."""
    columns = {name: results[results["variable"] == name] for name in results["variable"].unique()}
    decimals = {name: decimals_for(column["baseline"].mean()) for name, column in columns.items()}
    # Every intervention and CFT of a seed repeats its baseline.
    baselines = {name: column.groupby("seed")["baseline"].first() for name, column in columns.items()}
    rows = [
        ["Intervention", "CF type", *(heading(name) for name in columns)],
        ["---", "---", *("---" for _ in columns)],
        ["None", "Real images", *(_mean_and_range(baselines[name], decimals[name]) for name in columns)],
    ]
    for intervention in results["intervention"].unique():
        label = f"do({intervention})"
        for cft, cft_name in CFT_NAMES.items():
            chosen = [c[(c["intervention"] == intervention) & (c["cft"] == cft)] for c in columns.values()]
            if any(len(cell) for cell in chosen):
                cells = [_cell(cell, decimals[name]) for name, cell in zip(columns, chosen, strict=True)]
                rows.append([label, cft_name, *cells])
                label = ""  # the intervention is named in the first of its rows
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(results: pd.DataFrame, decimals: int) -> str:
    if results.empty:
        return "-"
    change = results["change"].mean()
    size = f"{abs(change):.{decimals}f}"
    arrow = "·" if float(size) == 0 else "↑" if change > 0 else "↓"
    return f"{_mean_and_range(results['value'], decimals)} ({arrow} {size})"


def _mean_and_range(values: pd.Series[float], decimals: int) -> str:
    mean = f"{values.mean():.{decimals}f}"
    return f"{mean} [{values.min():.{decimals}f}, {values.max():.{decimals}f}]" if len(values) > 1 else mean


def _three_digits(baseline: float) -> int:
    """Decimals that show three significant digits of the baseline."""
    return max(0, 2 - math.floor(math.log10(baseline))) if baseline > 0 else 2


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]
