"""What the app reads: pipelines, examples and pictures, and what it refuses."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softcft import DSCMPipeline
from softcft.app import main
from softcft.app.models import Model, fit_mask, fit_upload, load_models, propose, read_examples, steps_choices
from softcft.pipelines.query import ImageFormat
from tests.pipelines.test_diffusion_dscm import build
from tests.recipes.small_pipeline import make_pipeline

GREY, COLOUR = ImageFormat(1, 16), ImageFormat(3, 16)


def file(picture: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("runs") / "soft")


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Model:
    """With a folder of its own, for examples."""
    shutil.copytree(folder, tmp_path / "model")
    return Model("model", str(tmp_path / "model"), DSCMPipeline.from_pretrained(folder))


def write_examples(model: Model, table: str) -> None:
    examples = Path(model.source, "examples")
    examples.mkdir(exist_ok=True)
    (examples / "metadata.csv").write_text(table)
    Image.new("L", (16, 16), 90).save(examples / "a.png")


# ---- pictures -----------------------------------------------------------------------------------------------------


def test_a_mask_lies_on_the_upload_or_on_what_the_model_takes() -> None:
    upload, white = file(Image.new("L", (40, 32))), Image.new("L", (20, 32), 255)
    wide, fitted = Image.new("L", (40, 32)), Image.new("L", (16, 16))
    wide.paste(white, (20, 0))
    fitted.paste(white, (8, 0))
    expected = np.asarray(fitted) / 255
    for mask, picture in ((wide, upload), (fitted, upload), (fitted, None)):
        np.testing.assert_array_equal(fit_mask(file(mask), picture, 16), expected)
    for bad, picture in ((wide, None), (wide.rotate(90, expand=True), upload), (Image.new("L", (40, 32)), upload)):
        with pytest.raises(ValueError, match="mask"):
            fit_mask(file(bad), picture, 16)
    with pytest.raises(ValueError, match="mask"):
        fit_mask(b"no picture", None, 16)


def test_a_picture_that_fits_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    read, note = fit_upload(file(Image.fromarray(pixels)), GREY)
    assert (read == pixels).all()
    assert note == ""


def test_another_size_and_colour_are_made_to_fit_and_told() -> None:
    read, note = fit_upload(file(Image.new("RGBA", (40, 30), "red")), GREY)
    assert read.shape == (16, 16)
    assert "40 x 30" in note
    assert "middle square" in note
    assert "colour" in note
    read, note = fit_upload(file(Image.new("L", (32, 32))), COLOUR)
    assert read.shape == (16, 16, 3)
    assert "grey" in note


@pytest.mark.parametrize("content", [b"", b"no picture", file(Image.new("L", (64, 64)))[:60]])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="picture cannot be used"):
        fit_upload(content, GREY)


def test_what_is_white_in_more_than_8_bits_is_told() -> None:
    read, note = fit_upload(file(Image.fromarray(np.full((16, 16), 2048, np.uint16))), GREY)
    assert (read == 128).all()
    assert "white is 4,095" in note


# ---- examples -----------------------------------------------------------------------------------------------------


def test_examples_are_pictures_and_natural_values(model: Model) -> None:
    write_examples(model, "file_name,age,sex,race,other\na.png,44.5,male,,x\n")
    (example,) = read_examples(model)
    assert example.picture.shape == (16, 16)
    assert example.parents == {"age": 44.5, "sex": "male"}


def test_a_pipeline_needs_no_examples(model: Model) -> None:
    assert read_examples(model) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,44,robot", "line 2: 'sex' has no category 'robot'"),
        ("a.png,old,male", "line 2: could not convert"),
        ("a.png,440,male", "line 2: 'age'"),
        ("b.png,44,male", "line 2"),
        ("../secret.png,44,male", "not in the folder"),
    ],
)
def test_bad_examples_are_refused(model: Model, row: str, message: str) -> None:
    write_examples(model, f"file_name,age,sex\n{row}\n")
    Image.new("L", (16, 16)).save(Path(model.source, "secret.png"))
    with pytest.raises(ValueError, match=message):
        read_examples(model)


# ---- models -------------------------------------------------------------------------------------------------------


def test_models_are_named_by_what_tells_them_apart(folder: Path, tmp_path: Path) -> None:
    others = [tmp_path / "one" / "soft", tmp_path / "two" / "soft"]
    for other in others:
        shutil.copytree(folder, other)
    assert [model.name for model in load_models([str(folder)])] == ["soft"]
    assert [model.name for model in load_models([str(other) for other in others])] == ["one/soft", "two/soft"]


def test_models_of_another_graph_or_of_none_are_refused(folder: Path, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another graph"):
        load_models([str(folder), str(tmp_path / "other")])
    with pytest.raises(ValueError, match="no folder"):
        load_models([str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match="twice"):
        load_models([str(folder)] * 2)


def test_the_same_question_has_the_same_answer(model: Model) -> None:
    picture = np.full((16, 16), 90, np.uint8)
    parents = propose([model], picture)
    assert set(parents) == set(model.graph.names)
    answers = [model.ask(picture, parents, {"age": [20.0, 90.0]}, None) for _ in range(2)]
    assert answers[0].images.shape == (2, 16, 16, 1)
    assert (answers[0].images == answers[1].images).all()
    from_python = model.pipeline(picture, parents, {"age": [20.0, 90.0]}, output_type="np")
    assert (answers[0].images == from_python.images).all()


def test_without_a_classifier_nothing_is_proposed(folder: Path) -> None:
    pipeline = DSCMPipeline.from_pretrained(folder)
    pipeline.register_modules(classifier=None)
    with pytest.raises(ValueError, match="classifier"):
        propose([Model("soft", "", pipeline)], np.zeros((16, 16), np.uint8))


def test_diffusion_models_in_colour_take_steps(model: Model) -> None:
    assert steps_choices([model]) is None
    colour = Model("diffusion", "", build(with_classifier=False, channels=3))
    choices, usual = steps_choices([model, colour]) or ([], 0)
    assert usual == 50
    assert all(1000 % steps == 0 for steps in choices)
    picture = np.full((8, 8, 3), 90, np.uint8)
    graph_values = {"size": 2.0, "state": "off", "site": "a"}
    output = colour.ask(picture, graph_values, {"state": "on"}, 5)
    assert output.images.shape == (1, 8, 8, 3)


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"), [(["--port", "0"], "--port"), (["no/such/folder"], "MODEL"), (["--prot", "1"], "--prot")]
)
def test_the_command_refuses_in_a_sentence(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_missing_gradio_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([])
    assert 'pip install "softcft[app]"' in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "outputs/mine/soft" in text
    assert "ssh -L" in text
