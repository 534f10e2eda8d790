import re

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from softcft.cft.interventions import other_values
from softcft.evaluation.embeddings import attribute_modes, shift_rows
from softcft.evaluation.figures.shift import shift_figures
from softcft.graph import CausalGraph, Variable

GRAPH = CausalGraph(
    [
        Variable(name="age", kind="continuous", low=18, high=92, unit="years"),
        Variable(name="race", kind="categorical", categories=("White", "Asian", "Black")),
        Variable(name="disease", kind="binary", categories=("no finding", "pleural effusion"), parents=("age",)),
    ]
)
INTERVENTIONS = list(GRAPH.names)


@pytest.fixture(scope="module")
def models():
    """The modes, embeddings and labels of made-up models, of which hard amplifies."""
    generator = torch.Generator().manual_seed(0)
    n = 240
    real = torch.cat(
        [
            torch.rand(n, 1, generator=generator) * 2 - 1,
            torch.nn.functional.one_hot(torch.arange(n) % 3, 3),
            (torch.rand(n, 1, generator=generator) < 0.4).float(),
        ],
        dim=1,
    )
    labels = real[:, None].repeat(1, 4, 1)
    for i, name in enumerate(INTERVENTIONS, start=1):
        labels[:, i, GRAPH.slices[name]] = other_values(GRAPH, name, real, generator)
    noise = torch.randn(n, 1, 5, generator=generator)
    embeddings = {}
    for model, strength in {"No CFT": 0.3, "Hard-CFT": 1.3, "Soft-CFT": 1.0}.items():
        strengths = torch.tensor([1, strength, strength, strength])[:, None]
        own = 0.3 * torch.randn(n, 4, 5, generator=generator)
        centred = (labels - real.mean(dim=0)) * torch.tensor([2.0, 5, 5, 5, 9])
        embeddings[model] = strengths * centred + noise + own * torch.tensor([0.0, 1, 1, 1])[:, None]
    return attribute_modes(embeddings["No CFT"][:, 0], GRAPH, real), embeddings, dict.fromkeys(embeddings, labels)


def shift_figure(*args, seed):
    (figure,) = shift_figures(*args, seed)
    return figure


def draw(figure):
    """Draw the figure; any warning of the layout is an error."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def test_models_are_columns_and_subgroups_rows(models):
    figure = shift_figure(GRAPH, "race", *models, INTERVENTIONS, range(240), seed=0)
    assert [axes.get_title() for axes in figure.axes] == ["No CFT", "Hard-CFT", "Soft-CFT", *[""] * 6]
    assert [axes.get_ylabel() for axes in figure.axes] == ["White", "", "", "Asian", "", "", "Black", "", ""]
    mode = models[0].modes["race"].component + 1
    assert figure.get_supxlabel() == f"PCA mode {mode} (encodes race), in standard deviations of real images"
    assert figure.get_figwidth() <= 7.5
    for row in np.reshape(figure.axes, (3, 3)):
        assert len({axes.get_xlim() for axes in row}) == len({axes.get_ylim() for axes in row}) == 1


def test_curves_are_densities_of_the_subgroup(models):
    modes, embeddings, parents = models
    figure = shift_figure(GRAPH, "race", *models, INTERVENTIONS, range(240), seed=0)
    panel = figure.axes[1]  # White with Hard-CFT
    white = parents["Hard-CFT"][:, 0, 1] == 1
    x, y = panel.lines[2].get_data()  # do(disease)
    scores = modes.project(embeddings["Hard-CFT"][white, 3], "race")
    np.testing.assert_allclose(y, stats.gaussian_kde(scores)(x))
    filled = panel.collections[0].get_paths()[0].vertices
    real = stats.gaussian_kde(modes.project(embeddings["Hard-CFT"][white, 0], "race"))
    upper = filled[1:301]  # the outline starts and ends at the axis
    np.testing.assert_allclose(upper[:, 1], real(upper[:, 0]), atol=1e-12)
    # The limits leave nothing out.
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    assert y.max() < panel.get_ylim()[1]


def test_legends_have_the_numbers_of_the_table(models):
    modes, embeddings, parents = models
    figure = shift_figure(GRAPH, "disease", *models, INTERVENTIONS, range(240), seed=5)
    for i, model in enumerate(embeddings):
        df = shift_rows(GRAPH, modes, embeddings[model], parents[model], INTERVENTIONS, range(240), seed=5)
        values = df.set_index(["intervention", "variable", "metric"])["value"]
        for label, axes in zip(GRAPH["disease"].categories, figure.axes[i::3], strict=True):
            written = [re.sub(r"\s", " ", text.get_text()) for text in axes.get_legend().texts]
            count = int((parents[model][:, 0, 4] == GRAPH["disease"].categories.index(label)).sum())
            assert written == [f"real (n = {count})"] + [
                f"{who}: E = {values[name, 'disease', f'energy[{label}]']:.2f}, "
                f"p = {values[name, 'disease', f'energy_p[{label}]']:.3f}"
                for name, who in (
                    ("age", "set by do(age)"),
                    ("race", "do(race)"),
                    ("disease", "set by do(disease)"),
                )
            ]


def test_interventions_differ_in_colour_and_dashes(models):
    figure = shift_figure(GRAPH, "race", *models, INTERVENTIONS, range(240), seed=0)
    styles = [[(line.get_color(), str(line._dash_pattern)) for line in axes.lines] for axes in figure.axes]
    assert all(style == styles[0] for style in styles)
    colors, dashes = zip(*styles[0], strict=True)
    assert len(set(colors)) == len(set(dashes)) == 3


@pytest.mark.parametrize(("name", "number"), [("disease", 1), ("race", 3), ("age", 4)])
def test_texts_fit(models, name, number):
    modes, embeddings, parents = models
    names = [*embeddings, "True counterfactuals"][-number:]
    embeddings, parents = (
        {model: tensors.get(model, tensors["Soft-CFT"]) for model in names} for tensors in (embeddings, parents)
    )
    figure = shift_figure(GRAPH, name, modes, embeddings, parents, INTERVENTIONS, range(240), seed=0)
    renderer = draw(figure)
    assert figure.get_figwidth() <= 7.5
    for axes in figure.axes:
        assert axes.bbox.width > 0.85 * figure.bbox.width / number
        legend = axes.get_legend()
        assert legend.texts[0].get_fontsize() == 7.5
        box = legend.get_window_extent(renderer)
        assert box.x0 >= axes.bbox.x0 - 1
        assert box.x1 <= axes.bbox.x1 + 1
        # No curve is behind the legend.
        peak = max(np.max(line.get_ydata()) for line in axes.lines)
        assert axes.transData.transform((0, peak))[1] < box.y0
    labels = [text for axes in figure.axes for text in axes.get_xticklabels() if text.get_text()]
    labels += [axes.yaxis.label for axes in figure.axes] + [figure._supxlabel] + [axes.title for axes in figure.axes]
    boxes = [text.get_window_extent(renderer) for text in labels if text.get_text()]
    for i, box in enumerate(boxes):
        assert figure.bbox.padded(1).containsx(box.x0)
        assert figure.bbox.padded(1).containsx(box.x1)
        assert not any(box.padded(-0.5).overlaps(other) for other in boxes[i + 1 :])


def test_images_that_all_look_the_same_have_no_curve(models):
    modes, embeddings, parents = models
    collapsed = embeddings["Soft-CFT"].clone()
    collapsed[:, 3] = collapsed[0, 3]
    labels = {"Soft-CFT": parents["Soft-CFT"]}
    figure = shift_figure(GRAPH, "race", modes, {"Soft-CFT": collapsed}, labels, INTERVENTIONS, range(240), seed=0)
    draw(figure)
    assert [bool(np.isnan(line.get_ydata()).all()) for line in figure.axes[0].lines] == [False, False, True]
    assert np.isfinite(figure.axes[0].get_ylim()).all()
