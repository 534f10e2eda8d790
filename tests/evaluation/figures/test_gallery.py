"""Figures of a run as files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from softcft.evaluation.embeddings import attribute_modes
from softcft.evaluation.figures.shift import draw_shifts
from softcft.evaluation.figures.strength import strength_figure
from softcft.evaluation.figures.style import save
from softcft.graph import CausalGraph, Variable

PAGE = 9.5  # inches of A4 or letter between its margins


@pytest.mark.slow
def test_many_subgroups_are_drawn_on_several_pages(tmp_path: Path) -> None:
    """Ten digits, of which the last two have too few images; and a variable of two, which stays on one page."""
    digit = Variable(name="digit", kind="categorical", categories=tuple("0123456789"))
    graph = CausalGraph([digit, Variable(name="style", kind="binary", categories=("plain", "bold"))])
    generator = torch.Generator().manual_seed(0)
    digits = torch.cat([torch.arange(8).repeat_interleave(30), torch.arange(8, 10).repeat_interleave(10)])
    style = torch.arange(len(digits))[:, None] % 2
    real = torch.cat([torch.nn.functional.one_hot(digits, 10), style], dim=1).float()
    labels = {cft: real[:, None].repeat(1, 2, 1) for cft in ("none", "soft")}
    embeddings = {
        cft: (x @ torch.randn(11, 4, generator=generator)) + torch.randn(len(x), 2, 4, generator=generator)
        for cft, x in labels.items()
    }
    embeddings["soft"][:, 0] = embeddings["none"][:, 0]
    modes = attribute_modes(embeddings["none"][:, 0], graph, real)
    draw_shifts(graph, modes, embeddings, labels, ["style"], range(len(digits)), 0, tmp_path)
    names = {"shift_digit_1.png", "shift_digit_2.png", "shift_digit_3.png", "shift_style.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as figure:
            assert figure.height / figure.info["dpi"][1] <= PAGE
    with Image.open(tmp_path / "shift_digit_1.png") as three, Image.open(tmp_path / "shift_digit_3.png") as two:
        assert two.height < 0.8 * three.height


def test_strength_fits_on_a_page(tmp_path: Path) -> None:
    """Seven interventions, of which the truth is known of one."""
    names = [f"digit {i}" for i in range(7)]
    graph = CausalGraph([Variable(name=name, kind="binary", categories=("no", "yes")) for name in names])
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(50, 8, 7, generator=generator) < 0.5).float()
    logits = {cft: 2 * labels - 1 + torch.randn(labels.shape, generator=generator) for cft in ("none", "truth")}
    truth = "True counterfactuals"
    figure = strength_figure(
        graph,
        {"No CFT": labels, truth: labels[:, :2]},
        {"No CFT": logits["none"], truth: logits["truth"][:, :2]},
        {"No CFT": names, truth: names[:1]},
        0,
    )
    save(figure, tmp_path / "strength")
    assert {path.name for path in tmp_path.iterdir()} == {"strength.png", "strength.pdf"}
    with Image.open(tmp_path / "strength.png") as figure:
        assert figure.width / figure.info["dpi"][0] < 7.5 + 0.25  # and some white around it
        assert figure.height / figure.info["dpi"][1] <= PAGE
