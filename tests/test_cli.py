"""The command line, in this process: what it prints, what it writes, and how it refuses."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softcft import DSCMPipeline, example_model
from softcft.cli import main
from softcft.data.pictures import read_picture
from softcft.noise import seeded_generator
from tests.pipelines.test_diffusion_dscm import build
from tests.recipes.small_pipeline import make_pipeline

ROOT = Path(__file__).parents[1]
PARENTS = {"age": 63.0, "sex": "male", "race": "White", "disease": "pleural effusion"}
KNOWN = ["--parents", *(f"{name}={value}" for name, value in PARENTS.items())]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_pipeline(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: a folder with a picture in it."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save("scan.png")
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that must be refused, and must not leave anything behind."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    said = capsys.readouterr().err
    assert said.startswith("softcft: error: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1
    return said


# ---- counterfactual -------------------------------------------------------------------------------------------------


def test_it_does_what_the_pipeline_does(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["counterfactual", "scan.png", "--model", model, *KNOWN, "--do", "sex=female", "age=40", "-o", "out.png"])
    table = capsys.readouterr().out.splitlines()
    pipe = DSCMPipeline.from_pretrained(model)
    question: Any = Image.open("scan.png"), PARENTS, {"sex": "female", "age": 40}
    assert (np.asarray(Image.open("out.png")) == np.asarray(pipe(*question).images[0])).all()
    do = ["--do", "sex=female", "age=40", "--seed", "1"]
    main(["counterfactual", "scan.png", "--model", model, *KNOWN, *do, "-o", "one.png"])
    seeded = pipe(*question, generator=seeded_generator(1))
    assert (np.asarray(Image.open("one.png")) == np.asarray(seeded.images[0])).all()

    assert table[0].split("  ")[0] == "attribute"
    assert table[0].endswith("classifier after")
    rows = {line.split("  ")[0]: line for line in table[2:6]}
    assert list(rows) == ["age (years)", "sex", "race", "disease"]
    assert rows["age (years)"].split()[2:4] == ["63", "40"]
    assert "pleural effusion  " in rows["disease"]
    assert " %" in rows["sex"]
    assert table[-1] == "Saved to out.png"


def cells_of(path: str, size: int) -> dict[tuple[int, int], np.ndarray]:
    """The pictures of a grid, (size, size, 3), by row and column."""
    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB"))
    rows, columns = grid.shape[0] // size, grid.shape[1] // size
    tiles = grid.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return {(row, column): tiles[row, column] for row in range(rows) for column in range(columns)}


def test_a_grid_has_what_single_calls_have(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (40, 1))).save("other.png")
    do = [["sex=female"], ["sex=female", "age=40"], ["age=80"]]
    every = [word for pairs in do for word in ("--do", *pairs)]
    ask = ["counterfactual", "--model", model, *KNOWN]
    main([*ask, *every, "-o", "grid.png", "--effect", "effects.png", "--", "scan.png", "other.png"])
    tables = capsys.readouterr().out
    grid, effects = cells_of("grid.png", 16), cells_of("effects.png", 16)
    assert len(grid) == len(effects) == 2 * 4
    for row, name in enumerate(("scan.png", "other.png")):
        assert (grid[row, 0] == np.asarray(read_picture(name, 3, 16))).all()
        assert (effects[row, 0] == grid[row, 0]).all()
        for column, pairs in enumerate(do, start=1):
            main([*ask, "--do", *pairs, "-o", "one.png", "--effect", "effect.png", "--", name])
            for cell, path in ((grid, "one.png"), (effects, "effect.png")):
                assert np.abs(cell[row, column].astype(int) - cells_of(path, 16)[0, 0]).max() <= 2  # batched or not
            assert f"{name}, do({', '.join(pair.replace('=', ' = ') for pair in pairs)})" in tables


def test_an_effect_is_red_where_it_is_brighter(model: str) -> None:
    ask = ["counterfactual", "scan.png", "--model", model, *KNOWN, "--do", "age=90"]
    main([*ask, "-o", "out.png", "--effect", "effect.png"])
    before, after, effect = (cells_of(name, 16)[0, 0].astype(int) for name in ("scan.png", "out.png", "effect.png"))
    change = (after - before)[..., 0]
    assert (np.abs(change) > 10).any()
    assert (effect[change > 10, 0] > effect[change > 10, 2]).all()
    assert (effect[change < -10, 0] < effect[change < -10, 2]).all()


def test_an_example_is_named_from_anywhere_and_its_attributes_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    known = ["--parents", "age=79.89748", "sex=male", "race=Black", "disease=pleural effusion"]
    main(["counterfactual", "example:2", "--do", "sex=female", "-o", "named.png"])
    named = capsys.readouterr().out.replace("named.png", "")
    path = str(example_model() / "examples" / "2.png")
    main(["counterfactual", path, *known, "--do", "sex=female", "-o", "found.png"])
    assert capsys.readouterr().out.replace("found.png", "") == named
    assert Path("named.png").read_bytes() == Path("found.png").read_bytes()
    main(["counterfactual", "example:2", "--parents", "age=50", "--do", "sex=male", "-o", "named.png"])
    assert re.search(r"age \(years\) +50 +50", capsys.readouterr().out)  # what is given counts


def test_another_model_does_not_take_the_example_s_attributes(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["counterfactual", "example:0", "--model", model, "--do", "sex=female", "-o", "out.png"]
    assert "--parents has no value for" in refusal(capsys, *ask)
    main([*ask, *KNOWN])


def test_a_picture_is_fitted_as_in_training_and_that_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All kinds of pictures are in tests/data/test_pictures.py."""
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save("large.png")
    main(["counterfactual", "large.png", "--model", model, *KNOWN, "--do", "sex=male", "-o", "out.png"])
    assert (np.asarray(Image.open("out.png")) == np.asarray(read_picture("large.png", 1, 16))).all()
    said = capsys.readouterr().out.splitlines()[0]
    assert "white is 4,095" in said
    assert "40 x 30" in said
    main(["counterfactual", "large.png", "--fit", "--model", model, *KNOWN, "--do", "sex=male", "-o", "same.png"])
    assert Path("same.png").read_bytes() == Path("out.png").read_bytes()


def test_a_picture_of_another_size_may_be_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["--no-fit", "--model", model, *KNOWN, "--do", "sex=male", "-o", "out.png"]
    main(["counterfactual", "scan.png", *ask])
    Path("out.png").unlink()
    Image.new("L", (40, 30)).save("large.png")
    said = refusal(capsys, "counterfactual", "large.png", *ask)
    assert "IMAGE large.png " in said
    assert "--fit" in said


def test_a_mask_lies_on_the_picture(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((24, 36), np.uint8)
    mask[6:, 6:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.open("scan.png").resize((36, 24)).save("large.png")
    ask = ["counterfactual", "large.png", "--model", model, *KNOWN, "--do", "sex=female"]
    main([*ask, "--mask", "mask.png", "-o", "out.png"])
    main([*ask, "-o", "all.png"])
    seen = np.asarray(read_picture("large.png", 1, 16))
    local, anywhere = (np.asarray(Image.open(name)) for name in ("out.png", "all.png"))
    assert np.array_equal(local[:4], seen[:4])
    assert not np.array_equal(local[4:], seen[4:])
    assert not np.array_equal(anywhere[:4], seen[:4])
    capsys.readouterr()
    for wrong in ("scan.png", "nowhere.png"):
        assert "--mask" in refusal(capsys, *ask, "--mask", wrong, "-o", "new.png")


def test_what_is_not_known_is_inferred(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = ["--parents", "age=63", "sex=male", "--infer_missing_parents"]
    main(["counterfactual", "scan.png", "--model", model, *known, "--do", "disease=no finding", "-o", "out.png"])
    assert capsys.readouterr().out.count("(inferred)") == 2


def test_diffusion_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(with_classifier=False).save_pretrained("diffusion")
    Image.new("L", (8, 8), 100).save("small.png")
    known = ["--parents", "size=2", "state=off", "site=a"]
    ask = ["counterfactual", "small.png", "--model", "diffusion", *known, "--do", "site=b", "-o", "out.png"]
    main([*ask, "--num_inference_steps", "10", "--strength", "0.5"])
    with Image.open("out.png") as image:
        assert image.size == (8, 8)
    assert "classifier" not in capsys.readouterr().out
    assert "--num_inference_steps must" in refusal(capsys, *ask, "--num_inference_steps", "1001")
    assert "--strength must" in refusal(capsys, *ask, "--strength", "2")

    main(["info", "diffusion"])
    said = capsys.readouterr().out
    assert said.startswith("DiffusionDSCMPipeline of grey images of 8 x 8 pixels")
    assert "Without a classifier" in said


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--do": "weight=3"}, "--do: The graph has no variable 'weight'"),
        ({"--do": "sex=femal"}, "--do: 'sex' has no category 'femal'"),
        ({"--do": "age=old"}, "--do: 'age' must be a number years, got 'old'"),
        ({"--do": "age=nan"}, "--do: 'age' must lie in [18, 92] years, got nan"),
        ({"--do": "sex"}, "--do takes NAME=VALUE, got 'sex'"),
        ({"--do": "sex="}, "--do takes NAME=VALUE, got 'sex='"),
        ({"--parents": "sex=male sex=female"}, "--parents has 'sex' twice"),
        ({"--parents": "age=63"}, "--parents has no value for ['sex', 'race', 'disease']"),
        ({"--model": "nowhere"}, "--model nowhere "),
        ({"--model": "empty"}, "--model empty "),
        ({"image": "nowhere.png"}, "IMAGE nowhere.png "),
        ({"image": "text.png"}, "IMAGE text.png "),
        ({"image": "half.png"}, "IMAGE half.png "),
        ({"image": "."}, "IMAGE . "),
        ({"image": "odd.tif"}, "IMAGE odd.tif "),
        ({"image": "example:8"}, "IMAGE example:8 "),
        ({"image": "example:"}, "IMAGE example: "),
        ({"--effect": "out.txt"}, "--effect out.txt "),
        ({"--effect": "out.png"}, "--effect out.png "),
        ({"--effect": "no/such/out.png"}, "no/such"),
        ({"-o": "out.txt"}, "--output out.txt "),
        ({"-o": "out"}, "--output out "),
        ({"-o": "no/such/out.png"}, "no/such"),
        ({"-o": "folder.png"}, "--output folder.png "),
        ({"--seed": "-1"}, "--seed: "),
        ({"--seed": "x"}, "--seed: "),
        ({"--num_inference_steps": "0"}, "--num_inference_steps: "),
        ({"--num_inference_steps": "5"}, "--num_inference_steps 5 is for diffusion models"),
        ({"--strength": "0.5"}, "--strength 0.5 is for diffusion models"),
        ({"--nonsense": "5"}, "--nonsense"),
    ],
)
def test_mistakes_end_in_one_line(
    model: str, change: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.png").write_text("no picture")
    Path("half.png").write_bytes(Path("scan.png").read_bytes()[:-100])
    Path("empty").mkdir()
    Path("folder.png").mkdir()
    Image.new("F", (16, 16), -1).save("odd.tif")
    arguments = {"--model": model, "--do": "sex=female", "-o": "out.png", **change}
    image, known = arguments.pop("image", "scan.png"), arguments.pop("--parents", None)
    words = ["--parents", *known.split()] if known else KNOWN
    for pair in arguments.items():
        words = [*words, *pair]
    assert named in refusal(capsys, "counterfactual", image, *words)


def test_a_missing_command_and_missing_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the following arguments are required: COMMAND" in refusal(capsys)
    assert "required: IMAGE, --do, -o/--output" in refusal(capsys, "counterfactual")


def test_a_pipeline_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",))  # fmt: skip
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained("other")
    assert "--model other is a DDIMPipeline, and no pipeline of softcft." in refusal(capsys, "info", "other")


def test_a_damaged_pipeline(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(model, "damaged")
    weights = next(Path("damaged/hvae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert "--model damaged cannot be loaded: " in refusal(capsys, "info", "damaged")


# ---- info -----------------------------------------------------------------------------------------------------------


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", model])
    said = capsys.readouterr().out
    assert said.startswith("DSCMPipeline of grey images of 16 x 16 pixels\n")
    for row in (
        r"age +continuous +18 to 92 years\n",
        r"sex +binary +male, female\n",
        r"race +categorical +White, Asian, Black\n",
        r"disease +binary +no finding, pleural effusion +age\n",
        r"classifier +AttributeClassifier +[\d,]+\n",
        r"hvae +HVAEModel +[\d,]+\n",
    ):
        assert len(re.findall("(?m)^" + row, said)) == 1, row
    assert "example" not in said


def test_a_model_s_names_do_not_command_the_terminal(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(model, "hostile")
    for config in Path("hostile").glob("*/config.json"):
        config.write_text(json.dumps(json.loads(config.read_text())).replace('"male"', '"m\\u001b[2Jle"'))
    main(["info", "hostile"])
    assert "m?[2Jle" in capsys.readouterr().out
    ask = ["counterfactual", "scan.png", "--model", "hostile", *KNOWN, "--do", "sex=female", "-o", "out.png"]
    assert "\x1b" not in refusal(capsys, *ask)


def test_without_a_model_it_is_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    said = capsys.readouterr().out
    assert said.startswith("The example model that comes with softcft; example:0")
    assert str(example_model()) in said
    assert "DSCMPipeline of grey images of 64 x 64 pixels" in said


# ---- the command as such --------------------------------------------------------------------------------------------


def test_help_is_quick_and_its_examples_have_the_flags_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from softcft.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with pytest.raises(SystemExit) as exit_:
        main(["counterfactual", "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert "softcft counterfactual example:0 --do" in said


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"softcft {version('softcft')}\n"


def test_the_entry_point_of_the_package() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["softcft"].split(":")
    assert getattr(import_module(module), name) is main
