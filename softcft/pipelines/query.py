"""Counterfactuals from natural values to images: what all pipelines have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from softcft.arguments import check_flag, check_generator, check_whole, plain
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.graph import CausalGraph, Intervention, Values
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.sight import not_seen
from softcft.models.weights import load_safetensors
from softcft.noise import Generator, copies, own_generators
from softcft.pipelines.images import Images, OutputType, check_output_type, from_tensor, to_numpy, to_pixels
from softcft.pipelines.masks import blend_weights, to_mask
from softcft.pipelines.result import DSCMPipelineOutput, Predictions

__all__ = [
    "CausalPipeline",
    "Generator",
    "ImageFormat",
    "Query",
    "Values",
    "check_parts",
    "draw_samples",
    "load_pipeline",
    "predict_counterfactuals",
]

logger = logging.get_logger(__name__)


class ImageFormat(NamedTuple):
    """Channels and size of the images that a model takes."""

    channels: int
    size: int


class CausalPipeline(Protocol):
    """What all pipelines of softcft have, whatever their image model."""

    attribute_scm: AttributeSCM
    classifier: AttributeClassifier | None

    @property
    def causal_graph(self) -> CausalGraph:
        """The graph of all components."""
        ...

    @property
    def image_format(self) -> ImageFormat:
        """What images the model takes."""
        ...

    @property
    def make_backbone(self) -> Callable[..., Any]:
        """Makes the differentiable core, a module with the method of ``CounterfactualBackbone``.

        It takes the settings of the image model's kind, and also predicts several images from one abduction.
        """
        ...

    @property
    def components(self) -> dict[str, Any]:
        """All parts by name."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move all parts."""
        ...

    @property
    def _execution_device(self) -> torch.device: ...


@dataclass
class Query:
    """The arguments of :meth:`softcft.DSCMPipeline.__call__` that all pipelines have."""

    image: Images
    parents: Values | list[Values] | None
    do: Values | list[Values] | None
    generator: Generator
    output_type: OutputType
    infer_missing_parents: bool
    fit: bool
    mask: Images | None


def predict_counterfactuals(
    pipeline: CausalPipeline, backbone: CounterfactualBackbone, query: Query
) -> DSCMPipelineOutput:
    """Predict what images would have been under an intervention.

    Args:
        pipeline: Its attribute mechanisms and its classifier, if it has one.
        backbone: Its image model, on the pipeline's device.
        query: The images, their attributes and the intervention.

    Raises:
        ValueError: See :meth:`softcft.DSCMPipeline.__call__`.
    """
    attribute_scm, classifier, device = pipeline.attribute_scm, pipeline.classifier, pipeline._execution_device
    graph, image_format, generator = attribute_scm.causal_graph, pipeline.image_format, query.generator

    # 1. Check everything before any work.
    check_output_type(query.output_type, image_format.channels)
    check_flag("infer_missing_parents", query.infer_missing_parents)
    check_flag("fit", query.fit)
    if classifier is not None and classifier.training:
        raise ValueError("The classifier is in training mode and would predict something else; call .eval() on it.")
    pixels = to_pixels(query.image, *image_format, fit=query.fit).to(device)
    factual = 2 * pixels - 1
    known = _encode_values("parents", graph, query.parents, len(factual))
    intervention = _encode_values("do", graph, query.do, len(factual) if len(factual) > 1 else None)
    batch_size = len(intervention.values)
    mask = None if query.mask is None else to_mask(query.mask, query.image, image_format.size, query.fit, batch_size)
    check_generator(generator, batch_size)
    shares_noise = len(factual) < batch_size and not isinstance(generator, list)
    own = generator or own_generators(factual.expand(batch_size, -1, -1, -1))
    generators: Any = copies(own, batch_size) if generator and shares_noise else own  # of one image the same noise
    missing = [name for name, is_known in zip(graph.names, known.mask.all(dim=0).tolist(), strict=True) if not is_known]
    if missing and not query.infer_missing_parents:
        raise ValueError(
            f"parents has no value for {missing}; the model needs {list(graph.names)} of every image. With a "
            f"classifier, infer_missing_parents=True predicts what is not known."
        )
    if missing and classifier is None:
        raise ValueError(
            f"parents has no value for {missing}, and infer_missing_parents=True needs a classifier, which this "
            f"pipeline does not have."
        )

    if classifier is not None:
        _warn_of_unseen(classifier, intervention)

    # 2. The factual attributes: known, or inferred by the classifier.
    seen = None if classifier is None else _predict(classifier, factual)
    values, given = known.values, known.mask
    if missing and seen is not None:
        inferred = graph.encode(graph.decode(seen.clamp(-1, 1)))  # from probabilities to the most probable category
        values = torch.where(graph.expand(known.mask), values, inferred)
    factual = factual.expand(batch_size, -1, -1, -1)
    values, given = values.expand(batch_size, -1), given.expand(batch_size, -1)

    # 3. Abduct, act and predict the attributes.
    scm_device = attribute_scm.device
    counterfactual_values = attribute_scm.counterfactual(
        values.to(scm_device), Intervention(*(t.to(scm_device) for t in intervention)), generators
    )

    # 4. Abduct the noise of the images and predict them under their counterfactual attributes, where these may change.
    old, new = values.to(device), counterfactual_values.to(device)
    if shares_noise and getattr(backbone, "abducts_once", False):
        images = backbone.counterfactual(factual[:1], old[:1], new[None], generators[-1:]).image[0].float()
    else:
        images = backbone.counterfactual(factual, old, new, generators).image.float()
    images = (images + 1) / 2
    if mask is not None:  # of [0, 1]: bit for bit the image, where the weight is 0
        images = torch.lerp(pixels, images, blend_weights(mask).to(device))

    # 5. The changes of the pixels and of the classifier's predictions.
    effects = images - pixels
    factual_predictions = counterfactual_predictions = None
    if classifier is not None and seen is not None:
        factual_predictions = _describe(graph, seen.expand(batch_size, -1))
        counterfactual_predictions = _describe(graph, _predict(classifier, 2 * images - 1))
    return DSCMPipelineOutput(
        images=from_tensor(images, query.output_type),
        parents=graph.decode(counterfactual_values),
        effects=effects if query.output_type == "pt" else to_numpy(effects),
        factual_predictions=factual_predictions,
        counterfactual_predictions=counterfactual_predictions,
        factual_parents=graph.decode(values),
        inferred_parents=dict(zip(graph.names, (~given).T.tolist(), strict=True)),
    )


def draw_samples(
    pipeline: CausalPipeline,
    backbone: Any,
    num_images: int,
    do: Values | list[Values] | None,
    generator: Generator,
    output_type: OutputType,
) -> DSCMPipelineOutput:
    """Draw attributes and images; see :meth:`softcft.DSCMPipeline.sample`.

    Args:
        pipeline: Its attribute mechanisms.
        backbone: Its image model, with a method ``sample`` from encoded attributes and a generator to images.
        num_images: See there, also for the other arguments.
        do: See there.
        generator: See there.
        output_type: See there.
    """
    attribute_scm, graph = pipeline.attribute_scm, pipeline.causal_graph
    check_output_type(output_type, pipeline.image_format.channels)
    check_whole("num_images", num_images := plain(num_images))
    intervention = _encode_values("do", graph, do, num_images)
    check_generator(generator, num_images)
    on_device = Intervention(*(tensor.to(attribute_scm.device) for tensor in intervention))
    values = attribute_scm.sample(num_images, on_device, generator).to(pipeline._execution_device)
    images = (backbone.sample(values, generator).float() + 1) / 2
    return DSCMPipelineOutput(images=from_tensor(images, output_type), parents=graph.decode(values))


def load_pipeline(folder: str | Path, graph: CausalGraph, sample_size: int) -> DiffusionPipeline:
    """Load a saved pipeline of any class of softcft that was trained on data of this graph and image size (pixels).

    Raises:
        ValueError: If it is none of softcft's, has pickled weights, or was trained with another graph or image size.
    """
    pipeline = load_safetensors(DiffusionPipeline, folder)
    if not hasattr(pipeline, "causal_graph"):
        raise ValueError(f"{folder} holds a {type(pipeline).__name__}, and no pipeline of softcft.")
    if pipeline.causal_graph != graph:
        raise ValueError(f"{folder} was trained with another graph than that of the data.")
    if pipeline.image_format.size != sample_size:
        raise ValueError(f"sample_size is {sample_size}, but {folder} was trained with {pipeline.image_format.size}.")
    return pipeline


def check_parts(parts: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise ValueError if a component of a pipeline has a wrong class, or the causal graphs of two differ.

    Args:
        parts: By the name of the component.
        kinds: The classes that each may have.
    """
    for name, part in parts.items():
        # A compiled network has another class, and holds the original one.
        if not isinstance(getattr(part, "_orig_mod", part), kinds[name]):
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds[name])
            own = " A model of your own goes into softcft.CounterfactualPipeline(backbone=...)."
            hint = own if hasattr(part, "counterfactual") else ""
            raise ValueError(f"{name} must be {expected}, got {type(part).__name__}.{hint}")
    (first, graph), *others = [(name, p.causal_graph) for name, p in parts.items() if hasattr(p, "causal_graph")]
    for name, other in others:
        if other != graph:
            difference = _difference(first, graph, name, other)
            raise ValueError(f"{first} and {name} must have the same causal graph, but {difference}.")


def _warn_of_unseen(classifier: AttributeClassifier, intervention: Intervention) -> None:
    """Warn once for each variable that is intervened on and that the guide did not see."""
    names = classifier.causal_graph.names
    set_by_some = {name for name, is_set in zip(names, intervention.mask.any(dim=0).tolist(), strict=True) if is_set}
    for name, warning in not_seen(classifier.sight).items():
        if name in set_by_some:
            _warn_once(warning)


@functools.cache
def _warn_once(warning: str) -> None:
    logger.warning("%s", warning)


def _predict(classifier: AttributeClassifier, image: Tensor) -> Tensor:
    """Probabilities and means on the CPU, shape (B, K), float32."""
    return classifier.predict(image.to(classifier.dtype)).float().cpu()


def _encode_values(
    argument: str, graph: CausalGraph, values: Values | list[Values] | None, batch_size: int | None
) -> Intervention:
    """Encode those variables that have a value; without a batch size, as many rows as there are values."""
    if isinstance(values, list):
        if len(values) != (batch_size or len(values)) or not values:
            raise ValueError(
                f"{argument} is a list of {len(values)} dicts for {batch_size or 1} images; give one for each."
            )
        rows = [_encode_row(f"{argument}[{i}]", graph, row, 1) for i, row in enumerate(values)]
        return Intervention(torch.cat([row.values for row in rows]), torch.cat([row.mask for row in rows]))
    return _encode_row(argument, graph, {} if values is None else values, batch_size)


def _encode_row(argument: str, graph: CausalGraph, values: Values, batch_size: int | None) -> Intervention:
    if not isinstance(values, Mapping):
        raise ValueError(f"{argument} must be a dict from variable name to value, got {type(values).__name__}.")
    try:
        if batch_size is None:
            batch_size = max([1, *(len(graph[name].encode(value)) for name, value in values.items())])
        return graph.encode_do(values, batch_size)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def _describe(graph: CausalGraph, predicted: Tensor) -> Predictions:
    """Predictions (B, K) in natural units: a dict of category to probability, or a number, for each image."""
    described: Predictions = {}
    for variable in graph.variables:
        columns = predicted[:, graph.slices[variable.name]]
        if variable.kind == "continuous":
            described[variable.name] = variable.decode(columns)
        else:
            rows = variable.category_probabilities(columns).tolist()
            described[variable.name] = [dict(zip(variable.categories, row, strict=True)) for row in rows]
    return described


def _difference(one: str, graph: CausalGraph, other: str, other_graph: CausalGraph) -> str:
    """The first difference of two graphs, as text."""
    names, other_names = set(graph.names), set(other_graph.names)
    lists = (one, names - other_names), (other, other_names - names)
    if names != other_names:
        return " and ".join(f"only {owner} has {sorted(extra)}" for owner, extra in lists if extra)
    for variable in graph.variables:
        theirs = asdict(other_graph[variable.name])
        for field, value in asdict(variable).items():
            if value != theirs[field]:
                return f"'{variable.name}' has {field} {value!r} in {one} and {theirs[field]!r} in {other}"
    return (
        f"their variables are in another order: {list(graph.names)} in {one} and {list(other_graph.names)} in {other}"
    )
