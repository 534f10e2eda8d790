import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from softcft.data.phantom import PHANTOM_GRAPH, draw_block, render
from softcft.evaluation.figures import attribute_captions, cft_comparison, counterfactual_grid, training_curves
from softcft.graph import CausalGraph, Variable

HEADINGS = ["do(sex = female)", "do(disease = pleural effusion)"]


@pytest.fixture
def phantom():
    """Two subjects and their true counterfactuals."""
    attributes, noise = draw_block("test", 0, 16, seed=0)
    attributes, noise = attributes[:2], noise[:2]
    counterfactuals = {}
    for heading, do in zip(HEADINGS, [{"sex": "female"}, {"disease": "pleural effusion"}], strict=True):
        values, mask = PHANTOM_GRAPH.encode_do(do, 2)
        counterfactuals[heading] = render(torch.where(PHANTOM_GRAPH.expand(mask), values, attributes), noise)
    return render(attributes, noise), counterfactuals, attribute_captions(PHANTOM_GRAPH, attributes)


def pixels(figure):
    """The drawn figure; any warning of the layout is an error."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.savefig(io.BytesIO(), format="pdf")
    return np.asarray(canvas.buffer_rgba())[..., :3]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in [axes.title, *axes.texts]]


def test_captions_are_in_words():
    parents = PHANTOM_GRAPH.encode({"age": 63, "sex": "female", "race": "White", "disease": "no finding"})
    assert attribute_captions(PHANTOM_GRAPH, parents) == ["age 63 years, female, White, no finding"]


def test_captions_name_the_variable_of_a_number():
    graph = CausalGraph([Variable(name="digit", kind="categorical", categories=("0", "1", "2"))])
    assert attribute_captions(graph, graph.encode({"digit": ["2", "0"]})) == ["digit 2", "digit 0"]


def test_grid_has_two_rows_per_subject_and_one_colour_bar(phantom):
    image, counterfactuals, captions = phantom
    figure = counterfactual_grid(image, counterfactuals, captions)
    assert len(figure.axes) == 2 * 2 * 3 + 1
    assert figure.axes[-1].get_ylabel() == "change in grey value (full range = 1)"
    assert {"original", "do(sex = female)", "do(disease =\npleural effusion)"} <= set(texts(figure))
    assert captions[0].replace(", ", "\n") in texts(figure)
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 50


def test_effects_are_differences_on_one_symmetric_scale(phantom):
    image, counterfactuals, captions = phantom
    figure = counterfactual_grid(image, counterfactuals, captions)
    (shown,) = figure.axes[4].images  # second row, first counterfactual of the first subject
    effect = (counterfactuals[HEADINGS[0]][0, 0] - image[0, 0]) / 2
    torch.testing.assert_close(torch.tensor(shown.get_array().data), effect)
    limits = {axes.images[0].get_clim() for i in (4, 5, 10, 11) for axes in [figure.axes[i]]}
    ((low, high),) = limits
    assert low == -high < 0


def test_no_effect_is_white(phantom):
    image, counterfactuals, captions = phantom
    figure = counterfactual_grid(image, {heading: image for heading in counterfactuals}, captions)
    assert figure.axes[4].images[0].get_clim() == (-1 / 255, 1 / 255)
    assert pixels(figure).shape[0] > 100


def test_colour_images_are_shown_in_colour(phantom):
    image, counterfactuals, captions = phantom
    colour = {heading: x.expand(-1, 3, -1, -1) for heading, x in counterfactuals.items()}
    figure = counterfactual_grid(image.expand(-1, 3, -1, -1), colour, captions)
    assert figure.axes[0].images[0].get_array().shape == (16, 16, 3)
    assert figure.axes[4].images[0].get_array().shape == (16, 16)
    assert pixels(figure).shape[0] > 100


def test_comparison_has_two_rows_per_subject_and_model(phantom):
    image, counterfactuals, captions = phantom
    figure = cft_comparison(image, {"No CFT": counterfactuals, "Soft-CFT": counterfactuals}, captions)
    assert len(figure.axes) == 2 * 2 * 2 * 3 + 1
    assert texts(figure).count("Soft-CFT") == 2
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 50


def test_images_that_do_not_fit_are_refused(phantom):
    image, counterfactuals, captions = phantom
    with pytest.raises(ValueError, match=r"image must have shape \(B, C, H, W\)"):
        counterfactual_grid(image[0], counterfactuals, captions)
    with pytest.raises(ValueError, match="nothing to show"):
        counterfactual_grid(image, {}, captions)
    with pytest.raises(ValueError, match=r"counterfactuals 'do\(sex\)' must have the shape of image"):
        counterfactual_grid(image, {"do(sex)": image[:1]}, captions)
    with pytest.raises(ValueError, match="captions must be 2, one per image, got 1"):
        counterfactual_grid(image, counterfactuals, captions[:1])
    with pytest.raises(ValueError, match="no model to show"):
        cft_comparison(image, {}, captions)
    with pytest.raises(ValueError, match=r"counterfactuals\['hard'\] must have the headings"):
        cft_comparison(image, {"soft": counterfactuals, "hard": {HEADINGS[0]: image}}, captions)


def test_training_curves_have_a_panel_per_key_and_a_line_per_run():
    soft = [{"step": step, "loss": 1 / step, "nelbo": 2.0} for step in (10, 20, 30)]
    hard = [{"step": 10, "loss": 3.0}, {"step": 20, "lr": 0.1}]
    figure = training_curves({"soft": soft, "hard": hard}, {"loss": "loss (nats)", "nelbo": "NELBO (nats/dim)"})
    loss, nelbo = figure.axes
    assert [loss.get_ylabel(), nelbo.get_ylabel()] == ["loss (nats)", "NELBO (nats/dim)"]
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[10, 0.1], [20, 0.05], [30, 1 / 30]], [[10, 3.0]]]
    assert [line.get_color() for line in loss.lines] == [line.get_color() for line in nelbo.lines]
    assert [text.get_text() for text in figure.legends[0].texts] == ["soft", "hard"]
    assert pixels(figure).min() < 100


def test_a_metric_that_no_run_has_is_refused():
    with pytest.raises(ValueError, match=r"No record has the metric 'nelbo'; there are \['loss', 'step'\]"):
        training_curves({"soft": [{"step": 1, "loss": 1.0}]}, {"nelbo": "NELBO"})
    with pytest.raises(ValueError, match="keys is empty"):
        training_curves({}, {})
