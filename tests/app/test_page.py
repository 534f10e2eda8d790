"""What the page's buttons do, without a browser."""

import asyncio
import copy
import re
from typing import Any

import numpy as np
import pytest

from softcft import CausalGraph, DSCMPipeline
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
VALUES = (80.0, "female", "Black", "pleural effusion")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("runs")
    made = [make_pipeline(folder / str(seed), seed, GRAPH) for seed in range(2)]
    return [Model(f"{SCRIPT}{path.name}", str(path), DSCMPipeline.from_pretrained(path)) for path in made]


def ask(models: list[Model], *switched: bool, parents: tuple[Any, ...] = PARENTS) -> str:
    return page.Answers(models, models[0].graph).compare(PICTURE, *parents, *switched, *VALUES, None)


def test_names_are_text(models: list[Model]) -> None:
    html = ask(models, True, True, False, False)
    html += page.Answers(models, GRAPH).sweep("age", PICTURE, *PARENTS, *[False, True, False, False], *VALUES, None)
    assert "&lt;script&gt;" in html
    assert "<script" not in html


def test_all_models_are_asked_the_same(models: list[Model]) -> None:
    html = ask(models, True, False, False, False)
    assert html.count('class="card"') == 2
    assert html.count("50 years → <b>80 years</b>") == 2
    assert html.count("<span class=tag>follows<") == 2  # the disease


def test_what_a_guide_does_not_see_is_told_where_it_is_chosen(models: list[Model]) -> None:
    one, other = (Model(m.name, m.source, copy.deepcopy(m.pipeline)) for m in models)
    assert warn_of_unseen([one, other], SCRIPT) is None
    names = GRAPH.names
    sight = {name: Sight("auc", 0.558, 0.52, 0.6) if name == SCRIPT else Sight("auc", 0.9, 0.8, 1.0) for name in names}
    one.pipeline.classifier.store_sight(sight)
    assert one.name in str(warn_of_unseen([one, other], SCRIPT))
    assert one.name not in str(warn_of_unseen([one], SCRIPT))
    note = str(page.note_of([one, other], SCRIPT))
    assert "55.8" in note
    assert "<script" not in note  # which the page would show as HTML
    assert page.note_of([one, other], "age") is None


def test_what_is_missing_is_told(models: list[Model]) -> None:
    with pytest.raises(ValueError, match="nothing to change"):
        ask(models, False, False, False, False)
    with pytest.raises(ValueError, match="none yet for: race"):
        ask(models, True, False, False, False, parents=(50.0, "male", None, "no finding"))
    with pytest.raises(ValueError, match="no picture yet"):
        page.Answers(models, GRAPH).guess(None)


def test_what_nobody_foresaw_names_no_file(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("/a/path/of/the/server")

    with pytest.warns(UserWarning, match="^The terminal in which softcft-app runs says why"):
        page._show_errors(fail)()
    assert "/a/path/of/the/server" in caplog.text


async def build(*models: Model) -> gr.Blocks:
    """The page; where no event loop runs, gradio opens some and leaves them open."""
    return page.build(models, [])


def test_colour_diffusion_without_a_classifier() -> None:
    model = Model("diffusion", "", build_diffusion(with_classifier=False, channels=3))
    blocks = asyncio.run(build(model))
    labels = {block.label for block in blocks.blocks.values() if isinstance(block, gr.Slider | gr.Radio | gr.Dropdown)}
    assert {"size", "state", "site"} <= {re.sub(r" \(.*", "", label) for label in labels}
    values = (2.0, "off", "a")
    picture = np.full((8, 8, 3), 90, np.uint8)
    html = page.Answers([model], model.graph).compare(picture, *values, False, True, False, *(3.0, "on", "b"), 5)
    assert "off → <b>on</b>" in html
    assert 'class="bar"' not in html


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


def test_a_switched_do_offers_another_category() -> None:
    sex = PHANTOM_GRAPH["sex"]
    assert page._offer(sex, True, "male", None)["value"] == "female"
    assert page._offer(sex, True, "female", "male")["value"] == "male"
    assert page._offer(sex, False, "male", "female")["visible"] is False
