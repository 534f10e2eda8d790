"""What README and docs say: links lead somewhere, code runs, commands have the flags that they are given."""

import asyncio
import csv
import json
import re
import shlex
import sys
from ast import literal_eval
from base64 import b64decode
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from diffusers import DDIMScheduler
from PIL import Image

from softcft import (
    AttributeClassifier,
    AttributeSCM,
    CausalGraph,
    DiffusionDSCMPipeline,
    DSCMPipeline,
    HVAEModel,
    ParentEncoder,
    app,
    cli,
    example_model,
)
from softcft.data.phantom import PHANTOM_GRAPH
from tests.models.test_denoiser import make_unet
from tests.notebook import TOUR
from tests.notebook import run as run_notebook
from tests.processes import run_python
from tests.recipes.small_pipeline import load_recipe
from tests.stock_pipelines import make_stock

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
MARK = r"(?:<!-- (?:not run: (?P<reason>.*?)|file: (?P<file>\S+)) -->\n)?"
FENCE = re.compile(MARK + r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
SCRIPT = re.compile(r"\b(?:recipes|benchmarks)/\w+\.py\b")
TRUNK = {"model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [8], "depths": [1]}
MOST_NOT_RUN = 2
MOST_BYTES = 150_000  # of the notebook's pictures


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# ---- names and links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_local_links_and_pictures_exist(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", read(page))
    missing = [t for t in targets if not t.startswith("http") and not ((ROOT / page).parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(r"(?:softcft|recipes|tests|benchmarks)/[\w/]+\.(?:py|yaml|sh)", read(page))
    assert [name for name in named if "yours" not in name and not (ROOT / name).is_file()] == []


def test_every_page_is_in_the_index() -> None:
    listed = re.findall(r"^(?:[\w -]+ <)?([\w/]+)>?$", read("docs/index.md"), flags=re.MULTILINE)
    assert {f"docs/{name}.md" for name in listed} | {"docs/index.md"} >= {p for p in PAGES if p.startswith("docs/")}
    assert TOUR.stem in listed


# ---- code -----------------------------------------------------------------------------------------------------------


def saved_by_your_data(folder: Path) -> None:
    """The pictures and the pipeline that docs/your_data.md has made before it asks."""
    plain, *_ = [yaml.safe_load(block["code"])["graph"] for block in blocks("docs/your_data.md", "yaml")]
    sizes = {"resolutions": [8, 1], "channels": [4, 4], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
    parts = HVAEModel(plain, sample_size=8, z_dim=2, **sizes), AttributeSCM(plain), AttributeClassifier(plain, TRUNK)
    DSCMPipeline(*parts).save_pretrained(folder / "outputs/shapes/matched")
    (folder / "shapes").mkdir()
    Image.new("L", (30, 20), 100).save(folder / "shapes/001.png")


def saved_by_diffusion(folder: Path) -> None:
    """The pipeline of make reproduce-diffusion, an image of its size, and a pipeline with no softcft in it."""
    plain = PHANTOM_GRAPH.to_list()
    parts = ParentEncoder(plain, 16), DDIMScheduler(clip_sample=False), AttributeSCM(plain), None, None, None, None
    pipe = DiffusionDSCMPipeline(make_unet(False, 1), *parts)
    pipe.save_pretrained(folder / "outputs/phantom_diffusion/soft")
    Image.new("L", (pipe.image_format.size,) * 2, 100).save(folder / "scan.png")
    make_stock("sd").save_pretrained(folder / "stable-diffusion")


def own_picture(folder: Path) -> None:
    Image.new("L", (300, 200), 100).save(folder / "scan.png")


READER_HAS: dict[str, Callable[[Path], None]] = {
    "README.md": own_picture,
    "docs/your_data.md": saved_by_your_data,
    "docs/diffusion.md": saved_by_diffusion,
}


def blocks(page: str, language: str) -> list[re.Match[str]]:
    return [block for block in FENCE.finditer(read(page)) if block["language"] == language]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(not b["file"] and not b["reason"] for b in blocks(p, "python"))]
)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    READER_HAS.get(page, lambda folder: None)(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if block["reason"] is None:
            line = read(page)[: block.start("code")].count("\n")
            exec(compile("\n" * line + block["code"], page, "exec"), namespace)  # errors have the page's line


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- file: " in read(page)])
def test_files_and_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader does: files are saved, and then all commands are run in their order."""
    files = [block for block in blocks(page, "python") if block["file"]]
    for block in files:
        (tmp_path / block["file"]).write_text(block["code"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("softcft.app.page.launch", lambda page, port: "the page, without a browser")
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: None)

    async def show(arguments: list[str]) -> None:  # where no event loop runs, gradio opens some and leaves them open
        app.main(arguments)

    ran = set()
    for command in commands(page):
        program, *arguments = shlex.split(command, comments=True) or [""]
        if program == "python" and not SCRIPT.fullmatch(arguments[0]):
            ran.add(arguments[0])
            run_python(*arguments, cwd=tmp_path)  # a process of its own
        elif program == "softcft":
            cli.main(arguments)
        elif program == "softcft-app":
            asyncio.run(show(arguments))
    for block in files:
        assert block["file"] in ran or any(f"from {Path(block['file']).stem} " in b["code"] for b in files)
        sys.modules.pop(Path(block["file"]).stem, None)


def test_few_blocks_are_not_run_and_all_say_why() -> None:
    skipped = [(page, block["reason"]) for page in PAGES for block in blocks(page, "python") if block["reason"]]
    assert len(skipped) <= MOST_NOT_RUN, skipped
    marks = sum(len(re.findall(r"^<!-- not run", read(page), flags=re.MULTILINE)) for page in PAGES)
    assert marks == len(skipped), "A mark must have the form <!-- not run: reason --> and stand right above its block."


@pytest.mark.parametrize("page", [page for page in PAGES if '"examples" / ' in read(page)])
def test_parents_are_those_of_the_picture(page: str) -> None:
    (name,) = set(re.findall(r'"examples" / "(\w+\.png)"', read(page)))
    (parents,) = set(re.findall(r"parents = (\{.*?\})", read(page)))
    with (example_model() / "examples" / "metadata.csv").open() as table:
        rows = {row.pop("file_name"): row for row in csv.DictReader(table)}
    assert literal_eval(parents) == {**rows[name], "age": round(float(rows[name]["age"]), 1)}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_graphs_are_valid(page: str) -> None:
    for block in blocks(page, "yaml"):
        CausalGraph(yaml.safe_load(block["code"])["graph"])


# ---- the notebook ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    tour: dict[str, Any] = json.loads(TOUR.read_text(encoding="utf-8"))
    return tour


def shown(notebook: dict[str, Any], kind: str) -> list[str]:
    """What the code cells show of a kind; "" where one shows none."""
    outputs = [[o.get("data", {"text/plain": o.get("text")}) for o in c.get("outputs", [])] for c in notebook["cells"]]
    return ["\n".join("".join(data[kind]) for data in datas if kind in data) for datas in outputs]


def test_the_tour_shows_what_its_code_shows(
    committed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are the same, numbers nearly so: another processor rounds in other places. Pictures are not compared."""
    monkeypatch.chdir(tmp_path)
    anew = run_notebook(committed)
    number = re.compile(r"-?\d+(?:\.\d+)?")
    for before, after in zip(shown(committed, "text/plain"), shown(anew, "text/plain"), strict=True):
        assert re.sub(r"[\s-]+", " ", number.sub("N", before)) == re.sub(r"[\s-]+", " ", number.sub("N", after))
        numbers = [list(map(float, number.findall(text))) for text in (before, after)]
        assert numbers[1] == pytest.approx(numbers[0], rel=0.02, abs=1.1)  # percents, rounded
    pictures = [[bool(png) for png in shown(notebook, "image/png")] for notebook in (committed, anew)]
    assert pictures[0] == pictures[1]


def test_the_tour_is_small_and_was_run_from_top_to_bottom(committed: dict[str, Any]) -> None:
    counts = [cell["execution_count"] for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert sum(len(b64decode(png)) for png in shown(committed, "image/png")) < MOST_BYTES


def test_links_of_the_tour_exist(committed: dict[str, Any]) -> None:
    text = "\n".join("".join(cell["source"]) for cell in committed["cells"] if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    assert [target for target in targets if not (TOUR.parent / target).is_file()] == []


# ---- commands -------------------------------------------------------------------------------------------------------


def commands(page: str) -> list[str]:
    """Lines of indented and fenced blocks that are no Python, and code in a sentence; each joined to one line."""
    text = read(page)
    fenced = [block["code"] for block in FENCE.finditer(text) if block["language"] in ("bash", "console")]
    text = FENCE.sub("", text)
    indented = ["\n".join(re.findall(r"^    (.*)$", text, flags=re.MULTILINE))]
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    lines = [line for part in [*fenced, *indented] for line in part.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in [*lines, *spans]]


@pytest.fixture(scope="module")
def flags_of() -> Callable[[str], set[str]]:
    """The flags that a script has, by what its --help says; a benchmark, which may need a peer, by its source."""
    known: dict[str, set[str]] = {}

    def flags(script: str) -> set[str]:
        if script not in known:
            known[script] = set(re.findall(r"--\w+", help_of(script)))
        return known[script]

    return flags


def help_of(script: str) -> str:
    if script.startswith("benchmarks/"):
        return (ROOT / script).read_text(encoding="utf-8")
    said, argv = StringIO(), sys.argv
    sys.argv = [script, "--help"]
    try:
        with redirect_stdout(said), pytest.raises(SystemExit):
            load_recipe(Path(script).stem).main()
    finally:
        sys.argv = argv
    return said.getvalue()


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_flags_they_are_given(page: str, flags_of: Callable[[str], set[str]]) -> None:
    launcher = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), flags=re.MULTILINE))
    for command in commands(page):
        if command.startswith("make "):
            assert set(re.findall(r"^make ([\w-]+)", command)) <= targets, command
        elif command.startswith("softcft "):
            cli._parser().parse_args(shlex.split(command)[1:])
        elif script := SCRIPT.search(command):
            before, after = command[: script.start()], command[script.end() :].partition("#")[0]
            given = set(re.findall(r"(?<!\S)--\w+", after))
            assert given <= flags_of(script[0]), (command, sorted(given - flags_of(script[0])))
            if "accelerate launch" in before:
                assert set(re.findall(r"(?<!\S)--\w+", before)) <= launcher, command


def test_commands_are_found(flags_of: Callable[[str], set[str]]) -> None:
    """The test above would pass if it found none."""
    scripts = {script for page in PAGES for line in commands(page) for script in SCRIPT.findall(line)}
    assert {"recipes/run_all.py", "recipes/train_hvae.py", "recipes/check_data.py"} <= scripts
    assert {"--config", "--output_dir", "--train_batch_size"} <= flags_of("recipes/train_hvae.py")
    assert any(line.startswith("softcft counterfactual") for line in commands("docs/quickstart.md"))
