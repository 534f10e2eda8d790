import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import Tensor

from softcft.data.phantom import PHANTOM_GRAPH, draw_block
from softcft.data.truth import PhantomTruth
from softcft.evaluation.truth import ExpressionProbe, probe_rows, truth_errors, truth_rows

COLUMNS = {"age": slice(0, 1), "race": slice(1, 3)}


def grey(*shape: int) -> Tensor:
    """Images of 8 bits."""
    return torch.randint(0, 256, shape) / 127.5 - 1


def resamples(n: int, r: int = 40) -> np.ndarray:
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1 + r).astype(np.float32)
    weights[0] = 1
    return weights


def value(df: pd.DataFrame, metric: str, column: str = "value", **where: str) -> float:
    for key, wanted in {"metric": metric, **where}.items():
        df = df[df[key] == wanted]
    assert len(df) == 1
    return df[column].item()


# ---- pixels -------------------------------------------------------------------------------------------------------


def test_errors_pixel_by_pixel() -> None:
    image, counterfactual, truth = grey(3, 2, 5, 4), torch.rand(3, 2, 5, 4) * 2 - 1, grey(3, 2, 5, 4)
    truth[:, :, 2:] = image[:, :, 2:]
    truth[2] = (image[2] + 1) % 2 - 1 + 2 / 127.5  # moves every pixel
    truth[2] = torch.where(truth[2] == image[2], truth[2] + 1 / 127.5, truth[2])
    errors = truth_errors(image, counterfactual, truth)
    for i in range(3):
        differences, outside, effects = [], [], []
        for new, true, old in zip(*(x[i].flatten().tolist() for x in (counterfactual, truth, image)), strict=True):
            differences.append(127.5 * abs(new - true))
            effects.append(127.5 * abs(true - old))
            if round(127.5 * (true + 1)) == round(127.5 * (old + 1)):
                outside.append(differences[-1])
        assert errors["error"][i].item() == pytest.approx(np.mean(differences), rel=1e-4)
        assert errors["error_factual"][i].item() == pytest.approx(np.mean(effects), rel=1e-4)
        if i == 2:
            assert not outside
            assert errors["error_outside"][i].isnan()
        else:
            assert errors["error_outside"][i].item() == pytest.approx(np.mean(outside), rel=1e-4)


def test_a_perfect_model_and_one_that_does_nothing() -> None:
    attributes, _ = draw_block("test", 0, 16, seed=0)
    parents = attributes[:20].clone()
    parents[:, PHANTOM_GRAPH.slices["sex"]] = 1 - parents[:, PHANTOM_GRAPH.slices["sex"]]
    truth = PhantomTruth("test", 16, seed=0)
    image, _ = truth.counterfactual(range(20), "sex", attributes[:20])
    true_counterfactual, _ = truth.counterfactual(range(20), "sex", parents)
    weights = resamples(20)
    for model, ratio in ((true_counterfactual, 0), (image, 1), ((image + true_counterfactual) / 2, 0.5)):
        df = truth_rows({"sex": truth_errors(image, model, true_counterfactual)}, weights)
        assert list(df["metric"]) == ["error", "error_outside", "faithfulness_ratio"]
        assert set(zip(df["intervention"], df["variable"], df["predictor"], strict=True)) == {("sex", "image", "")}
        for column in ("value", "low", "high"):  # no resample has another ratio
            assert value(df, "faithfulness_ratio", column) == pytest.approx(ratio, abs=1e-6)
        assert value(df, "error_outside") == 0  # none of the three touches what sex leaves alone
        assert (value(df, "error") == 0) == (ratio == 0)


def test_rows_are_weighted_means_and_ratios_of_them() -> None:
    n = 30
    named = {key: torch.rand(n) * 9 for key in ("error", "error_outside", "error_factual")}
    named["error_outside"][::3] = torch.nan
    weights = resamples(n)
    df = truth_rows({"age": named}, weights)
    error, outside, factual = (named[key].numpy() for key in ("error", "error_outside", "error_factual"))
    there = ~np.isnan(outside)
    expected = {
        "error": [np.average(error, weights=w) for w in weights],
        "error_outside": [np.average(outside[there], weights=w[there]) for w in weights],
        "faithfulness_ratio": [(w * error).sum() / (w * factual).sum() for w in weights],
    }
    for metric, values in expected.items():
        assert value(df, metric) == pytest.approx(values[0], rel=1e-5)
        for column, percent in (("low", 2.5), ("high", 97.5)):
            assert value(df, metric, column) == pytest.approx(np.percentile(values[1:], percent), rel=1e-5)


def test_a_faint_effect_does_not_decide_the_ratio() -> None:
    named = {"error": torch.tensor([1.0, 1.0]), "error_factual": torch.tensor([3.0, 1e-6])}
    df = truth_rows({"age": {**named, "error_outside": torch.zeros(2)}}, np.ones((1, 2), np.float32))
    assert value(df, "faithfulness_ratio") == pytest.approx(2 / 3)  # the mean of ratios would be half a million


def test_no_effect_and_no_pixels_have_no_ratio() -> None:
    zero = torch.zeros(4)
    named = {"error": zero + 1, "error_outside": zero * torch.nan, "error_factual": zero}
    df = truth_rows({"age": named}, resamples(4))
    assert value(df, "error") == 1
    assert np.isnan([value(df, "error_outside"), value(df, "faithfulness_ratio")]).all()


# ---- expressions --------------------------------------------------------------------------------------------------


@pytest.fixture
def embed():
    """Embeddings that tell expressions, linearly and with some noise, on features of very different size."""
    mixing = torch.randn(3, 12) * torch.logspace(-2, 2, 12)
    return lambda expression, noise=0.0: expression @ mixing + noise * torch.randn(len(expression), 12)


def test_the_probe_reads_what_embeddings_tell(embed) -> None:
    expression = torch.randn(500, 3) * torch.tensor([1.0, 3.0, 0.5]) + 2
    probe = ExpressionProbe(embed(expression), expression, COLUMNS)
    one, other = torch.randn(40, 3), torch.randn(40, 3)
    np.testing.assert_allclose(probe.predict(embed(one)), one, atol=0.02)
    errors = probe.errors(embed(one), embed(other))
    assert set(errors) == {"age", "race"}
    np.testing.assert_allclose(errors["age"], (one - other)[:, 0].abs(), atol=0.03)
    np.testing.assert_allclose(errors["race"], (one - other)[:, 1:].square().sum(1).sqrt(), atol=0.03)
    assert all((error == 0).all() for error in probe.errors(embed(one), embed(one)).values())


def test_the_probe_is_a_regression_and_shrinks_little_where_images_are_many(embed) -> None:
    expression = torch.randn(3000, 3)
    embedding = embed(expression, noise=0.3)
    probe = ExpressionProbe(embedding, expression, COLUMNS)
    new = embed(torch.randn(50, 3), noise=0.3)
    expected = LinearRegression().fit(embedding.double().numpy(), expression.double().numpy()).predict(new.double())
    np.testing.assert_allclose(probe.predict(new), expected, atol=0.02)


def test_r2_is_that_of_scikit_learn_on_every_resample(embed) -> None:
    expression = torch.randn(300, 3)
    probe = ExpressionProbe(embed(expression, noise=2), expression, COLUMNS)
    test = torch.randn(80, 3) + 1
    embedding, weights = embed(test, noise=2), resamples(80)
    df = probe_rows(probe, embedding, test, weights)
    assert set(zip(df["intervention"], df["predictor"], df["metric"], strict=True)) == {("none", "judge", "r2")}
    predicted = probe.predict(embedding)
    for name, column in COLUMNS.items():
        values = [
            r2_score(test[:, column], predicted[:, column], sample_weight=w, multioutput="variance_weighted")
            for w in weights
        ]
        assert value(df, "r2", variable=name) == pytest.approx(values[0], rel=1e-6)
        for bound, percent in (("low", 2.5), ("high", 97.5)):
            assert value(df, "r2", bound, variable=name) == pytest.approx(np.percentile(values[1:], percent), rel=1e-6)


def test_expression_errors_are_rows_of_their_variable() -> None:
    errors = truth_errors(*(grey(6, 1, 4, 4) for _ in range(3)))
    expressions = {"sex": {"age": np.arange(6.0), "race": np.ones(6)}, "age": {"age": np.zeros(6), "race": np.ones(6)}}
    weights = resamples(6)
    df = truth_rows({"sex": errors, "age": errors}, weights, expressions)
    assert list(df.columns) == ["intervention", "variable", "predictor", "metric", "value", "low", "high"]
    assert len(df) == 2 * 3 + 4
    where = {"intervention": "sex", "variable": "age", "predictor": "judge"}
    assert value(df, "expression_error", **where) == pytest.approx(2.5)
    means = [np.average(np.arange(6.0), weights=w) for w in weights[1:]]
    assert value(df, "expression_error", "high", **where) == pytest.approx(np.percentile(means, 97.5))
