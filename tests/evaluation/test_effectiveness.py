import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from sklearn.metrics import roc_auc_score
from torch import nn

from softcft.counterfactuals.backbone import BackboneOutput
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.evaluation.bootstrap import bootstrap_weights, interval
from softcft.evaluation.effectiveness import (
    counterfactual_images,
    effectiveness_rows,
    intervene_on,
    plan_counterfactuals,
    predict_images,
)
from softcft.evaluation.metrics import logit_shift, variable_metrics
from softcft.graph import CausalGraph, Variable
from softcft.models.classifier import AttributeClassifier, AttributeClassifierOutput
from tests.small_models import TRUNK, make_hvae, make_scm, perturb

GRAPH = CausalGraph(
    [
        Variable(name="size", kind="continuous", low=10, high=30, unit="mm"),
        Variable(name="state", kind="binary", categories=("off", "on"), parents=("size",)),
        Variable(name="shape", kind="categorical", categories=("disc", "star", "ring")),
    ]
)
COLUMNS = ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
DISCRETE = ["auc", "accuracy", "ece"]


def draw_parents(n):
    size = torch.rand(n, 1) * 2 - 1
    state = (torch.rand(n, 1) < 0.5).float()
    shape = nn.functional.one_hot(torch.arange(n) % 3, 3).float()
    return torch.cat([size, state, shape], dim=1)


class PixelBackbone:
    """Writes the counterfactual attributes into the first row of pixels."""

    def counterfactual(self, image, parents, counterfactual_parents, generator=None):
        written = image[:, None].repeat(1, counterfactual_parents.shape[1], 1, 1, 1)
        written[:, :, 0, 0, : parents.shape[1]] = counterfactual_parents
        return BackboneOutput(image=written, fidelity=torch.zeros(()))


class NoiseBackbone:
    """Shows nothing but the noise that it abducts, in two draws."""

    def counterfactual(self, image, parents, counterfactual_parents, generator=None):
        noise = randn_tensor(image.shape, generator) + 10 * randn_tensor(image.shape, generator)
        images = noise[:, None].repeat(1, counterfactual_parents.shape[1], 1, 1, 1)
        return BackboneOutput(image=images, fidelity=torch.zeros(()))


class PixelPredictor(nn.Module):
    """Reads the attributes from the first row of pixels; in training mode it reads nothing."""

    def __init__(self, sharpness=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(sharpness))

    def forward(self, image):
        assert not self.training
        pixels = image[:, 0, 0, : GRAPH.width]
        size, state, shape = pixels[:, :1], 2 * pixels[:, 1:2] - 1, pixels[:, 2:]
        logits = torch.cat([size, self.weight * state, self.weight * shape], dim=1)
        return AttributeClassifierOutput(logits=logits, embedding=self.weight * image.flatten(1))


@pytest.fixture
def scm():
    return perturb(make_scm(GRAPH.to_list()), 0.5)


@pytest.fixture
def hvae_backbone():
    sizes = {"channels": [8, 16, 16], "decoder_blocks": [1, 2, 1], "z_max_resolution": 8}
    return HVAEBackbone(perturb(make_hvae(GRAPH.to_list(), **sizes), 0.1)).eval()


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


class TestPlan:
    def test_every_image_gets_another_value_of_the_variable(self, scm):
        parents = draw_parents(60)
        plan = plan_counterfactuals(scm, parents, GRAPH.names, seed=0)
        assert plan.shape == (60, 3, GRAPH.width)
        for i, name in enumerate(GRAPH.names):
            columns = GRAPH.slices[name]
            assert (plan[:, i, columns] != parents[:, columns]).any(dim=1).all()

    def test_only_descendants_follow(self, scm):
        parents = draw_parents(60)
        size, state, shape = plan_counterfactuals(scm, parents, GRAPH.names, seed=0).unbind(dim=1)
        assert torch.equal(size[:, 2:], parents[:, 2:])
        assert torch.equal(state[:, [0, 2, 3, 4]], parents[:, [0, 2, 3, 4]])
        assert torch.equal(shape[:, :2], parents[:, :2])
        followed = (size[:, 1] != parents[:, 1]).float().mean()
        assert 0 < followed < 1

    def test_it_does_not_depend_on_what_else_is_planned(self, scm):
        parents = draw_parents(60)
        plan = plan_counterfactuals(scm, parents, GRAPH.names, seed=3)
        torch.rand(5)  # nor on the global generator
        other = plan_counterfactuals(scm, parents, ["shape", "size"], seed=3)
        assert torch.equal(other, plan[:, [2, 0]])

    @pytest.mark.parametrize("name", ["size", "shape"])
    def test_the_seed_decides_it(self, scm, name):
        plans = [plan_counterfactuals(scm, draw_parents(60), [name], seed) for seed in (0, 1)]
        assert not torch.equal(*plans)

    def test_nothing_is_planned_without_interventions(self, scm):
        assert plan_counterfactuals(scm, draw_parents(4), [], seed=0).shape == (4, 0, GRAPH.width)

    def test_what_cannot_be_planned_is_refused(self, scm):
        with pytest.raises(ValueError, match="'size' takes the value of another image"):
            plan_counterfactuals(scm, draw_parents(1), ["size"], seed=0)


class TestImages:
    def test_the_real_image_comes_first(self):
        image = torch.randint(256, (4, 1, 2, 8), dtype=torch.uint8)
        parents, planned = draw_parents(4), torch.stack([draw_parents(4), draw_parents(4)], dim=1)
        images = counterfactual_images(PixelBackbone(), image, parents, planned, range(4), seed=0)
        assert images.shape == (4, 3, 1, 2, 8)
        torch.testing.assert_close(images[:, 0], image / 127.5 - 1)
        torch.testing.assert_close(images[:, 1:, 0, 0, : GRAPH.width], planned)

    def test_batches_and_order_do_not_matter(self, scm, hvae_backbone):
        image, parents = 2 * torch.rand(8, 1, 16, 16) - 1, draw_parents(8)
        planned = plan_counterfactuals(scm, parents, ["size", "shape"], seed=0)

        def make(rows):
            return counterfactual_images(hvae_backbone, image[rows], parents[rows], planned[rows], rows, seed=5)

        together = make(torch.arange(8))
        torch.testing.assert_close(torch.cat([make([0, 1, 2, 3]), make([4, 5, 6, 7])]), together, rtol=0, atol=1e-5)
        # As two processes would see them, and alone.
        torch.testing.assert_close(make([6, 4, 2, 0]), together[[6, 4, 2, 0]], rtol=0, atol=1e-5)
        torch.testing.assert_close(make([3]), together[[3]], rtol=0, atol=1e-5)
        assert not together.requires_grad
        # Which is no wonder only if the noise counts.
        wrong = counterfactual_images(hvae_backbone, image[:4], parents[:4], planned[:4], [4, 5, 6, 7], seed=5)
        assert (wrong - together[:4]).abs().max() > 1e-2

    def test_interventions_share_the_noise_and_images_do_not(self):
        image, parents = torch.zeros(50, 1, 2, 8), draw_parents(50)
        planned = torch.stack([draw_parents(50), draw_parents(50)], dim=1)

        def noise(seed):
            return counterfactual_images(NoiseBackbone(), image, parents, planned, range(50), seed)[:, 1:].flatten(2)

        first, second = noise(0).unbind(dim=1)
        assert torch.equal(first, second)
        everything = torch.cat([first, noise(1)[:, 0]])
        # Rows and seeds next to each other give noise that is as unlike as any: 100 independent rows of 16 numbers.
        correlations = np.corrcoef(everything.T.double().numpy(), rowvar=False)[np.triu_indices(100, 1)]
        assert np.abs(correlations).max() < 0.95
        assert correlations.std() == pytest.approx(1 / np.sqrt(15), rel=0.1)

    def test_the_global_generator_is_left_alone(self):
        torch.manual_seed(4)
        expected = torch.rand(3)
        torch.manual_seed(4)
        image, parents = torch.zeros(2, 1, 2, 8), torch.zeros(2, 5)
        counterfactual_images(NoiseBackbone(), image, parents, parents[:, None], [0, 1], seed=0)
        assert torch.equal(torch.rand(3), expected)


class TestPredictions:
    def test_each_image_is_predicted_on_its_own(self):
        guide, judge = (AttributeClassifier(GRAPH.to_list(), TRUNK) for _ in range(2))
        images = 2 * torch.rand(3, 4, 1, 16, 16) - 1
        predictions = predict_images({"guide": guide.train(), "judge": judge.train()}, images)
        assert set(predictions) == {"guide", "judge", "guide/embedding", "judge/embedding"}
        assert not guide.training
        with torch.no_grad():
            output = judge(images[1])
        torch.testing.assert_close(predictions["judge"][1], output.logits)
        torch.testing.assert_close(predictions["judge/embedding"][1], output.embedding)
        assert predictions["guide"].shape == (3, 4, GRAPH.width)
        assert predictions["guide/embedding"].shape == (3, 4, 16)
        assert {(t.dtype, t.requires_grad) for t in predictions.values()} == {(torch.float32, False)}


@pytest.fixture
def tested(scm):
    """Labels and logits of a test of a perfect image model, whose real images are noisy and hard to read."""
    parents = draw_parents(90)
    image = torch.zeros(90, 1, 2, 8)
    image[:, 0, 0, :5] = parents + 0.7 * torch.randn(90, 5)
    planned = plan_counterfactuals(scm, parents, GRAPH.names, seed=0)
    images = counterfactual_images(PixelBackbone(), image, parents, planned, range(90), seed=0)
    predictions = predict_images({"guide": PixelPredictor(4.0), "judge": PixelPredictor()}, images)
    logits = {name: predictions[name] for name in ("guide", "judge")}
    return torch.cat([parents[:, None], planned], dim=1), logits


class TestRows:
    weights = bootstrap_weights(range(90), 50, seed=0)

    def rows(self, tested, interventions=GRAPH.names, weights=weights):
        table = effectiveness_rows(GRAPH, *tested, interventions, weights)
        assert list(table.columns) == COLUMNS
        assert not table.duplicated(COLUMNS[:4]).any()
        assert table["intervention"].unique().tolist() == ["none", *interventions]
        return table.set_index(COLUMNS[:4]).sort_index()

    def test_which_rows_there_are(self, tested):
        table = self.rows(tested).index
        for predictor in ("guide", "judge"):
            real = {(v, m) for i, v, p, m in table if (i, p) == ("none", predictor)}
            assert real == {("size", "mae")} | {(v, m) for v in ("state", "shape") for m in DISCRETE}
        for name in GRAPH.names:
            changes = {*DISCRETE, *(f"{metric}_change" for metric in DISCRETE), "logit_shift"}
            assert {m for i, v, p, m in table if (i, v, p) == (name, "state", "guide")} == changes
            assert {m for i, v, p, m in table if (i, v, p) == (name, "size", "judge")} == {"mae", "mae_change"}
            gap = {"auc_change", "accuracy_change", "logit_shift"}
            assert {m for i, v, p, m in table if (i, v, p) == (name, "shape", "gap")} == gap
            assert {m for i, v, p, m in table if (i, v, p) == (name, "size", "gap")} == {"mae_change"}

    def test_real_images_are_the_baseline(self, tested):
        labels, logits = (tested[0][:, 0], tested[1]["judge"][:, 0])
        table = self.rows(tested)
        auc = roc_auc_score(labels[:, 2:], logits[:, 2:].softmax(dim=1), average="macro")
        assert table.loc[("none", "shape", "judge", "auc"), "value"] == pytest.approx(100 * auc)
        mae = 10 * (labels[:, 0] - logits[:, 0]).abs().mean().item()
        assert table.loc[("none", "size", "judge", "mae"), "value"] == pytest.approx(mae, rel=1e-5)

    def test_a_perfect_model_scores_perfectly_and_amplifies(self, tested):
        table = self.rows(tested).drop("none", level="intervention")["value"]
        assert (table[table.index.get_level_values("metric").isin(["auc", "accuracy"])] == 100).all()
        assert (table.xs("mae", level="metric").abs() < 1e-6).all()
        # Noiseless images are clearer than real ones, touched or not.
        assert (table.xs("auc_change", level="metric").drop("gap", level="predictor") > 0).all()
        assert (table.xs("mae_change", level="metric").drop("gap", level="predictor") < 0).all()
        # The guide's logit of a noiseless state is +-4.
        labels, logits = tested[0][:, 0, 1], tested[1]["guide"][:, 0, 1]
        shift = 4 - ((2 * labels - 1) * logits).mean().item()
        assert table.loc[:, "state", "guide", "logit_shift"].values == pytest.approx([shift] * 3, abs=1e-5)

    def test_an_image_that_stays_as_it_is_has_no_effect(self, tested):
        labels, logits = tested[0], {"guide": tested[1]["guide"][:, [0] * 4]}
        table = self.rows((labels, logits))
        for name in ("size", "shape"):  # what do(state) leaves alone
            same = table.loc[("state", name, "guide")].drop(index=[*DISCRETE, "mae"], errors="ignore")
            assert len(same) > 0
            assert (same.drop(index="ece_change", errors="ignore") == 0).all(axis=None)
            if name == "shape":
                # Resamples repeat images, which adds to the error: an interval would not hold the estimate.
                assert same.loc["ece_change"].tolist()[:1] == [0]
                assert same.loc["ece_change", ["low", "high"]].isna().all()
        # The flipped label of an unchanged image turns the ROC curve over.
        auc = table["value"].loc["none", "state", "guide", "auc"]
        assert table["value"].loc["state", "state", "guide", "auc"] == pytest.approx(100 - auc)
        assert table["value"].loc["state", "state", "guide", "auc_change"] == pytest.approx(100 - 2 * auc)

    def test_changes_and_gaps_have_paired_intervals(self, tested):
        labels, logits = tested
        table = self.rows(tested)
        columns, i = GRAPH.slices["state"], 3  # do(shape)
        change, shift = {}, {}
        for name, predicted in logits.items():
            real, edited = ((predicted[:, j, columns], labels[:, j, columns]) for j in (0, i))
            after, before = (variable_metrics(GRAPH["state"], *x, self.weights)["auc"] for x in (edited, real))
            change[name] = after - before
            shift[name] = logit_shift(GRAPH["state"], *real, *edited, self.weights)
            row = table.loc[("shape", "state", name, "auc_change")]
            assert tuple(row) == pytest.approx(interval(change[name]))
            assert row["low"] < row["value"] < row["high"]
        for metric, values in (("auc_change", change), ("logit_shift", shift)):
            expected = interval(values["guide"] - values["judge"])
            assert tuple(table.loc[("shape", "state", "gap", metric)]) == pytest.approx(expected)

    def test_one_predictor_has_no_gap_and_no_resamples_no_interval(self, tested):
        labels, logits = tested
        weights = bootstrap_weights(range(90), 0, seed=0)
        table = effectiveness_rows(GRAPH, labels, {"judge": logits["judge"]}, GRAPH.names, weights)
        assert set(table["predictor"]) == {"judge"}
        assert table[["low", "high"]].isna().all(axis=None)
        assert table["value"].notna().all()
