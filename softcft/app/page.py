"""The page: widgets for the variables of the graph, and what they do. The only file that imports gradio."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from softcft.app import markup
from softcft.app.changes import changes, curves, sweep_values
from softcft.app.models import Example, Model, fit_upload, propose, steps_choices, warn_of_unseen
from softcft.data.dicom import ENDINGS
from softcft.escaping import as_markdown
from softcft.graph import CausalGraph, Variable

__all__ = ["build", "launch"]

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"  # not the network: there is no password, and images may be of patients
LARGEST_UPLOAD = "50mb"
HOUR = 3600  # seconds; as long as an upload is kept
HEAD = """<div class="softcft head"><h1>Image counterfactuals</h1>
<p>What would this image look like, had an attribute been another, everything else as it was?</p>
<p class="disclaimer">This is no medical device. The phantom of the example model is a drawing: what race or sex looks
like in it is an arbitrary pattern and says nothing about people.</p></div>"""
EMPTY = f"""<div class="softcft result"><p>Choose a picture, check its attributes, switch on one <code>do()</code> or
several, and press <b>Show the counterfactual</b>.</p><p class="note">{escape(markup.RULE)}</p></div>"""
EMPTY_SWEEP = """<div class="softcft result"><p class="note">The picture over the range of one attribute, with all
do() that are switched on.</p></div>"""
GUESS = "Its attributes are the classifier's guess: correct those that you know."
# On a phone the results are below the controls, on a laptop perhaps above what is seen.
SHOW_RESULTS = """() => {
  const results = document.getElementById("results"), { top } = results.getBoundingClientRect()
  if (top < 0 || top > innerHeight / 2) results.scrollIntoView({ behavior: "smooth" })
}"""
FONT, MONOSPACED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # none from the network


def build(models: Sequence[Model], examples: Sequence[Example]) -> gr.Blocks:
    """Lay out the page for models of one graph and image format, with example pictures of that format, if any."""
    graph, image_format = models[0].graph, models[0].image_format
    has_classifier = any(model.pipeline.classifier is not None for model in models)
    continuous = [variable.name for variable in graph.variables if variable.kind == "continuous"]

    with gr.Blocks(title="softcft", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.HTML(HEAD)
        picture = gr.State()
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                gr.HTML('<div class="softcft step">1 · Choose a picture</div>')
                gallery = gr.Gallery(
                    [example.picture for example in examples],
                    label="Examples",
                    show_label=False,
                    height="auto",
                    allow_preview=False,
                    format="png",
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                    visible=bool(examples),
                )
                upload = gr.UploadButton(
                    "Upload a picture", type="binary", file_types=["image", *ENDINGS], size="sm", elem_id="upload"
                )
                chosen = gr.HTML()
                gr.HTML('<div class="softcft step">2 · Its attributes <span>as they are</span></div>')
                with gr.Group():
                    parents = [
                        _widget(variable, variable.name, f"parent-{i}") for i, variable in enumerate(graph.variables)
                    ]
                guess = gr.Button("Let the classifier propose them", size="sm", visible=has_classifier)
                gr.HTML('<div class="softcft step">3 · Intervene <span>on one or several</span></div>')
                switches, values = [], []
                with gr.Group():
                    for i, variable in enumerate(graph.variables):
                        switches.append(
                            gr.Checkbox(
                                label=f"do({variable.name})", info=note_of(models, variable.name), elem_id=f"switch-{i}"
                            )
                        )
                        values.append(_widget(variable, f"{variable.name} becomes", f"do-{i}", visible=False))
                steps = _steps(models)
                run = gr.Button("Show the counterfactual", variant="primary", elem_id="run")
            with gr.Column(scale=8, min_width=320, elem_id="results"), gr.Tabs():
                with gr.Tab("Counterfactual"):
                    result = gr.HTML(EMPTY, elem_id="counterfactual")
                with gr.Tab("Sweep", visible=bool(continuous)):
                    with gr.Row(equal_height=False):
                        swept = gr.Dropdown(
                            continuous, value=continuous[0] if continuous else None, label="over the range of", scale=3
                        )
                        run_sweep = gr.Button("Sweep", variant="primary", elem_id="run-sweep", min_width=90)
                    sweep = gr.HTML(EMPTY_SWEEP, elem_id="sweep")

        answers = Answers(models, graph)
        # Private: the page is for people; one concurrency_id: a model works on one question at a time.
        private: dict[str, Any] = {"api_visibility": "private"}
        working: dict[str, Any] = {**private, "concurrency_id": "models"}
        asked = [picture, *parents, *switches, *values, steps]
        subject = [picture, chosen, *parents]

        def choose(event: gr.SelectData) -> list[Any]:
            index: Any = event.index  # a pair only where a component has rows and columns
            example = examples[index]
            return _subject(models, example.picture, "", example.parents)

        def receive(content: bytes) -> list[Any]:
            return _subject(models, *fit_upload(content, image_format), {})

        def first() -> list[Any]:
            return _subject(models, examples[0].picture, "", examples[0].parents)

        gallery.select(_show_errors(choose), None, subject, **working)
        upload.upload(_show_errors(receive), upload, subject, **working)
        guess.click(_show_errors(answers.guess), picture, parents, **working)
        for variable, switch, parent, value in zip(graph.variables, switches, parents, values, strict=True):
            switch.change(functools.partial(_offer, variable), [switch, parent, value], value, queue=False, **private)
        run.click(_show_errors(answers.compare), asked, result, **working).then(None, js=SHOW_RESULTS)
        run_sweep.click(_show_errors(answers.sweep), [swept, *asked], sweep, **working)
        if examples:
            page.load(_show_errors(first), None, subject, **working)
    return page


def launch(page: gr.Blocks, port: int | None) -> str:
    """Serve the page of :func:`build` to this machine, and return its address.

    ``port`` None is the first free one from 7860; OSError if the port is taken.
    """
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONOSPACED)
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        ssr_mode=False,
        max_file_size=LARGEST_UPLOAD,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        theme=theme,
        css_paths=Path(__file__).with_name("style.css"),
    )
    return address


def note_of(models: Sequence[Model], name: str) -> str | None:
    """The note below the ``do()`` of a variable, as Markdown, if the guide does not see it, else None."""
    unseen = warn_of_unseen(models, name)
    return None if unseen is None else as_markdown(unseen)


class Answers:
    """What the buttons do, for models of one causal graph."""

    def __init__(self, models: Sequence[Model], graph: CausalGraph) -> None:
        self.models = models
        self.graph = graph

    def guess(self, picture: np.ndarray | None) -> list[Any]:
        """Propose the attributes of the chosen picture."""
        seen = propose(self.models, _given(picture))
        return [_tidy(variable, seen[variable.name]) for variable in self.graph.variables]

    def compare(self, picture: np.ndarray | None, *widgets: Any) -> str:
        """The counterfactual by each model."""
        pixels = _given(picture)
        parents, do, steps = self._read(widgets)
        if not do:
            raise ValueError("There is nothing to change yet: switch on do() for one attribute or several.")
        results = []
        for model in self.models:
            output = model.ask(pixels, parents, do, steps)
            assert isinstance(output.images, np.ndarray)
            assert isinstance(output.effects, np.ndarray)
            changed = changes(self.graph, parents, do, output)
            results.append((model.name, output.images[0], output.effects[0], changed))
        return markup.comparison(pixels, results)

    def sweep(self, name: str, picture: np.ndarray | None, *widgets: Any) -> str:
        """Counterfactuals over the range of one variable, by each model."""
        pixels = _given(picture)
        parents, do, steps = self._read(widgets)
        values = sweep_values(self.graph[name])
        wanted = parents | do
        images, lines = {}, {}
        for model in self.models:
            output = model.ask(pixels, parents, {**do, name: values}, steps)
            assert isinstance(output.images, np.ndarray)
            images[model.name] = output.images
            if output.counterfactual_predictions is not None:
                rows = [
                    {v: seen[i] for v, seen in output.counterfactual_predictions.items()} for i in range(len(values))
                ]
                lines[model.name] = curves(self.graph, wanted, rows)
        scales = {}
        for variable in self.graph.variables:
            if variable.kind == "continuous":
                ends = variable.in_words(variable.low), variable.in_words(variable.high)
                scales[variable.name] = f"{variable.name}, predicted", *ends
            else:
                scales[variable.name] = f"probability of {variable.name} = {wanted[variable.name]}", "0", "1"
        others = "".join(f", {other} = {self.graph[other].in_words(do[other])}" for other in do if other != name)
        words = [self.graph[name].in_words(value) for value in values]
        heading = f"do({name} = {words[0]} ... {words[-1]}{others})"
        return markup.sweep(heading, words, images, lines, scales)

    def _read(self, widgets: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any], int | None]:
        """The attributes, the intervention and the number of steps, as the widgets have them."""
        count = len(self.graph)
        names = self.graph.names
        parents = dict(zip(names, widgets[:count], strict=True))
        missing = [name for name, value in parents.items() if value is None]
        if missing:
            raise ValueError(f"Set the attributes of the picture first; there is none yet for: {', '.join(missing)}.")
        switched = zip(names, widgets[count : 2 * count], widgets[2 * count : 3 * count], strict=True)
        do = {name: value for name, is_on, value in switched if is_on}
        return parents, do, widgets[-1]


def _widget(variable: Variable, label: str, name: str, visible: bool = True) -> Any:
    """The widget of a variable: a slider over its range, a radio for two categories, a dropdown for more."""
    if variable.kind == "continuous":
        low, high = variable.bounds
        return gr.Slider(
            low,
            high,
            value=_tidy(variable, (low * high) ** 0.5 if variable.log else _middle(variable)),
            step=_step(variable),
            label=f"{label} ({variable.unit})" if variable.unit else label,
            buttons=[],
            elem_id=name,
            visible=visible,
        )
    categories = list(variable.categories)
    if variable.kind == "binary":
        return gr.Radio(categories, label=label, elem_id=name, visible=visible)
    return gr.Dropdown(categories, value=None, label=label, elem_id=name, visible=visible)


def _middle(variable: Variable) -> float:
    return sum(variable.bounds) / 2


def _step(variable: Variable) -> float:
    """A power of ten, some hundredth of the range; with a logarithm, of its low end."""
    low, high = variable.bounds
    return 10.0 ** (math.floor(math.log10(low if variable.log else high - low)) - 2)


def _tidy(variable: Variable, value: Any) -> Any:
    """A value as its widget holds it: a number on the steps of the slider, within its range."""
    if variable.kind != "continuous" or value is None:
        return value
    step, (low, high) = _step(variable), variable.bounds
    digits = max(0, -math.floor(math.log10(step)))
    return min(max(round(round(value / step) * step, digits), low), high)


def _steps(models: Sequence[Model]) -> Any:
    """The widget for the number of steps of diffusion models; an empty state if there are none."""
    choices = steps_choices(models)
    if choices is None:
        return gr.State()
    with gr.Accordion("Diffusion", open=False):
        return gr.Dropdown(choices[0], value=choices[1], label="steps (more: closer to the model, slower)")


def _offer(variable: Variable, is_on: bool, parent: Any, value: Any) -> Any:
    """Show a do() that was switched on, with a category that is not the factual one."""
    if is_on and variable.kind != "continuous" and value in (None, parent):
        value = next(category for category in variable.categories if category != parent)
    return gr.update(visible=is_on, value=value)


def _subject(models: Sequence[Model], picture: np.ndarray, note: str, known: dict[str, Any]) -> list[Any]:
    """The chosen picture, its markup, and its attributes; unknown ones are predicted by the classifier."""
    graph = models[0].graph
    seen: dict[str, Any] = {}
    if set(known) != set(graph.names):
        if any(model.pipeline.classifier is not None for model in models):
            seen = propose(models, picture)
            note = f"{note} {GUESS}"
        else:
            note = f"{note} Set its attributes below."
    values = seen | known
    settings = [
        _tidy(variable, values.get(variable.name, _middle(variable) if variable.kind == "continuous" else None))
        for variable in graph.variables
    ]
    return [picture, markup.original(picture, note.strip()), *settings]


def _given(picture: np.ndarray | None) -> np.ndarray:
    if picture is None:
        raise ValueError("There is no picture yet: choose an example, or upload one.")
    return picture


def _show_errors(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Show errors on the page, which stays as it is; unexpected ones are logged to the terminal."""

    @functools.wraps(answer)
    def call(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except ValueError as error:
            message, title = str(error), "Not yet"
        except Exception:
            logger.exception("softcft-app")
            message, title = "The terminal in which softcft-app runs says why.", "This did not work"
        gr.Warning(escape(message), title=title, duration=20)  # gr.Error would lie over all that the button fills
        return gr.skip()

    return call
