"""The protocol of "Benchmarking Counterfactual Image Generation" (Melistas et al., 2024) for Morpho-MNIST.

Its three attribute predictors are in ``methods/deepscm/checkpoints/morphomnist/trained_classifiers`` of
https://github.com/gulnazaki/counterfactual-benchmark; a folder ``judge_dir`` holds them as ``thickness.ckpt``,
``intensity.ckpt`` and ``digit.ckpt``. They had no part in any fine-tuning. What its numbers rest on:

* Batch normalisation was left in training mode: each image is judged by the statistics of its batch of 256. What is
  reported is the mean of the batches' means.
* Continuous variables are set to a value drawn uniformly from the different values of the test set, from another bin
  than the image's own. The bounds of the bins are the means of the values in nine equal intervals of the range.
* The thickness predictor is told the intensity that the image should have.

Beside them stands a judge without a network: thickness and intensity as measured from the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from tqdm.auto import tqdm

from softcft import HVAEBackbone, HVAEModel
from softcft.data.morpho_transform import measure_intensity, measure_thickness, stroke_mask
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, PADDING
from softcft.data.schema import to_eight_bits
from softcft.evaluation.axioms import composition, counterfactual_latent_divergence, reconstruction, reversibility
from softcft.evaluation.effectiveness import image_generators, intervene_on
from softcft.graph import Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.vae import image_posterior
from softcft.noise import seeded_generator

BATCH = 256
FEW = 1_000  # images of what takes long, the first ones: pixels and cycles
CYCLES = 10
WIDTH = 8
LAYERS = ((1, 1, 7, 1), (1, 2, 3, 2), (2, 2, 3, 1), (2, 4, 3, 2), (4, 4, 3, 1), (4, 8, 3, 2))
"""Of the convolutions: channels in and out as multiples of the width (the first has one in), side, stride."""
OUTPUTS = {"thickness": 1, "intensity": 1, "digit": 10}
INTERVALS = 9  # of the range of encoded values, whose means bound the bins

Predictions = dict[str, Tensor]
"""By variable its encoded value or its logits, (N, width)."""


class Shown(NamedTuple):
    """Images, and what they should show; the real ones first, if they are among them."""

    images: Tensor  # (N, J, 1, 32, 32) in [-1, 1]
    labels: Tensor  # encoded, (N, J, K)


# ---- judges ----------------------------------------------------------------------------------------------------------


class Predictor(nn.Module):
    """A published attribute predictor; the names of its parts are those in the files.

    Args:
        outputs: Number of outputs: 10 logits of the digit, or one encoded value.
        context: Number of values it is told beside the image.
    """

    def __init__(self, outputs: int, context: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after, side, stride) in enumerate(LAYERS):
            channels = WIDTH * before if i else 1
            layers += [
                nn.Conv2d(channels, WIDTH * after, side, stride, side // 2, bias=False),
                # Without momentum training mode leaves the running statistics, which evaluation mode uses, as they are.
                nn.BatchNorm2d(WIDTH * after, momentum=0.0),
                nn.LeakyReLU(),
            ]
            if i == 0:
                layers.append(nn.Identity())  # has a number in the files
        self.cnn = nn.Sequential(*layers)
        width = 8 * WIDTH
        self.fc = nn.Sequential(
            nn.Linear(width + context, width, bias=False),
            nn.BatchNorm1d(width, momentum=0.0),
            nn.LeakyReLU(),
            nn.Linear(width, outputs),
        )

    def features(self, images: Tensor) -> Tensor:
        """Of images (B, 1, 32, 32) in [-1, 1], shape (B, 64)."""
        return self.cnn(images).mean(dim=(-2, -1))

    def forward(self, images: Tensor, context: Tensor) -> Tensor:
        """The outputs (B, outputs) for images (B, 1, 32, 32) in [-1, 1], given the context (B, context)."""
        return self.fc(torch.cat([self.features(images), context], dim=1))


def load_predictors(judge_dir: str | Path) -> dict[str, Predictor]:
    """The three predictors by the name of their variable.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file holds other weights. The message names the file.
    """
    predictors = {}
    for name, outputs in OUTPUTS.items():
        path = Path(judge_dir, f"{name}.ckpt")
        if not path.is_file():
            raise FileNotFoundError(
                f"judge_dir {judge_dir} has no {path.name}; needed are {', '.join(f'{n}.ckpt' for n in OUTPUTS)}, the "
                "predictors of https://github.com/gulnazaki/counterfactual-benchmark."
            )
        predictors[name] = Predictor(outputs, context=int(name == "thickness"))
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            predictors[name].load_state_dict(weights)
        except Exception as error:  # unpickling raises anything
            raise ValueError(f"{path} is not the published predictor of {name}: {error}") from error
    return predictors


@torch.no_grad()
def predict(predictors: Mapping[str, Predictor], images: Tensor, labels: Tensor, training: bool) -> Predictions:
    """What the published predictors see.

    Args:
        predictors: Of :func:`load_predictors`.
        images: Shape (N, 1, 32, 32) in [-1, 1]. In training mode, each is judged among the 256 that come with it.
        labels: Encoded attributes that they should show, shape (N, K).
        training: Whether batch normalisation is in training mode, as published.
    """
    intensity = labels[:, MORPHOMNIST_GRAPH.slices["intensity"]]
    seen = {}
    for name, predictor in predictors.items():
        predictor.train(training)
        context = intensity if name == "thickness" else intensity[:, :0]
        parts = zip(images.split(BATCH), context.split(BATCH), strict=True)
        seen[name] = torch.cat([predictor(*part) for part in parts])
    return seen


@torch.no_grad()
def features(predictors: Mapping[str, Predictor], images: Tensor) -> Tensor:
    """The features of all three predictors in evaluation mode, side by side: shape (N, 192); images as predicted."""
    networks = [predictor.eval() for predictor in predictors.values()]
    parts = [torch.cat([network.features(part) for network in networks], dim=1) for part in images.split(BATCH)]
    return torch.cat(parts)


def measure_pixels(images: Tensor) -> Predictions:
    """Thickness and intensity as measured from the pixels, some 30 ms an image.

    Args:
        images: Shape (N, 1, 32, 32) in [-1, 1]; taken at 8 bits and without their padding. A blank one has no
            thickness, and the intensity of its pixels.
    """
    measured = []
    for image in to_eight_bits(images)[:, 0, PADDING:-PADDING, PADDING:-PADDING].numpy():
        blank = image.min() == image.max()
        measured.append((0.0 if blank else measure_thickness(stroke_mask(image)), measure_intensity(image)))
    seen = {}
    for name, values in zip(("thickness", "intensity"), np.array(measured).T, strict=True):
        low, high = MORPHOMNIST_GRAPH[name].bounds
        seen[name] = torch.from_numpy(2 * (values - low) / (high - low) - 1).float()[:, None]
    return seen


def batch_weights(number: int) -> np.ndarray:
    """Weights (1, N) by which the mean over images is the mean over the means of batches of 256."""
    sizes = [len(part) for part in torch.arange(number).split(BATCH)]
    return np.repeat([1 / size for size in sizes], sizes)[None]


# ---- values ----------------------------------------------------------------------------------------------------------


def value_bins(values: Tensor, reference: Tensor) -> Tensor:
    """The bin of each encoded value (N,), int64, given the encoded values of the test images (M,)."""
    edges = torch.linspace(-1, 1, INTERVALS + 1, dtype=torch.float64)
    interval = torch.bucketize(reference.double(), edges, right=True)
    inside = [reference[interval == i] for i in range(1, INTERVALS + 1)]
    bounds = torch.stack([some.mean() for some in inside if len(some)])
    return torch.bucketize(values.contiguous(), bounds)


def other_bin(values: Tensor, generator: torch.Generator) -> Tensor:
    """For each encoded value (N,) one of the different values, all equally likely, from another bin than its own.

    Raises:
        ValueError: If all values lie in one bin.
    """
    unique = values.unique()
    bins, own = value_bins(unique, values), value_bins(values, values)
    if len(bins.unique()) < 2:
        raise ValueError(f"All {len(values)} values lie in one bin: there is none to draw from; take more images.")
    new = torch.empty_like(values)
    for each in own.unique():
        rows, choices = own == each, unique[bins != each]
        new[rows] = choices[torch.randint(len(choices), (int(rows.sum()),), generator=generator)]
    return new


def published_interventions(parents: Tensor, seed: int) -> dict[str, Intervention]:
    """Interventions on each variable of all N test images, given their encoded attributes (N, K).

    Continuous variables take a value of :func:`other_bin`, digits one of the nine others, all equally likely.
    """
    interventions = {}
    for i, name in enumerate(MORPHOMNIST_GRAPH.names):
        generator = seeded_generator(seed, i)
        interventions[name] = intervene_on(MORPHOMNIST_GRAPH, name, parents, generator)
        if MORPHOMNIST_GRAPH[name].kind == "continuous":
            column = MORPHOMNIST_GRAPH.slices[name].start
            interventions[name].values[:, column] = other_bin(parents[:, column], generator)
    return interventions


@torch.no_grad()
def published_plan(attribute_scm: AttributeSCM, parents: Tensor, seed: int) -> Tensor:
    """What the counterfactuals of these interventions should show, encoded, shape (N, 3, K)."""
    generator = seeded_generator(seed)
    planned = published_interventions(parents, seed).values()
    return torch.stack([attribute_scm.counterfactual(parents, each, generator) for each in planned], dim=1)


# ---- images without their labels -------------------------------------------------------------------------------------


@torch.no_grad()
def divergence(vae: AutoencoderKL, shown: Shown) -> float:
    """Minimality by a VAE, the mean over interventions and images, which are grouped by bins and digits."""
    parts = [image_posterior(vae, part.flatten(0, 1)) for part in shown.images.split(BATCH)]
    loc, log_scale = (torch.cat(tensors).unflatten(0, shown.images.shape[:2]) for tensors in zip(*parts, strict=True))
    values = []
    for i, name in enumerate(MORPHOMNIST_GRAPH.names, start=1):
        groups, new_groups = (_groups(name, shown.labels[:, j], shown.labels[:, 0]) for j in (0, i))
        factual, counterfactual = ((loc[:, j], log_scale[:, j]) for j in (0, i))
        values.append(counterfactual_latent_divergence(factual, counterfactual, groups, new_groups))
    return torch.stack(values).nanmean().item()


def _groups(name: str, labels: Tensor, real_labels: Tensor) -> Tensor:
    """The bin or the category of each image."""
    variable, columns = MORPHOMNIST_GRAPH[name], MORPHOMNIST_GRAPH.slices[name]
    if variable.kind != "continuous":
        return variable.category_index(labels[:, columns])
    return value_bins(labels[:, columns.start], real_labels[:, columns.start])


def cycles(hvae: HVAEModel, shown: Shown, name: str) -> dict[str, Tensor]:
    """Composition, reconstruction and reversibility, the last as the mean over interventions, of the first images.

    Returns:
        By metric the mean absolute differences in grey levels after 1 to 10 cycles, shape (10,).
    """
    backbone = HVAEBackbone(hvae).eval()
    number = min(FEW, len(shown.images))
    found: dict[str, list[Tensor]] = {"composition": [], "reconstruction": [], "reversibility": []}
    for rows in tqdm(torch.arange(number).split(BATCH), desc=f"{name}, cycles"):
        image, (parents, *planned) = shown.images[rows, 0], shown.labels[rows].unbind(dim=1)
        of_rows = rows.tolist()
        with torch.autocast("cpu", torch.bfloat16):
            same = composition(backbone, image, parents, CYCLES, image_generators(of_rows, 0))
            decoded = reconstruction(hvae, image, parents, CYCLES, image_generators(of_rows, 0))
            back = [
                reversibility(backbone, image, parents, new, CYCLES, image_generators(of_rows, 0)) for new in planned
            ]
        for key, drift in zip(found, (same, decoded, torch.stack(back).mean(dim=0)), strict=True):
            found[key].append(drift)
    return {key: torch.cat(drifts).mean(dim=0) for key, drifts in found.items()}
