"""Effectiveness and attribute amplification: what attribute predictors see in counterfactual images (Table 1).

Predictors trained on real images are tested on counterfactuals, with the counterfactual attributes as labels, and the
result is compared with their test on the real images. On an intervened variable they should do as well as before: then
the intervention is *effective*. On a variable that it cannot move they should do no better: else it is *amplified*.

:func:`measure_effectiveness` does it all in one process. A recipe on many calls :func:`predict_counterfactuals` on its
own batches, gathers the tensors, and makes one table of all of them with :func:`effectiveness_table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from softcft.cft.interventions import other_values
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.data.schema import scale_pixels
from softcft.graph import CausalGraph, Intervention, Variable
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier

__all__ = [
    "effectiveness_table",
    "intervene_on",
    "measure_effectiveness",
    "predict_counterfactuals",
    "variable_metric",
]

LABELS = "labels"


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


def variable_metric(variable: Variable, predictions: Tensor, labels: Tensor) -> tuple[str, float]:
    """How well predictions of one variable match its labels.

    Args:
        variable: The variable.
        predictions: Probabilities of a discrete variable, encoded values of a continuous one, shape (N, width).
        labels: Encoded labels, shape (N, width).

    Returns:
        ``"auc"`` and the area under the ROC curve in %, of a categorical variable the mean over its categories, each
        against the rest; or ``"mae"`` and the mean absolute error in the variable's unit.

    Raises:
        ValueError: If the shapes are wrong, or a category has no image or all of them, so that there is no AUC.
    """
    if predictions.shape != labels.shape or labels.ndim != 2 or labels.shape[1] != variable.width or not len(labels):
        raise ValueError(
            f"'{variable.name}': predictions and labels must both have shape (N, {variable.width}), got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}."
        )
    if variable.kind == "continuous":
        return "mae", float(np.abs(np.subtract(variable.decode(predictions), variable.decode(labels))).mean())
    counts = labels.sum(dim=0)
    if ((counts == 0) | (counts == len(labels))).any():
        positives = [len(labels) - int(counts), int(counts)] if variable.kind == "binary" else counts.int().tolist()
        raise ValueError(
            f"'{variable.name}' has no AUC: each category needs images with and without it, but there are "
            f"{dict(zip(variable.categories, positives, strict=True))}. Evaluate on more images."
        )
    return "auc", 100 * float(roc_auc_score(labels.cpu().numpy(), predictions.cpu().numpy(), average="macro"))


@torch.no_grad()
def predict_counterfactuals(
    backbone: CounterfactualBackbone,
    attribute_scm: AttributeSCM,
    predictors: Mapping[str, AttributeClassifier],
    batch: Mapping[str, Tensor],
    interventions: Sequence[str],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Show the predictors a batch of images and one counterfactual of each image for each intervention.

    Args:
        backbone: The image mechanism.
        attribute_scm: The attributes' mechanisms, on the device of the other models; the batch is moved there.
        predictors: Attribute predictors by name, for example guide and judge. They are put into evaluation mode.
        batch: ``image``, shape (B, C, H, W), uint8 or in [-1, 1], and encoded ``parents``, shape (B, K).
        interventions: The I variables to intervene on, one at a time, see :func:`intervene_on`.
        generator: Makes interventions and abduction reproducible.

    Returns:
        Float32 tensors of shape (B, 1 + I, K), the real images first, then the interventions in their order: for each
        predictor its probabilities and means, and under ``labels`` the encoded attributes that they should match.

    Raises:
        ValueError: If an intervention is unknown or cannot be made (see :func:`intervene_on`), or a predictor has the
            name ``labels`` or another graph than ``attribute_scm``.
    """
    graph = attribute_scm.causal_graph
    _check(graph, predictors, interventions)
    image = scale_pixels(batch["image"].to(attribute_scm.device))
    parents = batch["parents"].to(attribute_scm.device)
    images, labels = [image], [parents]
    for name in interventions:
        intervention = intervene_on(graph, name, parents, generator)
        counterfactual_parents = attribute_scm.counterfactual(parents, intervention, generator)
        images.append(backbone.counterfactual(image, parents, counterfactual_parents, generator).image)
        labels.append(counterfactual_parents)
    predictions = {LABELS: torch.stack(labels, dim=1).float()}
    for predictor_name, predictor in predictors.items():
        predictor.eval()
        predictions[predictor_name] = torch.stack([predictor.predict(x) for x in images], dim=1).float()
    return predictions


def effectiveness_table(
    graph: CausalGraph, predictions: Mapping[str, Tensor], interventions: Sequence[str]
) -> pd.DataFrame:
    """Compare predictions on counterfactual images with predictions on the real ones.

    Args:
        graph: The causal graph.
        predictions: What :func:`predict_counterfactuals` returned, of all images: shapes (N, 1 + I, K).
        interventions: The I variables, in the same order.

    Returns:
        One row per intervention, predictor and variable, with the columns ``intervention``, ``variable``,
        ``predictor``, ``metric`` (``auc`` in % or ``mae`` in the variable's unit), ``value`` (on counterfactuals),
        ``baseline`` (on real images) and ``change`` (value - baseline).

    Raises:
        ValueError: If a tensor's shape is wrong or a metric is undefined, see :func:`variable_metric`.
    """
    labels = predictions[LABELS]
    expected = (len(labels), 1 + len(interventions), graph.width)
    for key, tensor in predictions.items():
        if tensor.shape != expected:
            raise ValueError(f"predictions['{key}'] must have shape {expected}, got {tuple(tensor.shape)}.")
    rows = []
    for predictor in [key for key in predictions if key != LABELS]:
        for variable in graph.variables:
            columns = graph.slices[variable.name]
            (metric, baseline), *results = [
                variable_metric(variable, predictions[predictor][:, i, columns], labels[:, i, columns])
                for i in range(1 + len(interventions))
            ]
            for intervention, (_, value) in zip(interventions, results, strict=True):
                rows.append((intervention, variable.name, predictor, metric, value, baseline, value - baseline))
    names = ["intervention", "variable", "predictor", "metric", "value", "baseline", "change"]
    return pd.DataFrame(rows, columns=names)


def measure_effectiveness(
    backbone: CounterfactualBackbone,
    attribute_scm: AttributeSCM,
    predictors: Mapping[str, AttributeClassifier],
    batches: Iterable[Mapping[str, Tensor]],
    interventions: Sequence[str],
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Measure effectiveness and amplification of an image model in one process. Only predictions are kept, no images.

    Args:
        backbone: The image mechanism.
        attribute_scm: The attributes' mechanisms.
        predictors: Attribute predictors by name.
        batches: Test data, see :func:`predict_counterfactuals`.
        interventions: The variables to intervene on, one at a time.
        generator: Makes interventions and abduction reproducible. Models of one architecture, each measured on the same
            batches with a generator of the same seed, get the same interventions and the same noise.

    Returns:
        See :func:`effectiveness_table`.

    Raises:
        ValueError: If there are no batches, and as :func:`predict_counterfactuals` and :func:`effectiveness_table`.
    """
    _check(attribute_scm.causal_graph, predictors, interventions)
    batched = []
    for batch in tqdm(batches, desc="effectiveness"):
        predictions = predict_counterfactuals(backbone, attribute_scm, predictors, batch, interventions, generator)
        batched.append({key: tensor.cpu() for key, tensor in predictions.items()})
    if not batched:
        raise ValueError("batches is empty: there is nothing to measure.")
    gathered = {key: torch.cat([predictions[key] for predictions in batched]) for key in batched[0]}
    return effectiveness_table(attribute_scm.causal_graph, gathered, interventions)


def _check(graph: CausalGraph, predictors: Mapping[str, AttributeClassifier], interventions: Sequence[str]) -> None:
    for name in interventions:
        graph[name]
    if LABELS in predictors:
        raise ValueError(f"A predictor must not be named '{LABELS}': the labels are kept under that name.")
    for predictor_name, predictor in predictors.items():
        if predictor.causal_graph != graph:
            raise ValueError(
                f"Predictor '{predictor_name}' must have the graph of attribute_scm, {list(graph.names)}, got "
                f"{list(predictor.causal_graph.names)}: check names, kinds, categories, ranges and parents."
            )
