import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from softcft.cft.interventions import other_values
from softcft.evaluation.figures.strength import strength_figure
from softcft.evaluation.metrics import evidence
from softcft.evaluation.strength import lookalikes
from softcft.graph import CausalGraph, Variable

GRAPH = CausalGraph(
    [
        Variable(name="age", kind="continuous", low=18, high=92, unit="years"),
        Variable(name="race", kind="categorical", categories=("White", "Asian", "Black")),
        Variable(name="disease", kind="binary", categories=("no finding", "pleural effusion"), parents=("age",)),
        Variable(name="cost in $", kind="continuous", low=0, high=1),
    ]
)
NAMES = list(GRAPH.names)
TRUTH = "True counterfactuals"


@pytest.fixture(scope="module")
def models():
    """Labels, logits and interventions of made-up models, and of the truth of two interventions."""
    generator = torch.Generator().manual_seed(0)
    n = 150
    real = torch.rand(n, GRAPH.width, generator=generator) * 2 - 1
    real[:, 1:4] = torch.nn.functional.one_hot(torch.arange(n) % 3, 3)
    real[:, 4] = (real[:, 4] > 0).float()
    labels = real[:, None].repeat(1, 5, 1)
    for i, name in enumerate(NAMES, start=1):
        labels[:, i, GRAPH.slices[name]] = other_values(GRAPH, name, real, generator)
    logits = {}
    noise = torch.randn(labels.shape, generator=generator)
    for model, scale in {"No CFT": 0.5, "Hard-CFT": 3.0, TRUTH: 1.0}.items():
        logits[model] = (2 * labels - 1 + noise) * torch.tensor([1, *[scale] * 4])[:, None]
    interventions = dict.fromkeys(logits, NAMES) | {TRUTH: ["race", "disease"]}
    shown = dict.fromkeys(logits, labels) | {TRUTH: labels[:, [0, 2, 3]]}
    logits[TRUTH] = logits[TRUTH][:, [0, 2, 3]]
    return shown, logits, interventions


def test_lines_are_densities_and_the_filled_one_that_of_lookalikes(models):
    labels, logits, interventions = models
    panel = strength_figure(GRAPH, *models, seed=4).axes[2]  # do(disease)
    assert [line.get_label() for line in panel.lines] == [*labels]
    for model, line in zip(labels, panel.lines, strict=True):
        place = 1 + interventions[model].index("disease")
        x, y = line.get_data()
        seen = evidence(GRAPH["disease"], logits[model][:, place, 4:5], labels[model][:, place, 4:5])
        np.testing.assert_allclose(y, stats.gaussian_kde(seen)(x))
    alike = lookalikes(GRAPH, "disease", labels["No CFT"][:, 0], labels["No CFT"][:, 3], seed=4)
    real = evidence(GRAPH["disease"], logits["No CFT"][alike, 0, 4:5], labels["No CFT"][alike, 0, 4:5])
    upper = panel.collections[0].get_paths()[0].vertices[1:301]  # the outline starts and ends at the axis
    np.testing.assert_allclose(upper[:, 1], stats.gaussian_kde(real)(upper[:, 0]), atol=1e-12)


def test_the_truth_is_black_and_dashed_where_it_is_known(models):
    figure = strength_figure(GRAPH, *models, seed=0)
    known = [[line for line in axes.lines if line.get_label() == TRUTH] for axes in figure.axes]
    assert [len(lines) for lines in known] == [0, 1, 1, 0]
    (line,) = known[1]
    assert (line.get_color(), line.get_linestyle()) == ("black", "--")


@pytest.mark.parametrize("number", [1, 2, 4])
def test_texts_fit(models, number):
    labels, logits, _ = models
    model = "Hard-CFT"
    shown, seen = ({model: x[model][:, : 1 + number]} for x in (labels, logits))
    figure = strength_figure(GRAPH, shown, seen, {model: NAMES[:number]}, seed=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # any warning of the layout is an error
    renderer = canvas.get_renderer()
    texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label)]
    for text in [*texts, *figure.legends[0].texts]:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    panel = figure.axes[0].get_window_extent(renderer)
    assert panel.height > 0.4 * 1.9 * figure.dpi
