import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from softcft.data.phantom import PHANTOM_GRAPH, draw_block, render
from softcft.evaluation.figures.curves import training_curves
from softcft.evaluation.figures.grids import cft_comparison, counterfactual_grid, example_grid

HEADINGS = ["do(sex)", "do(disease)"]
VALUES = {"do(sex)": ["female", "male"], "do(disease)": ["pleural effusion", "no finding"]}


@pytest.fixture
def phantom():
    """Two subjects and their true counterfactuals."""
    attributes, noise = draw_block("test", 0, 16, seed=0)
    attributes, noise = attributes[:2], noise[:2]
    counterfactuals = {}
    for heading, do in zip(HEADINGS, [{"sex": VALUES["do(sex)"]}, {"disease": VALUES["do(disease)"]}], strict=True):
        values, mask = PHANTOM_GRAPH.encode_do(do, 2)
        counterfactuals[heading] = render(torch.where(PHANTOM_GRAPH.expand(mask), values, attributes), noise)
    return (
        render(attributes, noise),
        counterfactuals,
        ["age 63 years, female, White, no finding", "age 54 years, male, Black, no finding"],
    )


def of_first(phantom):
    """The comparison of two models, on the first subject."""
    image, counterfactuals, captions = phantom
    own = {heading: x[0] for heading, x in counterfactuals.items()}
    values = {heading: VALUES[heading][0] for heading in own}
    return cft_comparison(image[0], {"No CFT": own, "Soft-CFT": own}, captions[0], values)


def pixels(figure):
    """The drawn figure; any warning of the layout is an error."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.savefig(io.BytesIO(), format="pdf")
    return np.asarray(canvas.buffer_rgba())[..., :3]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in [axes.title, *axes.texts]]


def test_grid_has_two_rows_per_subject_and_one_colour_bar(phantom):
    image, counterfactuals, captions = phantom
    figure = counterfactual_grid(image, counterfactuals, captions, VALUES)
    assert len(figure.axes) == 2 * 2 * 3 + 1
    assert figure.axes[-1].get_ylabel() == "change in grey value (full range = 1)"
    assert texts(figure)[:3] == ["original", "do(sex)", "do(disease)"]
    assert captions[0].replace(", ", "\n") in texts(figure)
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 50


def test_each_counterfactual_stands_over_its_value(phantom):
    image, counterfactuals, captions = phantom
    grid = counterfactual_grid(image, counterfactuals, captions, VALUES)
    shown = [axes.get_xlabel() for axes in grid.axes[:-1]]
    assert shown == ["", "female", "pleural effusion", "", "", "", "", "male", "no finding", "", "", ""]


def test_models_stand_side_by_side_and_interventions_below_each_other(phantom):
    image, counterfactuals, captions = phantom
    figure = of_first(phantom)
    grid = np.array(figure.axes[:-1]).reshape(2, 5)
    assert [axes.get_title() for axes in grid[0]] == ["original", "No CFT", "its effect", "Soft-CFT", "its effect"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["do(sex)\nfemale", "do(disease)\npleural effusion"]
    assert figure.get_suptitle() == captions[0]
    for row, x in zip(grid, counterfactuals.values(), strict=True):
        effect = torch.tensor(row[2].images[0].get_array().data)
        torch.testing.assert_close(effect, (x[0, 0] - image[0, 0]) / 2)
    assert len({axes.images[0].get_clim() for axes in grid[:, [2, 4]].flat}) == 1


@pytest.mark.parametrize("size", [32, 64])
def test_texts_do_not_overlap(phantom, size):
    image, counterfactuals, captions = phantom
    image, female, ill = (torch.nn.functional.interpolate(x, size=size) for x in (image, *counterfactuals.values()))
    counterfactuals = {"do(sex)": female, "do(disease)": ill, "do(intensity)": ill, "do(race)": female}
    # The longest values of the data sets, and one that needs a second line.
    values = {
        "do(sex)": ["female"] * 2,
        "do(disease)": ["pleural effusion"] * 2,
        "do(intensity)": ["67.4 grey levels"] * 2,
        "do(race)": ["Asian, Native or Pacific Islander"] * 2,
    }
    figure = counterfactual_grid(image, counterfactuals, captions, values)
    FigureCanvasAgg(figure).draw()
    written = [text for axes in figure.axes[:-1] for text in (axes.title, axes.xaxis.label) if text.get_text()]
    assert len(written) == 5 + 2 * 4
    boxes = [text.get_window_extent() for text in written] + [axes.bbox for axes in figure.axes[:-1]]
    for i, box in enumerate(boxes):
        # A hair of overlap is the rounding of the layout.
        assert not any(box.padded(-0.5).overlaps(other) for other in boxes[i + 1 :])
    assert max(box.width for box in boxes[: len(written)]) <= min(box.width for box in boxes[len(written) :])
    assert min(box.height for box in boxes[len(written) :]) > 0.8 * 1.25 * figure.dpi


@pytest.mark.parametrize("models", [["Hard-CFT"], ["No CFT", "Hard-CFT", "Soft-CFT", "Matched-CFT"]])
def test_texts_of_a_comparison_do_not_overlap(phantom, models):
    image, counterfactuals, _ = phantom
    values = {f"do({name})": "Asian, Native or Pacific Islander" for name in ("sex", "race", "intensity", "disease")}
    images = {heading: counterfactuals["do(sex)"][0] for heading in values}
    caption = "age 63 years, female, Asian, Native or Pacific Islander, pleural effusion, intensity 67.4 grey levels"
    figure = cft_comparison(image[0], dict.fromkeys(models, images), caption, values)
    FigureCanvasAgg(figure).draw()
    pictures = figure.axes[:-1]
    written = [text for axes in pictures for text in (axes.title, axes.yaxis.label) if text.get_text()]
    assert len(written) == 1 + 2 * len(models) + len(values)
    boxes = [text.get_window_extent() for text in [*written, *figure.texts]] + [axes.bbox for axes in pictures]
    for i, box in enumerate(boxes):
        assert not any(box.padded(-0.5).overlaps(other) for other in boxes[i + 1 :])
        assert figure.bbox.padded(4).contains(*box.min)
        assert figure.bbox.padded(4).contains(*box.max)


def test_effects_are_differences_on_one_symmetric_scale(phantom):
    image, counterfactuals, captions = phantom
    figure = counterfactual_grid(image, counterfactuals, captions, VALUES)
    (shown,) = figure.axes[4].images  # second row, first counterfactual of the first subject
    effect = (counterfactuals[HEADINGS[0]][0, 0] - image[0, 0]) / 2
    torch.testing.assert_close(torch.tensor(shown.get_array().data), effect)
    limits = {axes.images[0].get_clim() for i in (4, 5, 10, 11) for axes in [figure.axes[i]]}
    ((low, high),) = limits
    assert low == -high < 0


def test_no_effect_is_white(phantom):
    image, counterfactuals, captions = phantom
    figure = counterfactual_grid(image, {heading: image for heading in counterfactuals}, captions, VALUES)
    assert figure.axes[4].images[0].get_clim() == (-1 / 255, 1 / 255)
    assert pixels(figure).shape[0] > 100


def test_colour_images_are_shown_in_colour(phantom):
    image, counterfactuals, captions = phantom
    colour = {heading: x.expand(-1, 3, -1, -1) for heading, x in counterfactuals.items()}
    figure = counterfactual_grid(image.expand(-1, 3, -1, -1), colour, captions, VALUES)
    assert figure.axes[0].images[0].get_array().shape == (16, 16, 3)
    assert figure.axes[4].images[0].get_array().shape == (16, 16)
    assert pixels(figure).shape[0] > 100


def test_training_curves_have_a_panel_per_key_and_a_line_per_run():
    soft = [{"step": step, "loss": 1 / step, "nelbo": 2.0} for step in (10, 20, 30)]
    hard = [{"step": 10, "loss": 3.0}, {"step": 20, "lr": 0.1}]
    figure = training_curves({"soft": soft, "hard": hard}, {"loss": "loss (nats)", "nelbo": "NELBO (nats/dim)"})
    loss, _ = figure.axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[10, 0.1], [20, 0.05], [30, 1 / 30]], [[10, 3.0]]]
    assert pixels(figure).min() < 100
    # No wider than a page, however many there are.
    wide = training_curves({"soft": [{"step": 1, **dict.fromkeys("abcdefg", 1.0)}]}, {key: key for key in "abcdefg"})
    assert len(wide.axes) == 7
    assert wide.get_figwidth() < 7.5


def test_examples_are_shown_in_rows_of_any_length(phantom):
    image, _, captions = phantom
    rows = {"sex: female": image, "age": image[:1]}
    figure = example_grid(rows, {"sex: female": captions, "age": captions[:1]})
    assert len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes] == ["sex: female", "", "age", ""]
    assert figure.axes[0].get_xlabel().replace("\n", " ") == captions[0]
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 50
    coloured = {"a": torch.full((1, 3, 8, 8), 1.0) * torch.tensor([1, -1, -1])[:, None, None]}
    assert (pixels(example_grid(coloured, {"a": ["red"]})) == [255, 0, 0]).all(axis=-1).any()


def test_a_run_of_one_record_is_seen():
    figure = training_curves({"hvae": [{"step": 20, "nll": 3.0}]}, {"nll": "NLL"})
    assert figure.axes[0].lines[0].get_marker() == "o"
