import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression

from softcft.cft.interventions import other_values
from softcft.evaluation.embeddings import (
    attribute_modes,
    shift_rows,
    subgroup_comparisons,
    subgroups,
)
from softcft.evaluation.permutation import distribution_shift
from softcft.graph import CausalGraph, Variable

GRAPH = CausalGraph(
    [
        Variable(name="size", kind="continuous", low=10, high=30, unit="mm"),
        Variable(name="state", kind="binary", categories=("off", "on"), parents=("size",)),
        Variable(name="shape", kind="categorical", categories=("disc", "star", "ring")),
    ]
)
INTERVENTIONS = ["shape", "size"]


def draw_parents(n, generator=None):
    size = torch.rand(n, 1, generator=generator) * 2 - 1
    state = (torch.rand(n, 1, generator=generator) < 0.5).float()
    shape = torch.nn.functional.one_hot(torch.randint(3, (n,), generator=generator), 3).float()
    return torch.cat([size, state, shape], dim=1)


def embed(parents, noise):
    """Each variable has directions of its own, state the longest; the more noise the less is seen of it."""
    scale = torch.tensor([2.0, 6, 4, 4, 4])
    directions = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(7))).Q[:5]
    return (parents * scale) @ directions + 0.5 * noise + 3


@pytest.fixture(scope="module")
def real():
    generator = torch.Generator().manual_seed(0)
    parents = draw_parents(400, generator)
    return embed(parents, torch.randn(400, 12, generator=generator)), parents


@pytest.fixture(scope="module")
def counterfactual():
    """Real images and their counterfactuals, (N, 3, D) and (N, 3, K); those of shape are amplified."""
    generator = torch.Generator().manual_seed(1)
    parents = draw_parents(400, generator)
    labels = parents[:, None].repeat(1, 3, 1)
    for i, name in enumerate(INTERVENTIONS, start=1):
        labels[:, i, GRAPH.slices[name]] = other_values(GRAPH, name, parents, generator)
    moved = torch.rand(400, generator=generator) < 0.2
    labels[moved, 2, 1] = 1 - labels[moved, 2, 1]  # the effect of size on state
    embeddings = embed(labels.flatten(0, 1), torch.randn(400, 12, generator=generator).repeat_interleave(3, dim=0))
    embeddings = embeddings.unflatten(0, (400, 3))
    embeddings[:, 1] += 0.2 * (embed(labels[:, 1], torch.zeros(12)) - embed(labels[:, 1] * 0, torch.zeros(12)))
    return embeddings, labels


class TestModes:
    def test_each_variable_has_the_mode_that_it_explains_best(self, real):
        embeddings, parents = real
        fitted = attribute_modes(embeddings, GRAPH, parents)
        scores = fitted.pca.transform(embeddings.double().numpy())
        assert fitted.pca.n_components_ == 12
        for variable in GRAPH.variables:
            columns = parents[:, GRAPH.slices[variable.name]].numpy()
            # The variance explained by categories is that explained by a regression on their indicators.
            explained = [LinearRegression().fit(columns, score).score(columns, score) for score in scores.T]
            mode = fitted.modes[variable.name]
            assert mode.component == np.argmax(explained)
            assert mode.eta_squared == pytest.approx(max(explained), rel=1e-6)
            assert mode.eta_squared > 0.5
        assert fitted.modes["state"].component == 0

    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_last_category_and_larger_values_lie_higher(self, real, sign):
        embeddings, parents = real
        fitted = attribute_modes(sign * embeddings, GRAPH, parents)
        size, state, shape = (fitted.project(sign * embeddings, name) for name in GRAPH.names)
        assert np.corrcoef(size, parents[:, 0])[0, 1] > 0.5
        assert np.corrcoef(state, parents[:, 1])[0, 1] > 0.9
        assert np.corrcoef(shape, parents[:, 4])[0, 1] > 0.5

    def test_projections_are_in_standard_deviations_of_the_real_images(self, real):
        embeddings, parents = real
        fitted = attribute_modes(embeddings[:300], GRAPH, parents[:300])
        centred = (embeddings - embeddings[:300].mean(dim=0)).double().numpy()
        _, _, directions = np.linalg.svd(centred[:300])
        for name, mode in fitted.modes.items():
            expected = centred @ directions[mode.component]
            expected /= expected[:300].std(ddof=1)
            scores = fitted.project(embeddings, name)
            np.testing.assert_allclose(scores, expected * np.sign(expected @ scores), rtol=1e-5, atol=1e-6)

    def test_rounding_is_no_mode(self):
        # In three images any variable could be read from the noise of the last digits.
        parents = draw_parents(6)
        parents[:, 1] = torch.tensor([0.0, 1, 0, 1, 0, 1])
        parents[:, 2:] = torch.eye(3).repeat(2, 1)
        embeddings = torch.randn(6, 1).double() @ torch.randn(1, 20).double()
        fitted = attribute_modes(embeddings, GRAPH, parents)
        assert fitted.pca.n_components_ == 5
        assert {mode.component for mode in fitted.modes.values()} == {0}

    def test_a_category_may_be_missing(self, real):
        embeddings, parents = real
        some = parents[:, 4] == 0
        fitted = attribute_modes(embeddings[some], GRAPH, parents[some])
        star = parents[some][:, 3] == 1
        scores = fitted.project(embeddings[some], "shape")
        assert scores[star].mean() > scores[~star].mean() + 1

    def test_what_has_no_modes_is_refused(self, real):
        embeddings, parents = real
        with pytest.raises(ValueError, match=r"embeddings must have shape \(N, D\)"):
            attribute_modes(embeddings[0], GRAPH, parents)
        with pytest.raises(ValueError, match="embeddings must be finite"):
            attribute_modes(embeddings / 0, GRAPH, parents)
        with pytest.raises(ValueError, match="at least two different images"):
            attribute_modes(embeddings[:1].repeat(9, 1), GRAPH, parents[:9])
        with pytest.raises(ValueError, match="'state' has one value in all images"):
            attribute_modes(embeddings, GRAPH, parents * torch.tensor([1, 0, 1, 1, 1]))
        fitted = attribute_modes(embeddings, GRAPH, parents)
        with pytest.raises(ValueError, match="11 features, but PCA is expecting 12"):
            fitted.project(embeddings[:, 1:], "size")


class TestSubgroups:
    def test_categories_split_the_images(self):
        parents = GRAPH.encode({"size": 20, "state": ["on", "off", "on"], "shape": ["ring", "disc", "ring"]})
        state, shape = (subgroups(GRAPH, name, parents[:, None]) for name in ("state", "shape"))
        assert {label: mask.tolist() for label, mask in state.items()} == {
            "off": [[False], [True], [False]],
            "on": [[True], [False], [True]],
        }
        assert list(shape) == ["disc", "star", "ring"]
        np.testing.assert_array_equal(np.sum(list(shape.values()), axis=0), np.ones((3, 1)))
        assert shape["ring"][:, 0].tolist() == [True, False, True]

    def test_halves_meet_at_the_median(self):
        parents = GRAPH.encode({"size": [12, 25, 14, 30, 20.5], "state": "on", "shape": "disc"})
        masks = subgroups(GRAPH, "size", parents[:, None])
        assert list(masks) == ["size below 20.5 mm", "size from 20.5 mm"]
        assert masks["size below 20.5 mm"][:, 0].tolist() == [True, False, True, False, False]
        np.testing.assert_array_equal(masks["size from 20.5 mm"], ~masks["size below 20.5 mm"])

    def test_the_median_is_that_of_the_real_images(self):
        real = GRAPH.encode({"size": [12, 14, 18], "state": "on", "shape": "disc"})
        made = GRAPH.encode({"size": [13, 30, 30], "state": ["on", "off", "off"], "shape": "disc"})
        parents = torch.stack([real, made], dim=1)
        assert subgroups(GRAPH, "size", parents)["size from 14 mm"].tolist() == [
            [False, False],
            [True, True],
            [True, True],
        ]
        assert subgroups(GRAPH, "state", parents)["off"].tolist() == [[False, False], [False, True], [False, True]]


class TestShiftRows:
    def test_all_pairs_have_numbers(self, counterfactual):
        embeddings, parents = counterfactual
        modes = attribute_modes(embeddings[:, 0], GRAPH, parents[:, 0])
        df = shift_rows(GRAPH, modes, embeddings, parents, INTERVENTIONS, range(400), seed=0)
        assert list(df) == ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
        assert set(df["predictor"]) == {"judge"}
        assert df[["low", "high"]].isna().all(axis=None)
        assert not df.duplicated(["intervention", "variable", "metric"]).any()
        etas = df[df["intervention"] == "none"]
        assert list(etas["variable"]) == list(GRAPH.names)
        assert list(etas["value"]) == [modes.modes[name].eta_squared for name in GRAPH.names]
        rest = df[df["intervention"] != "none"]
        assert len(rest) == 2 * 4 * (2 + 2 + 3)
        for name in GRAPH.names:
            labels = list(subgroups(GRAPH, name, parents))
            metrics = {f"{metric}[{label}]" for metric in ("ks", "ks_p", "energy", "energy_p") for label in labels}
            assert set(rest.loc[rest["variable"] == name, "metric"]) == metrics

    def test_unmoved_variables_are_compared_with_their_own_images(self, counterfactual):
        embeddings, parents = counterfactual
        modes = attribute_modes(embeddings[:, 0], GRAPH, parents[:, 0])
        values = _values(shift_rows(GRAPH, modes, embeddings, parents, INTERVENTIONS, range(400), seed=0))
        on = parents[:, 0, 1] == 1
        a, b = (modes.project(embeddings[on, i], "state") for i in (0, 1))
        assert values["shape", "state", "energy[on]"] == pytest.approx(stats.energy_distance(a, b))
        assert values["shape", "state", "ks[on]"] == pytest.approx(stats.ks_2samp(a, b).statistic)
        result = stats.permutation_test(
            (a, b), stats.energy_distance, permutation_type="samples", alternative="greater", n_resamples=99
        )
        assert values["shape", "state", "energy_p[on]"] == pytest.approx(result.pvalue, abs=0.01)

    def test_moved_variables_are_compared_with_images_of_the_new_value(self, counterfactual):
        embeddings, parents = counterfactual
        modes = attribute_modes(embeddings[:, 0], GRAPH, parents[:, 0])
        values = _values(shift_rows(GRAPH, modes, embeddings, parents, INTERVENTIONS, range(400), seed=0))
        for intervention, name, label in (("shape", "shape", "ring"), ("size", "state", "on")):
            i = 1 + INTERVENTIONS.index(intervention)
            column = 4 if name == "shape" else 1
            a, b = (modes.project(embeddings[parents[:, j, column] == 1, j], name) for j in (0, i))
            assert len(a) != len(b)
            assert values[intervention, name, f"energy[{label}]"] == pytest.approx(stats.energy_distance(a, b))
        # What was moved as it should is where the real images are, and what was amplified is not.
        assert values["size", "state", "energy_p[on]"] > 0.05
        assert min(values["shape", "shape", f"energy_p[{label}]"] for label in GRAPH["shape"].categories) == 1 / 1000

    def test_images_of_a_subject_are_no_independent_evidence(self, counterfactual):
        embeddings, parents = (x[:100].repeat(4, 1, 1) for x in counterfactual)  # each image four times
        modes = attribute_modes(embeddings[:, 0], GRAPH, parents[:, 0])
        alone, copied, unknown = (
            _values(shift_rows(GRAPH, modes, x, y, INTERVENTIONS, subjects, seed=0))
            for x, y, subjects in (
                (embeddings[:100], parents[:100], range(100)),
                (embeddings, parents, [f"patient {i % 100}" for i in range(400)]),
                (embeddings, parents, range(400)),
            )
        )
        for key, value in alone.items():
            # Those with the numbers of all permutations, but for chance.
            assert copied[key] == pytest.approx(value, abs=0.06 if "_p[" in key[2] else 1e-9, rel=1e-6)
        p_values = [key for key in alone if "_p[" in key[2] and alone[key] > 0.2]
        assert len(p_values) > 5
        assert np.mean([unknown[key] for key in p_values]) < 0.5 * np.mean([copied[key] for key in p_values])

    def test_pairs_are_kept(self, counterfactual):
        embeddings, parents = counterfactual
        modes = attribute_modes(embeddings[:, 0], GRAPH, parents[:, 0])
        comparisons = subgroup_comparisons(GRAPH, modes, embeddings, parents, INTERVENTIONS, range(400), "state")
        assert [(c.intervention, c.subgroup, c.paired) for c in comparisons] == [
            ("shape", "off", True),
            ("shape", "on", True),
            ("size", "off", False),
            ("size", "on", False),
        ]
        off = [i for i in range(400) if parents[i, 0, 1] == 0]
        scores = [modes.project(embeddings[off, i], "state") for i in (0, 1)]
        np.testing.assert_allclose(comparisons[0].real, scores[0], rtol=1e-12)
        np.testing.assert_allclose(comparisons[0].counterfactual, scores[1], rtol=1e-12)

    def test_small_subgroups_are_left_out(self, counterfactual):
        embeddings, parents = counterfactual
        modes = attribute_modes(embeddings[:, 0], GRAPH, parents[:, 0])
        on = (parents[:, 0, 1] == 1).nonzero()[:, 0]
        off = (parents[:, 0, 1] == 0).nonzero()[:, 0]
        for number in (19, 20):
            chosen = torch.cat([on, off[:number]])
            df = shift_rows(
                GRAPH, modes, embeddings[chosen], parents[chosen], INTERVENTIONS, range(len(chosen)), seed=0
            )
            shown = set(df.loc[(df["intervention"] == "shape") & (df["variable"] == "state"), "metric"])
            assert ("ks[off]" in shown) == (number == 20)
            assert "ks[on]" in shown
        # Nor is there a comparison where no counterfactual was moved into the subgroup.
        stubborn = parents.clone()
        stubborn[:, 2, 1] = 0
        df = shift_rows(GRAPH, modes, embeddings, stubborn, INTERVENTIONS, range(400), seed=0)
        shown = set(df.loc[(df["intervention"] == "size") & (df["variable"] == "state"), "metric"])
        assert "ks[off]" in shown
        assert "ks[on]" not in shown


def _values(df: pd.DataFrame):
    return df.set_index(["intervention", "variable", "metric"])["value"].to_dict()


@pytest.mark.parametrize(("other_images", "most"), [(True, 0.12), (False, 1.0)])
def test_modes_of_other_images_make_no_difference_where_there_is_none(other_images, most):
    """A weak attribute in many directions, few images, and counterfactuals that differ from them by noise alone."""
    graph = CausalGraph([Variable(name="state", kind="binary", categories=("off", "on"))])
    rejected = 0
    for seed in range(80):
        generator = torch.Generator().manual_seed(seed)
        state = (torch.arange(240) % 2)[:, None].float()
        parts = [0.3 * state + torch.randn(240, 64, generator=generator) for _ in range(2)]
        real, fitted = parts if other_images else (parts[0], parts[0])
        counterfactual = 0.3 * state + torch.randn(240, 64, generator=generator)
        modes = attribute_modes(fitted, graph, state)
        on = state[:, 0] > 0
        sides = [modes.project(images[on], "state") for images in (real, counterfactual)]
        people = range(int(on.sum()))
        shift = distribution_shift(*sides, real_subjects=people, counterfactual_subjects=people, seed=seed)
        rejected += shift.energy_p <= 0.05
    assert rejected / 80 <= most
    assert other_images or rejected / 80 > 0.12  # what this is about
