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

from tests.app.browser import ANSWERED, CHROMIUM, PATIENCE, SIZES, browser, choose, served, visit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

SCRIPT = "<img src=x onerror=alert(1)>"
GRAPH = CausalGraph(
    [{**v, "categories": ["White", SCRIPT, "Black"]} if v["name"] == "race" else v for v in PHANTOM_GRAPH.to_list()]
)
PICTURE, MASK = ("input[type=file] >> nth=0", "input[type=file] >> nth=1")
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
    page.set_input_files(PICTURE, {"name": "a.png", "mimeType": "image/png", "buffer": content})


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def test_the_first_page_has_an_answer_and_nothing_to_scroll(page: Page) -> None:
    expect(page.locator(".card h3")).to_have_text(["Original", "hard", "soft"])
    expect(page.locator(".asked")).to_contain_text("sex = female")
    for index in range(3):
        expect(page.locator(".card img").nth(index)).to_be_in_viewport(ratio=1)
    for control in ("#upload", "#reset", "#save", "#view", "#switch-3"):
        expect(page.locator(control)).to_be_in_viewport(ratio=1)


def test_every_change_asks_again(page: Page) -> None:
    changes = page.locator(".card").last.locator(".change")
    page.check(f"#switch-{AGE} input")
    page.fill("#do-0 input[type=number]", "90")
    expect(changes.nth(AGE)).to_contain_text("44.5 years → 90 years")
    expect(changes.nth(AGE).locator(".tag")).to_have_text("do")
    expect(changes.nth(DISEASE).locator(".tag")).to_have_text("follows")
    expect(changes.nth(RACE).locator(".bar")).to_have_count(3)
    expect(page.locator(".asked")).to_contain_text("age = 90")
    expect(page.locator(".asked")).to_contain_text("sex = female")
    before = page.locator(".card").last.locator("img").nth(1).get_attribute("src")

    page.focus("#do-0 input[type=range]")
    page.keyboard.press("Home")
    expect(changes.nth(AGE)).to_contain_text("44.5 years → 18 years")
    assert page.locator(".card").last.locator("img").nth(1).get_attribute("src") != before
    choose(page, "#parent-1", "female")
    expect(changes.nth(SEX).locator(".values")).to_have_text("female")
    page.uncheck(f"#switch-{SEX} input")
    expect(page.locator(".asked")).not_to_contain_text("sex")
    page.uncheck(f"#switch-{AGE} input")
    expect(page.locator(".asked")).to_contain_text("nothing to change yet")
    expect(page.locator(".card h3")).to_have_text(["Original"])

    page.click("#reset")
    expect(page.locator(".asked")).to_contain_text("sex = female")
    expect(page.locator("#parent-1 input")).to_have_value("male")
    expect(changes.nth(SEX).locator(".values")).to_have_text("male → female")


def test_a_typed_number_beyond_the_range_is_its_end(page: Page) -> None:
    page.check(f"#switch-{AGE} input")
    page.fill("#do-0 input[type=number]", "9")
    expect(page.locator(".asked")).to_contain_text("age = 18")
    page.fill("#do-0 input[type=number]", "90")
    expect(page.locator(".asked")).to_contain_text("age = 90")
    expect(page.get_by_text("less than minimum")).to_have_count(0)


def test_another_picture_has_never_the_result_of_the_one_before_beside_it(page: Page) -> None:
    page.evaluate(
        """() => {
          const look = () => states.push([...document.querySelectorAll('#result img')].map(image => image.src))
          window.states = []
          new MutationObserver(look).observe(document.querySelector('#result'), { childList: true, subtree: true })
        }"""
    )
    before = page.locator("#result img").first.get_attribute("src")
    page.locator("#examples .thumbnail-item").first.click()
    page.wait_for_selector("#examples .selected")
    upload(page, png(Image.radial_gradient("L").resize((40, 30)).convert("RGB")))
    expect(page.locator("#result figcaption").first).to_contain_text("40 x 30")
    expect(page.locator("#result figcaption").first).to_contain_text("guess")
    page.wait_for_selector(ANSWERED)
    expect(page.locator("#examples .selected")).to_have_count(0)
    states = [state for state in page.evaluate("states") if state]
    assert states[-1][0] != before
    for original, *answered in states:
        assert answered[:1] in ([], [original])  # below a counterfactual lies the original


def test_as_long_as_an_answer_takes_the_old_one_is_grey(page: Page) -> None:
    slow = {"offline": False, "latency": 700, "downloadThroughput": -1, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    choose(page, "#parent-2", "Black")
    expect(page.locator("#result .pending")).to_have_css("opacity", "0.25")
    expect(page.locator("#result .change").nth(RACE).locator(".values")).to_have_text("Black")
    expect(page.locator("#result .pending")).to_have_count(0)


def test_without_examples_the_first_upload_has_an_answer(chromium: Browser, tmp_path: Path) -> None:
    with served(make_pipeline(tmp_path / "soft", 0, GRAPH)) as started:
        page = chromium.new_page(viewport=SIZES["laptop"])
        page.goto(started)
        expect(page.locator("#result")).to_contain_text("Upload a picture")
        upload(page, png(Image.radial_gradient("L").resize((40, 30))))
        expect(page.locator("#result .change").nth(SEX).locator(".tag")).to_have_text("do")
        page.close()


def test_a_mask_keeps_a_change_local_until_reset(page: Page) -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 8, 16, 16))
    cover = {"name": "mask.png", "mimeType": "image/png"}
    page.set_input_files(MASK, {**cover, "buffer": png(mask)})
    expect(page.locator(".asked")).to_contain_text("within the mask")
    expect(page.locator("#result figcaption").first).to_contain_text("50 %")
    page.set_input_files(MASK, {**cover, "buffer": png(mask.resize((9, 9)))})
    expect(page.get_by_text("9 x 9")).to_be_visible()
    page.click("#reset")
    expect(page.locator(".asked")).not_to_contain_text("mask")


def test_errors_are_sentences(page: Page) -> None:
    before = page.inner_html("#result")
    upload(page, b"no picture")
    expect(page.get_by_text("The picture cannot be used")).to_be_visible()
    for secret in ("Traceback", str(Path.home()), "site-packages"):
        assert secret not in page.inner_text("body")
    assert page.inner_html("#result .cards") in before


def test_pictures_are_saved_enlarged_and_uncovered(page: Page, tmp_path: Path) -> None:
    card = page.locator(".card").last
    for link, name in enumerate(("soft counterfactual.png", "soft effect.png")):
        with page.expect_download() as download:
            card.locator("figcaption a").nth(link).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert picture.size == (16, 16)
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width > picture.height > 200

    button = card.locator(".zoom").first
    button.press("Enter")
    expect(page.locator("dialog img").first).to_be_visible()
    assert page.locator("dialog").bounding_box()["width"] > 2 * button.bounding_box()["width"]
    page.keyboard.press("Escape")
    expect(page.locator("dialog img").first).not_to_be_visible()
    page.locator(".uncover input").press("Home")
    assert card.locator("img").nth(1).evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 100% 0px 0px)"


def test_a_sweep_follows_the_question(page: Page) -> None:
    page.get_by_label("sweep age").check()
    expect(page.locator("#result .strip")).to_have_count(2)
    expect(page.locator("#result .strip").first.locator("figcaption").last).to_have_text("92 years")
    expect(page.locator("#result svg")).to_have_count(4)
    expect(page.locator("#result svg").first.locator("polyline")).to_have_count(2)
    expect(page.locator(".asked")).to_contain_text("sex = female")
    page.uncheck(f"#switch-{SEX} input")
    expect(page.locator(".asked")).not_to_contain_text("sex")
    expect(page.locator("#result .strip")).to_have_count(2)


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
    page.wait_for_selector(ANSWERED)
    page.screenshot(path=tmp_path / "counterfactual.png", full_page=True)
    width = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(width) <= 0
    page.get_by_label("sweep age").check()
    page.wait_for_selector("#result .charts")
    page.screenshot(path=tmp_path / "sweep.png", full_page=True)
    assert page.evaluate(width) <= 0
    assert not [
        url for url in requests if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
    ]
    assert not dialogs
    context.close()
