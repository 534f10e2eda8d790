"""Effectiveness and attribute amplification: what attribute predictors see in counterfactual images (Table 1).

Predictors trained on real images are tested on counterfactuals, with the counterfactual attributes as labels, and the
result is compared with their test on the real images. On an intervened variable they should do as well as before: then
the intervention is *effective*. On a variable that it cannot move they should do no better: else it is *amplified*.

The four steps of a test: :func:`plan_counterfactuals` for all images, then batch by batch on any number of processes
:func:`counterfactual_images` and :func:`predict_images`, then :func:`effectiveness_rows` of all predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from softcft.cft.interventions import other_values
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.data.schema import scale_pixels
from softcft.evaluation.bootstrap import interval
from softcft.evaluation.metrics import logit_shift, variable_metrics
from softcft.graph import CausalGraph, Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.noise import seeded_generator

__all__ = [
    "check_predictions",
    "counterfactual_images",
    "effectiveness_rows",
    "image_generators",
    "intervene_on",
    "plan_counterfactuals",
    "predict_images",
]

# Two streams of random numbers, so that no image's noise is that of an intervention.
INTERVENTION_STREAM, IMAGE_STREAM = 0, 1
# Resamples repeat images, and small bins err by chance: calibration errors of resamples lie above that of the images.
BIASED = ("ece", "ece_change")
GAP_METRICS = ("auc_change", "accuracy_change", "mae_change", "logit_shift")


def intervene_on(
    graph: CausalGraph, name: str, parents: Tensor, generator: torch.Generator | None = None
) -> Intervention:
    """Set one variable of each image to a value that is not its own.

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded factual attributes, shape (B, K).
        generator: Makes the draw reproducible.

    Returns:
        One intervention per image, with the values of :func:`~softcft.cft.interventions.other_values`.

    Raises:
        ValueError: If the graph has no such variable, or it is continuous and there is no other image.
    """
    values = parents.clone()
    values[:, graph.slices[graph[name].name]] = other_values(graph, name, parents, generator)
    mask = torch.zeros(len(parents), len(graph), dtype=torch.bool, device=parents.device)
    mask[:, graph.names.index(name)] = True
    return Intervention(values, mask)


@torch.no_grad()
def plan_counterfactuals(
    attribute_scm: AttributeSCM, parents: Tensor, interventions: Sequence[str], seed: int
) -> Tensor:
    """Decide what every counterfactual image should show, for all images at once and before any is made.

    The plan of an intervention depends on the images and the seed only: not on batches or processes, nor on what else
    is planned.

    Args:
        attribute_scm: The attributes' mechanisms.
        parents: Encoded factual attributes of all images, shape (N, K).
        interventions: The I variables to intervene on, one at a time, see :func:`intervene_on`.
        seed: Seed of interventions and abduction, at least 0.

    Returns:
        Encoded counterfactual attributes on the CPU, shape (N, I, K).

    Raises:
        ValueError: If the graph has no such variable, one is continuous and there is only one image, ``parents`` are
            not encoded values of the graph, or ``seed`` is negative.
    """
    graph = attribute_scm.causal_graph
    places = [graph.names.index(graph[name].name) for name in interventions]
    factual = parents.to(attribute_scm.device)
    plan = torch.empty(len(parents), len(interventions), graph.width)
    for i, place in enumerate(places):
        generator = seeded_generator(seed, INTERVENTION_STREAM, place)
        intervention = intervene_on(graph, graph.names[place], factual, generator)
        plan[:, i] = attribute_scm.counterfactual(factual, intervention, generator)
    return plan


@torch.no_grad()
def counterfactual_images(
    backbone: CounterfactualBackbone,
    image: Tensor,
    parents: Tensor,
    counterfactual_parents: Tensor,
    rows: Sequence[int] | Tensor,
    seed: int,
) -> Tensor:
    """Make the planned counterfactuals of a batch of images.

    The noise of an image's abduction depends on the seed and on its row in the data only: not on the batch it comes in,
    and for models of one architecture it is the same, as it is for all interventions.

    Args:
        backbone: The image mechanism, in evaluation mode and on the device of ``image``.
        image: Shape (B, C, H, W), uint8 or in [-1, 1].
        parents: Encoded factual attributes, shape (B, K).
        counterfactual_parents: The batch's part of :func:`plan_counterfactuals`, shape (B, I, K).
        rows: For each image its number among all images, shape (B,).
        seed: Seed of the abduction, at least 0.

    Returns:
        Float32 images in [-1, 1], shape (B, 1 + I, C, H, W): the real one first, then one for each intervention.

    Raises:
        ValueError: If the number of images, attributes, plans or rows differs, or ``seed`` is negative.
    """
    row_numbers = torch.as_tensor(rows).tolist()
    if {len(parents), len(counterfactual_parents), len(row_numbers)} != {
        len(image)
    } or counterfactual_parents.ndim != 3:
        raise ValueError(
            f"parents must have shape (B, K), counterfactual_parents (B, I, K) and rows (B,) for a batch of "
            f"{len(image)} images, got {tuple(parents.shape)}, {tuple(counterfactual_parents.shape)} and "
            f"({len(row_numbers)},)."
        )
    image, parents = scale_pixels(image), parents.to(image.device)
    generators = image_generators(row_numbers, seed)
    output = backbone.counterfactual(image, parents, counterfactual_parents.to(image.device), generators)
    return torch.cat([image[:, None].float(), output.image.float()], dim=1)


def image_generators(rows: Sequence[int], seed: int) -> list[torch.Generator]:
    """A generator for each image, which depends on nothing but the seed and the image's number among all images.

    Args:
        rows: The B images' numbers.
        seed: At least 0.
    """
    return [seeded_generator(seed, IMAGE_STREAM, row) for row in rows]


@torch.no_grad()
def predict_images(predictors: Mapping[str, AttributeClassifier], images: Tensor) -> dict[str, Tensor]:
    """Show images to the predictors.

    Args:
        predictors: Attribute predictors by name, for example guide and judge, on the device of ``images``. They are
            put into evaluation mode.
        images: Shape (B, 1 + I, C, H, W) in [-1, 1], of :func:`counterfactual_images`.

    Returns:
        Float32 tensors: under each predictor's name its logits and means, shape (B, 1 + I, K), and under
        ``name/embedding`` its features, shape (B, 1 + I, D).
    """
    predictions = {}
    for name, predictor in predictors.items():
        predictor.eval()
        outputs = [predictor(image) for image in images.unbind(dim=1)]
        predictions[name] = torch.stack([output.logits.float() for output in outputs], dim=1)
        predictions[f"{name}/embedding"] = torch.stack([output.embedding.float() for output in outputs], dim=1)
    return predictions


def effectiveness_rows(
    graph: CausalGraph,
    labels: Tensor,
    logits: Mapping[str, Tensor],
    interventions: Sequence[str],
    weights: np.ndarray,
) -> pd.DataFrame:
    """Compare predictions on counterfactual images with predictions on the real ones.

    Args:
        graph: The causal graph.
        labels: Encoded attributes that each image should show, the real ones first, shape (N, 1 + I, K).
        logits: By predictor its logits and means, without embeddings, shapes (N, 1 + I, K).
        interventions: The I variables, in the same order.
        weights: Of :func:`~softcft.evaluation.bootstrap.bootstrap_weights`, shape (1 + R, N).

    Returns:
        A tidy table with the columns ``intervention``, ``variable``, ``predictor``, ``metric``, ``value``, ``low`` and
        ``high`` (95 % interval over subjects, NaN where there is none). The rows of the intervention ``none`` are those
        of the real images, with the metrics of :func:`~softcft.evaluation.metrics.variable_metrics`. Each intervention
        has the same metrics, their ``<metric>_change`` from the real images, and of discrete variables the
        :func:`~softcft.evaluation.metrics.logit_shift`. If there are a guide and a judge, the predictor ``gap`` has by
        how much the guide's change in ``auc``, ``accuracy`` or ``mae`` and its ``logit_shift`` exceed the judge's: what
        only the classifier that steered the training sees. Changes and gaps are paired: their intervals are those of
        the difference.

    Raises:
        ValueError: If a shape is wrong; an intervention is unknown, given twice or named ``none``; there is no
            predictor or one named ``gap``; or a metric is undefined, see
            :func:`~softcft.evaluation.metrics.variable_metrics`.
    """
    check_predictions(graph, labels, logits, interventions)
    results: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
    for variable, (predictor, predicted) in product(graph.variables, logits.items()):
        columns = graph.slices[variable.name]
        real, *counterfactuals = [(predicted[:, i, columns], labels[:, i, columns]) for i in range(labels.shape[1])]
        baseline = variable_metrics(variable, *real, weights)
        results["none", variable.name, predictor] = baseline
        for intervention, counterfactual in zip(interventions, counterfactuals, strict=True):
            metrics = variable_metrics(variable, *counterfactual, weights)
            metrics |= {f"{metric}_change": metrics[metric] - baseline[metric] for metric in baseline}
            if variable.kind != "continuous":
                metrics["logit_shift"] = logit_shift(variable, *real, *counterfactual, weights)
            results[intervention, variable.name, predictor] = metrics
    if {"guide", "judge"} <= set(logits):
        for intervention, name in product(interventions, graph.names):
            guide, judge = (results[intervention, name, predictor] for predictor in ("guide", "judge"))
            gap = {metric: guide[metric] - judge[metric] for metric in GAP_METRICS if metric in guide}
            results[intervention, name, "gap"] = gap
    rows = [
        (*key, metric, *(_no_interval(values) if metric in BIASED else interval(values)))
        for key in product(("none", *interventions), graph.names, (*logits, "gap"))
        for metric, values in results.get(key, {}).items()
    ]
    return pd.DataFrame(rows, columns=["intervention", "variable", "predictor", "metric", "value", "low", "high"])


def _no_interval(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), math.nan, math.nan


def check_predictions(
    graph: CausalGraph, labels: Tensor, logits: Mapping[str, Tensor], interventions: Sequence[str]
) -> None:
    """Raise ValueError if these are no arguments of :func:`effectiveness_rows`."""
    for name in interventions:
        graph[name]
    if "none" in interventions or len(set(interventions)) < len(interventions):
        raise ValueError(
            f"interventions must name each variable once, and none that is named 'none', which stands for real images; "
            f"got {list(interventions)}."
        )
    if not logits or "gap" in logits:
        raise ValueError(
            f"logits must have a predictor, and none named 'gap', which is guide - judge; got {list(logits)}."
        )
    expected = (len(labels), 1 + len(interventions), graph.width)
    named = {"labels": labels} | {f"logits['{predictor}']": tensor for predictor, tensor in logits.items()}
    for argument, tensor in named.items():
        if tensor.shape != expected:
            raise ValueError(
                f"{argument} must have shape (N, 1 + I, K) = {expected}, got {tuple(tensor.shape)}; real images first, "
                f"then the interventions {list(interventions)}."
            )
