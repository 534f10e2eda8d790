"""The results as HTML and SVG. Names of variables, categories and models are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from softcft.app.changes import MOVED, Bar, Change
from softcft.pipelines.effects import EFFECT_COLOURS, EFFECT_LIMIT, effect_colours
from softcft.pipelines.result import DSCMPipelineOutput

__all__ = ["RULE", "comparison", "head", "message", "picture", "sweep", "unanswered"]

SMALL = 128  # pixels; images below it are shown without smoothing
# Okabe and Ito, "Color Universal Design", 2008: those that are seen on white and on black.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
RULE = (
    f"▲: neither, but the classifier sees it move, a probability by more than {MOVED:g} or a predicted value by more "
    f"than {MOVED:g} of its range."
)
PHANTOM = (
    " The phantom of the example model is a drawing: what race or sex looks like in it is an arbitrary pattern and "
    "says nothing about people."
)
ENLARGE = "const d = this.closest('.result').querySelector('dialog'); d.innerHTML = this.innerHTML; d.showModal()"
DIALOG = '<dialog onclick="this.close()" aria-label="enlarged picture"></dialog>'
UNCOVER = "this.closest('.result').style.setProperty('--at', this.value + '%')"
SAVE = "this.href = this.closest('figure').querySelector('img:last-of-type').src"


def head(is_phantom: bool) -> str:
    """The page's heading."""
    return (
        '<div class="softcft head"><h1>Image counterfactuals</h1><p>What would this image look like, had an attribute '
        f"been another, everything else as it was? <small>This is no medical device.{PHANTOM * is_phantom}</small></p>"
        "</div>"
    )


def message(sentence: str) -> str:
    """A sentence in the place of a result."""
    return f'<div class="softcft result"><p class="asked">{escape(sentence)}</p></div>'


def picture(pixels: np.ndarray, description: str) -> str:
    """An inline image with an alternative text: (H, W), (H, W, 1) or (H, W, 3), uint8 or floats in [0, 1]."""
    if pixels.dtype != np.uint8:
        pixels = (255 * pixels.clip(0, 1)).round().astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    kind = ' class="crisp"' if pixels.shape[0] < SMALL else ""
    return f'<img{kind} src="data:image/png;base64,{data}" alt="{escape(description)}">'


def unanswered(pixels: np.ndarray, note: str, sentence: str, models: int) -> str:
    """The original (uint8) as long as the number of models has no answer, and why."""
    return (
        f'<div class="softcft result" data-models="{models}"><p class="asked">{escape(sentence)}</p>'
        f'<div class="cards">{_original(pixels, note)}</div>{DIALOG}</div>'
    )


def comparison(
    pixels: np.ndarray,
    note: str,
    asked: str,
    results: Sequence[tuple[str, DSCMPipelineOutput, Sequence[Change]]],
    warnings: Sequence[str],
) -> str:
    """The original and each model's counterfactual, effect, attributes and predictions.

    Args:
        pixels: The original, uint8.
        note: What was done to it.
        asked: The question in words.
        results: For each model its name, what it returned as arrays, and what changed.
        warnings: What to know of the question.
    """
    cards = "".join(_card(name, pixels, output, changed) for name, output, changed in results)
    has_bars = any(change.bars for _, _, changed in results for change in changed)
    legend = (
        '<span class="key before"></span> classifier on the original <span class="key after"></span> on the '
        "counterfactual. <b>do</b>: set; <b>follows</b>: caused by what was set. "
    )
    return (
        f'<div class="softcft result" data-models="{len(results)}"><div class="question">{_asked(asked, warnings)}'
        f'<label class="uncover">original<input type="range" value="100" oninput="{UNCOVER}" '
        'aria-label="cover the original by the counterfactual">counterfactual</label></div>'
        f'<div class="cards">{_original(pixels, note)}{cards}</div>'
        f'<p class="note">{legend + escape(RULE) if has_bars else "These models have no classifier."}</p>{DIALOG}</div>'
    )


def _asked(asked: str, warnings: Sequence[str]) -> str:
    return f'<p class="asked">What if <code>{escape(asked)}</code>, all else as it was?</p>' + "".join(
        f'<p class="verdict moved">{escape(warning)}</p>' for warning in warnings
    )


def _original(pixels: np.ndarray, note: str) -> str:
    figure = _figure(picture(pixels, "original"), escape(note))
    return f'<section class="card"><header><h3>Original</h3></header>{figure}</section>'


def _figure(images: str, caption: str, file: str | None = None, below: str = "") -> str:
    """A picture that a click enlarges; of two on each other the second is on top. It can be saved as a file."""
    link = f'<a href="#" download="{escape(file)}.png" onclick="{SAVE}">save</a>' if file else ""
    return (
        f'<figure><button class="zoom" title="Enlarge" onclick="{ENLARGE}">{images}</button>'
        f"<figcaption><span>{caption}</span>{link}{below}</figcaption></figure>"
    )


def _card(name: str, pixels: np.ndarray, output: DSCMPipelineOutput, changed: Sequence[Change]) -> str:
    assert isinstance(output.images, np.ndarray)
    assert isinstance(output.effects, np.ndarray)
    marked = [change.name for change in changed if change.is_marked]
    untouched = sum(change.role == "untouched" and bool(change.bars) for change in changed)
    verdict = ""
    if marked:
        verdict = f'<p class="verdict moved">▲ moved: {escape(", ".join(marked))}</p>'
    elif untouched:
        verdict = '<p class="verdict">✓ the untouched stayed</p>'
    counterfactual = picture(pixels, "original") + picture(output.images[0], f"counterfactual by {name}")
    effect = picture(effect_colours(output.effects[0]), f"effect by {name}")
    return (
        f'<section class="card"><header><h3>{escape(name)}</h3>{verdict}</header><div class="pictures">'
        f"{_figure(counterfactual, 'counterfactual', f'{name} counterfactual')}"
        f"{_figure(effect, 'effect', f'{name} effect', _scale())}"
        f'</div><div class="changes">{"".join(map(_change, changed))}</div></section>'
    )


def _scale() -> str:
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in EFFECT_COLOURS.tolist())
    return (
        f'<span class="scale" style="background: linear-gradient(to right, {stops})"></span>'
        f'<span class="ends"><span>-{EFFECT_LIMIT:g}</span><span>0</span><span>+{EFFECT_LIMIT:g}</span></span>'
    )


def _change(change: Change) -> str:
    moved = change.before != change.after
    values = (
        f"{escape(change.before)} → <b>{escape(change.after)}</b>" if moved else f"<span>{escape(change.before)}</span>"
    )
    tag = "▲ moved" if change.is_marked else "" if change.role == "untouched" else change.role
    role = f"{change.role}{' marked' if change.is_marked else ''}"
    bars = "".join(_bar(bar, change.is_marked) for bar in change.bars)
    return (
        f'<div class="change {role}" data-variable="{escape(change.name)}"><p><span class="name">{escape(change.name)}'
        f'</span>{f"<span class=tag>{tag}</span>" if tag else ""}<span class="values">{values}</span></p>{bars}</div>'
    )


def _bar(bar: Bar, in_marked: bool) -> str:
    mark = " ▲" if in_marked and abs(bar.shift) > MOVED else ""
    return (
        f'<div class="bar"><span class="label">{escape(bar.label) or "predicted"}</span><span class="track">'
        f'<i class="before" style="width: {100 * bar.before:.1f}%"></i>'
        f'<i class="after" style="width: {100 * bar.after:.1f}%"></i></span>'
        f'<span class="numbers">{escape(bar.words)}{mark}</span></div>'
    )


def sweep(
    asked: str,
    values: Sequence[str],
    images: Mapping[str, np.ndarray],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    scales: Mapping[str, tuple[str, str, str]],
    warnings: Sequence[str],
) -> str:
    """Rows of images over the values of one variable, and the classifier's predictions along them.

    Args:
        asked: The question in words.
        values: V values as text.
        images: By model, shape (V, H, W, C) in [0, 1].
        curves: By model with a classifier, for each variable V numbers in [0, 1].
        scales: For each variable what its curve shows, and the words at 0 and at 1.
        warnings: What to know of the question.
    """
    rows = "".join(
        f'<section class="card"><header><h3>{escape(name)}</h3></header><div class="strip">'
        + "".join(
            _figure(picture(image, f"{name}, {value}"), escape(value)) for image, value in zip(row, values, strict=True)
        )
        + "</div></section>"
        for name, row in images.items()
    )
    colours = {name: LINE_COLOURS[i % len(LINE_COLOURS)] for i, name in enumerate(images)}
    legend = " ".join(
        f'<span class="key" style="background: {colours[name]}"></span> {escape(name)}' for name in curves
    )
    charts = "".join(
        _chart(title, low, high, {colours[model]: lines[variable] for model, lines in curves.items()}, values)
        for variable, (title, low, high) in scales.items()
    )
    seen = (
        f'<p class="note">What the classifier sees: {legend}</p><div class="charts">{charts}</div>'
        if curves
        else '<p class="note">These models have no classifier.</p>'
    )
    return f'<div class="softcft result">{_asked(asked, warnings)}{rows}{seen}{DIALOG}</div>'


def _chart(title: str, low: str, high: str, lines: Mapping[str, Sequence[float]], values: Sequence[str]) -> str:
    """Lines over equal steps in a frame of 200 x 90."""

    def line(colour: str, heights: Sequence[float]) -> str:
        points = [(200 * i / max(len(heights) - 1, 1), 90 * (1 - h)) for i, h in enumerate(heights)]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'

    drawn = "".join(line(colour, heights) for colour, heights in lines.items())
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="plot"><p class="ends"><span>{escape(high)}</span>'
        f'<span>{escape(low)}</span></p><svg viewBox="-4 -4 208 98" role="img" aria-label="{escape(title)}">'
        f'<rect x="0" y="0" width="200" height="90" class="frame"/>{drawn}</svg>'
        f'<p class="ends"><span>{escape(values[0])}</span><span>{escape(values[-1])}</span></p></div></figure>'
    )
