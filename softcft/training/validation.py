"""Early stopping: keep the weights with the lowest loss on validation images, as classifiers overfit few images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from softcft.data.schema import random_part, scale_pixels
from softcft.models.classifier import AttributeClassifier
from softcft.training.config import VALIDATION_IMAGES
from softcft.training.monitor import Look

__all__ = ["ValidationLoss", "predict_all"]

BATCH_SIZE = 256


@torch.no_grad()
def predict_all(classifier: AttributeClassifier, images: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """A classifier's logits on all images of a map-style data set and their encoded attributes, both (N, K)."""
    batches = [
        (classifier(scale_pixels(batch["image"].to(classifier.device))).logits, batch["parents"].to(classifier.device))
        for batch in DataLoader(images, BATCH_SIZE)
    ]
    logits, parents = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return logits, parents


class ValidationLoss:
    """A :class:`~softcft.training.monitor.Monitor` whose best weights have the lowest loss on validation images.

    The loss sums :meth:`~softcft.models.classifier.AttributeClassifier.calibrated_losses` over the variables, in
    evaluation mode.

    Args:
        classifier: What is trained.
        dataset: Validation images, map-style.
        every: Steps between two looks.
        seed: Of the draw of up to 2,048 of them.

    Attributes:
        losses: By step, in the order of the looks.
    """

    def __init__(self, classifier: AttributeClassifier, dataset: Dataset[Any], every: int, seed: int) -> None:
        self.classifier = classifier
        self.images: Subset[Any] = Subset(dataset, random_part(range(len(dataset)), VALIDATION_IMAGES, seed))  # type: ignore[arg-type]
        self.every = every
        self.losses: dict[int, float] = {}

    @property
    def best_step(self) -> int | None:
        """The step after which the loss was lowest; None before any look, and if it never was a number."""
        known = {step: loss for step, loss in self.losses.items() if not math.isnan(loss)}
        return min(known, key=known.__getitem__) if known else None

    def summary(self) -> str:
        """What is saved, in a sentence."""
        best, last = self.best_step, max(self.losses)
        if best is None:
            return f"The loss on validation images was never a number, so the weights of step {last} are saved."
        return (
            f"The weights after step {best} of {last} are saved: with them the loss on {len(self.images):,} validation "
            f"images was lowest, {self.losses[best]:.4g} nats; after step {last} it was {self.losses[last]:.4g}."
        )

    def look(self, step: int) -> Look:
        """See :class:`~softcft.training.monitor.Monitor`."""
        losses = self.classifier.calibrated_losses(*predict_all(self.classifier.eval(), self.images))
        totals = {"loss": sum(losses.values()), **{f"loss/{name}": loss for name, loss in losses.items()}}
        self.losses[step] = totals["loss"]
        return Look({f"validation/{key}": value for key, value in totals.items()}, self.best_step == step)

    def state(self) -> dict[str, Any]:
        """See :class:`~softcft.training.monitor.Monitor`."""
        return {"losses": list(self.losses.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~softcft.training.monitor.Monitor`."""
        self.losses = dict(state["losses"])
