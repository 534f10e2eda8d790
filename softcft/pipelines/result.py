"""What a pipeline returns, and how it shows itself."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DSCMPipelineOutput", "Predictions"]

Predictions = dict[str, list[Any]]

SHOWN = 4  # counterfactuals that a result shows of itself
LINES = 40  # and lines, if one counterfactual has no more


@dataclass(repr=False)
class DSCMPipelineOutput(BaseOutput):
    """Counterfactual images and what belongs to them; B is the number of counterfactuals.

    Printed, it is a table. In a notebook it is a figure, that of :meth:`plot`.

    Attributes:
        images: A list of B PIL images, an array of shape (B, H, W, C) in [0, 1], or a tensor of shape (B, C, H, W) in
            [0, 1], as ``output_type`` says.
        parents: For each variable its B counterfactual values in natural units.
        effects: Counterfactual minus factual image in units of the full grey range, so in [-1, 1]: a tensor
            (B, C, H, W) for ``output_type="pt"``, else an array (B, H, W, C). None for samples.
        factual_predictions: The classifier's predictions of the factual images: for each variable B entries, each a
            dict of category to probability, or the mean in natural units. None without a classifier and for samples.
        counterfactual_predictions: The same of the counterfactual images.
        factual_parents: For each variable its B factual values in natural units, given or inferred. None for samples.
        inferred_parents: For each variable B times whether that value was inferred by the classifier. None for samples.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    parents: dict[str, list[Any]] = None  # type: ignore[assignment]  # so that accelerate can make it from a dict
    effects: np.ndarray | Tensor | None = None
    factual_predictions: Predictions | None = None
    counterfactual_predictions: Predictions | None = None
    factual_parents: dict[str, list[Any]] | None = None
    inferred_parents: dict[str, list[bool]] | None = None

    def to_full_tuple(self) -> tuple[Any, ...]:
        """Images, parents, effects, factual and counterfactual predictions, also those that are None."""
        return self.images, self.parents, self.effects, self.factual_predictions, self.counterfactual_predictions

    def plot(self) -> Figure:
        """Draw each counterfactual: original, counterfactual, effect, attributes, and what the classifier sees in both.

        Samples, which have no original, are drawn with their attributes.

        Returns:
            A figure of matplotlib: ``result.plot().savefig("result.png")``.

        Raises:
            ValueError: If images have neither 1 nor 3 channels.
        """
        return self._draw(len(self.images))

    def table(self, i: int) -> list[list[str]]:
        """Counterfactual i in words: the heads of the columns, and then a row for each variable."""
        own = "value" if self.factual_parents is None else "counterfactual"
        rows = [["attribute", "factual", own, "classifier before", "classifier after"]]
        for name, values in self.parents.items():
            row = [name, "", _in_words(values[i]), "", ""]
            if self.factual_parents is not None:
                inferred = self.inferred_parents is not None and self.inferred_parents[name][i]
                row[1] = _in_words(self.factual_parents[name][i]) + " (inferred)" * inferred
            if self.factual_predictions is not None:
                row[3] = _in_words(self.factual_predictions[name][i])
            if self.counterfactual_predictions is not None:
                row[4] = _in_words(self.counterfactual_predictions[name][i])
            rows.append(row)
        empty = [not any(row[k] for row in rows[1:]) for k in range(5)]
        return [[cell for cell, is_empty in zip(row, empty, strict=True) if not is_empty] for row in rows]

    def __repr__(self) -> str:
        number = len(self.images)
        parts = [f"{type(self).__name__}: {number} image{'s' * (number != 1)} {self._form()}"]
        shown = 0
        if self.parents:
            shown = min(number, SHOWN, max(1, LINES // (len(self.parents) + 2)))
            for i in range(shown):
                rows = self.table(i)
                widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
                lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
                parts.append("\n".join([f"images[{i}]", *("  " + line for line in lines)]))
        if number > shown > 0:
            parts.append(f"and {number - shown} more: images[i], parents[name][i], ...")
        return "\n".join(parts)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; None, and so the table, for images that are neither grey nor RGB."""
        try:
            figure = self._draw(min(len(self.images), SHOWN))
        except ValueError:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120)
        return file.getvalue()

    def _form(self) -> str:
        if isinstance(self.images, list):
            if not self.images:
                return "in a list"
            (width, height), mode = self.images[0].size, self.images[0].mode
            return f"of {width} x {height} pixels, PIL of mode {mode}"
        kind = "a tensor" if isinstance(self.images, Tensor) else "an array"
        return f"in {kind} of shape {tuple(self.images.shape)}"

    def _draw(self, number: int) -> Figure:
        # The one step up in the layers: matplotlib is evaluation's, and takes a second to import.
        from softcft.evaluation.figures.grids import draw_results

        images = _channels_first(self.images)[:number]
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images have {images.shape[1]} channels; only 1 or 3 can be drawn.")
        effects = None if self.effects is None else _channels_first(self.effects)[:number]
        left_out = len(self.images) - number
        return draw_results(2 * images - 1, effects, [self.table(i) for i in range(number)], left_out)


def _in_words(value: Any) -> str:
    """A category, a number, or the most probable category of a prediction."""
    if isinstance(value, dict):
        best = max(value, key=lambda category: value[category])
        return f"{best} {100 * value[best]:.0f} %"
    return value if isinstance(value, str) else f"{float(f'{value:.4g}'):g}"


def _channels_first(images: Any) -> Tensor:
    """Images in [0, 1] or effects, in any form that a result has them in, as a tensor (B, C, H, W) on the CPU."""
    if isinstance(images, Tensor):
        return images.detach().float().cpu()
    if isinstance(images, list):
        images = np.stack([np.asarray(image) for image in images]) / np.float32(255)
    return torch.from_numpy(images if images.ndim == 4 else images[..., None]).movedim(-1, 1)
