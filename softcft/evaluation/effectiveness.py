"""Effectiveness and attribute amplification: what attribute predictors see in counterfactual images (Table 1).

Predictors trained on real images are tested on counterfactuals, with the counterfactual attributes as labels, and the
result is compared with their test on the real images. On an intervened variable they should do as well as before: then
the intervention is *effective*. On a variable that it cannot move they should do no better: else it is *amplified*.

The four steps of a test: :func:`plan_counterfactuals` for all images, then batch by batch on any number of processes
:func:`counterfactual_images` and :func:`predict_images`, then :func:`effectiveness_rows` of all predictions.
"""

from __future__ import annotations

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
from softcft.evaluation.tables import RESULT
from softcft.graph import CausalGraph, Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.noise import seeded_generator

__all__ = [
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
    """Set one variable of each image, given its encoded attributes (B, K), to a value that is not its own.

    See :func:`~softcft.cft.interventions.other_values`.
    """
    values = parents.clone()
    values[:, graph.slices[name]] = other_values(graph, name, parents, generator)
    mask = torch.zeros(len(parents), len(graph), dtype=torch.bool, device=parents.device)
    mask[:, graph.names.index(name)] = True
    return Intervention(values, mask)


@torch.no_grad()
def plan_counterfactuals(
    attribute_scm: AttributeSCM, parents: Tensor, interventions: Sequence[str], seed: int
) -> Tensor:
    """Decide what every counterfactual image should show, for all images at once and before any is made.

    The plan of an intervention depends on the images and the seed only.

    Args:
        attribute_scm: The attributes' mechanisms.
        parents: Encoded factual attributes of all images, shape (N, K).
        interventions: The I variables to intervene on, one at a time, see :func:`intervene_on`.
        seed: Seed of interventions and abduction, at least 0.

    Returns:
        Encoded counterfactual attributes on the CPU, shape (N, I, K).

    Raises:
        ValueError: If a variable is continuous and there is only one image.
    """
    graph = attribute_scm.causal_graph
    factual = parents.to(attribute_scm.device)
    plan = torch.empty(len(parents), len(interventions), graph.width)
    for i, name in enumerate(interventions):
        generator = seeded_generator(seed, INTERVENTION_STREAM, graph.names.index(name))
        intervention = intervene_on(graph, name, factual, generator)
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
    """
    image, parents = scale_pixels(image), parents.to(image.device)
    generators = image_generators(torch.as_tensor(rows).tolist(), seed)
    output = backbone.counterfactual(image, parents, counterfactual_parents.to(image.device), generators)
    return torch.cat([image[:, None].float(), output.image.float()], dim=1)


def image_generators(rows: Sequence[int], seed: int) -> list[torch.Generator]:
    """A generator for each image, which depends on the seed and the image's number among all images only."""
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
        The columns :data:`~softcft.evaluation.tables.RESULT`, with 95 % intervals over subjects, NaN where there is
        none. The intervention ``none`` has the metrics of real images, see
        :func:`~softcft.evaluation.metrics.variable_metrics`. Each intervention has the same metrics, their
        ``<metric>_change`` from the real images, and of discrete variables the
        :func:`~softcft.evaluation.metrics.logit_shift`. With a guide and a judge, the predictor ``gap`` has the
        differences guide - judge of the changes in ``auc``, ``accuracy`` and ``mae`` and of ``logit_shift``: what only
        the guide sees. Changes and gaps are paired: their intervals are those of the difference.

    Raises:
        ValueError: If a metric is undefined, see :func:`~softcft.evaluation.metrics.variable_metrics`.
    """
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
        (*key, metric, *interval(values[:1] if metric in BIASED else values))
        for key in product(("none", *interventions), graph.names, (*logits, "gap"))
        for metric, values in results.get(key, {}).items()
    ]
    return pd.DataFrame(rows, columns=RESULT)
