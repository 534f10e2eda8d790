"""What would this image look like, had its subject been different? Counterfactuals in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from softcft.counterfactuals.hvae_backbone import Effect, HVAEBackbone
from softcft.graph import CausalGraph, Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.hvae import HVAEModel
from softcft.pipelines.images import Images, OutputType, check_output_type, from_tensor, to_numpy, to_tensor

__all__ = ["DSCMPipeline", "DSCMPipelineOutput"]

Values = Mapping[str, Any]
Predictions = dict[str, list[Any]]
Generator = torch.Generator | list[torch.Generator] | None


@dataclass
class DSCMPipelineOutput(BaseOutput):
    """Counterfactual images and what belongs to them; B is the number of counterfactuals.

    Attributes:
        images: A list of B PIL images, an array of shape (B, H, W, C) in [0, 1], or a tensor of shape (B, C, H, W) in
            [0, 1], as ``output_type`` says.
        parents: For each variable its B counterfactual values in natural units.
        effects: Counterfactual minus factual image in units of the full grey range, so in [-1, 1]: a tensor
            (B, C, H, W) for ``output_type="pt"``, else an array (B, H, W, C). None for samples.
        factual_predictions: What the classifier sees in the factual images: for each variable B entries, each a dict of
            category to probability, or the predicted mean in natural units. None without a classifier and for samples.
        counterfactual_predictions: The same of the counterfactual images.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    parents: dict[str, list[Any]]
    effects: np.ndarray | Tensor | None = None
    factual_predictions: Predictions | None = None
    counterfactual_predictions: Predictions | None = None


class DSCMPipeline(DiffusionPipeline):
    """A deep structural causal model: a causal model of the attributes of an image and an image mechanism.

    Args:
        hvae: The image mechanism, a hierarchical VAE conditioned on all attributes.
        attribute_scm: The causal model of the attributes.
        classifier: Predicts the attributes from an image. Optional, so ``None`` is allowed: it adds predictions to the
            output and can infer attributes that the caller does not know.

    Raises:
        ValueError: If the components' causal graphs differ.

    Example:
        >>> import softcft
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("path/or/repository")  # doctest: +SKIP
        >>> output = pipe(x_ray, parents={"age": 63, "sex": "male"}, do={"sex": "female"})  # doctest: +SKIP
        >>> output.images[0], output.parents  # doctest: +SKIP
        (<PIL.Image.Image image mode=L size=64x64>, {'age': [63.0], 'sex': ['female']})
    """

    # In the order of use. The SCM is tiny and works through other methods than forward, so it stays on the accelerator.
    model_cpu_offload_seq = "classifier->hvae"  # type: ignore[assignment]
    _exclude_from_cpu_offload = ["attribute_scm"]  # noqa: RUF012 - the loader wants lists
    # Optional, yet without a default in the signature: DiffusionPipeline.from_pretrained(..., classifier=None) would
    # load the saved classifier nevertheless.
    _optional_components = ["classifier"]  # noqa: RUF012

    hvae: HVAEModel
    attribute_scm: AttributeSCM
    classifier: AttributeClassifier | None

    def __init__(self, hvae: HVAEModel, attribute_scm: AttributeSCM, classifier: AttributeClassifier | None) -> None:
        super().__init__()
        for name, other in (("attribute_scm", attribute_scm), ("classifier", classifier)):
            if other is not None and other.causal_graph != hvae.causal_graph:
                difference = _difference("hvae", hvae.causal_graph, name, other.causal_graph)
                raise ValueError(f"hvae and {name} must have the same causal graph, but {difference}.")
        self.register_modules(hvae=hvae, attribute_scm=attribute_scm, classifier=classifier)

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        parents: Values | list[Values] | None = None,
        do: Values | list[Values] | None = None,
        generator: Generator = None,
        output_type: OutputType = "pil",
        infer_missing_parents: bool = False,
        effect: Effect = "direct",
        return_dict: bool = True,
    ) -> DSCMPipelineOutput | tuple[Any, ...]:
        """Predict what images would have been under an intervention, had all else been the same.

        The number of counterfactuals B is the number of images. A single image may get several interventions, for
        example ``do={"age": [20, 40, 60]}``: then B is their number, and unless ``generator`` is a list, all share the
        image's abducted noise.

        Args:
            image: One or several factual images of the model's size: a PIL image (mode L for one channel, RGB for
                three), an array (H, W), (H, W, C) or (B, H, W, C), a tensor (C, H, W) or (B, C, H, W), or a list of
                single ones. Arrays and tensors are uint8 in 0..255 or floats in [0, 1].
            parents: Factual attributes in natural units: a dict of scalars or of lists with one value per image, or a
                list with one dict per image.
            do: The intervention in natural units, in the same forms; in a list of dicts each image may have other
                variables. Empty or None leaves all as it was and returns the factual images.
            generator: Randomness of the abduction: one for all, or a list with one per counterfactual, which makes each
                result independent of the others in the batch.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            infer_missing_parents: Whether the classifier may fill in the factual attributes that ``parents`` lacks, by
                the most probable category or the predicted mean.
            effect: The path of the intervention through a model with a conditional prior, whose latents are a mediator:
                ``"direct"`` past them, ``"indirect"`` through them, ``"total"`` both. See
                :class:`~softcft.counterfactuals.hvae_backbone.HVAEBackbone`. An exogenous prior has the direct only.
            return_dict: Whether to return a :class:`DSCMPipelineOutput` or a tuple of its attributes.

        Returns:
            Counterfactual images, their attributes, the effect on the pixels, and the classifier's predictions.

        Raises:
            ValueError: If an image has the wrong type, size, channels or range; a variable or category is unknown, a
                value is out of range or missing; numbers of images, values or generators disagree; the effect is
                unknown or the model has it not; or the classifier is needed and missing, or in training mode.

        Example:
            >>> pipe(image, parents={"age": 63}, do={"age": [20, 40, 60]}).images  # doctest: +SKIP
            [<PIL.Image.Image ...>, <PIL.Image.Image ...>, <PIL.Image.Image ...>]
        """
        graph = self.hvae.causal_graph
        device = self._execution_device

        # 1. Check everything before any work.
        check_output_type(output_type, self.hvae.config["in_channels"])
        backbone = HVAEBackbone(self.hvae, effect)
        if self.classifier is not None and self.classifier.training:
            raise ValueError("The classifier is in training mode and would predict something else; call .eval() on it.")
        factual = to_tensor(image, self.hvae.config["in_channels"], self.hvae.config["sample_size"])
        factual = factual.to(device, self.hvae.dtype)
        known = _encode("parents", graph, parents, len(factual))
        intervention = _encode("do", graph, do, len(factual) if len(factual) > 1 else None)
        batch_size = len(intervention.values)
        generators = _generators(generator, batch_size, share=len(factual) < batch_size)
        missing = [
            name for name, is_known in zip(graph.names, known.mask.all(dim=0).tolist(), strict=True) if not is_known
        ]
        if missing and not infer_missing_parents:
            raise ValueError(
                f"parents has no value for {missing}; the model needs {list(graph.names)} of every image. With a "
                f"classifier, infer_missing_parents=True predicts what is not known."
            )
        if missing and self.classifier is None:
            raise ValueError(
                f"parents has no value for {missing}, and infer_missing_parents=True needs a classifier, which this "
                f"pipeline does not have."
            )

        # 2. The factual world: what is known of the images, and what the classifier sees in them.
        seen = None if self.classifier is None else self._predict(factual)
        values = known.values
        if missing and seen is not None:
            inferred = graph.encode(graph.decode(seen.clamp(-1, 1)))  # from probabilities to the most probable category
            values = torch.where(graph.expand(known.mask), values, inferred)
        factual = factual.expand(batch_size, -1, -1, -1)
        values = values.expand(batch_size, -1)

        # 3. Abduct, act and predict the attributes.
        scm_device = self.attribute_scm.device
        counterfactual_values = self.attribute_scm.counterfactual(
            values.to(scm_device), Intervention(*(t.to(scm_device) for t in intervention)), generators
        )

        # 4. Abduct the noise of the images and predict them under their counterfactual attributes.
        counterfactual = backbone.counterfactual(
            factual, values.to(device), counterfactual_values.to(device), generators
        )
        images = counterfactual.image.float()

        # 5. What has changed, in pixels and for the classifier.
        effects = (images - factual.float()) / 2
        factual_predictions = counterfactual_predictions = None
        if self.classifier is not None and seen is not None:
            factual_predictions = _describe(graph, seen.expand(batch_size, -1))
            counterfactual_predictions = _describe(graph, self._predict(images))

        self.maybe_free_model_hooks()
        output = DSCMPipelineOutput(
            images=from_tensor(images, output_type),
            parents=graph.decode(counterfactual_values),
            effects=effects if output_type == "pt" else to_numpy(effects),
            factual_predictions=factual_predictions,
            counterfactual_predictions=counterfactual_predictions,
        )
        return output if return_dict else tuple(getattr(output, field.name) for field in fields(output))

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        do: Values | list[Values] | None = None,
        generator: Generator = None,
        output_type: OutputType = "pil",
    ) -> DSCMPipelineOutput:
        """Draw attributes and images, observational or under an intervention.

        An image is the mean that the decoder predicts for the drawn attributes and latents: no pixel noise is added.

        Args:
            num_images: Number of images B.
            do: The intervention in natural units: a dict of scalars or of lists with one value per image, or a list
                with one dict per image.
            generator: Source of randomness: one for all, or a list with one per image.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.

        Returns:
            Images and their attributes; effects and predictions are None, for there is nothing factual.

        Raises:
            ValueError: If ``num_images`` is no positive integer, a variable or category is unknown, a value is out of
                range, or numbers of values or generators disagree with ``num_images``.

        Example:
            >>> pipe.sample(4, do={"sex": "female"}).parents["sex"]  # doctest: +SKIP
            ['female', 'female', 'female', 'female']
        """
        graph = self.hvae.causal_graph
        check_output_type(output_type, self.hvae.config["in_channels"])
        if not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"num_images must be a positive integer, got {num_images!r}.")
        intervention = _encode("do", graph, do, num_images)
        generators = _generators(generator, num_images)

        scm_device = self.attribute_scm.device
        values = self.attribute_scm.sample(
            num_images, Intervention(*(t.to(scm_device) for t in intervention)), generators
        )
        values = values.to(self._execution_device)
        loc, _ = self.hvae.decode(self.hvae.walk_prior(values, generator=generators).injections, values)

        self.maybe_free_model_hooks()
        return DSCMPipelineOutput(images=from_tensor(loc.clamp(-1, 1), output_type), parents=graph.decode(values))

    def _predict(self, image: Tensor) -> Tensor:
        """Probabilities and means on the CPU, shape (B, K), float32."""
        assert self.classifier is not None
        return self.classifier.predict(image.to(self.classifier.dtype)).float().cpu()


def _encode(
    argument: str, graph: CausalGraph, values: Values | list[Values] | None, batch_size: int | None
) -> Intervention:
    """Encode those variables that have a value; without a batch size, as many rows as there are values."""
    if isinstance(values, list):
        if len(values) != (batch_size or len(values)) or not values:
            raise ValueError(
                f"{argument} is a list of {len(values)} dicts for {batch_size or 1} images; give one for each."
            )
        rows = [_encode(f"{argument}[{i}]", graph, row, 1) for i, row in enumerate(values)]
        return Intervention(torch.cat([row.values for row in rows]), torch.cat([row.mask for row in rows]))
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise ValueError(f"{argument} must be a dict from variable name to value, got {type(values).__name__}.")
    try:
        if batch_size is None:
            batch_size = max([1, *(len(graph[name].encode(value)) for name, value in values.items())])
        return graph.encode_do(values, batch_size)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def _generators(generator: Generator, batch_size: int, share: bool = False) -> Generator:
    """Check generators. If the batch shares one image, let each row draw the same noise from its own copy."""
    given = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise ValueError(f"generator must be a torch.Generator or a list of them, got {generator!r}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"generator is a list of {len(generator)} for a batch of {batch_size}; give one for each.")
    if isinstance(generator, list) or not share:
        return generator
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    # The caller's own generator comes last, so that it moves on as in a call with one intervention.
    return [generator.clone_state() for _ in range(batch_size - 1)] + [generator]


def _describe(graph: CausalGraph, predicted: Tensor) -> Predictions:
    """Predictions (B, K) in natural units: a dict of category to probability, or a number, for each image."""
    described: Predictions = {}
    for variable in graph.variables:
        columns = predicted[:, graph.slices[variable.name]]
        if variable.kind == "continuous":
            described[variable.name] = variable.decode(columns)
        else:
            rows = torch.cat([1 - columns, columns], dim=1) if variable.kind == "binary" else columns
            described[variable.name] = [dict(zip(variable.categories, row, strict=True)) for row in rows.tolist()]
    return described


def _difference(one: str, graph: CausalGraph, other: str, other_graph: CausalGraph) -> str:
    """The first difference of two graphs, in words."""
    if set(graph.names) != set(other_graph.names):
        only = [
            f"only {owner} has {sorted(names)}"
            for owner, names in (
                (one, set(graph.names) - set(other_graph.names)),
                (other, set(other_graph.names) - set(graph.names)),
            )
            if names
        ]
        return " and ".join(only)
    for variable in graph.variables:
        theirs = asdict(other_graph[variable.name])
        for field, value in asdict(variable).items():
            if value != theirs[field]:
                return f"'{variable.name}' has {field} {value!r} in {one} and {theirs[field]!r} in {other}"
    return (
        f"their variables are in another order: {list(graph.names)} in {one} and {list(other_graph.names)} in {other}"
    )
