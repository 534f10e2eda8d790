import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.evaluation.sight import measure_sight, sight_rows, sight_warnings
from softcft.graph import CausalGraph
from softcft.models.sight import Sight

GRAPH = CausalGraph(
    [
        {"name": "ill", "kind": "binary", "categories": ["no", "yes"]},
        {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
        {"name": "age", "kind": "continuous", "low": 20, "high": 90},
    ]
)


def seen(number: int, strength: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a classifier that sees all variables as well as that, or by chance with 0, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ill = torch.randint(0, 2, (number, 1), generator=generator).float()
    site = F.one_hot(torch.randint(0, 3, (number,), generator=generator), 3).float()
    age = torch.rand(number, 1, generator=generator) * 2 - 1
    noise = torch.randn(number, 5, generator=generator)
    discrete = strength * torch.cat([2 * ill - 1, 2 * site - 1], dim=1) + noise[:, :4]
    share = strength / (1 + strength)
    return torch.cat([discrete, share * age + (1 - share) * 0.1 * noise[:, 4:]], dim=1), torch.cat(
        [ill, site, age], dim=1
    )


@pytest.mark.parametrize("number", [60, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_not_seen_and_what_shows_is(number: int, seed: int) -> None:
    blind = measure_sight(GRAPH, *seen(number, 0.0, seed), range(number))
    assert not any(entry.is_seen for entry in blind.values())
    sharp = measure_sight(GRAPH, *seen(number, 1.0, seed), range(number))
    assert all(entry.is_seen for entry in sharp.values())
    for entry in (*blind.values(), *sharp.values()):
        assert entry.low <= entry.value <= entry.high  # type: ignore[operator]


def width(sight: dict[str, Sight], name: str) -> float:
    return sight[name].high - sight[name].low  # type: ignore[operator]


@pytest.mark.parametrize("name", GRAPH.names)
def test_the_interval_shrinks_with_the_number_of_subjects(name: str) -> None:
    few, many = (measure_sight(GRAPH, *seen(n, 0.3), range(n)) for n in (100, 1600))
    assert width(many, name) == pytest.approx(width(few, name) / 4, rel=0.35)


@pytest.mark.parametrize("name", GRAPH.names)
def test_a_subject_counts_once_however_many_images_there_are_of_it(name: str) -> None:
    logits, labels = seen(150, 0.3)
    once = measure_sight(GRAPH, logits, labels, range(150))
    copies = logits.repeat(4, 1), labels.repeat(4, 1)
    grouped = measure_sight(GRAPH, *copies, [*range(150)] * 4)
    apart = measure_sight(GRAPH, *copies, range(600))
    assert grouped[name].value == pytest.approx(once[name].value)
    assert width(grouped, name) == pytest.approx(width(once, name))
    assert width(apart, name) < 0.7 * width(once, name)


def test_what_is_missing_has_no_part() -> None:
    logits, labels = seen(120, 0.3)
    gaps = labels.clone()
    gaps[80:] = math.nan
    expected = measure_sight(GRAPH, logits[:80], labels[:80], range(80))
    assert measure_sight(GRAPH, logits, gaps, range(120)) == expected


@pytest.mark.parametrize("constant", [-1.0, -0.2, 0.0, 0.7])
def test_no_constant_guess_has_skill_whatever_the_distribution(constant: float) -> None:
    values = torch.cat([torch.full((60, 1), -1.0), torch.rand(30, 1)])  # most have none of it
    labels = torch.cat([seen(90, 0.0)[1][:, :4], values], dim=1)
    logits = torch.full((90, 5), constant)
    sight = measure_sight(GRAPH, logits, labels, range(90))["age"]
    assert sight.value is not None
    assert sight.value <= 1e-6
    assert not sight.is_seen


def test_a_category_that_few_subjects_have_is_left_out_and_the_rest_measured() -> None:
    logits, labels = seen(200, 1.0)
    rows = labels[:, 3] == 0
    rows[labels[:, 3].nonzero()[:2, 0]] = True
    known = int(rows.sum())
    sight = measure_sight(GRAPH, logits[rows], labels[rows], range(known))
    assert sight["site"].is_seen
    # Of one category alone nobody can tell; nor of values that are all alike.
    labels[:, 0], labels[:, 4] = 1.0, 0.3
    alike = measure_sight(GRAPH, logits, labels, range(200))
    for name in ("ill", "age"):
        assert alike[name].value is None
        assert not alike[name].is_seen


@pytest.mark.parametrize("number", [1, 4])
def test_a_few_subjects_are_not_enough_however_well_they_are_seen(number: int) -> None:
    _, labels = seen(8 * number, 1.0)
    sight = measure_sight(GRAPH, labels * 20 - 10, labels, [i % number for i in range(8 * number)])
    assert not any(entry.is_seen for entry in sight.values())
    assert all(entry.low is None for entry in sight.values())


def test_each_image_needs_a_subject() -> None:
    with pytest.raises(ValueError, match="subjects must have one for each of the 20 images, got 19"):
        measure_sight(GRAPH, *seen(20, 1.0), range(19))
    with pytest.raises(ValueError, match="subjects"):
        measure_sight(GRAPH, *seen(2, 1.0), ["a", None])  # type: ignore[list-item]


def test_warnings_are_the_same_from_a_table_that_was_written(tmp_path: Path) -> None:
    blind = {"ill": Sight("auc", 0.52, 0.48, 0.56), "site": Sight("auc", None, None, None)}
    sharp = {"ill": Sight("auc", 0.9, 0.8, 0.95), "age": Sight("skill", 0.01, -0.1, 0.02)}
    rows = sight_rows({"guide": blind, "judge": sharp}).assign(seed=0)
    told = sight_warnings(rows)
    assert [any(name in sentence for sentence in told) for name in ("ill", "site", "age")] == [True] * 3
    assert len(told) == 3
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert sight_warnings(pd.read_csv(tmp_path / "rows.csv")) == told
    assert len(sight_warnings(pd.concat([rows, rows.assign(seed=1)]))) == 6
    assert sight_warnings(sight_rows({"guide": {}}).assign(seed=0)) == []
    assert np.isnan(rows["low"]).sum() == 1
