"""Draws soft_cft.svg, the picture of hard and soft targets on the page of concepts: python docs/draw_soft_cft.py."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ATTRIBUTES = ["effusion", "female"]
SEEN = [0.65, 0.02]  # the 0.65 is the paper's example of a mild effusion
GREY, BLUE, RED, GREEN = "#8a8f98", "#2f6fb2", "#c2452d", "#2d8a57"


def panel(axes: Axes, title: str, values: list[float], colors: list[str], notes: list[str]) -> None:
    """Bars from 0 to 1, one for each attribute, with the value and a note in words beside it."""
    axes.barh(ATTRIBUTES, [1, 1], height=0.36, color="#eceef1")
    axes.barh(ATTRIBUTES, values, height=0.36, color=colors)
    for row, (value, color, note) in enumerate(zip(values, colors, notes, strict=True)):
        axes.text(0, row - 0.24, f"{value:.2f}  {note}", va="top", color=color, fontsize=9)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", pad=4)
    axes.set(xlim=(0, 1.02), ylim=(-0.5, 1.4))
    axes.axis("off")


def main() -> None:
    """Draw the picture beside this file."""
    plt.rcParams |= {"svg.hashsalt": "softcft", "font.family": "sans-serif"}
    figure, (real, hard, soft) = plt.subplots(1, 3, figsize=(8.4, 2.0), gridspec_kw={"wspace": 0.3})
    for row, name in enumerate(ATTRIBUTES):
        real.text(-0.04, row, name, ha="right", va="center", fontsize=10)
    panel(real, "Guide on the real image", SEEN, [GREY, GREY], ["mild", "a man"])
    panel(hard, "Hard targets", [1, 1], [RED, BLUE], ["amplified: nobody touched it", "as intervened"])
    panel(soft, "Soft targets", [0.65, 1], [GREEN, BLUE], ["as in the real image", "as intervened"])
    figure.savefig(
        Path(__file__).with_name("soft_cft.svg"), bbox_inches="tight", facecolor="white", metadata={"Date": None}
    )


if __name__ == "__main__":
    main()
