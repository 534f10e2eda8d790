"""Counterfactual fine-tuning from pretrained parts: measure the slack, then minimise under the constraint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm.auto import tqdm

from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.guides import Guides
from softcft.cft.matched import Matched
from softcft.cft.objective import CFTObjective
from softcft.cft.targets import Hard, Soft
from softcft.cft.transport import FEWEST, Reference
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.counterfactuals.own_backbone import check_output
from softcft.data.augmentation import random_change
from softcft.data.config import AugmentationConfig
from softcft.data.schema import random_part, scale_pixels
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.noise import seeded_generator
from softcft.training.cft_config import CFTConfig
from softcft.training.config import TrainingConfig
from softcft.training.loop import train
from softcft.training.precision import start_accelerator
from softcft.training.watch import Watch

__all__ = ["CFTTrainer"]

logger = logging.getLogger(__name__)


class CFTTrainer:
    """Fine-tunes an image mechanism so that its counterfactuals obey their parents.

    Args:
        backbone: The pretrained image mechanism: any ``nn.Module`` with the method of
            :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`. Trained in place.
        attribute_scm: Trained attribute mechanisms.
        guides: Trained and calibrated classifiers, one or more.
        config: Settings of the training loop.
        cft: Settings of the fine-tuning.
        augmentation: How what guides are shown is changed at random; not at all if left out.

    Raises:
        ValueError: If ``cft.cft`` is none, the backbone is no module, or mechanisms and a guide have different graphs.
    """

    def __init__(
        self,
        backbone: CounterfactualBackbone,
        attribute_scm: AttributeSCM,
        guides: Sequence[AttributeClassifier],
        config: TrainingConfig,
        cft: CFTConfig,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        if cft.cft == "none":
            raise ValueError("cft none asks for no fine-tuning; use the pretrained model as it is.")
        constraint = LagrangianConstraint(
            slack=0.0,
            damping=cft.damping,
            learning_rate=cft.multiplier_learning_rate,
            inequality=not cft.published,
        )
        asked = Guides(guides, cft.published)
        targets: Hard | Soft | Matched
        if cft.cft == "hard":
            targets = Hard()
        elif cft.cft == "soft":
            targets = Soft(asked.graph, cft.published)
        else:
            targets = Matched(asked, cft.published)
        self.objective = CFTObjective(
            backbone,
            attribute_scm,
            asked,
            targets,
            constraint,
            0.0 if cft.published else cft.minimality or 0.0,
            None if cft.published else augmentation,
        )
        self.config = config
        self.cft = cft

    def train(self, dataset: Dataset[Any], watch: Watch | None = None) -> nn.Module:
        """Fine-tune on ``{"image": (C, H, W), uint8 or in [-1, 1], "parents": (K,)}``.

        Args:
            dataset: The training images, of which none misses a value.
            watch: The monitor that chooses the weights; without one they are those of the last step.

        Returns:
            The backbone, in evaluation mode.

        Raises:
            ValueError: If targets are matched or there is a watcher, and a category has no image among the
                ``reference_images``; or if the backbone returns no fidelity, or no images of the shape of the given.
        """
        if self.cft.cft == "matched" or watch is not None:
            self.measure_reference(dataset, watch)
        fidelity = self.measure_fidelity(dataset)  # moves the buffer to the device, so it comes before fill_
        self.objective.constraint.slack.fill_(fidelity)
        logger.info("The pretrained model's fidelity, held by the constraint: %.4f.", self.objective.constraint.slack)
        train(self.objective, dataset, self.config, name=f"{self.cft.cft}-cft", monitor=watch)
        return self.objective.backbone.eval()

    @torch.no_grad()
    def measure_fidelity(self, dataset: Dataset[Any]) -> float:
        """Mean fidelity of the model as it is on ``slack_images`` random images, in the training's precision."""
        accelerator = self._accelerator()
        total, images = 0.0, 0
        for image, parents in self._part(dataset, self.cft.slack_images, "measuring fidelity", accelerator):
            generators = [seeded_generator(self.config.seed, images + i) for i in range(len(image))]
            with accelerator.autocast():
                output = self.objective.backbone.counterfactual(image, parents, parents, generators)
            check_output(output, image.shape, with_fidelity=True)
            total += output.fidelity.item() * len(image)
            images += len(image)
        return total / images

    @torch.no_grad()
    def measure_reference(self, dataset: Dataset[Any], watch: Watch | None = None) -> None:
        """Predict the attributes of ``reference_images`` random images, and measure effects there.

        With matched targets guides predict, from images that are changed at random as in training. The watcher predicts
        from the images as they are. Both do so in the training's precision. Warns of rare categories.

        Raises:
            ValueError: If there are fewer than two, or none of them has some category.
        """
        accelerator, objective = self._accelerator(), self.objective
        matched = objective.targets if isinstance(objective.targets, Matched) else None
        labels, predicted, watched, images = [], [], [], 0
        for image, parents in self._part(dataset, self.cft.reference_images, "measuring reference", accelerator):
            generators = [seeded_generator(self.config.seed, images + i) for i in range(len(image))]
            images += len(image)
            labels.append(parents)
            with accelerator.autocast():
                if matched is not None:
                    change = random_change(objective.augmentation, image.shape, generators, image.device)
                    shown = change(image)
                    predicted.append(objective.guides.predict(shown).float())
                    matched.effect.observe(image, parents)
                if watch is not None:
                    watched.append(watch.watcher.to(accelerator.device)(image))
        parents = torch.cat(labels)
        self._check_counts(parents)
        if watch is not None:
            logits = torch.cat([output.logits.float() for output in watched])
            watch.reference = Reference(parents, objective.guides.graph.probabilities(logits)[None])
            watch.embeddings = torch.cat([output.embedding.float() for output in watched])
        if matched is not None:
            matched.reference_parents, matched.reference_predictions = parents, torch.cat(predicted, dim=1)
            matched.effect.fit()
            for name, reliability in matched.effect.reliabilities().items():
                if reliability < 0.5:
                    logger.warning(
                        "The reference images hardly tell what %s changes on average, for they are too few, or another "
                        "attribute always goes with it: counterfactuals are held to it with a weight of %.2f in place "
                        "of 1. If there are more images, raise reference_images.",
                        name,
                        reliability,
                    )

    def _check_counts(self, parents: Tensor) -> None:
        graph = self.objective.attribute_scm.causal_graph
        if len(parents) < 2:
            raise ValueError(f"cft matched and watch need at least 2 reference images, got {len(parents)}.")
        reference = Reference(parents, parents[None])
        for variable in graph.variables:
            if variable.kind == "continuous":
                continue
            for category, count in zip(variable.categories, reference.counts(graph, variable.name), strict=True):
                has = f"'{variable.name}' is {category!r} in {count} of {len(reference.parents)} reference images"
                if count == 0:
                    raise ValueError(
                        f"cft matched and watch compare with real images of each category, but {has}: raise "
                        "reference_images, or use cft soft and watch=False."
                    )
                if count < FEWEST:
                    logger.warning("%s: targets of so few are rough. Raise --reference_images, if there are more.", has)

    def _accelerator(self) -> Accelerator:
        accelerator = start_accelerator(self.config.mixed_precision)
        self.objective.to(accelerator.device)
        return accelerator

    def _part(
        self, dataset: Dataset[Any], size: int, description: str, accelerator: Accelerator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images and attributes, of a random part, as tables are often sorted; streams are shuffled."""
        if not isinstance(dataset, IterableDataset):
            rows = random_part(range(len(dataset)), size, self.config.seed)  # type: ignore[arg-type]
            dataset, size = Subset(dataset, rows), len(rows)
        batch_size = self.config.train_batch_size
        batches = islice(DataLoader(dataset, batch_size), -(-size // batch_size))
        for batch in tqdm(batches, desc=description, disable=not accelerator.is_main_process):
            yield scale_pixels(batch["image"].to(accelerator.device)), batch["parents"].to(accelerator.device)
