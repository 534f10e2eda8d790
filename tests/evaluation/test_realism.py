import numpy as np
import pytest
import scipy
import torch

from softcft.cft.interventions import other_values
from softcft.evaluation.bootstrap import halves
from softcft.evaluation.realism import frechet_distance, frechet_rows, quartets
from softcft.graph import CausalGraph, Variable

GRAPH = CausalGraph(
    [
        Variable(name="age", kind="continuous", low=0, high=90, unit="years"),
        Variable(name="sex", kind="binary", categories=("female", "male")),
        Variable(
            name="diagnosis",
            kind="categorical",
            categories=("nevus", "keratosis", "melanoma", "other"),
            parents=("age", "sex"),
        ),
    ]
)
D = 32
METRICS = ["frechet_real", "frechet_excess"]
SHARES = {"even": (0.25, 0.25, 0.25, 0.25), "rare": (0.9, 0.07, 0.02, 0.01)}
# Age, sex and four diagnoses show in the embedding, the first diagnosis not at all.
DIRECTIONS = torch.linalg.qr(torch.randn(D, 6, generator=torch.Generator().manual_seed(5))).Q.T
EFFECTS = DIRECTIONS * torch.tensor([0.6, 0.6, 0, 1.0, 1.2, 1.4])[:, None]


def embed(parents, noise):
    """The embeddings of a known world: lesions that are no nevi vary more."""
    return parents @ EFFECTS + (1 + 0.2 * (1 - parents[:, 2:3])) * noise


def draw_world(seed, shares, n=1200):
    """Attributes (N, 4, K) and embeddings (N, 4, D) of real images and their true counterfactuals, and subjects."""
    generator = torch.Generator().manual_seed(seed)
    diagnosis = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=generator)
    # Whoever is ill is older, as far as the range goes.
    age = (2 * torch.rand(n, generator=generator) - 1 + 0.2 * (diagnosis > 0)).clamp(-1, 1)
    sex = (torch.rand(n, generator=generator) < 0.5).float()
    real = torch.cat([age[:, None], sex[:, None], torch.nn.functional.one_hot(diagnosis, 4)], dim=1)
    subjects = torch.randint(n * 3 // 4, (n,), generator=generator)
    noise = torch.randn(n * 3 // 4, D, generator=generator)[subjects] + torch.randn(n, D, generator=generator)
    noise /= (2 * torch.arange(1, D + 1)) ** 0.5
    labels = real[:, None].repeat(1, 4, 1)
    for i, name in enumerate(GRAPH.names, start=1):
        labels[:, i, GRAPH.slices[name]] = other_values(GRAPH, name, real, generator)
    embeddings = torch.stack([embed(labels[:, i], noise) for i in range(4)], dim=1)
    return labels, embeddings, subjects.tolist(), noise


def measure(labels, embeddings, subjects, seed=0):
    table = frechet_rows(GRAPH, labels, embeddings, GRAPH.names, subjects, seed)
    assert list(table.columns) == ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
    return table.set_index(["metric", "intervention"]).sort_index()


@pytest.fixture(scope="module", params=SHARES)
def world(request):
    return draw_world(0, SHARES[request.param])


class TestFrechetRows:
    def test_true_counterfactuals_have_no_excess(self, world):
        """Also of categories that 1 % of the images have, where the distance to all real images is large."""
        labels, embeddings, subjects, _ = world
        table = measure(labels, embeddings, subjects)
        excess = table.loc["frechet_excess"]
        assert (excess["value"].abs() < 1.5 * (excess["high"] - excess["low"]) / 2).all()
        assert excess["value"].abs().max() < 0.1
        floor, distance = table.loc["frechet_real", "value"], table.loc["frechet_to_real", "value"]
        assert ((distance / floor - 1).abs() < 0.1).all()

    def test_the_distance_to_all_real_images_is_that_of_another_mix(self):
        labels, embeddings, subjects, _ = draw_world(0, SHARES["rare"])
        assert frechet_distance(embeddings[:, 3], embeddings[:, 0]) > 0.5
        assert measure(labels, embeddings, subjects).loc[("frechet_excess", "diagnosis"), "value"] < 0.1

    def test_an_untouched_attribute_that_is_spoiled_is_seen(self, world):
        """All look older by 0.7: the distance is the square of it, with rare categories too."""
        labels, embeddings, subjects, _ = world
        spoiled = embeddings.clone()
        spoiled[:, 1:] += 0.7 * DIRECTIONS[0]
        excess = measure(labels, spoiled, subjects).loc["frechet_excess"]
        assert (excess["low"] > 0).all()
        assert excess["value"].to_numpy() == pytest.approx(0.49, abs=0.2)

    def test_images_that_vary_less_are_no_nearer_for_it(self, world):
        labels, embeddings, subjects, noise = world
        flawed = embeddings.clone()
        for i in range(1, 4):
            flawed[:, i] = embed(labels[:, i], 0.5 * noise)
        assert (measure(labels, flawed, subjects).loc["frechet_excess", "low"] > 0).all()

    def test_rare_diagnoses_that_do_not_appear_are_missed(self):
        """Of even shares they would not be: images that all show another diagnosis than they should are as mixed."""
        labels, embeddings, subjects, _ = draw_world(0, SHARES["rare"])
        unchanged = embeddings[:, :1].repeat(1, 4, 1)
        assert measure(labels, unchanged, subjects).loc[("frechet_excess", "diagnosis"), "low"] > 0

    @pytest.mark.slow
    def test_intervals_hold_the_truth(self):
        """True counterfactuals of 12 small worlds have no excess, and their intervals say so, but by chance."""
        missed = []
        for seed in range(30):
            labels, embeddings, subjects, _ = draw_world(seed, SHARES["even"], n=200)
            excess = measure(labels, embeddings[..., :8], subjects).loc["frechet_excess"]
            missed += [(low > 0) or (high < 0) for low, high in zip(excess["low"], excess["high"], strict=True)]
        assert np.mean(missed) < 0.12

    @pytest.mark.slow
    def test_few_images_have_no_more_excess_than_many(self):
        means = []
        for n in (150, 600):
            tables = [measure(*draw_world(seed, SHARES["even"], n)[:3]) for seed in range(6)]
            means.append([np.mean([t.loc[metric, "value"] for t in tables]) for metric in METRICS])
        (few_floor, few_excess), (many_floor, many_excess) = means
        assert few_floor > 2 * many_floor
        assert abs(few_excess - many_excess) < 0.1 * few_floor

    def test_where_nothing_is_alike_there_is_but_the_number(self):
        """All images of a subject are on one side, so that of one ill subject there is no other."""
        labels, embeddings, _, _ = draw_world(0, SHARES["even"], n=40)
        labels = labels[:, [0, 2]]
        labels[:, 0, 1], labels[:, 1, 1] = 0, 1
        labels[0, 0, 1], labels[0, 1, 1] = 1, 0
        table = frechet_rows(GRAPH, labels, embeddings[:, [0, 2]], ["sex"], range(40), seed=0)
        assert table["metric"].tolist() == ["frechet_images"]
        assert table["value"].tolist() == [0]


class TestQuartets:
    @pytest.mark.parametrize(("i", "name"), list(enumerate(GRAPH.names, start=1)))
    def test_all_four_should_show_the_same(self, world, i, name):
        labels, _, subjects, _ = world
        half = halves(subjects, 0)
        found = quartets(GRAPH, name, labels[:, 0], labels[:, i], half, seed=0)
        assert len(found.real) > 20
        shown = [labels[found.counterfactual, i], labels[found.real, 0]]
        shown += [labels[found.other_real, 0], labels[found.other_counterfactual, i]]
        for other in shown[1:]:
            assert torch.equal(other[:, 1:], shown[0][:, 1:])
            gaps = (other[:, 0] - shown[0][:, 0]).abs()
            assert gaps.median() < 0.1  # of a range of 2
            assert gaps.max() < 1

    def test_no_image_is_there_twice_and_no_subject_on_both_sides(self, world):
        labels, _, subjects, _ = world
        half = halves(subjects, 0)
        found = quartets(GRAPH, "diagnosis", labels[:, 0], labels[:, 3], half, seed=0)
        assert [len(np.unique(rows)) for rows in found] == 4 * [len(found.real)]
        assert [half[rows].mean() for rows in found] == [1, 1, 0, 0]

    def test_rare_categories_have_a_say(self):
        labels, _, subjects, _ = draw_world(0, SHARES["rare"])
        found = quartets(GRAPH, "diagnosis", labels[:, 0], labels[:, 3], halves(subjects, 0), seed=0)
        assert (labels[found.counterfactual, 3, 2:].sum(dim=0) > 0).all()


class TestFrechetDistance:
    @pytest.mark.parametrize("n", [60, 5], ids=["full rank", "fewer images than dimensions"])
    def test_it_is_the_formula_of_heusel_et_al(self, n):
        a, b = torch.randn(n, 8).double(), torch.randn(n + 3, 8).double() @ torch.randn(8, 8).double() + 0.3
        covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
        expected = np.square(a.numpy().mean(0) - b.numpy().mean(0)).sum() + np.trace(sum(covariances) - 2 * root.real)
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))

    @pytest.mark.parametrize("n", [100, 10])
    def test_a_set_is_at_no_distance_from_itself(self, n):
        a = torch.randn(n, 32)
        assert 0 <= frechet_distance(a, a.flip(0)) < 1e-9
        assert frechet_distance(a, a + 1) == pytest.approx(32, rel=1e-5)
