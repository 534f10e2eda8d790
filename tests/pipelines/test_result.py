"""How a result shows itself: as text, as a figure, and what it says of the factual attributes."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from softcft import CausalGraph, DSCMPipeline, DSCMPipelineOutput, Variable
from tests.pipelines.test_diffusion_dscm import build as build_diffusion
from tests.pipelines.test_dscm import GREY, SIZE, build, close, row

KNOWN = [{"age": 30.0}, {}, {"age": 80.0, "sex": "male"}]


@pytest.fixture(scope="module")
def pipe() -> DSCMPipeline:
    return build()


def ask(pipe: DSCMPipeline, output_type: str = "pil") -> DSCMPipelineOutput:
    return pipe([GREY] * 3, KNOWN, {"sex": "female"}, infer_missing_parents=True, output_type=output_type)


def texts(result: DSCMPipelineOutput) -> list[str]:
    return [text.get_text() for axes in result.plot().axes for text in axes.texts]


# ---- factual attributes ---------------------------------------------------------------------------------------------


def test_factual_attributes_are_complete_and_say_what_was_inferred(pipe: DSCMPipeline) -> None:
    result = ask(pipe)
    assert list(result.factual_parents) == list(result.inferred_parents) == list(result.parents)
    for i, known in enumerate(KNOWN):
        for name, values in result.factual_parents.items():
            assert result.inferred_parents[name][i] == (name not in known)
            seen = known.get(name) or result.factual_predictions[name][i]
            expected = max(seen, key=seen.get) if isinstance(seen, dict) else seen
            assert values[i] == (pytest.approx(expected, abs=1e-3) if name == "age" else expected)
            if name in ("age", "race"):  # which an intervention on sex does not reach
                assert result.parents[name][i] == values[i]


def test_given_attributes_come_back_once_for_each_intervention(pipe: DSCMPipeline) -> None:
    result = pipe(GREY, row(1), {"race": ["White", "Asian"]})
    assert close(result.factual_parents, {name: [value] * 2 for name, value in row(1).items()})
    assert set(map(tuple, result.inferred_parents.values())) == {(False, False)}


def test_samples_have_no_factual_attributes(pipe: DSCMPipeline) -> None:
    assert pipe.sample(1).factual_parents is pipe.sample(1).inferred_parents is None


def test_the_tuple_is_that_of_the_images_and_what_changed(pipe: DSCMPipeline) -> None:
    images, parents, effects, before, after = pipe(GREY, row(0), output_type="np", return_dict=False)
    assert images.shape == effects.shape == (1, SIZE, SIZE, 1)
    assert set(parents) == set(before) == set(after)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_copies_are_the_same(pipe: DSCMPipeline, copied) -> None:
    result = ask(pipe, "np")
    assert copied(result).inferred_parents == result.inferred_parents
    assert repr(copied(result)) == repr(result)


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_the_text_has_attributes_and_predictions_and_no_pixels(pipe: DSCMPipeline, output_type: str) -> None:
    result = ask(pipe, output_type)
    said = repr(result)
    assert str(result) == said
    assert said.count("(inferred)") == sum(map(sum, result.inferred_parents.values()))
    for words in (*result.parents, "female", "classifier", str(SIZE)):
        assert words in said
    assert "[[" not in said
    assert max(map(len, said.splitlines())) < 120


@pytest.mark.parametrize("number", [1, 5, 60])
def test_the_text_fits_a_screen_and_tells_what_it_leaves_out(pipe: DSCMPipeline, number: int) -> None:
    said = repr(pipe(GREY, row(0), {"age": list(np.linspace(20, 90, number))}))
    assert len(said.splitlines()) < 50
    assert ("more" in said) == (number > 4)


def test_many_attributes_fit_a_screen() -> None:
    graph = CausalGraph([Variable(name=f"a{i}", kind="binary", categories=("no", "yes")) for i in range(30)])
    values = {name: ["no"] * 50 for name in graph.names}
    result = DSCMPipelineOutput([Image.new("L", (8, 8))] * 50, values, factual_parents=values)
    assert len(repr(result).splitlines()) < 50
    assert "49 more" in repr(result)


def test_what_is_not_there_is_not_shown() -> None:
    pipe = build_diffusion(with_classifier=False)
    result = pipe.sample(2, num_inference_steps=10)
    for said in (repr(result), " ".join(texts(result))):
        assert "classifier" not in said
        assert "factual" not in said
        assert result.parents["site"][0] in said
    asked = pipe(np.zeros((9, 9), np.uint8), {"size": 2, "state": "on", "site": "a"}, num_inference_steps=10, fit=True)
    assert "classifier" not in repr(asked)
    assert "factual" in repr(asked)
    assert isinstance(repr(DSCMPipelineOutput([])), str)


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_figure_has_original_counterfactual_and_effect(channels: int, output_type: str) -> None:
    pipe = build(channels=channels)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = pipe(image, row(0), {"race": ["White", "Asian"]}, output_type=output_type)
    figure = result.plot()
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:8] if axes.images]
    assert len(shown) == 6
    for i in range(2):
        before, after, effect = shown[3 * i : 3 * i + 3]
        assert before.reshape(image.shape) == pytest.approx(image / 255, abs=3e-3)
        change = (after - before).reshape(SIZE, SIZE, channels).mean(axis=2)
        assert effect == pytest.approx(change, abs=5e-3)
    assert "Asian" in texts(result)


def test_the_picture_of_a_notebook(pipe: DSCMPipeline) -> None:
    sizes = []
    for number in (1, 4, 40):
        png = pipe(GREY, row(0), {"age": list(np.linspace(20, 90, number))})._repr_png_()
        sizes.append(Image.open(io.BytesIO(png)).size)
    assert sizes[0][1] < sizes[1][1]
    assert abs(sizes[2][1] - sizes[1][1]) < 40  # no more than 4 are shown
    assert max(max(size) for size in sizes) < 1600


def test_names_with_dollars_are_drawn(pipe: DSCMPipeline) -> None:
    image = Image.new("L", (8, 8))
    values = {"$x_1$": ["a$b"], "$": ["$$"]}
    result = DSCMPipelineOutput([image], values, np.zeros((1, 8, 8, 1), np.float32), factual_parents=values)
    assert result._repr_png_() is not None


def test_other_channels_are_shown_as_text() -> None:
    result = build(channels=2)(np.zeros((SIZE, SIZE, 2), np.uint8), row(0), output_type="np")
    assert result._repr_png_() is None
    assert "age" in repr(result)
    with pytest.raises(ValueError, match="channels"):
        result.plot()
