"""Training curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from softcft.evaluation.figures.style import FONT_SIZE, LINE_COLORS, PANELS_ABREAST, PLAIN_TEXT, save

__all__ = ["draw_training_curves", "training_curves"]

TRAININGS = ("hvae", "diffusion", "hard", "soft", "matched")
PANELS = {
    "nll": "HVAE: NLL (nats/dim)",
    "kl": "HVAE: KL (nats/dim)",
    "denoising": "diffusion: denoising loss",
    "guidance": "CFT: guidance loss (nats)",
    "fidelity": "CFT: fidelity (nats/dim)",
    "multiplier": "CFT: Lagrange multiplier",
    "watch/guide": "CFT, validation: guide's loss (nats)",
    "watch/watcher": "CFT, validation: watcher's loss (nats)",
    "watch/change": "CFT, validation: change (grey levels)",
    "watch/frechet": "CFT, validation: Fréchet distance",
}


def draw_training_curves(output_dir: Path) -> None:
    """Draw what all trainings of a run have written into their ``metrics.jsonl``, and collect these in one.

    Args:
        output_dir: The folder of the run; gets ``metrics.jsonl`` and ``figures/training_curves``.
    """
    records: dict[str, list[dict[str, Any]]] = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(output_dir.glob("*/metrics.jsonl"))
    }
    lines = [json.dumps({"run": run, **record}) + "\n" for run in records for record in records[run]]
    (output_dir / "metrics.jsonl").write_text("".join(lines))
    curves = {run: records[run] for run in TRAININGS if run in records}
    panels = {key: label for key, label in PANELS.items() if any(key in r for run in curves.values() for r in run)}
    if panels:
        save(training_curves(curves, panels), output_dir / "figures" / "training_curves")


@rc_context(PLAIN_TEXT)
def training_curves(records_by_run: Mapping[str, Sequence[Mapping[str, Any]]], keys: Mapping[str, str]) -> Figure:
    """Plot metrics of training runs over the optimizer steps.

    Args:
        records_by_run: By the run's name, the records of its ``metrics.jsonl``, each with ``step``.
        keys: The metrics to plot, one panel each, and the labels of their axes with units. A panel shows the records
            that have its metric.
    """
    columns = min(len(keys), PANELS_ABREAST)
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.1 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(keys) :]:
        axes.remove()
    for axes, (key, label) in zip(grid.flat, keys.items(), strict=False):
        axes.set_prop_cycle(color=LINE_COLORS)
        for run, records in records_by_run.items():
            points = [(record["step"], record[key]) for record in records if key in record]
            # A run without the metric still takes its colour, which is the same in all panels.
            marker = "o" if len(points) == 1 else None  # a line of one point is not seen
            axes.plot(*zip(*points, strict=True) if points else ([], []), linewidth=1.2, marker=marker, label=run)
        axes.set_xlabel("optimizer step", fontsize=FONT_SIZE)
        axes.set_ylabel(label, fontsize=FONT_SIZE)
        axes.tick_params(labelsize=FONT_SIZE - 1)
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, runs = figure.axes[0].get_legend_handles_labels()
    abreast = min(len(runs), 2 * columns)
    figure.legend(handles, runs, loc="outside upper center", ncols=abreast, fontsize=FONT_SIZE, frameon=False)
    return figure
