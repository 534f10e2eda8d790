"""Guide up and watcher not: when fine-tuning is called an attack, on curves that are made up."""

import json
import math

import pytest

from softcft.cft.verdict import Seen, best_look, is_lost, reach_verdict, read_sentence

WOBBLE = [0.3, -0.3, 0.1, -0.1] * 16


def seen(step, guide, watcher, change=1.0, frechet=0.1, noise=0.0, floor=0.2):
    """64 images about these means; each differs from itself in another look by ``noise``."""
    shifts = WOBBLE if not noise else [w + noise * v for w, v in zip(WOBBLE, reversed(WOBBLE), strict=True)]
    return Seen(step, [guide + w for w in WOBBLE], [watcher + w for w in shifts], [change] * 64, frechet, floor)


def curves(guide, watcher, **last):
    looks = [seen(10 * i, *means) for i, means in enumerate(zip(guide, watcher, strict=True))]
    return [*looks[:-1], seen(10 * (len(looks) - 1), guide[-1], watcher[-1], **last)]


@pytest.mark.parametrize(
    ("guide", "watcher", "saved", "is_attack"),
    [
        ([3, 2, 1], [3, 2, 1], 20, False),  # both fall
        ([3, 2, 1], [3, 2, 4], 10, True),  # the watcher's rises again
        ([3, 2, 1], [3, 4, 5], 0, True),  # it only rises
        ([3, 2, 1], [3, 5, 4], 0, True),
        ([1, 2, 3], [3, 2, 4], 10, False),  # the guide's rises, too: that is no attack on it
        ([3, 2, 2], [3, 2, 4], 10, False),
        ([3, 2, 1], [2, 2, 2], 0, False),  # nothing gained: the first of equals
        ([3, 2, 1], [3, 1, 1], 10, False),
    ],
)
def test_curves(guide, watcher, saved, is_attack):
    verdict = reach_verdict(curves(guide, watcher))
    assert (verdict.step_saved, verdict.steps, verdict.is_attack) == (saved, 20, is_attack)
    assert ("untouched" in verdict.sentence) == (saved == 0)
    assert str(saved) in verdict.sentence


@pytest.mark.parametrize(("rise", "is_attack"), [(0.03, False), (0.3, True)])
def test_a_rise_counts_beyond_two_standard_errors_of_the_same_images(rise, is_attack):
    """The images differ by 0.5 nats from themselves, so that the mean of 64 is known to 0.04 or so."""
    looks = curves([3, 2, 1], [3, 2, 2 + rise], noise=1.0)
    assert reach_verdict(looks).is_attack == is_attack
    # Paired: that images differ among each other by more than the rise makes no difference.
    assert reach_verdict(curves([3, 2, 1], [3, 2, 2 + rise])).is_attack


@pytest.mark.parametrize(
    ("frechet", "saved", "is_attack"),
    [
        ([0.3, 0.3, 0.39], 20, False),
        ([0.3, 0.3, 0.5], 10, True),  # more than twice what real images are from each other
        ([0.3, 0.5, 0.5], 0, True),
        ([1.0, 0.6, 0.9], 20, False),  # not farther than before fine-tuning
        ([1.0, 0.6, 1.1], 10, True),
        ([0.1, 0.5, 0.3], 20, False),  # it came back
    ],
)
def test_images_that_are_far_from_real_ones_are_an_attack_however_content_the_watcher_is(frechet, saved, is_attack):
    looks = [seen(10 * i, 3 - i, 3 - i, frechet=x) for i, x in enumerate(frechet)]
    verdict = reach_verdict(looks)
    assert (verdict.step_saved, verdict.is_attack) == (saved, is_attack)
    content = [seen(10 * i, 3, 3 - i, frechet=x) for i, x in enumerate(frechet)]
    assert not reach_verdict(content).is_attack  # the guide has gained nothing


@pytest.mark.parametrize(
    ("watcher", "lost"),
    [
        ([3, 2, 4, 4, 4], True),
        ([3, 2, 4, 4], False),  # two looks only
        ([3, 2, 4, 1.9, 4, 4], False),  # not in a row
        ([3, 2, 4, 4, 2], False),  # it recovers
        ([4, 4, 4], False),  # it stands still
        ([2, 3, 4, 5], True),
    ],
)
def test_it_is_over_after_three_looks_in_a_row_that_find_an_attack(watcher, lost):
    looks = curves([10 - i for i in range(len(watcher))], watcher)
    assert is_lost(looks) == lost
    assert not is_lost(looks[:3])
    assert ("ended" in reach_verdict(looks).sentence) == lost


def test_what_is_no_number_is_never_best():
    looks = curves([3, 2, 1], [math.nan, 2, math.nan])
    assert best_look(looks) is looks[1]
    assert reach_verdict(looks).is_attack
    nothing = curves([3, 2, 1], [math.nan] * 3)
    assert best_look(nothing) is None
    assert reach_verdict(nothing).step_saved == 20
    with pytest.raises(ValueError, match="looks"):
        reach_verdict([])


def test_the_file_has_the_verdict_and_all_looks(tmp_path):
    looks = curves([3, 2, 1], [3, 2, 4], change=46.0, frechet=14.7)
    verdict = reach_verdict(looks)
    assert read_sentence(tmp_path) is None
    (tmp_path / "watch.json").write_text(verdict.to_json(looks))
    content = json.loads((tmp_path / "watch.json").read_text())
    assert content["step_saved"] == 10
    assert content["is_attack"] is True
    assert [look["step"] for look in content["looks"]] == [0, 10, 20]
    assert content["looks"][2]["means"] == pytest.approx(
        {"guide": 1, "watcher": 4, "change": 46, "frechet": 14.7, "floor": 0.2}
    )
    assert read_sentence(tmp_path) == verdict.sentence
    for number in ("10", "20", "2", "1", "4", "46"):
        assert number in verdict.sentence


@pytest.mark.parametrize("content", ["", "{}", "[]", "3", '{"sentence'])
def test_a_damaged_file_is_told(tmp_path, content):
    (tmp_path / "watch.json").write_text(content)
    with pytest.raises(ValueError, match=r"watch\.json"):
        read_sentence(tmp_path)
