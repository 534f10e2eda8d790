import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from softcft.counterfactuals.backbone import BackboneOutput
from softcft.evaluation.effectiveness import (
    effectiveness_table,
    intervene_on,
    measure_effectiveness,
    predict_counterfactuals,
    variable_metric,
)
from softcft.graph import CausalGraph, Variable
from softcft.models.attribute_scm import AttributeSCM

GRAPH = CausalGraph(
    [
        Variable(name="size", kind="continuous", low=10, high=30, unit="mm"),
        Variable(name="state", kind="binary", categories=("off", "on"), parents=("size",)),
        Variable(name="shape", kind="categorical", categories=("disc", "star", "ring")),
    ]
)
COLUMNS = ["intervention", "variable", "predictor", "metric", "value", "baseline", "change"]


def draw_parents(n):
    size = torch.rand(n, 1) * 2 - 1
    state = (torch.rand(n, 1) < 0.5).float()
    shape = nn.functional.one_hot(torch.arange(n) % 3, 3).float()
    return torch.cat([size, state, shape], dim=1)


class PixelBackbone:
    """Writes the counterfactual attributes into the first row of pixels."""

    def counterfactual(self, image, parents, counterfactual_parents, generator=None):
        written = image.clone()
        written[:, 0, 0, : parents.shape[1]] = counterfactual_parents
        return BackboneOutput(image=written, fidelity=torch.zeros(()))


class StubbornBackbone:
    """Ignores the intervention."""

    def counterfactual(self, image, parents, counterfactual_parents, generator=None):
        return BackboneOutput(image=image, fidelity=torch.zeros(()))


class PixelPredictor(nn.Module):
    """Reads the attributes from the first row of pixels; in training mode it reads nothing."""

    def __init__(self, graph=GRAPH):
        super().__init__()
        self.causal_graph = graph
        self.weight = nn.Parameter(torch.ones(()))

    def predict(self, image):
        assert not self.training
        return self.weight * image[:, 0, 0, : self.causal_graph.width]


def noisy_batches(sizes):
    """Images whose pixels hold the attributes and noise: harder to read than counterfactuals, which hold no noise."""
    batches = []
    for n in sizes:
        parents = draw_parents(n)
        image = torch.zeros(n, 1, 4, 8)
        image[:, 0, 0, :5] = parents + 0.7 * torch.randn(n, 5)
        batches.append({"image": image, "parents": parents})
    return batches


@pytest.fixture
def scm():
    return AttributeSCM(GRAPH.to_list(), hidden_features=(8,))


class TestOtherValues:
    @pytest.mark.parametrize("name", GRAPH.names)
    def test_each_image_gets_a_value_that_is_not_its_own(self, name):
        parents = draw_parents(50)
        intervention = intervene_on(GRAPH, name, parents)
        own, new = parents[:, GRAPH.slices[name]], intervention.values[:, GRAPH.slices[name]]
        assert (own != new).any(dim=1).all()
        assert [variable for variable, masked in zip(GRAPH.names, intervention.mask[0], strict=True) if masked] == [
            name
        ]
        assert (intervention.mask == intervention.mask[0]).all()

    @pytest.mark.parametrize("name", GRAPH.names)
    def test_other_columns_and_the_input_are_left_alone(self, name):
        parents = draw_parents(50)
        before = parents.clone()
        other = torch.ones(GRAPH.width, dtype=torch.bool)
        other[GRAPH.slices[name]] = False
        assert torch.equal(intervene_on(GRAPH, name, parents).values[:, other], before[:, other])
        assert torch.equal(parents, before)

    def test_continuous_values_are_a_permutation(self):
        parents = draw_parents(50)
        new = intervene_on(GRAPH, "size", parents).values[:, 0]
        assert torch.equal(new.sort().values, parents[:, 0].sort().values)

    def test_all_other_categories_are_equally_likely(self):
        parents = GRAPH.encode({"size": 20, "state": "on", "shape": "star"}).expand(3000, -1)
        share = intervene_on(GRAPH, "shape", parents).values[:, GRAPH.slices["shape"]].mean(dim=0)
        assert share[1] == 0
        assert share[0] == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize("name", GRAPH.names)
    def test_a_generator_makes_it_reproducible(self, name):
        parents = draw_parents(50)
        drawn = [intervene_on(GRAPH, name, parents, torch.Generator().manual_seed(3)).values for _ in range(2)]
        assert torch.equal(*drawn)

    def test_one_image_has_no_other_to_take_a_value_from(self):
        with pytest.raises(ValueError, match=r"'size' takes the value of another image.*batch size"):
            intervene_on(GRAPH, "size", draw_parents(1))


class TestVariableMetric:
    def test_binary_is_the_auc(self):
        # Of the four pairs of one on and one off, three are in order.
        labels = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
        metric, value = variable_metric(GRAPH["state"], torch.tensor([[0.1], [0.4], [0.5], [0.9]]), labels)
        assert (metric, value) == ("auc", 75.0)

    def test_categorical_is_the_macro_average_of_one_against_the_rest(self):
        labels = draw_parents(90)[:, 2:]
        predictions = (labels + torch.randn(90, 3)).softmax(dim=1)
        metric, value = variable_metric(GRAPH["shape"], predictions, labels)
        expected = roc_auc_score(labels.argmax(dim=1), predictions, multi_class="ovr", average="macro")
        assert metric == "auc"
        assert value == pytest.approx(100 * expected)

    def test_continuous_is_the_mean_absolute_error_in_the_variables_unit(self):
        metric, value = variable_metric(GRAPH["size"], torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [1.0]]))
        assert (metric, value) == ("mae", pytest.approx(2.5))

    def test_one_class_has_no_auc(self):
        with pytest.raises(ValueError, match=r"'state' has no AUC.*'off': 0, 'on': 4"):
            variable_metric(GRAPH["state"], torch.rand(4, 1), torch.ones(4, 1))
        labels = torch.eye(3)[[0, 1, 1]]
        with pytest.raises(ValueError, match=r"'shape' has no AUC.*'disc': 1, 'star': 2, 'ring': 0"):
            variable_metric(GRAPH["shape"], torch.rand(3, 3), labels)

    @pytest.mark.parametrize(("predictions", "labels"), [((4, 2), (4, 1)), ((4, 3), (4, 3)), ((0, 1), (0, 1))])
    def test_wrong_shapes_are_refused(self, predictions, labels):
        with pytest.raises(ValueError, match="must both have shape"):
            variable_metric(GRAPH["state"], torch.zeros(predictions), torch.zeros(labels))


class TestMeasureEffectiveness:
    def measure(self, scm, backbone, batches, interventions=GRAPH.names):
        table = measure_effectiveness(backbone, scm, {"guide": PixelPredictor()}, batches, interventions)
        assert list(table.columns) == COLUMNS
        return table.set_index(["intervention", "variable"])

    def test_a_perfect_backbone_scores_perfectly(self, scm):
        table = self.measure(scm, PixelBackbone(), noisy_batches([40, 40]))
        assert len(table) == 9
        assert (table.loc[table["metric"] == "auc", "value"] == 100).all()
        assert (table.loc[table["metric"] == "mae", "value"] == 0).all()
        assert (table["change"] == table["value"] - table["baseline"]).all()

    def test_the_baseline_is_the_test_on_real_images(self, scm):
        batches = noisy_batches([40, 40])
        parents = torch.cat([batch["parents"] for batch in batches])
        pixels = torch.cat([batch["image"][:, 0, 0, :5] for batch in batches])
        baseline = self.measure(scm, PixelBackbone(), batches)["baseline"].groupby("variable").unique()
        assert baseline["state"] == pytest.approx([100 * roc_auc_score(parents[:, 1], pixels[:, 1])])
        assert baseline["shape"] == pytest.approx([100 * roc_auc_score(parents[:, 2:], pixels[:, 2:], average="macro")])
        assert baseline["size"] == pytest.approx([10 * (parents[:, 0] - pixels[:, 0]).abs().mean().item()])

    def test_labels_of_counterfactuals_are_counterfactual(self, scm):
        table = self.measure(scm, StubbornBackbone(), noisy_batches([60]), ["state"])
        # The flipped label of an unchanged image turns the ROC curve over; what was not intervened on stays as it was.
        row = table.loc[("state", "state")]
        assert row["value"] == pytest.approx(100 - row["baseline"])
        assert table.loc[("state", "shape"), "change"] == 0
        assert table.loc[("state", "size"), "change"] == 0

    def test_predictions_of_shards_gather_to_those_of_one_process(self, scm):
        batches, interventions = noisy_batches([20, 25, 30]), ["shape", "size"]
        predictors = {"guide": PixelPredictor(), "judge": PixelPredictor()}
        generator = torch.Generator().manual_seed(1)
        single = measure_effectiveness(StubbornBackbone(), scm, predictors, batches, interventions, generator)
        generator.manual_seed(1)
        shards = [
            predict_counterfactuals(StubbornBackbone(), scm, predictors, batch, interventions, generator)
            for batch in batches
        ]
        assert {tuple(tensor.shape) for tensor in shards[0].values()} == {(20, 3, GRAPH.width)}
        gathered = {key: torch.cat([shards[i][key] for i in (2, 0, 1)]) for key in shards[0]}
        table = effectiveness_table(GRAPH, gathered, interventions)
        assert table.drop(columns=["value", "baseline", "change"]).equals(
            single.drop(columns=["value", "baseline", "change"])
        )
        torch.testing.assert_close(torch.tensor(table["value"]), torch.tensor(single["value"]))
        torch.testing.assert_close(torch.tensor(table["baseline"]), torch.tensor(single["baseline"]))

    def test_nothing_needs_a_gradient(self, scm):
        predictor = PixelPredictor().train()
        batch = noisy_batches([8])[0]
        predictions = predict_counterfactuals(PixelBackbone(), scm, {"guide": predictor}, batch, ["state"])
        assert not any(tensor.requires_grad for tensor in predictions.values())

    def test_errors_come_before_any_work(self, scm):
        def no_batches():
            raise AssertionError("a batch was asked for")
            yield

        def measure(predictors, interventions):
            measure_effectiveness(PixelBackbone(), scm, predictors, no_batches(), interventions)

        with pytest.raises(ValueError, match="no variable 'colour'"):
            measure({"guide": PixelPredictor()}, ["colour"])
        with pytest.raises(ValueError, match="must not be named 'labels'"):
            measure({"labels": PixelPredictor()}, ["state"])
        with pytest.raises(ValueError, match="Predictor 'judge' must have the graph"):
            measure({"judge": PixelPredictor(CausalGraph(GRAPH.variables[:1]))}, ["state"])

    def test_no_batches_are_refused(self, scm):
        with pytest.raises(ValueError, match="batches is empty"):
            measure_effectiveness(PixelBackbone(), scm, {"guide": PixelPredictor()}, [], ["state"])

    def test_predictions_of_other_interventions_are_refused(self):
        predictions = {"labels": torch.zeros(4, 2, GRAPH.width), "guide": torch.zeros(4, 2, GRAPH.width)}
        with pytest.raises(ValueError, match=r"predictions\['labels'\] must have shape \(4, 3, 5\)"):
            effectiveness_table(GRAPH, predictions, ["state", "size"])
