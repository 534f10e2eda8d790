"""The app as a person uses it, in a browser."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softcft import CausalGraph
from softcft.data.phantom import PHANTOM_GRAPH
from tests.recipes.small_pipeline import make_pipeline

pytest.importorskip("playwright", reason="drives a browser by playwright")
pytest.importorskip("gradio", reason="the app is made with gradio")

from playwright.sync_api import Browser, Page, expect

from tests.app.browser import CHROMIUM, PATIENCE, SIZES, browser, intervene, served, visit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

SCRIPT = "<img src=x onerror=alert(1)>"
GRAPH = CausalGraph(
    [{**v, "categories": ["White", SCRIPT, "Black"]} if v["name"] == "race" else v for v in PHANTOM_GRAPH.to_list()]
)
AGE, SEX, RACE, DISEASE = range(4)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with two models, and an example."""
    folder = tmp_path_factory.mktemp("runs")
    models = [make_pipeline(folder / name, seed, GRAPH) for seed, name in enumerate(["hard", "soft"])]
    examples = models[0] / "examples"
    examples.mkdir()
    Image.fromarray(np.linspace(0, 255, 256).reshape(16, 16).astype(np.uint8)).save(examples / "a.png")
    (examples / "metadata.csv").write_text(f"file_name,age,sex,race,disease\na.png,44.5,male,{SCRIPT},no finding\n")
    with served(*models) as started:
        yield started


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    opened = visit(chromium, address)
    yield opened
    opened.close()


def upload(page: Page, content: bytes) -> None:
    page.set_input_files("input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": content})


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def test_an_uploaded_image_is_made_to_fit_and_changed(page: Page) -> None:
    upload(page, png(Image.radial_gradient("L").resize((40, 30)).convert("RGB")))
    expect(page.locator(".chosen .note")).to_contain_text("40 x 30")
    expect(page.locator(".chosen .note")).to_contain_text("guess")
    page.fill("#parent-0 input[type=number]", "60")

    intervene(page, AGE)
    page.fill("#do-0 input[type=number]", "90")
    page.click("#run")
    expect(page.locator(".card h3")).to_have_text(["Original", "hard", "soft"])
    changes = page.locator(".card").last.locator(".change")
    expect(changes.nth(AGE)).to_contain_text("60 years → 90 years")
    expect(changes.nth(AGE).locator(".tag")).to_have_text("do")
    expect(changes.nth(DISEASE).locator(".tag")).to_have_text("follows")
    expect(changes.nth(RACE).locator(".bar")).to_have_count(3)
    expect(changes.nth(SEX).locator(".numbers")).to_contain_text("%")
    before = page.locator(".card").last.locator("img").first.get_attribute("src")

    page.fill("#do-0 input[type=number]", "20")
    page.click("#run")
    expect(changes.nth(AGE)).to_contain_text("60 years → 20 years")
    assert page.locator(".card").last.locator("img").first.get_attribute("src") != before


def test_several_attributes_at_once(page: Page) -> None:
    intervene(page, SEX)
    intervene(page, RACE)
    expect(page.locator(".asked")).to_contain_text("sex = female")
    expect(page.locator(".asked")).to_contain_text("race = White")
    expect(page.locator(".card").last.locator(".do")).to_have_count(2)


def test_the_classifier_proposes(page: Page) -> None:
    expect(page.locator("#parent-0 input[type=number]")).to_have_value("44.5")
    page.get_by_role("button", name="classifier").click()
    expect(page.locator("#parent-0 input[type=number]")).not_to_have_value("44.5")


def test_a_sweep(page: Page) -> None:
    page.get_by_role("tab", name="Sweep").click()
    page.click("#run-sweep")
    expect(page.locator("#sweep .strip")).to_have_count(2)
    expect(page.locator("#sweep .strip").first.locator("figcaption").last).to_have_text("92 years")
    expect(page.locator("#sweep svg")).to_have_count(4)
    expect(page.locator("#sweep svg").first.locator("polyline")).to_have_count(2)


def test_errors_are_sentences(page: Page, address: str) -> None:
    page.click("#run")
    expect(page.get_by_text("nothing to change yet")).to_be_visible()
    upload(page, b"no picture")
    expect(page.get_by_text("The picture cannot be used")).to_be_visible()
    for secret in ("Traceback", str(Path.home()), "site-packages"):
        assert secret not in page.inner_text("body")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen_and_asks_nobody_else(
    chromium: Browser, address: str, size: str, scheme: str, tmp_path: Path
) -> None:
    context = chromium.new_context(color_scheme=scheme, viewport=SIZES[size])
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    requests, dialogs = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    page.wait_for_selector(".chosen img")
    intervene(page, SEX)
    page.screenshot(path=tmp_path / "counterfactual.png", full_page=True)
    width = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(width) <= 0
    page.get_by_role("tab", name="Sweep").click()
    page.click("#run-sweep")
    page.wait_for_selector("#sweep .charts")
    page.screenshot(path=tmp_path / "sweep.png", full_page=True)
    assert page.evaluate(width) <= 0
    assert not [
        url for url in requests if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
    ]
    assert not dialogs
    context.close()
