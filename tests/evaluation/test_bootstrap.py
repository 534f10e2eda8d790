import numpy as np
import pytest
import torch
from scipy import stats

from softcft.evaluation.bootstrap import bootstrap_weights, halves, interval
from softcft.evaluation.metrics import roc_auc


def skewed(n, seed=0):
    return np.random.default_rng(seed).exponential(size=n)


class TestWeights:
    def test_row_0_is_the_point_estimate_and_the_others_draw_as_many_subjects_as_there_are(self):
        weights = bootstrap_weights(range(50), 200, seed=0)
        assert weights.shape == (201, 50)
        assert weights.dtype == np.float32
        assert (weights[0] == 1).all()
        assert (weights[1:].sum(axis=1) == 50).all()
        assert (weights == weights.astype(int)).all()
        assert len(np.unique(weights[1:], axis=0)) == 200

    def test_counts_are_multinomial(self):
        counts = bootstrap_weights(range(20), 20_000, seed=0)[1:]
        # Mean 1 and variance 1 - 1 / S; two subjects compete for the same draws: covariance -1 / S.
        np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.04)
        covariance = np.cov(counts.T)
        np.testing.assert_allclose(np.diag(covariance), 0.95, atol=0.06)
        np.testing.assert_allclose(covariance[~np.eye(20, dtype=bool)], -0.05, atol=0.04)

    def test_images_of_a_subject_are_drawn_together(self):
        subjects = ["a", "b", "a", "c", "a", "b"]
        weights = bootstrap_weights(subjects, 100, seed=0)
        for subject in "abc":
            own = weights[:, [i for i, s in enumerate(subjects) if s == subject]]
            assert (own == own[:, :1]).all()
        assert (weights[1:, [0, 1, 3]].sum(axis=1) == 3).all()
        assert len(np.unique(weights[1:], axis=0)) == 10  # the ways to draw 3 of 3 with replacement

    def test_the_seed_decides_the_draw(self):
        first, again, other = (bootstrap_weights(range(30), 10, seed) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize(
        "subjects",
        [[7, 7, 8, 9, 8], np.array([7, 7, 8, 9, 8]), torch.tensor([7, 7, 8, 9, 8]), [(1, "x")] * 2 + [3, "3", 3]],
        ids=["list", "array", "tensor", "mixed"],
    )
    def test_any_ids_will_do(self, subjects):
        assert np.array_equal(bootstrap_weights(subjects, 20, 0), bootstrap_weights(list("aabcb"), 20, 0))

    def test_no_resamples_leave_the_point_estimate(self):
        assert bootstrap_weights(range(3), 0, seed=0).tolist() == [[1, 1, 1]]

    @pytest.mark.parametrize(
        ("subjects", "num_resamples", "message"),
        [
            ([], 10, "at least 2 subjects to resample, got 0"),
            (["a", "a", "a"], 10, "at least 2 subjects to resample, got 1"),
            (["a", None, "b", float("nan")], 10, "no id for 2 of 4 images"),
            (range(5), -1, "num_resamples must be at least 0, got -1"),
        ],
    )
    def test_what_cannot_be_resampled_is_refused(self, subjects, num_resamples, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_weights(subjects, num_resamples, seed=0)


class TestInterval:
    def test_agrees_with_scipy_for_an_auc(self):
        labels = np.arange(60) % 3 == 0
        scores = labels + skewed(60)

        def auc(index):
            # Mann and Whitney's statistic from ranks, for many resamples at once.
            y, ranks = labels[index], stats.rankdata(scores[index], axis=-1)
            positives = y.sum(axis=-1)
            pairs = positives * (y.shape[-1] - positives)
            return 100 * ((ranks * y).sum(axis=-1) - positives * (positives + 1) / 2) / pairs

        value, low, high = interval(roc_auc(scores, labels, bootstrap_weights(range(60), 8000, seed=0)))
        expected = stats.bootstrap(
            (np.arange(60),),
            lambda index, axis=-1: auc(index),
            n_resamples=8000,
            method="percentile",
            vectorized=True,
            rng=1,
        )
        tolerance = 0.15 * expected.standard_error
        assert value == pytest.approx(auc(np.arange(60)))
        assert low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
        assert high == pytest.approx(expected.confidence_interval.high, abs=tolerance)

    def test_images_twice_do_not_shrink_it(self):
        labels = np.arange(100) % 2
        scores = labels + skewed(100)
        once = interval(roc_auc(scores, labels, bootstrap_weights(range(100), 2000, seed=0)))
        scores, labels = np.repeat(scores, 2), np.repeat(labels, 2)
        clustered = interval(roc_auc(scores, labels, bootstrap_weights(np.arange(200) // 2, 2000, seed=0)))
        assert clustered == pytest.approx(once)
        # As if each of the copies were news, it would be narrower by the square root of two.
        value, low, high = interval(roc_auc(scores, labels, bootstrap_weights(range(200), 2000, seed=0)))
        assert value == pytest.approx(once[0])
        assert high - low == pytest.approx((once[2] - once[1]) / np.sqrt(2), rel=0.1)

    def test_resamples_without_a_value_are_left_out(self):
        values = np.arange(101.0)
        values[[7, 20, 30, 40, 50]] = np.nan
        assert interval(values) == pytest.approx(
            (0, *np.percentile(np.delete(values, [0, 7, 20, 30, 40, 50]), [2.5, 97.5]))
        )

    def test_too_many_of_them_leave_no_interval(self):
        values = np.arange(101.0)
        values[1:7] = np.nan
        assert interval(values) == pytest.approx((0, np.nan, np.nan), nan_ok=True)

    def test_no_resamples_leave_no_interval(self):
        assert interval(np.array([3.0])) == pytest.approx((3, np.nan, np.nan), nan_ok=True)


class TestHalves:
    @pytest.mark.parametrize("sizes", [[1] * 40, [3] * 41, [*range(1, 20)], [50, *[1] * 30], [7, 7]])
    def test_they_share_no_subject_and_are_of_one_size(self, sizes):
        subjects = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
        first = halves([f"patient {subject}" for subject in subjects], seed=0)
        assert not set(subjects[first]) & set(subjects[~first])
        assert abs(first.sum() - (~first).sum()) <= max(1, 2 * max(sizes) - sum(sizes), np.median(sizes))

    def test_the_seed_chooses_them(self):
        first, again, other = (halves(range(50), seed) for seed in (0, 0, 1))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
