"""What the page asks and shows, without a browser."""

import asyncio
import base64
import copy
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softcft import CausalGraph, DSCMPipeline, example_model
from softcft.app.answers import Answer, Answers, Subject
from softcft.app.models import Model, warn_of_unseen
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.models.sight import Sight
from tests.pipelines.test_diffusion_dscm import build as build_diffusion
from tests.recipes.small_pipeline import make_pipeline

pytest.importorskip("gradio", reason="the app is made with gradio")

import gradio as gr

from softcft.app import page

SCRIPT = "<script>alert('x')</script>"
GRAPH = CausalGraph([{**v, "name": SCRIPT} if v["name"] == "sex" else v for v in PHANTOM_GRAPH.to_list()])
PICTURE = np.full((16, 16), 90, np.uint8)
PARENTS = (50.0, "male", "White", "no finding")
SUBJECT = Subject(PICTURE, "", {})
VALUES = (80.0, "female", "Black", "pleural effusion")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("runs")
    made = [make_pipeline(folder / str(seed), seed, GRAPH) for seed in range(2)]
    return [Model(f"{SCRIPT}{path.name}", str(path), DSCMPipeline.from_pretrained(path)) for path in made]


@pytest.fixture
def answers(models: list[Model]) -> Answers:
    return Answers(models, GRAPH)


def ask(answers: Answers, *switched: bool, parents: tuple[Any, ...] = PARENTS, swept: str = "", **last: Any) -> Answer:
    return answers.ask(SUBJECT, last.get("last"), swept, None, [*parents, *switched, *VALUES])


def test_names_are_text(answers: Answers) -> None:
    html = ask(answers, True, True, False, False).html + ask(answers, False, True, False, False, swept="age").html
    html += answers.without(SUBJECT, SCRIPT)
    assert "&lt;script&gt;" in html
    assert "<script" not in html


def test_all_models_are_asked_the_same(answers: Answers) -> None:
    html = ask(answers, True, False, False, False).html
    assert html.count("50 years → <b>80 years</b>") == 2
    assert html.count("<span class=tag>follows<") == 2  # the disease


def test_a_question_is_asked_once(answers: Answers) -> None:
    first = ask(answers, True, False, False, False)
    assert ask(answers, True, False, False, False, last=first) is first
    assert ask(answers, True, True, False, False, last=first) is not first
    assert ask(answers, True, False, False, False, parents=(51.0, *PARENTS[1:]), last=first) is not first
    assert ask(answers, True, False, False, False, swept="age", last=first) is not first
    other = Subject(PICTURE + 1, "", {})
    assert answers.ask(other, first, "", None, [*PARENTS, True, False, False, False, *VALUES]).subject is other


def test_a_mask_keeps_all_else(answers: Answers) -> None:
    mask = np.zeros(PICTURE.shape[:2])
    mask[4:] = 1
    masked = answers.ask(SUBJECT._replace(mask=mask), None, "", None, [*PARENTS, False, True, False, False, *VALUES])
    assert "within the mask" in masked.html
    for _, output in masked.outputs:
        assert not output.effects[0, :4].any()
        assert output.effects[0, 4:].any()


def test_what_a_guide_does_not_see_is_told_with_the_answer(models: list[Model]) -> None:
    one, other = (Model(m.name, m.source, copy.deepcopy(m.pipeline)) for m in models)
    assert warn_of_unseen([one, other], SCRIPT) is None
    sight = {n: Sight("auc", 0.558, 0.52, 0.6) if n == SCRIPT else Sight("auc", 0.9, 0.8, 1.0) for n in GRAPH.names}
    one.pipeline.classifier.store_sight(sight)
    assert one.name in str(warn_of_unseen([one, other], SCRIPT))
    assert one.name not in str(warn_of_unseen([one], SCRIPT))
    for swept in ("", "age"):
        html = ask(Answers([one, other], GRAPH), False, True, False, False, swept=swept).html
        assert "55.8" in html
        assert "<script" not in html
        assert "55.8" not in ask(Answers([one, other], GRAPH), False, False, True, False, swept=swept).html


def test_what_is_missing_is_told(answers: Answers) -> None:
    with pytest.raises(ValueError, match="nothing to change"):
        ask(answers, False, False, False, False)
    with pytest.raises(ValueError, match="none yet for: race"):
        ask(answers, True, False, False, False, parents=(50.0, "male", None, "no finding"))
    with pytest.raises(ValueError, match="none yet for: age"):
        answers.ask(SUBJECT, None, "", None, [*PARENTS, True, False, False, False, None, *VALUES[1:]])


@pytest.mark.parametrize("swept", ["", "age"])
def test_one_page_shows_all_models(answers: Answers, swept: str) -> None:
    url = answers.one_page(ask(answers, True, False, False, False, swept=swept))
    both = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    alone = Answers(answers.models[:1], GRAPH)
    url = alone.one_page(ask(alone, True, False, False, False, swept=swept))
    one = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert both.format == "PNG"
    assert both.height == pytest.approx(2 * one.height, abs=4)


# ---- the page -----------------------------------------------------------------------------------------------------


def present(answers: Answers, subject: Subject, *switched: bool, values: tuple[Any, ...] = VALUES) -> dict[str, Any]:
    given, last, html, *widgets = page._present(answers, subject, [*switched, *values])
    assert given is subject
    assert last is None
    parents, on, updates = (widgets[i * len(GRAPH) : (i + 1) * len(GRAPH)] for i in range(3))
    assert on == list(switched)
    return {"html": html, "parents": parents, "values": [update["value"] for update in updates], "updates": updates}


def test_another_picture_keeps_the_question_and_no_result(answers: Answers) -> None:
    known = dict(zip(GRAPH.names, (80.0, "female", "White", "no finding"), strict=True))
    shown = present(answers, Subject(PICTURE, "It was grey.", known), True, True, True, False)
    assert shown["parents"] == list(known.values())
    assert shown["html"].count("<img") == 1  # the original
    assert "It was grey." in shown["html"]
    age, sex, race, _ = shown["values"]
    assert age < 80  # what is its own already is no question
    assert sex == "male"
    assert race == "Black"
    assert [update["visible"] for update in shown["updates"]] == [True, True, True, "hidden"]


def test_what_is_not_known_is_guessed(answers: Answers) -> None:
    shown = present(answers, Subject(PICTURE, "", {"age": 30.0}), False, True, False, False)
    assert shown["parents"][0] == 30.0
    assert None not in shown["parents"]
    assert "guess" in shown["html"]
    known = dict(zip(GRAPH.names, PARENTS, strict=True))
    assert "guess" not in present(answers, Subject(PICTURE, "", known), False, True, False, False)["html"]


def test_what_fails_leaves_no_old_result(answers: Answers, caplog: pytest.LogCaptureFixture) -> None:
    widgets = [*PARENTS, False, False, False, False, *VALUES]
    html, answer = page._answer(answers, *widgets, "", None, SUBJECT, None)
    assert answer is None
    assert html.count("<img") == 1

    def fail(*_: Any) -> None:
        raise RuntimeError("/a/path/of/the/server")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Model, "ask", fail)
        html, answer = page._answer(answers, *PARENTS, True, *widgets[5:], "", None, SUBJECT, None)
    assert answer is None
    assert "/a/path" not in html
    assert "/a/path/of/the/server" in caplog.text


def test_what_nobody_foresaw_names_no_file(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("/a/path/of/the/server")

    with pytest.warns(UserWarning, match="The terminal in which softcft-app runs says why"):
        page._show_errors(fail)()
    assert "/a/path/of/the/server" in caplog.text


def test_the_first_question_is_about_what_the_classifier_sees(models: list[Model]) -> None:
    assert page._first_do(models, GRAPH)[:4] == [False, True, False, False]
    blind = Model(models[0].name, "", copy.deepcopy(models[0].pipeline))
    seen = {n: Sight("auc", *((0.5, 0.45, 0.55) if n == SCRIPT else (0.9, 0.8, 1.0))) for n in GRAPH.names}
    blind.pipeline.classifier.store_sight(seen)
    assert page._first_do([blind], GRAPH)[:4] == [False, False, True, False]


async def build(*models: Model) -> gr.Blocks:
    """The page; where no event loop runs, gradio opens some and leaves them open."""
    return page.build(models, [])


def test_an_uploaded_picture_is_asked_about_where_there_is_no_example(models: list[Model]) -> None:
    blocks = asyncio.run(build(*models)).blocks.values()
    assert [block.value for block in blocks if isinstance(block, gr.Checkbox)] == page._first_do(models, GRAPH)[:4]
    shown = [block.visible for block in blocks if str(block.elem_id).startswith("do-")]
    assert shown == ["hidden", True, "hidden", "hidden"]


def words(blocks: gr.Blocks) -> str:
    return " ".join(str(block.value) for block in blocks.blocks.values() if isinstance(block, gr.HTML)).lower()


def test_only_the_example_is_called_a_phantom(models: list[Model]) -> None:
    assert "phantom" not in words(asyncio.run(build(*models)))
    example = Model("phantom", str(example_model()), models[0].pipeline)
    assert "phantom" in words(asyncio.run(build(example)))


def test_colour_diffusion_without_a_classifier() -> None:
    model = Model("diffusion", "", build_diffusion(with_classifier=False, channels=3))
    blocks = asyncio.run(build(model))
    labels = {block.label for block in blocks.blocks.values() if isinstance(block, gr.Slider | gr.Dropdown)}
    assert {"size", "state", "site"} <= {re.sub(r" \(.*", "", str(label)) for label in labels}
    subject = Subject(np.full((8, 8, 3), 90, np.uint8), "", {})
    answers = Answers([model], model.graph)
    assert answers.attributes(subject) == [None] * 3
    answer = answers.ask(subject, None, "", 5, [*(2.0, "off", "a"), False, True, False, *(3.0, "on", "b")])
    assert "off → <b>on</b>" in answer.html
    assert 'class="bar"' not in answer.html
    assert answers.one_page(answer)


def test_sliders_hold_any_range() -> None:
    graph = CausalGraph(
        [
            {"name": "tiny", "kind": "continuous", "low": 0.0001, "high": 0.00035},
            {"name": "huge", "kind": "continuous", "low": -3e6, "high": 5e6},
            {"name": "volume", "kind": "continuous", "low": 0.5, "high": 4000, "log": True},
        ]
    )
    for variable in graph.variables:
        assert variable.low is not None
        assert variable.high is not None
        for value in np.linspace(variable.low, variable.high, 7):
            tidy = page._tidy(variable, float(value))
            variable.encode(tidy)  # refuses what is out of range
            assert abs(tidy - value) <= page._step(variable)


def test_a_switched_do_offers_another_value() -> None:
    sex, age = PHANTOM_GRAPH["sex"], PHANTOM_GRAPH["age"]
    assert page._offer(sex, True, "male", None)["value"] == "female"
    assert page._offer(sex, True, "female", "male")["value"] == "male"
    assert page._offer(sex, False, "male", "female")["visible"] == "hidden"
    for factual in (None, *age.bounds, sum(age.bounds) / 2):
        value = page._offer(age, True, factual, factual)["value"]
        age.encode(value)
        assert factual is None or abs(value - factual) > 0.2 * (age.bounds[1] - age.bounds[0])
    assert page._offer(age, True, 40.0, 41.0)["value"] == 41.0
