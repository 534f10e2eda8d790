import pytest

from softcft.models.classifier import AttributeClassifier
from softcft.models.sight import MARGINS, Sight, not_seen, seen_by_some, unseen_by_some

GRAPH = [
    {"name": "ill", "kind": "binary", "categories": ["no", "yes"]},
    {"name": "age", "kind": "continuous", "low": 20, "high": 90},
]
TRUNK = {"model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4], "depths": [1]}
YES, NO = Sight("auc", 0.8, 0.7, 0.9), Sight("auc", 0.558, 0.52, 0.6)


def guide(ill: Sight | None, age: Sight | None = None) -> AttributeClassifier:
    classifier = AttributeClassifier(GRAPH, {**TRUNK, "layer_type": "basic"})
    if ill is not None:
        classifier.store_sight({"ill": ill, "age": age or Sight("skill", 0.2, 0.1, 0.3)})
    return classifier


@pytest.mark.parametrize("metric", MARGINS)
@pytest.mark.parametrize(("above", "is_seen"), [(0.001, True), (0.0, False), (-0.1, False)])
def test_the_lower_end_decides(metric: str, above: float, is_seen: bool) -> None:
    low = MARGINS[metric] + above
    assert Sight(metric, 0.7, low, 0.9).is_seen == is_seen
    assert not Sight(metric, 0.99, None, None).is_seen


@pytest.mark.parametrize(
    ("metric", "numbers"), [("auc", ("55.8", "52.0", "60.0")), ("skill", ("44.2", "40.0", "48.0"))]
)
def test_the_numbers_are_told(metric: str, numbers: tuple[str, ...]) -> None:
    told = str(Sight(metric, 0.558, 0.52, 0.6))
    assert all(number in told for number in numbers)
    assert told.index(f"{numbers[1]} to") < told.index(f"to {numbers[2]}")  # from the smaller to the larger


def test_what_was_not_measured_counts_as_seen() -> None:
    assert guide(None).seen == ("ill", "age")
    assert seen_by_some([guide(None)]) == ("ill", "age")
    assert unseen_by_some([guide(None)]) == {}


def test_one_guide_that_sees_a_variable_is_enough() -> None:
    assert guide(NO).seen == ("age",)
    assert seen_by_some([guide(NO), guide(YES)]) == ("ill", "age")
    assert list(unseen_by_some([guide(NO), guide(YES)])) == ["ill"]
    assert seen_by_some([guide(NO), guide(NO)]) == ("age",)
    assert "55.8" in unseen_by_some([guide(NO)])["ill"]
    assert "judge" in not_seen(guide(NO).sight, "judge")["ill"]
    assert "guide" not in not_seen(guide(NO).sight, "watcher")["ill"]


def test_guides_that_see_nothing_are_refused() -> None:
    blind = guide(NO, Sight("skill", 0.0, -0.1, 0.1))
    with pytest.raises(ValueError, match=r"ill.*age.*cft none"):
        seen_by_some([blind])
