"""How long a run takes, and how much of it is left."""

import time

import pytest

from softcft.run.schedule import Clock, duration, is_bar, read_bar, span

BAR = "hvae:  45%|████▌     | 540/1200 [03:01<1:02:05,  3.66it/s, loss=3.682]"


@pytest.mark.parametrize(
    ("groups", "places", "seconds"),
    [
        ([[5.0], [3.0, 2.0, 2.0]], 1, 12.0),
        ([[5.0], [3.0, 2.0, 2.0]], 2, 9.0),  # the third begins where the second was
        ([[1.0, 10.0, 10.0]], 2, 11.0),  # in their order
        ([], 2, 0.0),
    ],
)
def test_groups_wait_for_each_other_and_steps_of_a_group_do_not(
    groups: list[list[float]], places: int, seconds: float
) -> None:
    assert span(groups, places) == seconds


def test_the_last_progress_bar_is_read() -> None:
    assert read_bar(f"a line\n{BAR.replace('45', '44')}\r{BAR}") == ("hvae", 45, 3725.0)
    assert read_bar("vae:   0%|          | 0/600 [00:00<?, ?it/s]") == ("vae", 0, None)
    assert read_bar(f"{BAR}\nSomething else") is None
    assert read_bar("") is None
    assert is_bar(BAR)
    assert is_bar("Generating train split: 40 examples [00:00, 99 examples/s]")
    assert not is_bar("train: 5 of 60 images are left out, 8% of all")


def test_what_is_left_follows_how_long_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock([["a"], ["b", "c"]], {"a": 10.0, "b": 20.0, "c": 5.0}, places=2)
    assert clock.left() == 30
    clock.start("a")
    now = 4.0
    assert clock.left() == 26
    now = 20.0
    assert clock.left() == 20  # later than expected, but nobody knows how much
    assert clock.end("a") == 20
    assert clock.left() == pytest.approx(20 * 45 / 35)  # of 35 seconds that were expected there are 10 more
    clock.start("b")
    clock.start("c")
    clock.bars["b"] = 100.0  # what its own progress bar says
    assert clock.left() == 100
    assert Clock([["a"]], {}, places=1).left() is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 seconds"), (89.0, "89 seconds"), (150, "2 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
