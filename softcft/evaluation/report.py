"""All results of one or several runs in one report: HTML that needs no other file, Markdown, LaTeX, and one tidy CSV.

Every number of every form is read from the same tidy table (:mod:`softcft.evaluation.tables`), which is written beside
them as ``metrics.csv``.
"""

from __future__ import annotations

import base64
import html
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from softcft.escaping import as_latex, as_markdown
from softcft.evaluation.sight import sight_warnings
from softcft.evaluation.tables import ReportTable, heading, read_metrics, report_tables
from softcft.graph import CausalGraph

__all__ = ["NOTES", "write_report"]

PACKAGES = ("softcft", "torch", "diffusers", "transformers", "datasets", "accelerate", "scikit-learn", "scipy", "numpy")
NOTES = "watch.json"
"""In ``metrics`` of a run: by the name of each fine-tuning, what the watcher found of it."""


def write_report(runs: Sequence[str | Path], output_dir: str | Path, graph: CausalGraph, title: str) -> None:
    """Collect the results of one or several runs and write them in every form.

    Reads ``metrics/*.csv``, ``metrics/watch.json`` (by the name of each fine-tuning, what the watcher found of it),
    ``figures/*.png``, ``figures/*.gif`` and ``config.yaml`` of each run. Writes
    ``metrics.csv``, ``report.html`` (figures are inside), ``report.md`` and ``report.tex``. Figures are those of the
    first run.

    Args:
        runs: Folders, one for each seed.
        output_dir: The folder to write into, made if there is none.
        graph: The causal graph of all runs.
        title: Heading of the report.

    Raises:
        FileNotFoundError: If a run has no results.
        ValueError: As :func:`~softcft.evaluation.tables.report_tables`, before anything is written.
    """
    folders = [Path(run) for run in runs]
    for folder in folders:
        if not list(folder.glob("metrics/*.csv")):
            raise FileNotFoundError(f"{folder}/metrics has no results; evaluate the run first (evaluate.py).")
    paths = [path for folder in folders for path in sorted(folder.glob("metrics/*.csv"))]
    metrics = pd.concat([read_metrics(path) for path in paths], ignore_index=True)
    tables = report_tables(metrics, graph)
    warnings = [*sight_warnings(metrics[metrics["table"] == "sight"]), *_notes(folders)]

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics.to_csv(output_dir / "metrics.csv", index=False)
    figures = sorted([*folders[0].glob("figures/*.png"), *folders[0].glob("figures/*.gif")])
    settings = {str(folder): (folder / "config.yaml").read_text(encoding="utf-8") for folder in folders}
    versions = [f"python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)]
    settings["Versions"] = "\n".join(versions)
    (output_dir / "report.md").write_text(_markdown(title, warnings, tables), encoding="utf-8")
    (output_dir / "report.tex").write_text(_latex(title, warnings, tables), encoding="utf-8")
    (output_dir / "report.html").write_text(_html(title, warnings, tables, figures, settings), encoding="utf-8")


def _notes(folders: Sequence[Path]) -> list[str]:
    """What the watcher found of each fine-tuning, in a sentence each."""
    notes = []
    for folder in folders:
        path = folder / "metrics" / NOTES
        sentences = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        of = f" in {folder}" if len(folders) > 1 else ""
        notes += [f"{name}{of}: {sentence}" for name, sentence in sentences.items()]
    return notes


def _markdown(title: str, warnings: Iterable[str], tables: Iterable[ReportTable]) -> str:
    parts = [f"# {as_markdown(title)}", *(f"**{as_markdown(warning)}**" for warning in warnings)]
    for table in tables:
        lines = [table.frame.columns.tolist(), ["---"] * table.frame.shape[1], *table.frame.to_numpy().tolist()]
        cells = [[as_markdown(str(cell)) for cell in line] for line in lines]
        parts += [f"## {table.title}", table.caption, "\n".join(f"| {' | '.join(line)} |" for line in cells)]
    return "\n\n".join(parts) + "\n"


def _latex(title: str, warnings: Iterable[str], tables: Iterable[ReportTable]) -> str:
    parts = [f"% {' '.join(title.split())}: needs the packages booktabs and graphicx"]
    parts += [f"\\textbf{{{as_latex(warning)}}}" for warning in warnings]
    for table in tables:
        frame = table.frame.map(as_latex).rename(columns=as_latex)
        body = frame.style.hide(axis="index").to_latex(hrules=True, column_format="l" * frame.shape[1])
        parts.append(
            f"\\begin{{table}}\n\\caption{{\\textbf{{{as_latex(table.title)}.}} {as_latex(table.caption)}}}\n"
            f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body.strip()}%\n}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0.6rem 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.scroll { overflow-x: auto; }
img { max-width: 100%; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 12px; }
"""


def _html(
    title: str,
    warnings: Iterable[str],
    tables: Iterable[ReportTable],
    figures: Iterable[Path],
    settings: Mapping[str, str],
) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p><strong>{html.escape(warning)}</strong></p>" for warning in warnings]
    for table in tables:
        body = table.frame.to_html(index=False, border=0)
        parts.append(
            f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.caption)}</p><div class=scroll>{body}</div>"
        )
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        name = html.escape(path.stem.replace("_", " "))
        parts.append(f'<h2>{heading(name)}</h2><img alt="{name}" src="data:image/{path.suffix[1:]};base64,{data}">')
    parts.append("<h2>Settings and versions</h2>")
    for run, text in settings.items():
        parts.append(f"<details><summary>{html.escape(run)}</summary><pre>{html.escape(text)}</pre></details>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
