"""The tables of the report, laid out from one tidy table of all results.

The columns of the tidy table are

============  ==================================================================================
column        meaning
============  ==================================================================================
table         effectiveness, utility, shift, axioms, truth, sight (what guide and judge see in
              validation images: :mod:`softcft.evaluation.sight`), or training (of image models:
              :func:`softcft.evaluation.verdict.training_rows`)
dataset       name of the data set
seed          seed of the run
cft           none, hard, soft or matched; real for real images; truth for true counterfactuals
intervention  variable that was set, in utility the one whose counterfactuals were learned from;
              none for real images and null interventions
variable      variable whose predictions are measured, or image
predictor     guide, judge or gap (guide - judge), where one is involved
metric        what ``value`` is
value         the number
low, high     95 % interval, empty where there is none; by bootstrap, that of frechet_excess by
              jackknife
resampled     what intervals and tests draw: subject, or image where no image is known to share
              its subject with another one
============  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from softcft.cft import CFT_NAMES
from softcft.graph import CausalGraph

__all__ = [
    "COLUMNS",
    "RESULT",
    "ROW_NAMES",
    "ReportTable",
    "read_metrics",
    "report_tables",
]

ROW_NAMES = {"real": "Real images", **CFT_NAMES, "truth": "True counterfactuals"}
RESULT = ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
"""The columns of what is measured of one model."""
KEY = ["table", "dataset", "seed", "cft", *RESULT[:4]]
COLUMNS = (*KEY, *RESULT[4:], "resampled")
RESAMPLED = ("subject", "image")


@dataclass(frozen=True)
class Layout:
    """What one table shows: rows are interventions and models, columns variables and metrics."""

    title: str
    caption: str  # {unit} is what was resampled, subject or image
    table: str
    metrics: Mapping[str, str]  # by metric without [group], the heading of its columns
    predictor: str = ""
    second: Mapping[str, str] = field(default_factory=dict)  # by metric, the change or p-value in brackets behind it
    decimals: int = 2


CHANGES = {"auc": "auc_change", "mae": "mae_change", "ece": "ece_change"}
INTERVAL = "In square brackets the 95 % bootstrap interval, resampled by {unit}."
JUDGE = "The judge had no part in fine-tuning."
GUIDE = "The guide steered fine-tuning, so its word counts less."
ACCURACY = {"auc": "{variable}, AUC (%)", "mae": "{variable}, MAE ({unit})"}
LAYOUTS = (
    *(
        Layout(
            f"Table 1: effectiveness and amplification, by the {predictor}",
            "Predictions on counterfactual images, labels are the counterfactual attributes; in round brackets the "
            f"change from real images. {INTERVAL} {remark}",
            "effectiveness",
            ACCURACY,
            predictor,
            CHANGES,
            1,
        )
        for predictor, remark in (("judge", JUDGE), ("guide", GUIDE))
    ),
    Layout(
        "Table 1b: how sure the judge is, against real images",
        "Mean change of the log-odds of the class that an image should show, in nats: 0 is as sure as on real images, "
        f"more is amplified. Unlike AUC it does not saturate. {INTERVAL}",
        "effectiveness",
        {"logit_shift": "{variable} (nats)"},
        "judge",
    ),
    Layout(
        "Table 1c: calibration of the judge",
        "Expected calibration error on counterfactual images in %, in round brackets the change from real images.",
        "effectiveness",
        {"ece": "{variable}, ECE (%)"},
        "judge",
        CHANGES,
        1,
    ),
    Layout(
        "Table 1d: adversarial effectiveness",
        "What the guide sees of a change beyond what the judge sees. Where it is not about 0, the model has learned to "
        f"please the guide. {INTERVAL}",
        "effectiveness",
        {"auc_change": "{variable}, AUC (%)", "logit_shift": "{variable}, log-odds (nats)"},
        "gap",
        decimals=1,
    ),
    Layout(
        "Table 1e: how strong interventions are, against real images with the same attributes",
        "Of the variables that an intervention moves, and of those that have one that moves in their Markov blanket "
        "(causes, effects, and other causes of these): what the judge sees in counterfactual images less what it sees "
        "in real images that have the same value of the variable and of its blanket. 0 is exactly as in reality; AUC "
        "and log-odds above 0, or an MAE below, are too strong, an ECE above 0 is worse calibrated. KS is the distance "
        "between the distributions of the log-odds, or of the errors, from 0 to 1; chance alone makes it positive. "
        f"{INTERVAL}",
        "effectiveness",
        {
            "auc_excess": "{variable}, AUC (points)",
            "logit_excess": "{variable}, log-odds (nats)",
            "mae_excess": "{variable}, MAE ({unit})",
            "ks": "{variable}, KS",
            "ece_excess": "{variable}, ECE (%)",
        },
        "judge",
    ),
    Layout(
        "Table 2: predictors trained on counterfactuals, tested on real images",
        "Each predictor saw the counterfactuals of one intervention only; in round brackets the change from a "
        f"predictor trained on the real images. {INTERVAL}",
        "utility",
        ACCURACY,
        "",
        CHANGES,
        1,
    ),
    Layout(
        "Distribution shift of embeddings",
        "Energy distance of the judge's embeddings along the principal component that encodes the variable, "
        "counterfactual against real images of a subgroup; in round brackets the p-value of a permutation test, "
        "of whole {unit}s.",
        "shift",
        {"energy": "{variable}: {group}"},
        "judge",
        {"energy": "energy_p"},
        3,
    ),
    Layout(
        "Axioms",
        "Mean absolute change in grey levels (of 255) after 1, 3 and 10 null interventions (composition) and ways "
        "there and back (reversibility), of which composition is exact where a model keeps the pixel residual, and the "
        "reconstruction without it; counterfactual latent divergence (minimality; an unchanged image has 0.29); all: "
        f"lower is better. {INTERVAL}",
        "axioms",
        {
            **{f"composition_{n}": f"Composition, {n}x" for n in (1, 3, 10)},
            **{f"reversibility_{n}": f"Reversibility, {n}x" for n in (1, 3, 10)},
            "reconstruction_1": "Reconstruction",
            "cld": "CLD",
        },
    ),
    Layout(
        "Realism: Fréchet distance to real images of the same attributes",
        "In the judge's embedding. The {unit}s are divided into halves; counterfactual and real images of both halves "
        "that should all show the same (equal categories, continuous variables as near as there are images) are "
        "compared between the halves, as many of each; means of 8 divisions. Distances grow where images are few, "
        "also that of real to real images, the floor. The excess does not: it is the distance of counterfactual to "
        "real images less the mean of those of real to real and of counterfactual to counterfactual images. 0 is as "
        "real as real images; it may be a little below by chance. In square brackets its 95 % interval, by a jackknife "
        "of 20 groups of {unit}s.",
        "axioms",
        {
            "frechet_excess": "Excess",
            "frechet_to_real": "Counterfactual to real",
            "frechet_real": "Real to real",
            "frechet_images": "Images of each",
        },
    ),
    Layout(
        "Ground truth",
        "Against the true counterfactual images: mean absolute error in grey levels (of 255), over all pixels and over "
        "those that the true effect leaves alone; the faithfulness ratio, below 1 where editing an image is better "
        f"than leaving it alone. {INTERVAL}",
        "truth",
        {
            "error": "Error",
            "error_outside": "Error outside the effect",
            "faithfulness_ratio": "Faithfulness ratio",
        },
    ),
    Layout(
        "Ground truth: expression",
        "How far the strength of each attribute in a counterfactual is from its strength in the true one, in standard "
        "deviations of its natural spread, read from the judge's embedding; how well it can be read there is told by "
        f"R² on real images, 1 at best. {INTERVAL}",
        "truth",
        {"expression_error": "{variable}", "r2": "{variable}, R²"},
    ),
)


class ReportTable(NamedTuple):
    """A table as it is shown."""

    title: str
    caption: str  #: what the numbers are, with their units
    frame: pd.DataFrame  #: strings; columns Intervention, CF type and one for each variable or metric


def read_metrics(path: Path) -> pd.DataFrame:
    """A tidy table from its CSV file. Empty cells of text are empty text, not NaN; "none" is a word here."""
    text = dict.fromkeys([*KEY, "resampled"], str) | {"seed": int}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=dict.fromkeys(RESULT[4:], ""))


def report_tables(metrics: pd.DataFrame, graph: CausalGraph) -> list[ReportTable]:
    """Lay out results as tables: rows by intervention and model, a column for each variable or metric.

    With several seeds a cell shows means, and as the interval the smallest lower and the largest upper end: it holds
    the interval of every seed. Of p-values it shows the largest.

    Args:
        metrics: Tidy results of one data set, see the module's docstring.
        graph: Its causal graph, for units and the order of variables.

    Returns:
        The tables that there are numbers for, Table 1 first.

    Raises:
        ValueError: If a column is missing, ``cft`` or ``resampled`` is unknown, a result is given twice, or there are
            no results.
    """
    _check(metrics)
    tables = []
    for layout in LAYOUTS:
        rows = metrics[metrics["table"] == layout.table]
        if layout.predictor:
            rows = rows[rows["predictor"] == layout.predictor]
        frame = _lay_out(rows, layout, graph)
        if len(frame):
            seeds = rows["seed"].nunique()
            note = f" Means of {seeds} seeds; an interval holds those of all." if seeds > 1 else ""
            unit = " or ".join(sorted(set(rows["resampled"])))
            tables.append(ReportTable(layout.title, layout.caption.format(unit=unit) + note, frame))
    return tables


def _check(metrics: pd.DataFrame) -> None:
    if missing := [column for column in COLUMNS if column not in metrics.columns]:
        raise ValueError(f"metrics lacks the columns {missing}; it needs {list(COLUMNS)}.")
    if metrics.empty:
        raise ValueError("metrics has no rows: there are no results to show.")
    for column, known in (("cft", tuple(ROW_NAMES)), ("resampled", RESAMPLED)):
        if unknown := sorted(set(metrics[column]) - set(known)):
            raise ValueError(f"metrics[{column!r}] must be one of {list(known)}, got {unknown}.")
    if (twice := metrics.duplicated(KEY)).any():
        raise ValueError(f"metrics has more than one result for {metrics.loc[twice, KEY].iloc[0].to_dict()}.")
    if (datasets := sorted(set(metrics["dataset"]))) and len(datasets) > 1:
        raise ValueError(f"metrics must be of one data set, got {datasets}; make a report of each.")


def _lay_out(rows: pd.DataFrame, layout: Layout, graph: CausalGraph) -> pd.DataFrame:
    """The table as strings; empty if there are no numbers for it."""
    columns = {}  # heading -> (variable, metric), in the order of the graph and of the layout
    found = rows[["variable", "metric"]].drop_duplicates()
    for variable in (*graph.names, "image"):
        for metric, label in layout.metrics.items():
            for name in found.loc[found["variable"] == variable, "metric"]:
                stem, _, group = name.partition("[")
                if stem == metric:
                    unit = graph[variable].unit if variable in graph.names else ""
                    group = group.rstrip("]").removeprefix(f"{variable} ")
                    text = label.format(variable=heading(variable), unit=unit, group=group)
                    columns[text.replace(" ()", "")] = (variable, name)
    shown = rows[rows["metric"].isin({metric for _, metric in columns.values()})]
    if shown.empty:
        return pd.DataFrame()
    cells = {key: group for key, group in rows.groupby(["intervention", "cft", "variable", "metric"])}
    lines = []
    # "none", the real images, comes first in each table.
    for intervention in sorted(shown["intervention"].unique(), key=lambda name: name != "none"):
        for cft, cft_name in ROW_NAMES.items():
            texts = [_cell(cells, (intervention, cft), *column, layout) for column in columns.values()]
            if any(texts):
                lines.append(["none" if intervention == "none" else f"do({intervention})", cft_name, *texts])
    return pd.DataFrame(lines, columns=["Intervention", "CF type", *columns])


def _cell(
    cells: Mapping[tuple[Hashable, ...], pd.DataFrame], row: tuple[str, str], variable: str, metric: str, layout: Layout
) -> str:
    results = cells.get((*row, variable, metric))
    if results is None:
        return ""
    value = results["value"].mean()
    stem, _, group = metric.partition("[")
    decimals = layout.decimals
    if stem in ("mae", "mae_excess"):
        # An error in the variable's own unit: three significant digits, for units may be years or litres.
        error = cells.get((*row, variable, "mae"), results)["value"].mean()
        decimals = max(0, 2 - math.floor(math.log10(error))) if error > 0 else 2
    if stem == "frechet_images":
        decimals = 0
    second = layout.second.get(stem)
    beside = cells.get((*row, variable, f"{second}[{group}" if group else str(second)))
    text = _number(value, decimals)
    if second is None:
        return f"{text}{_interval(results, decimals)}"
    if beside is None:  # real images, which nothing has changed
        return text
    if second.endswith("_p"):
        return f"{text} (p {beside['value'].max():.3f})"
    change = beside["value"].mean()
    size = _number(abs(change), decimals)
    arrow = "·" if float(size) == 0 else "↑" if change > 0 else "↓"
    return f"{text} ({arrow} {size}{_interval(beside, decimals)})"


def _interval(results: pd.DataFrame, decimals: int) -> str:
    low, high = results["low"].min(), results["high"].max()
    return "" if math.isnan(low + high) else f" [{_number(low, decimals)}, {_number(high, decimals)}]"


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # -0.0 is 0.0


def heading(name: str) -> str:
    """A name as a heading."""
    return name[:1].upper() + name[1:]
