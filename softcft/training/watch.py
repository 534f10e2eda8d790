"""A further classifier, the watcher, evaluates counterfactuals of validation images during fine-tuning.

See :mod:`softcft.cft.verdict` for what follows from its results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from softcft.cft.guidance import guidance_losses
from softcft.cft.guides import Guide, View
from softcft.cft.interventions import draw_counterfactuals
from softcft.cft.matched import expected_targets
from softcft.cft.objective import CFTObjective
from softcft.cft.transport import Reference
from softcft.cft.verdict import Seen, Verdict, best_look, is_lost, reach_verdict
from softcft.data.augmentation import random_change
from softcft.data.schema import GREY_LEVELS, random_part, scale_pixels
from softcft.graph import CausalGraph
from softcft.models.classifier import AttributeClassifier
from softcft.noise import seeded_generator
from softcft.training.cft_config import WATCHED_IMAGES, WatchConfig
from softcft.training.config import TrainingConfig
from softcft.training.monitor import Look

__all__ = ["Watch"]

NOISE = 1  # names the random numbers of these looks among all that follow from the seed


class Watch:
    """The monitor (:class:`~softcft.training.monitor.Monitor`) of fine-tuning: the watcher's lowest loss is the best.

    Images, interventions and noise are the same at each look, and drawn as in training. The guide's targets are those
    of the training. The watcher's are always matched: what it would say of real images with the same attributes. By
    labels, counterfactuals that are clearer cases than any real image would seem the best.

    Args:
        objective: The fine-tuning. Its first guide is the one that is looked at.
        watcher: A trained and calibrated classifier, which is none of the guides. Frozen here.
        dataset: Validation images that miss no value, map-style.
        config: How often it looks.
        training: The settings of the training, whose are batch size and seed: the latter of the draw of up to 256
            images, of interventions and of noise.
        distance: From embeddings of images (N, D) and of others to how far apart these are.

    Raises:
        ValueError: If there are fewer than two images; or the watcher has another graph, or sees nothing that the
            guides are asked for.

    Attributes:
        looks: The results of all looks, on the main process.
        reference: The watcher's predictions on real images. The trainer measures them, and
        embeddings: its embeddings of these images, shape (N, D).
    """

    embeddings: Tensor

    def __init__(
        self,
        objective: CFTObjective,
        watcher: AttributeClassifier,
        dataset: Dataset[Any],
        config: WatchConfig,
        training: TrainingConfig,
        distance: Callable[[Tensor, Tensor], float],
    ) -> None:
        if watcher.causal_graph != objective.attribute_scm.causal_graph:
            raise ValueError("The watcher has another graph than the attribute mechanisms. Train both from one config.")
        rows = random_part(range(len(dataset)), WATCHED_IMAGES, training.seed)  # type: ignore[arg-type]
        if len(rows) < 2:
            raise ValueError(
                f"A watcher needs at least 2 validation images that miss no value, got {len(rows)}; watch=False "
                "does without it."
            )
        asked = objective.guides
        self.names = [name for name in asked.names if asked.published or name in watcher.seen]
        if not self.names:
            raise ValueError(
                f"The watcher sees none of the variables that the guides are asked for, {', '.join(asked.names)}: "
                "train it for longer, or do without it by watch=False."
            )
        self.objective = objective
        self.watcher = watcher.eval().requires_grad_(False)
        self.images: Subset[Any] = Subset(dataset, rows)
        self.every = config.watch_steps
        self.batch_size = training.train_batch_size
        self.seed = training.seed
        self.distance = distance
        self.looks: list[Seen] = []
        self.reference: Reference | None = None

    def look(self, step: int) -> Look:
        """See :class:`~softcft.training.monitor.Monitor`."""
        objective, rows = self.objective, []
        device = next(objective.parameters()).device
        self.watcher.to(device)  # type: ignore[arg-type]
        objective.eval()
        done = 0
        for batch in DataLoader(self.images, self.batch_size):
            image, parents = scale_pixels(batch["image"].to(device)), batch["parents"].to(device)
            generators = [seeded_generator(self.seed, NOISE, done + i, device=device) for i in range(len(image))]
            done += len(image)
            intervention, new_parents = draw_counterfactuals(objective.attribute_scm, parents, generators)
            new = objective.backbone.counterfactual(image, parents, new_parents, generators).image
            change_both = random_change(objective.augmentation, image.shape, generators, device)
            guide: Any = objective.guides[0]  # which looks as it does in training
            of_guide = self._view(guide, change_both(image), change_both(new), parents, new_parents, intervention.mask)
            of_watcher = self._view(self.watcher, image, new, parents, new_parents, intervention.mask)
            losses = [
                self._losses(of_guide, objective.targets(of_guide), objective.guides.asked[0]),
                self._losses(of_watcher, self._expected(of_watcher), self.names),
            ]
            change = GREY_LEVELS * (new - image).abs().flatten(1).mean(dim=1)
            alike = _alike(objective.guides.graph, new_parents, self._real().parents)
            embeddings = [self.watcher(new).embedding, *self.embeddings.to(device)[alike].unbind(dim=1)]
            rows.append([x.float().cpu() for x in (*losses, change, *embeddings)])
        guide, watcher, change, counterfactual, real, others = (torch.cat(x) for x in zip(*rows, strict=True))
        distances = self.distance(counterfactual, real), self.distance(others, real)
        self.looks.append(Seen(step, guide.tolist(), watcher.tolist(), change.tolist(), *distances))
        metrics = {f"watch/{name}": value for name, value in self.looks[-1].means().items()}
        return Look(metrics, best_look(self.looks) is self.looks[-1], is_lost(self.looks))

    @staticmethod
    def _view(
        classifier: Guide, image: Tensor, new: Tensor, parents: Tensor, new_parents: Tensor, intervened: Tensor
    ) -> View:
        prediction, logits = classifier.predict(image), classifier(new).logits
        scales, first = classifier.column_scales.expand_as(logits), torch.zeros_like(intervened[:, 0], dtype=torch.long)
        asked = torch.ones_like(intervened)  # those that count are chosen afterwards
        return View(parents, new_parents, intervened, prediction, logits, scales, first, asked)

    def _real(self) -> Reference:
        if self.reference is None:
            raise ValueError("The watcher has no reference: what it says of real images. The trainer measures it.")
        return self.reference

    def _expected(self, view: View) -> Tensor:
        guides = self.objective.guides
        return expected_targets(guides.graph, view, self._real(), guides.published)

    def _losses(self, view: View, targets: Tensor, names: Sequence[str]) -> Tensor:
        """The guidance loss of each image, summed over the variables that are asked for, (B,)."""
        losses = guidance_losses(self.objective.guides.graph, view.logits, targets, view.scales)
        return torch.stack([losses[name] for name in names]).sum(dim=0)

    def verdict(self) -> Verdict:
        """The verdict on the fine-tuning, on the main process."""
        return reach_verdict(self.looks)

    def state(self) -> dict[str, Any]:
        """See :class:`~softcft.training.monitor.Monitor`."""
        return {"looks": [asdict(look) for look in self.looks]}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~softcft.training.monitor.Monitor`."""
        self.looks = [Seen(**look) for look in state["looks"]]


def _alike(graph: CausalGraph, wanted: Tensor, real: Tensor) -> Tensor:
    """For each of the attributes ``wanted`` (B, K) two rows of ``real`` (N, K), N at least 2, shape (B, 2).

    As few categories as possible differ; of those the nearest two, by continuous values in standard deviations.
    """
    spread = real.std(dim=0).clamp_min(1e-6)
    distances = torch.zeros(len(wanted), len(real), device=real.device)
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        gaps = wanted[:, None, columns] - real[:, columns]
        if variable.kind == "continuous":
            distances += (gaps / spread[columns]).square().sum(dim=2)
        else:
            distances += 1e6 * (gaps != 0).any(dim=2)
    return distances.topk(2, largest=False).indices
