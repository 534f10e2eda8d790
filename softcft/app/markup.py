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

__all__ = ["RULE", "ModelResult", "comparison", "original", "picture", "sweep"]

SMALL = 128  # pixels; images below it are shown without smoothing
# Okabe and Ito, "Color Universal Design", 2008: those that are seen on white and on black.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
RULE = (
    "An untouched attribute, neither intervened on nor caused by what is, is marked ▲ when the classifier sees it "
    f"move: a probability by more than {MOVED:g}, a predicted value by more than {MOVED:g} of its range."
)

ModelResult = tuple[str, np.ndarray, np.ndarray, Sequence[Change]]
"""The model's name, its counterfactual (H, W, C) in [0, 1], the effect (H, W, C) in [-1, 1], and the changes."""


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


def original(pixels: np.ndarray, note: str = "") -> str:
    """The chosen picture as the model sees it, and what was done to it."""
    height, width = pixels.shape[:2]
    text = escape(
        f"As the model sees it: {height} x {width} pixels, {'grey' if pixels.ndim == 2 else 'colour'}. {note}"
    )
    return f'<div class="softcft chosen">{picture(pixels, "the chosen picture")}<p class="note">{text}</p></div>'


def comparison(pixels: np.ndarray, results: Sequence[ModelResult]) -> str:
    """The original (uint8) and each model's counterfactual, effect, attributes and predictions."""
    factual = "".join(
        f"<li><span>{escape(change.name)}</span><b>{escape(change.before)}</b></li>" for change in results[0][3]
    )
    do = ", ".join(f"{change.name} = {change.after}" for change in results[0][3] if change.role == "do")
    cards = "".join(_card(*result) for result in results)
    has_bars = any(change.bars for _, _, _, changed in results for change in changed)
    legend = (
        '<span class="key before"></span> classifier on the original <span class="key after"></span> on the '
        "counterfactual. <b>do</b>: set; <b>follows</b>: caused by what was set. "
    )
    return (
        f'<div class="softcft result" data-models="{len(results)}">'
        f'<p class="asked">What if <code>do({escape(do)})</code>, all else as it was?</p>'
        '<div class="cards">'
        f'<section class="card original"><h3>Original</h3><figure>{picture(pixels, "original")}</figure>'
        f'<ul class="facts">{factual}</ul></section>{cards}</div>'
        f'<p class="note">{legend + escape(RULE) if has_bars else "These models have no classifier."}</p></div>'
    )


def _card(name: str, counterfactual: np.ndarray, effect: np.ndarray, changed: Sequence[Change]) -> str:
    marked = [change.name for change in changed if change.is_marked]
    untouched = sum(change.role == "untouched" and bool(change.bars) for change in changed)
    verdict = ""
    if marked:
        verdict = f'<p class="verdict moved">▲ moved, though untouched: {escape(", ".join(marked))}</p>'
    elif untouched:
        verdict = '<p class="verdict">✓ the untouched stayed</p>'
    return (
        f'<section class="card"><h3>{escape(name)}</h3><div class="pictures">'
        f"<figure>{picture(counterfactual, f'counterfactual by {name}')}<figcaption>counterfactual</figcaption>"
        f"</figure><figure>{picture(effect_colours(effect), f'effect by {name}')}<figcaption>{_scale()}</figcaption>"
        "</figure>"
        f"</div>{verdict}{''.join(_change(change) for change in changed)}</section>"
    )


def _scale() -> str:
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in EFFECT_COLOURS.tolist())
    return (
        f'effect, in grey range<span class="scale" style="background: linear-gradient(to right, {stops})"></span>'
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
    heading: str,
    values: Sequence[str],
    images: Mapping[str, np.ndarray],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    scales: Mapping[str, tuple[str, str, str]],
) -> str:
    """Rows of images over the values of one variable, and the classifier's predictions along them.

    Args:
        heading: What is swept.
        values: V values as text.
        images: By model, shape (V, H, W, C) in [0, 1].
        curves: By model with a classifier, for each variable V numbers in [0, 1].
        scales: For each variable what its curve shows, and the words at 0 and at 1.
    """
    rows = "".join(
        f'<section class="card"><h3>{escape(name)}</h3><div class="strip">'
        + "".join(
            f"<figure>{picture(image, f'{heading} = {value}')}<figcaption>{escape(value)}</figcaption></figure>"
            for image, value in zip(row, values, strict=True)
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
        f'<h4>What the classifier sees</h4><p class="note">{legend}</p><div class="charts">{charts}</div>'
        if curves
        else '<p class="note">These models have no classifier.</p>'
    )
    return f'<div class="softcft result"><p class="asked"><code>{escape(heading)}</code></p>{rows}{seen}</div>'


def _chart(title: str, low: str, high: str, lines: Mapping[str, Sequence[float]], values: Sequence[str]) -> str:
    """Lines over equal steps in a frame of 200 x 90."""

    def line(colour: str, heights: Sequence[float]) -> str:
        points = [(200 * i / max(len(heights) - 1, 1), 90 * (1 - h)) for i, h in enumerate(heights)]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'

    drawn = "".join(line(colour, heights) for colour, heights in lines.items())
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><div class="plot"><span>{escape(high)}</span>'
        f'<span>{escape(low)}</span><svg viewBox="-4 -4 208 98" role="img" aria-label="{escape(title)}">'
        f'<rect x="0" y="0" width="200" height="90" class="frame"/>{drawn}</svg></div>'
        f'<p class="ends"><span>{escape(values[0])}</span><span>{escape(values[-1])}</span></p></figure>'
    )
