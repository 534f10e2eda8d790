import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, mean_absolute_error, roc_auc_score
from torch.nn import functional as F

from softcft.evaluation.bootstrap import bootstrap_weights, interval
from softcft.evaluation.metrics import (
    calibration_error,
    log_odds,
    logit_shift,
    roc_auc,
    variable_metrics,
    weighted_mean,
)
from softcft.graph import Variable

STATE = Variable(name="state", kind="binary", categories=("off", "on"))
SHAPE = Variable(name="shape", kind="categorical", categories=("disc", "star", "ring", "none"))
SIZE = Variable(name="size", kind="continuous", low=10, high=30, unit="mm")
DOSE = Variable(name="dose", kind="continuous", low=0.1, high=1000, log=True, unit="mg")


def discrete(variable, n, seed=0, strength=1.0):
    """Labels, and logits that know a little of them."""
    generator = torch.Generator().manual_seed(seed)
    if variable.kind == "binary":
        labels = (torch.rand(n, 1, generator=generator) < 0.3).float()
    else:
        labels = F.one_hot(torch.randint(variable.width, (n,), generator=generator), variable.width).float()
    return strength * (labels + torch.randn(labels.shape, generator=generator)), labels


def ones(n):
    return np.ones((1, n), dtype=np.float32)


class TestAUC:
    @pytest.mark.parametrize("decimals", [0, 1, 6], ids=["mostly ties", "some ties", "no ties"])
    def test_every_row_is_that_of_sklearn(self, decimals):
        generator = np.random.default_rng(0)
        labels = (generator.random(150) < 0.3).astype(float)
        scores = (labels + generator.normal(size=150)).round(decimals)
        weights = bootstrap_weights(range(150), 30, seed=0)
        expected = [100 * roc_auc_score(labels, scores, sample_weight=row) for row in weights]
        assert expected[0] == pytest.approx(100 * roc_auc_score(labels, scores))
        np.testing.assert_allclose(roc_auc(scores, labels, weights), expected, rtol=1e-12)

    def test_a_resample_without_one_class_has_none(self):
        weights = np.array([[1, 1, 1], [2, 1, 0], [0, 0, 3], [0, 1, 2]], dtype=np.float32)
        values = roc_auc(np.array([0.1, 0.5, 0.9]), np.array([0, 0, 1]), weights)
        assert values.tolist() == pytest.approx([100, np.nan, np.nan, 100], nan_ok=True)

    def test_rows_do_not_depend_on_how_many_there_are(self):
        # More than fit into one part of the work.
        generator = np.random.default_rng(0)
        labels = generator.random(5000) < 0.5
        scores = labels + generator.normal(size=5000)
        weights = bootstrap_weights(range(5000), 120, seed=0)
        together = roc_auc(scores, labels, weights)
        assert len(together) == 121
        np.testing.assert_allclose(together, [roc_auc(scores, labels, row[None])[0] for row in weights], rtol=1e-12)


class TestCalibrationError:
    def test_every_row_is_that_of_a_loop_over_bins(self):
        generator = np.random.default_rng(0)
        probabilities = generator.random(200)
        labels = (generator.random(200) < probabilities**2).astype(float)
        weights = bootstrap_weights(range(200), 20, seed=0)
        expected = []
        for row in weights:
            error = 0.0
            for b in range(15):
                inside = (probabilities > b / 15) & (probabilities <= (b + 1) / 15)
                share = row[inside].sum() / row.sum()
                if share > 0:
                    observed = np.average(labels[inside], weights=row[inside])
                    error += share * abs(observed - np.average(probabilities[inside], weights=row[inside]))
            expected.append(100 * error)
        np.testing.assert_allclose(calibration_error(probabilities, labels, weights), expected, rtol=1e-6)

    def test_agrees_with_sklearns_calibration_curve(self):
        generator = np.random.default_rng(1)
        probabilities = generator.beta(0.5, 0.5, size=500)
        labels = (generator.random(500) < 0.5 * probabilities + 0.25).astype(float)
        observed, predicted = calibration_curve(labels, probabilities, n_bins=15)
        counts = np.histogram(probabilities, bins=15, range=(0, 1))[0]
        expected = 100 * np.average(np.abs(observed - predicted), weights=counts[counts > 0])
        assert calibration_error(probabilities, labels, ones(500)) == pytest.approx(expected)

    def test_certainty_belongs_to_the_outer_bins(self):
        assert calibration_error(np.array([0.0, 1, 1, 0]), np.array([0, 1, 0, 0]), ones(4)) == 25


class TestVariableMetrics:
    def test_binary(self):
        logits, labels = discrete(STATE, 120)
        weights = bootstrap_weights(range(120), 15, seed=0)
        metrics = variable_metrics(STATE, logits, labels, weights)
        assert list(metrics) == ["auc", "accuracy", "ece"]
        y, p = labels[:, 0].numpy(), logits[:, 0].sigmoid().numpy()
        for r, row in enumerate(weights):
            assert metrics["auc"][r] == pytest.approx(100 * roc_auc_score(y, p, sample_weight=row))
            assert metrics["accuracy"][r] == pytest.approx(100 * accuracy_score(y, p > 0.5, sample_weight=row))
        np.testing.assert_allclose(metrics["ece"], calibration_error(p, y, weights), rtol=1e-5)

    def test_categorical_is_the_macro_average_of_one_against_the_rest(self):
        logits, labels = discrete(SHAPE, 200)
        weights = bootstrap_weights(range(200), 15, seed=0)
        metrics = variable_metrics(SHAPE, logits, labels, weights)
        p, y = softmax(logits.numpy(), axis=1), labels.argmax(dim=1).numpy()
        for r, row in enumerate(weights):
            # sklearn weighs no multi-class average: one category at a time.
            areas = [roc_auc_score(y == k, p[:, k], sample_weight=row) for k in range(4)]
            assert metrics["auc"][r] == pytest.approx(100 * np.mean(areas))
            hits = accuracy_score(y, p.argmax(axis=1), sample_weight=row)
            assert metrics["accuracy"][r] == pytest.approx(100 * hits)
        assert metrics["auc"][0] == pytest.approx(100 * roc_auc_score(y, p, multi_class="ovr", average="macro"))
        errors = [calibration_error(p[:, k], y == k, weights) for k in range(4)]
        np.testing.assert_allclose(metrics["ece"], np.mean(errors, axis=0), rtol=1e-5)

    def test_two_categories_are_as_good_as_a_binary_variable(self):
        two = Variable(name="state", kind="categorical", categories=("off", "on"))
        logits, labels = discrete(STATE, 120)
        weights = bootstrap_weights(range(120), 5, seed=0)
        binary = variable_metrics(STATE, logits, labels, weights)
        pair = torch.cat([torch.zeros_like(logits), logits], dim=1), torch.cat([1 - labels, labels], dim=1)
        for metric, values in variable_metrics(two, *pair, weights).items():
            np.testing.assert_allclose(values, binary[metric], rtol=1e-9, err_msg=metric)

    @pytest.mark.parametrize("variable", [SIZE, DOSE], ids=["linear", "log"])
    def test_continuous_is_the_mean_absolute_error_in_the_variables_unit(self, variable):
        generator = torch.Generator().manual_seed(0)
        predicted, labels = (2 * torch.rand(80, 1, generator=generator) - 1 for _ in range(2))
        weights = bootstrap_weights(range(80), 15, seed=0)

        def natural(encoded):
            share = (encoded[:, 0].double().numpy() + 1) / 2
            return 0.1 * 10_000**share if variable.log else 10 + 20 * share

        metrics = variable_metrics(variable, predicted, labels, weights)
        assert list(metrics) == ["mae"]
        expected = [mean_absolute_error(natural(labels), natural(predicted), sample_weight=row) for row in weights]
        np.testing.assert_allclose(metrics["mae"], expected, rtol=1e-5)

    def test_a_sure_predictor_does_not_run_into_ties(self):
        # In float64 every one of these probabilities is 1, but for the last.
        logits, labels = (
            torch.tensor([[50.0], [90.0], [70.0], [2e4], [-1.0]]),
            torch.tensor([[0.0], [1], [1], [1], [0]]),
        )
        assert variable_metrics(STATE, logits, labels, ones(5))["auc"] == 100
        logits = torch.cat([torch.zeros(5, 3), logits], dim=1)
        assert roc_auc(log_odds(SHAPE, logits)[:, 3], labels[:, 0].numpy(), ones(5)) == 100

    def test_a_rare_category_is_undefined_in_some_resamples_only(self):
        labels = torch.eye(4)[[0, 1, 2, 3] + [0, 1, 2] * 12]
        metrics = variable_metrics(SHAPE, labels + 0.1, labels, bootstrap_weights(range(40), 400, seed=0))
        # The only ring is in a resample with probability 1 - (1 - 1/40)^40 = 0.637.
        assert np.isnan(metrics["auc"]).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.08)
        assert interval(metrics["auc"]) == pytest.approx((100, np.nan, np.nan), nan_ok=True)
        assert interval(metrics["accuracy"]) == (100, 100, 100)

    def test_one_class_has_no_auc(self):
        with pytest.raises(ValueError, match=r"'state' has no AUC.*'off': 0, 'on': 4"):
            variable_metrics(STATE, torch.rand(4, 1), torch.ones(4, 1), ones(4))
        with pytest.raises(ValueError, match=r"'shape' has no AUC.*'disc': 1, 'star': 2, 'ring': 0, 'none': 1"):
            variable_metrics(SHAPE, torch.rand(4, 4), torch.eye(4)[[0, 1, 1, 3]], ones(4))

    @pytest.mark.parametrize(("logits", "labels"), [((4, 2), (4, 1)), ((4, 3), (4, 3)), ((5, 1), (5, 1)), ((4,), (4,))])
    def test_wrong_shapes_are_refused(self, logits, labels):
        with pytest.raises(ValueError, match=r"'state'.*logits and labels"):
            variable_metrics(STATE, torch.zeros(logits), torch.zeros(labels), ones(4))

    def test_numbers_that_mean_nothing_are_refused(self):
        labels = torch.tensor([[0.0], [1.0], [1.0]])
        with pytest.raises(ValueError, match="'state': logits must be finite, but are not for 2 of 3 images"):
            variable_metrics(STATE, torch.tensor([[0.0], [math.nan], [math.inf]]), labels, ones(3))
        with pytest.raises(ValueError, match="'size': labels must be finite, but are not for 1 of 1 images"):
            variable_metrics(SIZE, torch.zeros(1, 1), torch.full((1, 1), math.nan), ones(1))


class TestLogitShift:
    @pytest.mark.parametrize("variable", [STATE, SHAPE], ids=["binary", "categorical"])
    def test_every_row_is_the_mean_difference_of_log_odds(self, variable):
        logits, labels = discrete(variable, 60)
        other_logits, other_labels = discrete(variable, 60, seed=1)
        weights = bootstrap_weights(range(60), 10, seed=0)

        def odds(x, a):
            if variable.kind == "binary":
                p = x.double().sigmoid()[:, 0].numpy()
                p = np.where(a[:, 0] == 1, p, 1 - p)
            else:
                p = (softmax(x.double().numpy(), axis=1) * a.numpy()).sum(axis=1)
            return np.log(p / (1 - p))

        difference = odds(other_logits, other_labels) - odds(logits, labels)
        expected = [np.average(difference, weights=row) for row in weights]
        shift = logit_shift(variable, logits, labels, other_logits, other_labels, weights)
        np.testing.assert_allclose(shift, expected, rtol=1e-9)

    def test_extreme_logits_do_not_overflow(self):
        labels = torch.eye(4)
        mild, sure = 10 * labels, 1e4 * labels
        # log p - log(1 - p) of one logit g above three equal ones is g - log 3.
        assert logit_shift(SHAPE, mild, labels, sure, labels, ones(4)) == pytest.approx(1e4 - 10)
        binary = torch.tensor([[1.0], [0.0]])
        assert logit_shift(STATE, binary, binary, 1e4 * (2 * binary - 1), binary, ones(2)) == pytest.approx(1e4 - 0.5)


def test_weighted_means_of_vectors_and_columns():
    values, weights = np.random.default_rng(0).normal(size=(30, 2)), bootstrap_weights(range(30), 10, seed=0)
    expected = np.stack([np.average(values, axis=0, weights=row) for row in weights])
    np.testing.assert_allclose(weighted_mean(values, weights), expected)
    np.testing.assert_allclose(weighted_mean(values[:, 1], weights), expected[:, 1])
