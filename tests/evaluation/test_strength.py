import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from softcft.cft.interventions import other_values
from softcft.evaluation import strength
from softcft.evaluation.bootstrap import bootstrap_weights
from softcft.evaluation.effectiveness import effectiveness_rows
from softcft.evaluation.metrics import evidence
from softcft.evaluation.strength import check_lookalikes, lookalikes, strength_rows
from softcft.graph import CausalGraph, Variable

GRAPH = CausalGraph(
    [
        Variable(name="age", kind="continuous", low=20, high=90, unit="years"),
        Variable(name="disease", kind="binary", categories=("healthy", "ill"), parents=("age",)),
        Variable(name="race", kind="categorical", categories=("White", "Asian", "Black")),
    ]
)
N = 3000
COLUMNS = ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
WEIGHTS = bootstrap_weights(range(N), 100, seed=0)


def draw_attributes(n, generator):
    """Attributes of real images: old people are ill more often."""
    age = 2 * torch.rand(n, 1, generator=generator) - 1
    race = nn.functional.one_hot(torch.arange(n) % 3, 3)
    return torch.cat([age, draw_disease(age, generator), race], dim=1)


def draw_disease(age, generator):
    return (torch.rand(age.shape, generator=generator) < torch.sigmoid(2 * age - 0.5)).float()


@pytest.fixture(scope="module")
def labels():
    """Attributes of real images and what three interventions make of them, (N, 4, 5)."""
    generator = torch.Generator().manual_seed(0)
    real = draw_attributes(N, generator)
    planned = []
    for name in GRAPH.names:
        attributes = real.clone()
        attributes[:, GRAPH.slices[name]] = other_values(GRAPH, name, real, generator)
        if name == "age":
            attributes[:, 1:2] = draw_disease(attributes[:, :1], generator)
        planned.append(attributes)
    return torch.stack([real, *planned], dim=1)


@pytest.fixture(scope="module")
def true_logits(labels):
    """What a predictor sees in images whose counterfactuals are true: the disease shows in the old."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(N, 1, GRAPH.width, generator=generator)
    age, disease, race = labels[..., :1], labels[..., 1:2], labels[..., 2:]
    return torch.cat([age, (2.5 + 1.5 * age) * disease - 1, 2 * race], dim=2) + noise * torch.tensor([0.2, 1, 1, 1, 1])


def rows(labels, logits, interventions=GRAPH.names, weights=WEIGHTS, seed=0):
    table = strength_rows(GRAPH, labels, {"judge": logits}, interventions, weights, seed)
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(COLUMNS[:4]).any()
    return table.set_index(["intervention", "variable", "metric"]).sort_index()


class TestLookalikes:
    def test_causes_count_however_small_their_spread_is_in_their_range(self):
        """Doses of 5 in a range of a million beside ages: the unit in which a range was declared does not matter."""
        generator = torch.Generator().manual_seed(3)
        values = torch.rand(500, 2, generator=generator)
        chosen = []
        for scale in (1.0, 1e-4):
            graph = CausalGraph(
                [
                    Variable(name="dose", kind="continuous", low=0, high=1),
                    Variable(name="age", kind="continuous", low=0, high=1),
                    Variable(name="ill", kind="binary", categories=("no", "yes"), parents=("dose", "age")),
                ]
            )
            parents = torch.cat([values * torch.tensor([scale, 1.0]), (torch.arange(500) % 2)[:, None]], dim=1)
            flipped = torch.cat([parents[:, :2], 1 - parents[:, 2:]], dim=1)
            chosen.append(lookalikes(graph, "ill", parents, flipped, seed=0))
        assert (chosen[0] == chosen[1]).mean() > 0.98

    @pytest.mark.parametrize("name", ["disease", "race"])
    @pytest.mark.parametrize("intervention", [1, 2, 3])
    def test_they_have_the_same_category(self, labels, name, intervention):
        alike = lookalikes(GRAPH, name, labels[:, 0], labels[:, intervention], seed=0)
        assert alike.shape == (N,)
        columns = GRAPH.slices[name]
        assert torch.equal(labels[alike, 0, columns], labels[:, intervention, columns])

    @pytest.mark.parametrize("name", ["age", "disease"])
    def test_no_real_image_is_nearer(self, labels, name):
        """Each is in the blanket of the other."""
        real, wanted = labels[:, 0], labels[:400, 2]
        alike = lookalikes(GRAPH, name, real, wanted, seed=0)
        compared = [0] if name == "disease" else [0, 1]
        spread = real[:, compared].std(dim=0, correction=0)
        distances = ((wanted[:, None, compared] - real[:, compared]) / spread).square().sum(dim=2)
        if name == "disease":
            distances[wanted[:, None, 1] != real[:, 1]] = torch.inf
        torch.testing.assert_close(distances[range(400), alike], distances.min(dim=1).values)

    def test_an_image_that_stayed_the_same_is_like_itself(self, labels):
        real = labels[:, 0]
        alike = torch.from_numpy(lookalikes(GRAPH, "disease", real, real, seed=0))
        assert (alike == torch.arange(N)).float().mean() > 0.99  # but for equal ages

    def test_all_that_are_equally_near_are_equally_likely(self):
        """Without causes: every real image of the category, and no other."""
        real = GRAPH.encode({"age": list(range(20, 60)), "disease": "ill", "race": ["White", "Black"] * 20})
        wanted = GRAPH.encode({"age": 50, "disease": "ill", "race": "Black"}).expand(20000, -1)
        counts = np.bincount(lookalikes(GRAPH, "race", real, wanted, seed=0), minlength=40)
        assert (counts[::2] == 0).all()
        assert counts[1::2] == pytest.approx(np.full(20, 1000), rel=0.15)

    def test_the_seed_decides_and_parts_do_not(self, labels, monkeypatch):
        def find(seed):
            return lookalikes(GRAPH, "race", labels[:, 0], labels[:, 3], seed)

        first = find(0)
        assert (find(1) != first).mean() > 0.9
        monkeypatch.setattr(strength, "CHUNK", 5000)
        np.testing.assert_array_equal(find(0), first)

    def test_the_whole_blanket_counts(self):
        cause = {"kind": "continuous", "low": 0, "high": 2}
        graph = CausalGraph(
            [
                Variable(name="a", **cause),
                Variable(name="effect", kind="continuous", low=0, high=2, parents=("a", "b")),
                Variable(name="b", **cause),
            ]
        )
        real = graph.encode({"a": [1.0, 1.2, 0.0], "effect": [2.0, 1.2, 1.0], "b": [1.0, 1.1, 2.0]})
        wanted = graph.encode({"a": 1, "effect": 1, "b": 1})
        assert lookalikes(graph, "effect", real, wanted, seed=0).tolist() == [1]
        assert lookalikes(graph, "a", real, wanted, seed=0).tolist() == [1]
        assert lookalikes(graph, "a", real, wanted, seed=0, compared=()).tolist() == [0]

    def test_what_has_no_lookalike_is_refused(self, labels):
        real = labels[:, 0]
        white = real[real[:, 2] == 1]
        with pytest.raises(ValueError, match=r"'race': no real image has the category 'Asian' to compare 1000"):
            lookalikes(GRAPH, "race", white, real, seed=0)
        with pytest.raises(ValueError, match="no variable 'sex'"):
            lookalikes(GRAPH, "sex", real, real, seed=0)
        with pytest.raises(ValueError, match="parents"):
            lookalikes(GRAPH, "age", real / 0, real, seed=0)


class TestRows:
    def test_which_rows_there_are(self, labels, true_logits):
        table = rows(labels, true_logits)
        discrete, continuous = {"auc_excess", "logit_excess", "ece_excess", "ks"}, {"mae_excess", "ks"}
        assert set(table.index) == {
            *((name, "age", metric) for name in ("age", "disease") for metric in continuous),
            *((name, "disease", metric) for name in ("age", "disease") for metric in discrete),
            *(("race", "race", metric) for metric in discrete),
        }
        bare = table.index.get_level_values("metric").isin(["ece_excess", "ks"])
        assert table.loc[bare, ["low", "high"]].isna().all(axis=None)
        assert (table.loc[~bare, "low"] < table.loc[~bare, "high"]).all()
        both = strength_rows(GRAPH, labels, dict.fromkeys(("guide", "judge"), true_logits), GRAPH.names, WEIGHTS, 0)
        guide, judge = (part.drop(columns="predictor") for _, part in both.groupby("predictor"))
        pd.testing.assert_frame_equal(guide.reset_index(drop=True), judge.reset_index(drop=True))

    def test_lookalikes_themselves_are_exactly_as_strong(self, labels, true_logits):
        shown, seen = labels.clone(), true_logits.clone()
        for i, name in enumerate(GRAPH.names, start=1):
            alike = lookalikes(GRAPH, name, labels[:, 0], labels[:, i], seed=3)
            shown[:, i], seen[:, i] = labels[alike, 0], true_logits[alike, 0]
        # Of races there are many lookalikes, which are drawn anew; of ages and diseases there is one.
        table = rows(shown[:, :3], seen[:, :3], ["age", "disease"], seed=3)
        assert table["value"].abs().max() < 1e-9

    def test_true_counterfactuals_are_as_strong_though_they_seem_too_weak(self, labels, true_logits):
        """The very reason for lookalikes: those who become ill are young, and the young show it less."""
        changes = effectiveness_rows(GRAPH, labels, {"judge": true_logits}, GRAPH.names, WEIGHTS)
        changes = changes.set_index(["intervention", "variable", "metric"])
        unfair = changes.loc[("disease", "disease", "auc_change")]
        fair = rows(labels, true_logits)
        assert unfair["high"] < -1
        assert abs(fair.loc[("disease", "disease", "auc_excess"), "value"]) < -unfair["value"] / 2
        for metric in ("auc_excess", "logit_excess", "mae_excess"):
            excess = fair.xs(metric, level="metric")
            assert ((excess["low"] <= 0) & (excess["high"] >= 0)).all()
        assert fair.xs("ks", level="metric")["value"].max() < 0.06

    def test_who_becomes_ill_looks_older_as_the_ill_do(self, labels, true_logits):
        """The age stays under do(disease), but its error does not: among real images that are as ill it does."""
        seen = true_logits.clone()
        seen[..., 0] += 0.5 * labels[..., 1]
        changes = effectiveness_rows(GRAPH, labels, {"judge": seen}, GRAPH.names, WEIGHTS)
        unfair = changes.set_index(["intervention", "variable", "metric"]).loc[("disease", "age", "mae_change")]
        fair = rows(labels, seen).loc[("disease", "age", "mae_excess")]
        assert unfair["low"] > 1
        assert fair["low"] < 0 < fair["high"]
        assert abs(fair["value"]) < unfair["value"] / 5

    def test_logits_that_are_too_sure_are_too_strong_and_no_better_in_order(self, labels, true_logits):
        true = rows(labels, true_logits)["value"]
        sure = true_logits.clone()
        sure[:, 1:, 1:] *= 3
        sure = rows(labels, sure)["value"]
        for name in ("disease", "race"):
            assert sure[name, name, "logit_excess"] > true[name, name, "logit_excess"] + 1
            assert sure[name, name, "ks"] > 0.3
            if name == "disease":  # the sum over the other categories changes the order of the races a little
                assert sure[name, name, "auc_excess"] == pytest.approx(true[name, name, "auc_excess"], abs=1e-9)

    def test_interventions_that_fall_short_are_negative(self, labels, true_logits):
        nothing_done = true_logits[:, :1].expand(-1, 4, -1)
        table = rows(labels, nothing_done)
        for name in ("disease", "race"):
            assert table.loc[(name, name, "auc_excess"), "high"] < 0
            assert table.loc[(name, name, "logit_excess"), "high"] < 0
        assert table.loc[("age", "age", "mae_excess"), "low"] > 0  # an error, in years

    def test_errors_are_in_the_unit(self, labels, true_logits):
        exact = true_logits.clone()
        exact[:, 1, 0] = labels[:, 1, 0]
        alike = lookalikes(GRAPH, "age", labels[:, 0], labels[:, 1], seed=0)
        errors = evidence(GRAPH["age"], true_logits[alike, 0, :1], labels[alike, 0, :1])
        excess = rows(labels, exact).loc[("age", "age", "mae_excess"), "value"]
        assert excess == pytest.approx(-np.abs(errors).mean())
        assert excess == pytest.approx(-35 * 0.2 * np.sqrt(2 / np.pi), rel=0.1)

    def test_intervals_know_that_lookalikes_are_shared(self):
        """A single ill patient is the lookalike of many: nobody knows how ill patients look."""
        generator = torch.Generator().manual_seed(0)
        real = draw_attributes(300, generator)
        real[:, :2] = torch.tensor([0.0, 0.0])
        real[:4, 1] = 1
        ill = real.clone()
        ill[:, 1] = 1 - real[:, 1]
        shown = torch.stack([real, ill], dim=1)
        seen = 2 * shown - 1 + torch.randn(shown.shape, generator=generator)
        table = rows(shown, seen, ["disease"], bootstrap_weights(range(300), 300, seed=0))
        low, high = table.loc[("disease", "disease", "logit_excess"), ["low", "high"]]
        assert high - low > 2 / np.sqrt(4)  # of a mean over four patients, not over 300


@pytest.mark.parametrize("lacking", ["Asian", "ill", None])
@pytest.mark.parametrize("intervention", ["age", "disease", "race"])
def test_whether_all_have_lookalikes_is_known_before_any_image_is_made(lacking, intervention):
    """The check refuses what the comparison would refuse, and nothing else."""
    real = draw_attributes(300, torch.Generator().manual_seed(0))
    if lacking == "Asian":
        real = real[real[:, 3] == 0]
    elif lacking == "ill":
        real = real[real[:, 1] == 0]
    wanted = draw_attributes(len(real), torch.Generator().manual_seed(1))

    def compare():
        for name in sorted(GRAPH.affected_by(intervention)):
            lookalikes(GRAPH, name, real, wanted, seed=0)

    def check():
        check_lookalikes(GRAPH, real, wanted[:, None], [intervention])

    lacks = (lacking == "Asian" and intervention == "race") or (lacking == "ill" and intervention != "race")
    for call in (compare, check):
        if lacks:
            with pytest.raises(ValueError, match=lacking):
                call()
        else:
            call()
