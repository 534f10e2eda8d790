"""What is measured of each test image and its counterfactuals, by batches and on any number of processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.data.schema import ImageAttributeDataset, scale_pixels, to_eight_bits
from softcft.data.truth import TrueCounterfactuals
from softcft.evaluation.axioms import (
    composition,
    counterfactual_latent_divergence,
    reconstruction,
    reversibility,
    value_groups,
)
from softcft.evaluation.effectiveness import counterfactual_images, image_generators, predict_images
from softcft.evaluation.truth import truth_errors
from softcft.models.classifier import AttributeClassifier
from softcft.models.vae import image_posterior

__all__ = ["Measuring", "NumberedImages", "run_batches"]

CYCLES = 10  # of composition, reconstruction and reversibility
Batch = dict[str, Any]
Results = dict[str, Tensor]


class NumberedImages(Dataset[Batch]):
    """The images of a split that have a value of every variable.

    Each example has its number among these (``index``) and among all rows of the split (``row``).
    """

    def __init__(self, images: ImageAttributeDataset) -> None:
        self.images, self.rows = images, images.complete
        self.parents = images.parents[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return {"index": index, "row": self.rows[index], **self.images[self.rows[index]]}


def run_batches(
    accelerator: Accelerator, images: Any, measure: Callable[[Batch], Results], batch_size: int, name: str
) -> Results:
    """Measure all images on all processes.

    Args:
        accelerator: Divides the batches among the processes.
        images: A data set of dicts, ``image`` among them.
        measure: From a batch, with images in [-1, 1], to tensors of shape (B, ...).
        batch_size: Most images of a batch on one process.
        name: What the progress bar says.

    Returns:
        The results of all images in their order, float32 on the CPU, on every process.
    """
    # A batch that is larger than a process's share would be filled up with images that were measured before.
    share = -(-len(images) // accelerator.num_processes)
    batches = accelerator.prepare(DataLoader(images, batch_size=min(batch_size, share)))
    parts = defaultdict(list)
    for batch in tqdm(batches, desc=name, disable=not accelerator.is_main_process):
        with torch.no_grad(), accelerator.autocast():
            results = measure(batch | {"image": scale_pixels(batch["image"])})
        for key, values in accelerator.gather_for_metrics(results).items():
            parts[key].append(values.float().cpu())
    return {key: torch.cat(values) for key, values in parts.items()}


@dataclass
class Measuring:
    """Measures pipelines on the same images and interventions. Judge and VAE are on the accelerator's device."""

    images: NumberedImages
    interventions: list[str]  # the I variables to intervene on, one at a time
    judge: AttributeClassifier
    vae: AutoencoderKL | None  # gives the posteriors of minimality, which is left out without it
    truth: TrueCounterfactuals | None
    accelerator: Accelerator
    batch_size: int  # on one process
    seed: int  # of the abduction
    _true_images: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    @property
    def known(self) -> list[str]:
        """The interventions whose true counterfactuals are known."""
        return [name for name in self.interventions if self.truth and name in self.truth.interventions]

    def run(self, images: Any, measure: Callable[[Batch], Results], name: str) -> Results:
        """See :func:`run_batches`."""
        return run_batches(self.accelerator, images, measure, self.batch_size, name)

    def of_images(self, images: NumberedImages, name: str) -> Tensor:
        """The judge's embeddings of real images, shape (N, D)."""
        seen = self.run(images, lambda batch: predict_images({"judge": self.judge}, batch["image"][:, None]), name)
        return seen["judge/embedding"][:, 0]

    def of_truth(self, guide: AttributeClassifier, plan: Tensor) -> Results:
        """What guide and judge see in the true counterfactuals of the interventions that are :attr:`known`.

        Args:
            guide: On the accelerator's device.
            plan: Encoded counterfactual attributes of all images, shape (N, I, K).
        """

        def measure(batch: Batch) -> Results:
            images, labels = self._make_truth(batch, plan)
            images = torch.cat([batch["image"][:, None], images], dim=1)
            labels = torch.cat([batch["parents"][:, None], labels], dim=1)
            return {"labels": labels, **self._predict(guide, images)}

        return self.run(self.images, measure, "True counterfactuals")

    def of_model(
        self, backbone: CounterfactualBackbone, guide: AttributeClassifier, plan: Tensor, name: str
    ) -> Results:
        """What guide and judge see in the counterfactuals of a model, and the errors against the truth if known."""

        def measure(batch: Batch) -> Results:
            images = self._make_counterfactuals(backbone, batch, plan)
            labels = torch.cat([batch["parents"][:, None], self._planned(batch, plan)], dim=1)
            results = {"labels": labels, **self._predict(guide, images)}
            if self.known:
                true_images, _ = self._make_truth(batch, plan)
                for i, known in enumerate(self.known):
                    counterfactual = images[:, 1 + self.interventions.index(known)]
                    for key, errors in truth_errors(batch["image"], counterfactual, true_images[:, i]).items():
                        results[f"{key}/{known}"] = errors
            return results

        return self.run(self.images, measure, name)

    def of_axioms(
        self, backbone: CounterfactualBackbone, plan: Tensor, chosen: list[int], name: str
    ) -> dict[str, dict[str, Tensor]]:
        """Composition, reconstruction, reversibility and minimality of some of the images.

        Args:
            backbone: The image model.
            plan: Encoded counterfactual attributes of all images, shape (N, I, K).
            chosen: The numbers of the images.
            name: What the progress bar says.

        Returns:
            By metric and intervention, what :func:`~softcft.evaluation.axioms.axiom_rows` takes.
        """

        def measure(batch: Batch) -> Results:
            image, parents, planned = batch["image"], batch["parents"], self._planned(batch, plan)

            def generators() -> list[torch.Generator]:
                return image_generators(batch["row"].tolist(), self.seed)

            results = {"composition/none": composition(backbone, image, parents, CYCLES, generators())}
            if isinstance(backbone, HVAEBackbone):  # its pixel residual makes composition exact
                results["reconstruction/none"] = reconstruction(backbone.model, image, parents, CYCLES, generators())
            for i, intervention in enumerate(self.interventions):
                drift = reversibility(backbone, image, parents, planned[:, i], CYCLES, generators())
                results[f"reversibility/{intervention}"] = drift
            if self.vae is None:
                return results
            images = self._make_counterfactuals(backbone, batch, plan)
            loc, log_scale = image_posterior(self.vae, images.flatten(0, 1))
            shape = images.shape[:2]
            return results | {"loc": loc.unflatten(0, shape), "log_scale": log_scale.unflatten(0, shape)}

        results = self.run(Subset(self.images, chosen), measure, f"{name}, axioms")
        if "loc" in results:
            loc, log_scale = results.pop("loc"), results.pop("log_scale")
            graph, parents = self.images.images.graph, self.images.parents[chosen]
            for i, intervention in enumerate(self.interventions):
                groups, new = (value_groups(graph, intervention, x, parents) for x in (parents, plan[chosen, i]))
                factual, counterfactual = ((loc[:, j], log_scale[:, j]) for j in (0, 1 + i))
                results[f"cld/{intervention}"] = counterfactual_latent_divergence(factual, counterfactual, groups, new)
        measures: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, values in results.items():
            metric, _, intervention = key.partition("/")
            measures[metric][intervention] = values
        return dict(measures)

    def _make_truth(self, batch: Batch, plan: Tensor) -> tuple[Tensor, Tensor]:
        """The true images of a batch, (B, I', C, H, W), and their attributes; made once for all pipelines."""
        assert self.truth is not None
        key = tuple(batch["index"].tolist())
        if key not in self._true_images:
            # Images that fill up the last batch of a process may be there twice.
            index, places = torch.unique(batch["index"].cpu(), return_inverse=True)
            rows = [self.images.rows[i] for i in index.tolist()]
            pairs = [
                self.truth.counterfactual(rows, name, plan[index, self.interventions.index(name)])
                for name in self.known
            ]
            images, parents = (torch.stack(tensors, dim=1)[places] for tensors in zip(*pairs, strict=True))
            self._true_images[key] = to_eight_bits(images), parents
        images, parents = self._true_images[key]
        return scale_pixels(images.to(self.accelerator.device)), parents.to(self.accelerator.device)

    def _predict(self, guide: AttributeClassifier, images: Tensor) -> Results:
        """What guide and judge see in images (B, 1 + I, C, H, W), and the judge's embedding."""
        seen = predict_images({"guide": guide, "judge": self.judge}, images)
        del seen["guide/embedding"]  # large, and not used
        return seen

    def _planned(self, batch: Batch, plan: Tensor) -> Tensor:
        """The counterfactual attributes of a batch, (B, I, K)."""
        return plan[batch["index"].cpu()].to(self.accelerator.device)

    def _make_counterfactuals(self, backbone: CounterfactualBackbone, batch: Batch, plan: Tensor) -> Tensor:
        """The images of a batch and their counterfactuals, (B, 1 + I, C, H, W)."""
        planned = self._planned(batch, plan)
        return counterfactual_images(backbone, batch["image"], batch["parents"], planned, batch["row"], self.seed)
