"""The page: widgets for the variables of the graph, and what they do. The only file that imports gradio."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from softcft.app import markup
from softcft.app.answers import Answer, Answers, Subject
from softcft.app.changes import another_value
from softcft.app.models import Example, Model, fit_mask, fit_upload, is_example, steps_choices, warn_of_unseen
from softcft.data.dicom import ENDINGS
from softcft.graph import CausalGraph, Variable

__all__ = ["build", "launch"]

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"  # not the network: there is no password, and images may be of patients
LARGEST_UPLOAD = "50mb"
HOUR = 3600  # seconds; as long as an upload is kept
NO_EXAMPLES = "Upload a picture, and its counterfactual is here."
UNFORESEEN = "This did not work. The terminal in which softcft-app runs says why."
# The only way to a file that is made when it is asked for.
SAVE = """(url) => { if (url) Object.assign(document.createElement("a"), { href: url, download: "counterfactual.png" }
).click() }"""
FONT, MONOSPACED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # none from the network


def build(models: Sequence[Model], examples: Sequence[Example]) -> gr.Blocks:
    """Lay out the page for models of one graph and image format, with example pictures of that format, if any."""
    graph, image_format = models[0].graph, models[0].image_format
    continuous = [variable.name for variable in graph.variables if variable.kind == "continuous"]

    with gr.Blocks(title="softcft", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.HTML(markup.head(any(map(is_example, models))))
        subject, answer = gr.State(), gr.State()
        with gr.Row(elem_id="choice"):
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
                scale=6,
            )
            files: dict[str, Any] = {
                "type": "binary",
                "file_types": ["image", *ENDINGS],
                "size": "sm",
                "min_width": 140,
            }
            with gr.Column(scale=1, min_width=140):
                upload = gr.UploadButton("Upload a picture", elem_id="upload", **files)
                cover = gr.UploadButton("Upload a mask", elem_id="mask", **files)
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=5, min_width=340, elem_id="controls"):
                parents, switches, values = [], [], []
                first = _first_do(models, graph)  # also of a first picture that is uploaded
                for i, variable in enumerate(graph.variables):
                    with gr.Row(elem_classes="variable"):
                        parents.append(_widget(variable, f"parent-{i}"))
                        with gr.Column(min_width=130):
                            do = f"do({variable.name})"
                            switches.append(gr.Checkbox(first[i], label=do, elem_id=f"switch-{i}"))
                            look = {"label": do, "show_label": False, "container": False}
                            values.append(_widget(variable, f"do-{i}", visible=first[i] or "hidden", **look))
                steps = _steps(models)
                reset = gr.Button("Reset", size="sm", elem_id="reset")
            with gr.Column(scale=8, min_width=340, elem_id="results"):
                with gr.Row(elem_id="views"):
                    view = gr.Radio(
                        [("one counterfactual", ""), *((f"sweep {name}", name) for name in continuous)],
                        value="",
                        show_label=False,
                        container=False,
                        visible=bool(continuous),
                        elem_id="view",
                        scale=4,
                    )
                    save = gr.Button("Save as one page", size="sm", elem_id="save", scale=1, min_width=140)
                    saved = gr.Textbox(visible=False)
                result = gr.HTML(markup.message("..." if examples else NO_EXAMPLES), elem_id="result")

        answers = Answers(models, graph)
        # Private: the page is for people; one concurrency_id: a model works on one question at a time, in their order.
        private: dict[str, Any] = {"api_visibility": "private"}
        working: dict[str, Any] = {
            **private,
            "concurrency_id": "models",
            "trigger_mode": "always_last",
            "show_progress_on": result,
        }
        asking: dict[str, Any] = {
            "fn": functools.partial(_answer, answers),
            "inputs": [*parents, *switches, *values, view, steps, subject, answer],
            "outputs": [result, answer],
            "js": _clamp(graph),
            **working,
        }

        def choose(event: gr.SelectData, *intervention: Any) -> list[Any]:
            index: Any = event.index  # a pair only where a component has rows and columns
            return _present(answers, Subject(examples[index].picture, "", examples[index].parents), intervention)

        def receive(content: bytes, *intervention: Any) -> list[Any]:
            return _present(answers, Subject(*fit_upload(content, image_format), {}, content), intervention)

        def start() -> list[Any]:
            return _present(answers, Subject(examples[0].picture, "", examples[0].parents), _first_do(models, graph))

        def again(chosen: Subject | None) -> Any:
            chosen = chosen and chosen._replace(mask=None)
            return gr.skip() if chosen is None else _present(answers, chosen, _first_do(models, graph))

        intervention = [*switches, *values]
        presented = [subject, answer, result, *parents, *intervention]
        changed = [
            gallery.select(_show_errors(choose), intervention, presented, **working),
            received := upload.upload(_show_errors(receive), [upload, *intervention], presented, **working),
            cover.upload(
                _show_errors(functools.partial(_mask, image_format.size)), [cover, subject], subject, **working
            ),
            reset.click(_show_errors(again), subject, presented, **working),
        ]
        if examples:
            changed.append(page.load(_show_errors(start), None, presented, **working))
        for variable, switch, parent, value in zip(graph.variables, switches, parents, values, strict=True):
            offer = functools.partial(_offer, variable)
            changed.append(switch.input(offer, [switch, parent, value], value, queue=False, **private))
        received.success(lambda: gr.Gallery(selected_index=None), None, gallery, queue=False, **private)
        for event in changed:
            event.then(**asking)
        moved = [view, *parents, *values, *([] if isinstance(steps, gr.State) else [steps])]
        # Of a slider at 0, early gradio 6 tells only the release.
        released = [widget.release for widget in moved if isinstance(widget, gr.Slider)]
        gr.on([*(widget.input for widget in moved), *released], **asking)
        save.click(functools.partial(_one_page, answers), answer, saved, **private).success(
            None, saved, js=SAVE, **private
        )
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


def _widget(variable: Variable, name: str, **look: Any) -> Any:
    """The widget of a variable: a slider over its range, or a dropdown of its categories."""
    look = {"label": variable.name, "elem_id": name, "min_width": 130, **look}
    if variable.kind == "continuous":
        low, high = variable.bounds
        label = f"{look.pop('label')} ({variable.unit})" if variable.unit else look.pop("label")
        return gr.Slider(low, high, value=low, step=_step(variable), label=label, buttons=[], **look)
    return gr.Dropdown(list(variable.categories), value=None, **look)


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


def _clamp(graph: CausalGraph) -> str:
    """JavaScript that keeps numbers in their ranges while they are typed; gradio takes no others."""
    ranges = [variable.bounds if variable.kind == "continuous" else None for variable in graph.variables]
    limits = json.dumps([*ranges, *(None for _ in ranges), *ranges])
    return f"""(...values) => {{
  const limits = {limits}
  const clamp = (value, [low, high]) => typeof value === "number" ? Math.min(Math.max(value, low), high) : null
  return values.slice(0, limits.length + 4).map((value, i) => limits[i] ? clamp(value, limits[i]) : value)
}}"""


def _steps(models: Sequence[Model]) -> Any:
    """The widget for the number of steps of diffusion models; an empty state if there are none."""
    choices = steps_choices(models)
    if choices is None:
        return gr.State()
    return gr.Dropdown(choices[0], value=choices[1], label="diffusion steps (more: closer to the model, slower)")


def _first_do(models: Sequence[Model], graph: CausalGraph) -> list[Any]:
    """The intervention to begin with: on the first variable with categories, if there is one, that classifiers see."""
    seen = [variable for variable in graph.variables if warn_of_unseen(models, variable.name) is None]
    first = min(seen or graph.variables, key=lambda variable: variable.kind == "continuous")
    return [*(variable is first for variable in graph.variables), *(None for _ in graph.variables)]


def _offer(variable: Variable, is_on: bool, factual: Any, value: Any) -> Any:
    """Show the value of a do() that is on, one that is not the factual value."""
    if value is None or value == factual:
        value = _tidy(variable, another_value(variable, factual))
    return gr.update(visible=is_on or "hidden", value=value)  # hidden: what is not there, early gradio 6 gives no value


def _present(answers: Answers, subject: Subject, intervention: Sequence[Any]) -> list[Any]:
    """Show a picture with its attributes under the same intervention. Its result follows."""
    variables, count = answers.graph.variables, len(answers.graph)
    parents = [_tidy(*pair) for pair in zip(variables, answers.attributes(subject), strict=True)]
    switched, values = intervention[:count], intervention[count:]
    offered = [_offer(*row) for row in zip(variables, switched, parents, values, strict=True)]
    return [subject, None, answers.without(subject, "..."), *parents, *switched, *offered]


def _mask(size: int, content: bytes, subject: Subject | None) -> Subject:
    """The picture under a mask. Its result follows."""
    if subject is None:
        raise ValueError("First choose the picture that the mask lies on.")
    return subject._replace(mask=fit_mask(content, subject.upload, size))


def _answer(answers: Answers, *inputs: Any) -> Any:
    """The result and its answer; what goes wrong is told in the place of the result."""
    *widgets, view, steps, subject, last = inputs
    if subject is None:
        return gr.skip()
    try:
        answer = answers.ask(subject, last, view, steps, widgets)
    except ValueError as error:
        sentence = str(error)
    except Exception:
        logger.exception("softcft-app")
        sentence = UNFORESEEN
    else:
        return gr.skip() if answer is last else (answer.html, answer)
    return answers.without(subject, sentence), None


def _one_page(answers: Answers, answer: Answer | None) -> str:
    if answer is None:
        raise gr.Error("There is no counterfactual yet.", title="Not yet", print_exception=False)
    return answers.one_page(answer)


def _show_errors(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Say why a picture cannot be shown. The page stays as it is; unexpected errors are logged to the terminal."""

    @functools.wraps(choose)
    def call(*arguments: Any) -> Any:
        try:
            return choose(*arguments)
        except ValueError as error:
            message, title = str(error), "Not yet"
        except Exception:
            logger.exception("softcft-app")
            message, title = UNFORESEEN, "Not yet"
        gr.Warning(escape(message), title=title, duration=20)  # gr.Error would lie over all that the button fills
        return gr.skip()

    return call
