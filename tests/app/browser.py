"""The app in a process of its own, and a browser to look at it.

python -m tests.app.browser docs           # a picture of the app with the example model: app_laptop.png
python -m tests.app.browser docs MODELS    # with several models, the first of which has examples: app_compare.png
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"laptop": {"width": 1366, "height": 768}, "phone": {"width": 390, "height": 844}}
ANSWERED = "#result .changes"
PATIENCE = 180_000  # milliseconds: the machine may have other work


@contextmanager
def served(*models: Path) -> Iterator[str]:
    """The address of the app, as long as the context lasts."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from softcft.app import main; main()", *map(str, models)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as app:
        try:
            assert app.stdout is not None
            line = app.stdout.readline()  # empty if it has ended
            assert line.startswith("softcft-app: "), "the app has not started"
            yield line.split()[1]
        finally:
            app.terminate()


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def visit(started: Browser, address: str, size: str = "laptop") -> Page:
    """The page with the counterfactual of its first example."""
    page = started.new_page(viewport=SIZES[size])
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector(ANSWERED)
    return page


def choose(page: Page, widget: str, category: str) -> None:
    """Choose a category in a dropdown, by its keys."""
    page.click(f"{widget} input")
    page.get_by_role("option", name=category, exact=True).click()


def main() -> None:
    """Write the picture of the documentation: of the example model, or of several models and the sixth example."""
    folder, *models = map(Path, sys.argv[1:])
    with served(*models) as address, browser() as started:
        page = visit(started, address)
        if models:
            page.locator("#examples .thumbnail-item").nth(5).click()
        page.wait_for_timeout(5000)  # until nothing moves
        page.screenshot(path=folder / ("app_compare.png" if models else "app_laptop.png"), full_page=True)


if __name__ == "__main__":
    main()
