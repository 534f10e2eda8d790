"""The frozen classifiers that steer fine-tuning. Each image is shown to one of them, drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from softcft.cft.guidance import guidance_losses
from softcft.graph import CausalGraph
from softcft.noise import Generator, uniform

__all__ = ["Guide", "Guides", "View"]


class Guide(Protocol):
    """What fine-tuning knows of a classifier, an ``nn.Module``.

    Attributes:
        causal_graph: The graph of its variables.
        column_scales: Its errors, shape (K,); only the columns of continuous variables are read.
        seen: The variables that it can tell in validation images.
    """

    @property
    def causal_graph(self) -> CausalGraph: ...  # noqa: D102
    @property
    def column_scales(self) -> Tensor: ...  # noqa: D102
    @property
    def seen(self) -> Sequence[str]: ...  # noqa: D102

    def __call__(self, image: Tensor) -> Any:
        """Images (B, C, H, W) in [-1, 1] to calibrated ``logits`` and means, (B, K)."""
        ...

    def predict(self, image: Tensor) -> Tensor:
        """Images to probabilities and means, (B, K)."""
        ...


class View(NamedTuple):
    """What guides see in a batch of counterfactuals, and what is known of these.

    Attributes:
        parents: Encoded factual attributes, shape (B, K).
        new_parents: Encoded counterfactual attributes, shape (B, K). Those that the intervention cannot reach are the
            factual ones.
        intervened: Which variables each image's intervention sets, bool of shape (B, V).
        prediction: The guide's probabilities and means on the factual images, shape (B, K). Without gradient.
        logits: Its logits and means on the counterfactual images, shape (B, K).
        scales: Its errors, shape (B, K).
        guide: Which guide it was, shape (B,), in [0, G).
        asked: The variables that it is asked for, bool of shape (B, V).
    """

    parents: Tensor
    new_parents: Tensor
    intervened: Tensor
    prediction: Tensor
    logits: Tensor
    scales: Tensor
    guide: Tensor
    asked: Tensor


class Guides(nn.ModuleList):
    """One or more guides of one graph.

    Args:
        guides: Trained and calibrated classifiers.
        published: Whether they are asked for all variables, as published. Else each is asked for those that it sees.

    Attributes:
        graph: Their causal graph.
        asked: The variables that each of them is asked for.
        names: Those that one of them at least is asked for.
        published: See above.

    Raises:
        ValueError: If there is no guide, their graphs differ, or none sees a variable.
    """

    asks: Tensor

    def __init__(self, guides: Sequence[Guide], published: bool = False) -> None:
        if not guides:
            raise ValueError("guides must have at least one classifier, got none.")
        super().__init__(guides)  # type: ignore[arg-type]
        self.graph, self.published = guides[0].causal_graph, published
        if any(guide.causal_graph != self.graph for guide in guides):
            raise ValueError("Guides have different graphs. Train all of them from one config.")
        self.asked = [tuple(self.graph.names if published else guide.seen) for guide in guides]
        self.names = tuple(name for name in self.graph.names if any(name in each for each in self.asked))
        if not self.names:
            raise ValueError("guides see no variable in validation images, so there is nothing to fine-tune by.")
        asks = torch.tensor([[name in each for name in self.graph.names] for each in self.asked])
        self.register_buffer("asks", asks, persistent=False)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the images they will see

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """What each guide says of all images (B, C, H, W): probabilities and means, shape (G, B, K); no gradient."""
        return torch.stack([cast("Guide", guide).predict(image) for guide in self])

    def look(
        self,
        image: Tensor,
        new_image: Tensor,
        parents: Tensor,
        new_parents: Tensor,
        intervened: Tensor,
        generators: Generator,
    ) -> View:
        """Show each image to one guide, before and after; arguments as in :class:`View`."""
        draw = uniform((len(image), 1), generators, image.device)[:, 0]
        whose = (draw * len(self)).long().clamp_max(len(self) - 1)
        each = [torch.arange(len(whose), device=whose.device)]
        if len(self) > 1:  # the host must wait for the number of images that each of them has
            each = [(whose == i).nonzero()[:, 0] for i in range(len(self))]
        parts = [(cast("Guide", guide), rows) for guide, rows in zip(self, each, strict=True) if len(rows)]
        order = torch.cat([rows for _, rows in parts]).argsort()
        with torch.no_grad():
            prediction = torch.cat([guide.predict(image[rows]) for guide, rows in parts])[order]
        logits = torch.cat([guide(new_image[rows]).logits for guide, rows in parts])[order]
        scales = torch.cat([guide.column_scales.expand(len(rows), -1) for guide, rows in parts])[order]
        return View(parents, new_parents, intervened, prediction, logits, scales, whose, self.asks[whose])

    def mean_losses(self, seen: View, targets: Tensor) -> dict[str, Tensor]:
        """The guidance loss of what guides are asked for, a mean over all images for each of ``names``.

        Args:
            seen: A batch of counterfactuals.
            targets: What guides should see in them, shape (B, K).
        """
        losses = guidance_losses(self.graph, seen.logits, targets, seen.scales)
        asked = dict(zip(self.graph.names, seen.asked.unbind(dim=1), strict=True))
        return {name: (losses[name] * asked[name]).sum() / len(targets) for name in self.names}
