"""All results of one or several runs in one report: HTML that needs no other file, Markdown, LaTeX, and one tidy CSV.

HTML and Markdown begin with the verdict (:mod:`softcft.evaluation.verdict`); pictures, in HTML, and tables follow.

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

from softcft.cft import CFT_NAMES
from softcft.escaping import as_latex, as_markdown
from softcft.evaluation.sight import sight_warnings
from softcft.evaluation.tables import ReportTable, heading, read_metrics, report_tables
from softcft.evaluation.verdict import Answer, Status, Verdict, answer_training, in_short, reach_verdicts
from softcft.graph import CausalGraph

__all__ = ["NOTES", "SETTINGS", "write_report"]

PACKAGES = ("softcft", "torch", "diffusers", "transformers", "datasets", "accelerate", "scikit-learn", "scipy", "numpy")
SETTINGS = "Settings"
"""The name of the note about settings, among those of :data:`NOTES`."""

NOTES = "watch.json"
"""In ``metrics`` of a run: by the name of each fine-tuning, what the watcher found of it."""


def write_report(runs: Sequence[str | Path], output_dir: str | Path, graph: CausalGraph, title: str) -> list[str]:
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

    Returns:
        The verdict in lines for a terminal.

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
    verdicts, training = reach_verdicts(metrics, graph), answer_training(metrics)
    warnings = sight_warnings(metrics[metrics["table"] == "sight"])
    for note in _notes(folders):
        if note.startswith(SETTINGS):  # of a preset that trains for less: its steps are not enough
            training = [_qualified(answer, note) for answer in training]
        warnings.append(note)

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics.to_csv(output_dir / "metrics.csv", index=False)
    figures = sorted([*folders[0].glob("figures/*.png"), *folders[0].glob("figures/*.gif")])
    settings = {str(folder): (folder / "config.yaml").read_text(encoding="utf-8") for folder in folders}
    versions = [f"python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)]
    settings["Versions"] = "\n".join(versions)
    (output_dir / "report.md").write_text(_markdown(title, verdicts, training, warnings, tables), encoding="utf-8")
    (output_dir / "report.tex").write_text(_latex(title, warnings, tables), encoding="utf-8")
    text = _html(title, verdicts, training, warnings, tables, figures, settings)
    (output_dir / "report.html").write_text(text, encoding="utf-8")
    return in_short(verdicts, training)


def _notes(folders: Sequence[Path]) -> list[str]:
    """What is to be known of the settings, and what the watcher found of each fine-tuning, in a sentence each."""
    notes = []
    for folder in folders:
        path = folder / "metrics" / NOTES
        sentences = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        of = f" in {folder}" if len(folders) > 1 else ""
        notes += [f"{name}{of}: {sentence}" for name, sentence in sentences.items()]
    return notes


def _qualified(answer: Answer, note: str) -> Answer:
    """An answer that is no *yes*, with what is to be known of the settings."""
    status = Status.PARTLY if answer.status == Status.YES else answer.status
    return Answer(answer.question, status, f"{answer.sentence} {note.partition(': ')[2]}")


LEGEND = (
    "By the judge, a classifier that had no part in fine-tuning. Cannot tell: the interval is too wide, or the judge "
    "does not see the variable."
)


def _markdown(
    title: str,
    verdicts: Iterable[Verdict],
    training: Iterable[Answer],
    warnings: Iterable[str],
    tables: Iterable[ReportTable],
) -> str:
    parts = [f"# {as_markdown(title)}", "## Verdict", LEGEND]
    parts += [as_markdown(_in_words(answer)) for answer in training]
    for intervention, models in _by_intervention(verdicts).items():
        parts.append(f"### do({as_markdown(intervention)})")
        for verdict in models:
            items = [
                f"- **{as_markdown(answer.question)}** {as_markdown(_reply(answer))}" for answer in verdict.answers
            ]
            parts.append("\n".join([f"{verdict.models}:\n", *items]))
    parts += [f"**{as_markdown(warning)}**" for warning in warnings]
    for table in tables:
        lines = [table.frame.columns.tolist(), ["---"] * table.frame.shape[1], *table.frame.to_numpy().tolist()]
        cells = [[as_markdown(str(cell)) for cell in line] for line in lines]
        parts += [f"## {table.title}", table.caption, "\n".join(f"| {' | '.join(line)} |" for line in cells)]
    return "\n\n".join(parts) + "\n"


def _by_intervention(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.intervention, []).append(verdict)
    return groups


def _reply(answer: Answer) -> str:
    return f"{heading(answer.status)}. {answer.sentence}"


def _in_words(answer: Answer) -> str:
    return f"{answer.question} {_reply(answer)}"


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
h1, h2, h3, p, li, summary { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0.6rem 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.scroll { overflow-x: auto; }
.verdict { width: 100%; table-layout: fixed; }
.verdict th, .verdict td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.verdict th:first-child { width: 8rem; border-bottom-width: 1px; }
.yes { background: #dcf2e0; } .partly { background: #fdf0c8; }
.no { background: #fadcd9; } .cannot { background: #ececec; }
.answer { padding: 0.4rem 0.7rem; }
img { max-width: 100%; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 12px; }
@media (max-width: 800px) {
  .verdict thead { display: none; }
  .verdict tr, .verdict th, .verdict td { display: block; }
  .verdict tbody th:first-child { width: auto; border: 0; padding: 0.8rem 0 0.2rem; }
  .verdict td::before { content: attr(data-question) " "; }
}
"""


def _html(
    title: str,
    verdicts: Iterable[Verdict],
    training: Iterable[Answer],
    warnings: Iterable[str],
    tables: Iterable[ReportTable],
    figures: Iterable[Path],
    settings: Mapping[str, str],
) -> str:
    sections = {"Verdict": _verdict_html(verdicts, training, warnings)}
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        kind, _, model = path.stem.partition("_")
        of_model = kind == "counterfactuals" and model in CFT_NAMES
        name = f"Counterfactuals: {CFT_NAMES[model]}" if of_model else heading(path.stem.replace("_", " "))
        sections[name] = f'<img alt="{html.escape(name)}" src="data:image/{path.suffix[1:]};base64,{data}">'
    for table in tables:
        body = table.frame.to_html(index=False, border=0)
        sections[table.title] = f"<p>{html.escape(table.caption)}</p><div class=scroll>{body}</div>"
    sections["Settings and versions"] = "".join(
        f"<details><summary>{html.escape(run)}</summary><pre>{html.escape(text)}</pre></details>"
        for run, text in settings.items()
    )
    links = [f'<li><a href="#part{i}">{html.escape(name)}</a></li>' for i, name in enumerate(sections)]
    verdict, *rest = [
        f'<h2 id="part{i}">{html.escape(name)}</h2>{body}' for i, (name, body) in enumerate(sections.items())
    ]
    contents = f"<details><summary>Contents</summary><ul>{''.join(links)}</ul></details>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<body><h1>{html.escape(title)}</h1>{contents}{verdict}{''.join(rest)}</body></html>\n"
    )


def _verdict_html(verdicts: Iterable[Verdict], training: Iterable[Answer], warnings: Iterable[str]) -> str:
    parts = [f"<p>{LEGEND}</p>"]
    parts += [
        f'<p class="answer {_colour(answer)}">{html.escape(answer.question)} {_reply_html(answer)}</p>'
        for answer in training
    ]
    for intervention, models in _by_intervention(verdicts).items():
        questions = list(dict.fromkeys(answer.question for verdict in models for answer in verdict.answers))
        head = "".join(f"<th>{html.escape(question)}</th>" for question in ("Model", *questions))
        rows = []
        for verdict in models:
            answers = {answer.question: answer for answer in verdict.answers}
            cells = "".join(_cell_html(answers.get(question), question) for question in questions)
            rows.append(f"<tr><th>{html.escape(verdict.models)}</th>{cells}</tr>")
        parts.append(
            f"<h3>do({html.escape(intervention)})</h3><table class=verdict><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
    if remarks := "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings):
        parts.append(f"<h3>What guide, judge and watcher said in training</h3><ul>{remarks}</ul>")
    return "".join(parts)


def _cell_html(answer: Answer | None, question: str) -> str:
    if answer is None:
        return "<td></td>"
    return f'<td class="{_colour(answer)}" data-question="{html.escape(question)}">{_reply_html(answer)}</td>'


def _reply_html(answer: Answer) -> str:
    return f"<strong>{heading(answer.status)}.</strong> {html.escape(answer.sentence)}"


def _colour(answer: Answer) -> str:
    """The class of its colour: the first word of the status."""
    return answer.status.split()[0]
