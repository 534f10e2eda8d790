import math

import numpy as np
import pytest
from scipy import stats

from softcft.evaluation import permutation as module
from softcft.evaluation.permutation import distribution_shift


def compare(a, b, *, paired, seed):
    """Each image of a subject of its own, or the i-th of both of one."""
    ours = range(len(a))
    theirs = ours if paired else range(len(a), len(a) + len(b))
    return distribution_shift(a, b, real_subjects=ours, counterfactual_subjects=theirs, seed=seed)


@pytest.mark.parametrize("decimals", [0, 15], ids=["ties", "no ties"])
@pytest.mark.parametrize("sizes", [(50, 50), (50, 31), (1, 1), (1, 7)])
def test_statistics_are_those_of_scipy(sizes, decimals):
    generator = np.random.default_rng(0)
    a, b = (generator.normal(size=size).round(decimals) for size in sizes)
    b = b * 1.3 + 0.2 if decimals else b
    shift = compare(a, b, paired=False, seed=0)
    assert shift.ks == pytest.approx(stats.ks_2samp(a, b).statistic)
    assert shift.energy == pytest.approx(stats.energy_distance(a, b))
    if sizes[0] == sizes[1]:
        paired = compare(a, b, paired=True, seed=0)
        assert (paired.ks, paired.energy) == (shift.ks, shift.energy)


@pytest.mark.parametrize("chunk", [module.CHUNK, 100])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("case", [0, 1, 2])
def test_p_values_are_those_of_all_permutations(paired, case, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = np.random.default_rng(case)
    size = 6 if paired else 4
    a = generator.normal(size=6)
    b = a[:size] + [0.0, 0.4, 0.8][case] + 0.5 * generator.normal(size=size)
    a, b = (a.round(), b.round()) if case == 0 else (a, b)
    shift = compare(a, b, paired=paired, seed=3)
    for p, statistic in (
        (shift.ks_p, lambda x, y: stats.ks_2samp(x, y, method="asymp").statistic),
        (shift.energy_p, stats.energy_distance),
    ):
        exact = stats.permutation_test(
            (a, b),
            statistic,
            permutation_type="samples" if paired else "independent",
            alternative="greater",
            n_resamples=np.inf,
        ).pvalue
        assert p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 999) + 1e-3)


def test_pairs_show_a_shift_far_smaller_than_the_spread_of_subjects():
    generator = np.random.default_rng(0)
    a = generator.normal(size=200)
    b = a + 0.1 + 0.1 * generator.normal(size=200)
    assert compare(a, b, paired=True, seed=0).energy_p == 1 / 1000
    assert compare(a, b, paired=False, seed=0).energy_p > 0.1
    assert compare(a, b + 1, paired=False, seed=0)[1::2] == (1 / 1000, 1 / 1000)


def test_a_change_of_spread_is_a_shift():
    a = np.random.default_rng(0).normal(size=200)
    shift = compare(a, 0.5 * a, paired=True, seed=0)
    assert shift.ks_p == shift.energy_p == 1 / 1000


def test_equal_samples_have_no_shift():
    a = np.random.default_rng(0).normal(size=30)
    assert compare(a, a, paired=True, seed=0) == (0, 1, 0, 1)
    assert compare(a, a[::-1], paired=False, seed=0) == (0, 1, 0, 1)


def test_a_seed_is_a_choice_of_permutations():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    shifts = [compare(a, b, paired=True, seed=seed) for seed in (0, 0, 1)]
    assert shifts[0] == shifts[1]
    assert shifts[0].energy_p != shifts[2].energy_p


def test_samples_that_cannot_be_compared():
    a = np.arange(5.0)
    with pytest.raises(ValueError, match="real_subjects"):
        distribution_shift(a, a, real_subjects="abcd", counterfactual_subjects="abcde", seed=0)
    with pytest.raises(ValueError, match="no id for 1 of 10 images"):
        distribution_shift(a, a, real_subjects=[*"abcd", None], counterfactual_subjects="abcde", seed=0)
    with pytest.raises(ValueError, match="real"):
        compare(a * np.nan, a, paired=False, seed=0)


# ---- several images of a subject ------------------------------------------------------------------------------------


SIZES = {"1": (1, 1), "3": (3, 3), "1 to 6": (1, 6)}  # images of a subject, from and to


def of_subjects(generator, subjects, sizes):
    """Images of some subjects, who differ more than the images of one of them: values and subjects."""
    who = np.repeat(np.arange(subjects), generator.integers(sizes[0], sizes[1] + 1, size=subjects))
    return generator.normal(size=subjects)[who] + 0.3 * generator.normal(size=len(who)), who


def same_images(generator, sizes):
    """Each image before and after: what it changes by is common to a subject, and up as often as down."""
    base, who = of_subjects(generator, 30, sizes)
    change = 0.5 * generator.normal(size=30)[who] + 0.1 * generator.normal(size=len(who))
    return base - change / 2, who, base + change / 2, who


def other_subjects(generator, sizes):
    """Real images of some subjects, counterfactuals of others."""
    (a, ours), (b, theirs) = (of_subjects(generator, number, sizes) for number in (30, 20))
    return a, ours, b, 30 + theirs


def some_of_both(generator, sizes):
    """Some images of a subject are among the real ones, of others the counterfactuals are compared with them."""
    x, who = of_subjects(generator, 40, sizes)
    real = generator.random(len(x)) < 0.5
    return x[real], who[real], x[~real], who[~real]


def those_with_more_images_differ(generator, sizes):
    """Real images are of subjects who have more of them; and who has more looks otherwise."""
    number = generator.integers(sizes[0], sizes[1] + 1, size=60)
    who = np.repeat(np.arange(60), number)
    x = (0.5 * number + generator.normal(size=60))[who] + 0.3 * generator.normal(size=len(who))
    real = (generator.random(60) < number / (1 + sizes[1]))[who]
    return x[real], who[real], x[~real], who[~real]


DESIGNS = [same_images, other_subjects, some_of_both, those_with_more_images_differ]
REPETITIONS = 300


def rejections(design, sizes, effect=0.0, by_image=False):
    """How often both p-values are at most 5 %, if so much is added to all counterfactuals."""
    generator = np.random.default_rng(0)
    p_values = []
    for seed in range(REPETITIONS):
        a, ours, b, theirs = design(generator, sizes)
        if by_image:
            paired = design is same_images
            result = compare(a, b, paired=paired, seed=seed)
        else:
            result = distribution_shift(a, b + effect, real_subjects=ours, counterfactual_subjects=theirs, seed=seed)
        p_values.append((result.ks_p, result.energy_p))
    return (np.array(p_values) <= 0.05).mean(axis=0)


@pytest.fixture
def fewer_permutations(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 199)


@pytest.mark.usefixtures("fewer_permutations")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("design", DESIGNS)
def test_without_a_shift_one_in_twenty_is_rejected(design, sizes):
    by_ks, by_energy = rejections(design, sizes)
    assert max(by_ks, by_energy) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)
    assert by_energy >= 0.01


@pytest.mark.usefixtures("fewer_permutations")
@pytest.mark.parametrize("design", DESIGNS)
def test_a_shift_is_found(design):
    assert min(rejections(design, SIZES["1 to 6"], effect=2.0)) > 0.6


@pytest.mark.usefixtures("fewer_permutations")
@pytest.mark.parametrize("design", [same_images, other_subjects])
def test_images_are_not_independent(design):
    """What the tests above would say of a test that exchanged images one by one."""
    assert min(rejections(design, SIZES["1 to 6"], by_image=True)) > 0.15
