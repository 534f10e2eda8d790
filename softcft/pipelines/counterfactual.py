"""Counterfactuals in one call, by a user's own image model."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from softcft import _diffusers
from softcft.arguments import check_flag
from softcft.counterfactuals.own_backbone import OwnBackbone, check_saveable
from softcft.graph import CausalGraph
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.weights import SafetensorsOnly
from softcft.pipelines.images import Images, OutputType
from softcft.pipelines.query import (
    Generator,
    ImageFormat,
    Query,
    Values,
    check_parts,
    draw_samples,
    predict_counterfactuals,
)
from softcft.pipelines.result import DSCMPipelineOutput

__all__ = ["CounterfactualPipeline"]

logger = logging.getLogger(__name__)


class CounterfactualPipeline(SafetensorsOnly, DiffusionPipeline):  # type: ignore[misc]  # as DSCMPipeline
    """A deep structural causal model whose image mechanism is a model of your own.

    Args:
        backbone: The image mechanism: any object with the method of
            :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`, which says what it may have. It is
            used as it is: put it into evaluation mode by ``backbone.eval()``.
        attribute_scm: The causal model of the attributes.
        classifier: See :class:`softcft.DSCMPipeline`; may be None.

    Raises:
        ValueError: If the backbone lacks the method, or does not say what images it takes; another component is of
            another class; or the causal graphs differ.

    Example:
        >>> pipe = CounterfactualPipeline(MyModel(), attribute_scm, classifier)  # doctest: +SKIP
        >>> pipe.save_pretrained("mine")  # doctest: +SKIP

        In another process, after the import of the module of MyModel:

        >>> pipe = CounterfactualPipeline.from_pretrained("mine")  # doctest: +SKIP
        >>> pipe(image, parents={"age": 63, "sex": "male"}, do={"sex": "female"})  # doctest: +SKIP
    """

    model_cpu_offload_seq = "classifier->backbone"  # type: ignore[assignment]
    _exclude_from_cpu_offload = ["attribute_scm"]  # noqa: RUF012 - the loader wants lists
    _optional_components = ["classifier"]  # noqa: RUF012

    attribute_scm: AttributeSCM
    classifier: AttributeClassifier | None

    def __init__(self, backbone: Any, attribute_scm: AttributeSCM, classifier: AttributeClassifier | None) -> None:
        super().__init__()
        parts = {"backbone": backbone, "attribute_scm": attribute_scm, "classifier": classifier}
        own = OwnBackbone(backbone)  # refuses what is none
        _ = own.image_format
        optional = (AttributeClassifier, type(None))
        check_parts(parts, {"backbone": (object,), "attribute_scm": (AttributeSCM,), "classifier": optional})
        # Of other modules than its own, diffusers knows neither device nor type.
        self.register_modules(**parts | ({} if isinstance(own.uncompiled, ModelMixin) else {"backbone": own}))

    def make_backbone(self) -> OwnBackbone:
        """The differentiable core of this pipeline, on the model as it is."""
        return self.backbone if isinstance(self.backbone, OwnBackbone) else OwnBackbone(self.backbone)

    @property
    def causal_graph(self) -> CausalGraph:
        """The graph of all components."""
        return self.attribute_scm.causal_graph

    @property
    def image_format(self) -> ImageFormat:
        """What images the model takes."""
        return ImageFormat(*self.make_backbone().image_format)

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        parents: Values | list[Values] | None = None,
        do: Values | list[Values] | None = None,
        generator: Generator = None,
        output_type: OutputType = "pil",
        infer_missing_parents: bool = False,
        fit: bool = False,
        mask: Images | None = None,
        return_dict: bool = True,
    ) -> DSCMPipelineOutput | tuple[Any, ...]:
        """Predict what images would have been under an intervention, had all else been the same.

        Args:
            image: Factual images of the model's size (with ``fit``: of any), see :meth:`softcft.DSCMPipeline.__call__`,
                also for the other arguments and what is returned.
            parents: See there.
            do: See there.
            generator: See there.
            output_type: See there.
            infer_missing_parents: See there.
            fit: See there.
            mask: See there.
            return_dict: See there.

        Raises:
            ValueError: As there, and if the model returns no images of the shape of the given ones.
        """
        check_flag("return_dict", return_dict)
        # The model itself: what wraps it has a mode of its own, which the user does not see.
        if getattr(self.make_backbone().uncompiled, "training", False):
            logger.warning("The backbone is in training mode, in which dropout is random; call .eval() on it.")
        query = Query(image, parents, do, generator, output_type, infer_missing_parents, fit, mask)
        output = predict_counterfactuals(self, self.make_backbone(), query)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_full_tuple()

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        do: Values | list[Values] | None = None,
        generator: Generator = None,
        output_type: OutputType = "pil",
    ) -> DSCMPipelineOutput:
        """Draw attributes and images, observational or under an intervention.

        Args:
            num_images: See :meth:`softcft.DSCMPipeline.sample`, also for the other arguments and what is returned.
            do: See there.
            generator: See there.
            output_type: See there.

        Raises:
            ValueError: As there, and if the model has no method ``sample``.
        """
        backbone = self.make_backbone()
        backbone.check_samples()
        output = draw_samples(self, backbone, num_images, do, generator, output_type)
        self.maybe_free_model_hooks()
        return output

    def save_pretrained(self, save_directory: str | os.PathLike[Any], *args: Any, **kwargs: Any) -> None:
        """Save all components, as any pipeline of diffusers. The model's own code is not saved.

        Raises:
            ValueError: If the model is no ``ModelMixin`` and ``ConfigMixin``, or its config lacks an argument of its
                class.
        """
        model = self.make_backbone().uncompiled
        check_saveable(model)
        self.register_to_config(backbone=_diffusers.name_of(model))
        super().save_pretrained(save_directory, *args, **kwargs)
