"""What all figures share: fonts, colours, text that fits, densities."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import gaussian_kde
from torch import Tensor

FONT_SIZE = 9.0
VALUE_FONT_SIZE = 7.5
# Names come from users: a dollar sign in one does not start a formula.
PLAIN_TEXT: dict[Any, Any] = {"text.parse_math": False}
# Okabe and Ito, "Color Universal Design", 2008, without the yellow, which is faint on white.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
REAL_COLOR = LINE_COLORS[0]
# Lines beside the real images: without the light blue, which is hard to see on their blue.
COLORS = (*LINE_COLORS[1:4], *LINE_COLORS[5:])
Dashes = str | tuple[int, tuple[float, ...]]
DASHES: tuple[Dashes, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1)), (0, (5, 1.2, 1.2, 1.2)))
MAX_WIDTH = 7.5  # inches
PANELS_ABREAST = 3  # the number of panels that fit into the width of a page


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG and as PDF; ``path`` has no suffix."""
    for kind in (".png", ".pdf"):
        figure.savefig(path.with_suffix(kind), dpi=200, bbox_inches="tight")


def to_pixels(image: Tensor) -> NDArray[Any]:
    """Images in [-1, 1], shape (..., C, H, W), as matplotlib shows them: in [0, 1], shape (..., H, W, C)."""
    return ((image.detach().float().cpu().movedim(-3, -1).numpy() + 1) / 2).clip(0, 1)


def fit_text(text: str, inches: float, font_size: float) -> str:
    """Break a text into lines no longer than so many inches; a letter is about half as wide as its font is high."""
    return textwrap.fill(text, int(72 * inches / (0.55 * font_size)))


def common_axis(samples: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Where to draw the densities of several samples: 300 evenly spaced numbers."""
    # A few images far off do not set the scale.
    low, high = np.quantile(np.concatenate(samples), [0.003, 0.997])
    return np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), 300)


def line_styles(names: Iterable[str]) -> dict[str, tuple[str, Dashes]]:
    """A colour and dashes for each name."""
    return dict(zip(names, zip(itertools.cycle(COLORS), itertools.cycle(DASHES)), strict=False))


def draw_density(
    axes: Axes, x: NDArray[np.float64], sample: NDArray[np.float64], label: str, style: tuple[str, Dashes] | None = None
) -> float:
    """Draw the kernel density estimate of a sample as a line; without a style filled, as real images are.

    A sample of one value has no density: its curve is NaN.

    Returns:
        The maximum of the curve, at least 0.
    """
    heights = gaussian_kde(sample)(x) if np.ptp(sample) else np.full_like(x, np.nan)
    if style is None:
        axes.fill_between(x, heights, facecolor=(REAL_COLOR, 0.3), edgecolor=REAL_COLOR, label=label)
    else:
        axes.plot(x, heights, color=style[0], linestyle=style[1], linewidth=1.3, label=label)
    return float(np.nanmax(heights, initial=0))


def plain_axes(axes: Axes, x: NDArray[np.float64]) -> None:
    """Axes of densities over x, whose heights need no numbers."""
    axes.set(yticks=[], xlim=(x[0], x[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.spines[["top", "right"]].set_visible(False)
