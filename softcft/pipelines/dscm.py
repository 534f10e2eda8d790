"""Counterfactuals in one call, by a hierarchical VAE."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from softcft.arguments import check_flag
from softcft.counterfactuals.hvae_backbone import Effect, HVAEBackbone
from softcft.graph import CausalGraph
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.hvae import HVAEModel
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

__all__ = ["DSCMPipeline", "DSCMPipelineOutput"]


class DSCMPipeline(SafetensorsOnly, DiffusionPipeline):  # type: ignore[misc]  # theirs is annotated in another way
    """A deep structural causal model: a causal model of the attributes of an image and an image mechanism.

    Args:
        hvae: The image mechanism, a hierarchical VAE conditioned on all attributes.
        attribute_scm: The causal model of the attributes.
        classifier: Predicts the attributes from an image, for the output and to infer attributes that the caller does
            not know; may be None.

    Raises:
        ValueError: If a component is of another class, or the causal graphs differ.

    Example:
        >>> import softcft
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("path/or/repository")  # doctest: +SKIP
        >>> output = pipe(x_ray, parents={"age": 63, "sex": "male"}, do={"sex": "female"})  # doctest: +SKIP
        >>> output.images[0], output.parents  # doctest: +SKIP
        (<PIL.Image.Image image mode=L size=64x64>, {'age': [63.0], 'sex': ['female']})
    """

    # In the order of use. The SCM is tiny and is called by other methods than forward: it stays on the accelerator.
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
        parts = {"hvae": hvae, "attribute_scm": attribute_scm, "classifier": classifier}
        optional = (AttributeClassifier, type(None))
        check_parts(parts, {"hvae": (HVAEModel,), "attribute_scm": (AttributeSCM,), "classifier": optional})
        self.register_modules(**parts)

    def make_backbone(self, effect: Effect = "direct") -> HVAEBackbone:
        """The differentiable core of this pipeline, on the models as they are.

        Args:
            effect: See :class:`~softcft.counterfactuals.hvae_backbone.HVAEBackbone`.
        """
        return HVAEBackbone(self.hvae, effect)

    @property
    def causal_graph(self) -> CausalGraph:
        """The graph of all components."""
        return self.attribute_scm.causal_graph

    @property
    def image_format(self) -> ImageFormat:
        """What images the model takes."""
        return ImageFormat(self.hvae.config["in_channels"], self.hvae.config["sample_size"])

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
        fit: bool = False,
        mask: Images | None = None,
        return_dict: bool = True,
    ) -> DSCMPipelineOutput | tuple[Any, ...]:
        """Predict what images would have been under an intervention, had all else been the same.

        The number of counterfactuals B is the number of images, or, for a single image, of interventions, for example
        ``do={"age": [20, 40, 60]}``; these share the image's abducted noise, unless ``generator`` is a list.

        Args:
            image: One or several factual images of the model's size: a PIL image, which is turned as its EXIF tag says,
                put on white where it is transparent, and made grey or colour, as in training; an array (H, W),
                (H, W, C) or (B, H, W, C); a tensor (C, H, W) or (B, C, H, W); or a list of single ones. Tensors are
                uint8 in 0..255 or floats in [0, 1]. PIL images and arrays may also be of more bits: what is white in
                them is said in :mod:`softcft.data.pictures`. With ``fit`` they may be of any size, and paths of files.
            parents: Factual attributes in natural units: a dict of scalars or of lists with one value per image, or a
                list with one dict per image.
            do: The intervention in natural units, in the same forms; in a list of dicts each image may have other
                variables. Empty or None returns the factual images.
            generator: Randomness of the abduction, which draws the latents of the image, and the noise of discrete
                attributes, from all that explain what was seen. Left out, each image has noise of its own, which
                follows from its pixels: the same question has the same answer, alone or in a batch. Other answers that
                are as good come with a generator for all, ``torch.Generator().manual_seed(1)``, or a list with one per
                counterfactual.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            infer_missing_parents: Whether the classifier may fill in the factual attributes that ``parents`` lacks, by
                the most probable category or the predicted mean.
            effect: ``"direct"``, or for a model with a conditional prior, whose latents are a mediator, ``"indirect"``
                (through them) or ``"total"``, see :class:`~softcft.counterfactuals.hvae_backbone.HVAEBackbone`.
            fit: Whether images are brought to the model's size as in training: resized with antialiasing so that the
                shorter side fits, of which the middle square is kept, in 8 bits, and made grey or colour as the model.
                ``image`` may then also be the path of a file, DICOM too, or a list of paths. An image that has the
                model's size and channels stays as it is. Otherwise one of another size is refused.
            mask: Where images may change: 1, True or white. Where it is 0, False or black, the counterfactual has the
                pixels of the image (as it was read: of more than 8 bits, 8), bit for bit. Within the mask the change
                grows smoothly from its border, over a sixteenth of the image's size; values between 0 and 1 are the
                largest share of it. One mask for all, or one for each counterfactual, in the forms of single-channel
                images, as an array or a tensor (H, W) or (B, H, W), or the path of a file; of the size of its image,
                with which ``fit`` fits it. Effects and predictions are those of the image that is returned.
            return_dict: Whether to return a :class:`DSCMPipelineOutput` or a tuple of its images, parents, effects,
                factual and counterfactual predictions.

        Raises:
            ValueError: If an image cannot be read, or has the wrong type, size, channels or range; a variable or
                category is unknown, a value is out of range or missing; numbers of images, values or generators
                disagree; the model does not have the effect; another argument has the wrong type; or the classifier is
                needed and missing, or in training mode.

        Example:
            >>> pipe(image, parents={"age": 63}, do={"age": [20, 40, 60]}).images  # doctest: +SKIP
            [<PIL.Image.Image ...>, <PIL.Image.Image ...>, <PIL.Image.Image ...>]
        """
        check_flag("return_dict", return_dict)
        query = Query(image, parents, do, generator, output_type, infer_missing_parents, fit, mask)
        output = predict_counterfactuals(self, self.make_backbone(effect), query)
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

        An image is the mean that the decoder predicts for the drawn attributes and latents: no pixel noise is added.

        Args:
            num_images: Number of images B.
            do: The intervention in natural units: a dict of scalars or of lists with one value per image, or a list
                with one dict per image.
            generator: Source of randomness: one for all, or a list with one per image. Left out, that of PyTorch, so
                each call draws other images.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.

        Returns:
            Images and their attributes; effects and predictions are None: there are no factual images.

        Raises:
            ValueError: If ``num_images`` is no positive integer, a variable or category is unknown, a value is out of
                range, or numbers of values or generators disagree with ``num_images``.

        Example:
            >>> pipe.sample(4, do={"sex": "female"}).parents["sex"]  # doctest: +SKIP
            ['female', 'female', 'female', 'female']
        """
        output = draw_samples(self, self.make_backbone(), num_images, do, generator, output_type)
        self.maybe_free_model_hooks()
        return output
