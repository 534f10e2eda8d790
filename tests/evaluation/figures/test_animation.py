import numpy as np
import pytest
import torch
from PIL import Image

from softcft.evaluation.figures.animation import write_interpolation


def rising(num_frames=4, subjects=2, channels=1):
    """Frames that brighten from black to white."""
    return torch.linspace(-1, 1, num_frames)[:, None, None, None, None].expand(num_frames, subjects, channels, 8, 8)


def brightness(path):
    with Image.open(path) as gif:
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("L"), dtype=float))
    height, width = frames[0].shape
    middle = [frame[int(0.45 * height) : int(0.6 * height), int(0.2 * width) : int(0.3 * width)] for frame in frames]
    return [frame.mean() for frame in middle]


@pytest.mark.parametrize("channels", [1, 3])
def test_runs_forth_and_back(tmp_path, channels):
    path = tmp_path / "age.gif"
    write_interpolation(path, {"Soft-CFT": rising(channels=channels)}, [f"do(age = {age})" for age in (20, 40, 60, 80)])
    levels = brightness(path)
    assert len(levels) == 6  # 4 there, 2 back: the loop goes on with the first
    assert levels[:4] == sorted(levels[:4])
    assert levels[3:] == sorted(levels[3:], reverse=True)
    assert levels[3] - levels[0] > 200


def test_every_model_has_a_row(tmp_path):
    one, two = tmp_path / "one.gif", tmp_path / "two.gif"
    captions = ["a", "b", "c", "d"]
    write_interpolation(one, {"Soft-CFT": rising()}, captions)
    write_interpolation(two, {"Hard-CFT": rising(), "Soft-CFT": rising()}, captions)
    with Image.open(one) as first, Image.open(two) as second:
        assert second.height > 1.5 * first.height
        assert second.width == first.width
