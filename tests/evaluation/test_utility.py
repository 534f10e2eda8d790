import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_absolute_error, roc_auc_score
from torch import Tensor

from softcft.evaluation.bootstrap import bootstrap_weights
from softcft.evaluation.utility import REAL, utility_rows
from softcft.graph import CausalGraph

GRAPH = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 20, "high": 80, "unit": "years"},
        {"name": "sex", "kind": "binary", "categories": ["male", "female"]},
        {"name": "race", "kind": "categorical", "categories": ["a", "b", "c"]},
    ]
)
N = 300
COLUMNS = ["cft", "intervention", "variable", "predictor", "metric", "value", "low", "high"]
METRICS = {"age": "mae", "sex": "auc", "race": "auc"}


@pytest.fixture
def labels() -> Tensor:
    sex, race = torch.randint(2, (N, 1)), torch.nn.functional.one_hot(torch.randint(3, (N,)), 3)
    return torch.cat([torch.rand(N, 1) * 2 - 1, sex, race], dim=1).float()


@pytest.fixture
def weights() -> np.ndarray:
    return bootstrap_weights(range(N), 200, seed=0)


def predictor(labels: Tensor, noise: float) -> Tensor:
    """Logits that know the labels the less, the more noise they have."""
    return (2 * labels - 1 + noise * torch.randn(labels.shape)).clamp(-9, 9)


def cell(rows: pd.DataFrame, cft: str, intervention: str, variable: str, metric: str) -> pd.Series:
    chosen = rows[
        (rows["cft"] == cft)
        & (rows["intervention"] == intervention)
        & (rows["variable"] == variable)
        & (rows["metric"] == metric)
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_values_are_those_of_scikit_learn(labels: Tensor, weights: np.ndarray) -> None:
    logits = {REAL: predictor(labels, 1), ("soft", "race"): predictor(labels, 2)}
    rows = utility_rows(GRAPH, logits, labels, weights)
    assert list(rows.columns) == COLUMNS
    assert len(rows) == 3 + 2 * 3
    assert set(rows["predictor"]) == {""}
    for (cft, intervention), predicted in logits.items():
        sex = roc_auc_score(labels[:, 1], predicted[:, 1])
        race = roc_auc_score(labels[:, 2:].argmax(1), predicted[:, 2:].softmax(1).double(), multi_class="ovr")
        age = 30 * mean_absolute_error(labels[:, 0], predicted[:, 0])
        for name, expected in (("sex", 100 * sex), ("race", 100 * race), ("age", age)):
            row = cell(rows, cft, intervention, name, METRICS[name])
            assert row["value"] == pytest.approx(expected, abs=0.02)
            assert row["low"] < row["value"] < row["high"]


def test_equal_predictors_do_not_differ_in_any_resample(labels: Tensor, weights: np.ndarray) -> None:
    same = predictor(labels, 1)
    rows = utility_rows(GRAPH, {("hard", "sex"): same, REAL: same.clone()}, labels, weights)
    changes = rows[rows["metric"].str.endswith("_change")]
    assert set(zip(changes["variable"], changes["metric"], strict=True)) == {
        (name, f"{metric}_change") for name, metric in METRICS.items()
    }
    assert (changes[["value", "low", "high"]] == 0).all(axis=None)
    assert not rows[rows["cft"] == "real"]["metric"].str.endswith("_change").any()


def test_a_worse_predictor_loses_auc_and_gains_error(labels: Tensor, weights: np.ndarray) -> None:
    logits = {REAL: predictor(labels, 0.5), ("none", "sex"): predictor(labels, 4)}
    rows = utility_rows(GRAPH, logits, labels, weights)
    for name, metric in METRICS.items():
        value, real = (cell(rows, *key, name, metric)["value"] for key in (("none", "sex"), REAL))
        change = cell(rows, "none", "sex", name, f"{metric}_change")
        assert change["value"] == pytest.approx(value - real)
        if metric == "auc":
            assert change["high"] < 0
        else:
            assert change["low"] > 0


def test_changes_are_paired(labels: Tensor, weights: np.ndarray) -> None:
    """Nearly equal predictors are far surer of their difference than of themselves; checked by hand for one of them."""
    real = predictor(labels, 2)
    other = real + 0.1 * torch.randn(real.shape)
    rows = utility_rows(GRAPH, {REAL: real, ("soft", "sex"): other}, labels, weights)
    change, value = (cell(rows, "soft", "sex", "sex", metric) for metric in ("auc_change", "auc"))
    assert change["high"] - change["low"] < (value["high"] - value["low"]) / 3

    def auc(predicted: Tensor, weight: np.ndarray) -> float:
        return 100 * roc_auc_score(labels[:, 1], predicted[:, 1], sample_weight=weight)

    expected = np.percentile([auc(other, w) - auc(real, w) for w in weights[1:]], [2.5, 97.5])
    np.testing.assert_allclose([change["low"], change["high"]], expected, atol=1e-3)
