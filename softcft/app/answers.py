"""What the page asks the models, and what it shows of their answers. Knows nothing of gradio."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from softcft.app import markup
from softcft.app.changes import changes, curves, sweep_values
from softcft.app.models import Model, propose, warn_of_unseen
from softcft.graph import CausalGraph
from softcft.pipelines.result import DSCMPipelineOutput

__all__ = ["Answer", "Answers", "Subject"]

GUESS = "Its attributes are the classifier's guess: correct those that you know."


class Subject(NamedTuple):
    """The chosen picture.

    Attributes:
        picture: Of the models' size, uint8 of shape (H, W) or (H, W, 3).
        note: What was done to make it fit.
        known: What is known of its attributes, in natural units.
        upload: The file that it is from; None for an example.
        mask: Where it may change, of shape (H, W); None for everywhere.
    """

    picture: np.ndarray
    note: str
    known: dict[str, Any]
    upload: bytes | None = None
    mask: np.ndarray | None = None


class Answer(NamedTuple):
    """An answered question.

    Attributes:
        subject: The picture that was asked about.
        question: Everything else that was asked, to be compared.
        words: The question in words.
        outputs: What each model returned, with the model's name.
        html: The page's result.
    """

    subject: Subject
    question: tuple[Any, ...]
    words: str
    outputs: list[tuple[str, DSCMPipelineOutput]]
    html: str


class Answers:
    """Questions to models of one causal graph."""

    def __init__(self, models: Sequence[Model], graph: CausalGraph) -> None:
        self.models = models
        self.graph = graph

    def attributes(self, subject: Subject) -> list[Any]:
        """The factual attributes in the order of the graph: known, else guessed by the classifier, else None."""
        seen = propose(self.models, subject.picture) if self._guesses(subject) else {}
        return [(seen | subject.known).get(name) for name in self.graph.names]

    def without(self, subject: Subject, sentence: str) -> str:
        """The result as long as there is no answer."""
        return markup.unanswered(subject.picture, self._note(subject), sentence, len(self.models))

    def ask(
        self, subject: Subject, last: Answer | None, swept: str, steps: int | None, widgets: Sequence[Any]
    ) -> Answer:
        """Ask all models.

        Args:
            subject: The chosen picture.
            last: The last answer, which is returned if the question is still the same.
            swept: The continuous variable to sweep over; empty for one counterfactual.
            steps: The number of steps of diffusion models.
            widgets: For each variable its factual value; whether it is intervened on; and the value it is set to.

        Raises:
            ValueError: If a value is missing, or there is no intervention.
        """
        parents, do = self._read(widgets)
        question = parents, do, swept, steps
        if last is not None and last.subject is subject and last.question == question:
            return last
        if not do and not swept:
            raise ValueError("There is nothing to change yet: switch on do() for one attribute or several.")
        wanted = {**do, swept: sweep_values(self.graph[swept])} if swept else do
        outputs = [
            (model.name, model.ask(subject.picture, parents, wanted, steps, subject.mask)) for model in self.models
        ]
        words = f"do({', '.join(self._set(name, value) for name, value in wanted.items())})"
        words += " within the mask" * (subject.mask is not None)
        unseen = [sentence for name in wanted if (sentence := warn_of_unseen(self.models, name)) is not None]
        if swept:
            html = self._sweep(swept, {**parents, **do}, outputs, words, unseen)
        else:
            results = [(name, output, changes(self.graph, parents, do, output)) for name, output in outputs]
            html = markup.comparison(subject.picture, self._note(subject), words, results, unseen)
        return Answer(subject, question, words, outputs, html)

    def one_page(self, answer: Answer) -> str:
        """The results of all models in one PNG, as a data URL."""
        pages = []
        for name, output in answer.outputs:
            figure, file = output.plot(), io.BytesIO()
            figure.suptitle(f"{answer.words}, by {name}", parse_math=False, fontsize=10)
            figure.savefig(file, format="png", dpi=150)
            pages.append(Image.open(file))
        page = Image.new("RGB", (max(part.width for part in pages), sum(part.height for part in pages)), "white")
        top = 0
        for part in pages:
            page.paste(part, (0, top))
            top += part.height
        file = io.BytesIO()
        page.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    def _guesses(self, subject: Subject) -> bool:
        has_classifier = any(model.pipeline.classifier is not None for model in self.models)
        return has_classifier and not set(self.graph.names) <= set(subject.known)

    def _note(self, subject: Subject) -> str:
        guess = GUESS * self._guesses(subject)
        masked = "" if subject.mask is None else f"{100 * np.mean(subject.mask > 0):.0f} % of it, the mask, may change."
        return " ".join(filter(None, [subject.note, guess, masked]))

    def _read(self, widgets: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The attributes and the intervention, as the widgets have them."""
        names, count = self.graph.names, len(self.graph)
        factual, switched, values = (widgets[i * count : (i + 1) * count] for i in range(3))
        parents = dict(zip(names, factual, strict=True))
        do = {name: value for name, is_on, value in zip(names, switched, values, strict=True) if is_on}
        for title, given in (("Set the attributes of the picture", parents), ("Choose the values of do()", do)):
            missing = [name for name, value in given.items() if value is None]
            if missing:
                raise ValueError(f"{title}; there is none yet for: {', '.join(missing)}.")
        return parents, do

    def _set(self, name: str, value: Any) -> str:
        variable = self.graph[name]
        if isinstance(value, list):
            return f"{name} = {variable.in_words(value[0], with_unit=False)} ... {variable.in_words(value[-1])}"
        return f"{name} = {variable.in_words(value)}"

    def _sweep(
        self,
        swept: str,
        wanted: dict[str, Any],
        outputs: Sequence[tuple[str, DSCMPipelineOutput]],
        words: str,
        unseen: Sequence[str],
    ) -> str:
        values = [self.graph[swept].in_words(value) for value in sweep_values(self.graph[swept])]
        images, lines, scales = {}, {}, {}
        for name, output in outputs:
            assert isinstance(output.images, np.ndarray)
            images[name] = output.images
            if output.counterfactual_predictions is not None:
                seen = output.counterfactual_predictions
                rows = [{v: seen[v][i] for v in seen} for i in range(len(values))]
                lines[name] = curves(self.graph, wanted, rows)
        for variable in self.graph.variables:
            if variable.kind == "continuous":
                ends = variable.in_words(variable.low), variable.in_words(variable.high)
                scales[variable.name] = f"{variable.name}, predicted", *ends
            else:
                scales[variable.name] = f"probability of {variable.name} = {wanted[variable.name]}", "0", "1"
        return markup.sweep(words, values, images, lines, scales, unseen)
