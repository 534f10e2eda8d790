"""Counterfactuals in one call, by a conditional diffusion model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from softcft.arguments import check_flag, shown
from softcft.counterfactuals import Solver
from softcft.counterfactuals.diffusion_backbone import DiffusionBackbone
from softcft.counterfactuals.solvers import Interrupted
from softcft.graph import CausalGraph
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.networks import component_of, network_size
from softcft.models.noise_schedule import Scheduler
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.patches import patch_size_of
from softcft.models.prompt import PromptEmbedding
from softcft.models.vae import latent_stride
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

__all__ = ["DiffusionDSCMPipeline"]

logger = logging.getLogger(__name__)

StepCallback = Callable[["DiffusionDSCMPipeline", int, float, dict[str, Tensor]], dict[str, Tensor]]


class DiffusionDSCMPipeline(SafetensorsOnly, DiffusionPipeline):  # type: ignore[misc]  # as DSCMPipeline
    """A deep structural causal model whose image mechanism is a conditional diffusion model.

    Args:
        unet: The network, if it is a UNet, see :mod:`softcft.models.networks`; otherwise None. Its number of channels
            tells whether images are grey or RGB, and the size of its patches.
        parent_encoder: Turns attributes into what the network is conditioned on.
        scheduler: The noise schedule that the network was trained with.
        attribute_scm: The causal model of the attributes.
        classifier: See :class:`softcft.DSCMPipeline`; may be None.
        vae: The network works on its latents; may be None.
        transformer: The network, if it is no UNet; otherwise None.
        prompt: What a network that reads text is told with all images; may be None.

    Raises:
        ValueError: If a component is of another class, both or none of unet and transformer are given, the causal
            graphs differ, the network, parent_encoder, scheduler and prompt do not fit together, or the config of the
            network tells no size of square images.

    Example:
        >>> from softcft import DiffusionDSCMPipeline
        >>> pipe = DiffusionDSCMPipeline.from_pretrained("path/or/repository")  # doctest: +SKIP
        >>> output = pipe(x_ray, parents={"age": 63, "sex": "male"}, do={"sex": "female"})  # doctest: +SKIP
        >>> output.images[0], output.parents  # doctest: +SKIP
        (<PIL.Image.Image image mode=L size=32x32>, {'age': [63.0], 'sex': ['female']})
    """

    model_cpu_offload_seq = "classifier->unet->transformer->vae"  # type: ignore[assignment]
    # Small, and used at each step, but for the first.
    _exclude_from_cpu_offload = ["attribute_scm", "parent_encoder", "prompt"]  # noqa: RUF012 - the loader wants lists
    _optional_components = ["classifier", "vae", "unet", "transformer", "prompt"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    unet: ModelMixin | None
    parent_encoder: ParentEncoder
    scheduler: Scheduler
    attribute_scm: AttributeSCM
    classifier: AttributeClassifier | None
    vae: AutoencoderKL | None
    transformer: ModelMixin | None
    prompt: PromptEmbedding | None

    def __init__(
        self,
        unet: ModelMixin | None,
        parent_encoder: ParentEncoder,
        scheduler: Scheduler,
        attribute_scm: AttributeSCM,
        classifier: AttributeClassifier | None,
        vae: AutoencoderKL | None,
        transformer: ModelMixin | None,
        prompt: PromptEmbedding | None,
    ) -> None:  # no defaults: DiffusionPipeline.from_pretrained would not take what has one
        super().__init__()
        parts = {
            "unet": unet,
            "parent_encoder": parent_encoder,
            "scheduler": scheduler,
            "attribute_scm": attribute_scm,
            "classifier": classifier,
            "vae": vae,
            "transformer": transformer,
            "prompt": prompt,
        }
        kinds = {
            "unet": (ModelMixin, type(None)),
            "parent_encoder": (ParentEncoder,),
            "scheduler": (SchedulerMixin,),
            "attribute_scm": (AttributeSCM,),
            "classifier": (AttributeClassifier, type(None)),
            "vae": (AutoencoderKL, type(None)),
            "transformer": (ModelMixin, type(None)),
            "prompt": (PromptEmbedding, type(None)),
        }
        check_parts(parts, kinds)
        network = unet if transformer is None else transformer
        if network is None or None not in (unet, transformer):
            raise ValueError(
                "unet or transformer must be given, one of them, got "
                + ("none." if network is None else f"{type(unet).__name__} and {type(transformer).__name__}.")
            )
        if parts[component_of(network)] is not network:
            raise ValueError(f"{type(network).__name__} must be given as {component_of(network)}.")
        ConditionalDenoiser(network, parent_encoder, scheduler, prompt)  # refuses parts that do not fit
        network_size(network)
        self.register_modules(**parts)
        self._interrupt = False

    def make_backbone(self, **settings: Any) -> DiffusionBackbone:
        """The differentiable core of this pipeline, on the models as they are.

        Args:
            settings: See :class:`~softcft.counterfactuals.diffusion_backbone.DiffusionBackbone`.
        """
        denoiser = ConditionalDenoiser(self.network, self.parent_encoder, self.scheduler, self.prompt)
        return DiffusionBackbone(denoiser, self.vae, **settings)

    @property
    def network(self) -> Any:
        """The network that denoises, ``unet`` or ``transformer``."""
        return self.unet if self.transformer is None else self.transformer

    @property
    def interrupt(self) -> bool:
        """Whether a call was told to stop, by setting ``_interrupt``."""
        return self._interrupt

    @property
    def causal_graph(self) -> CausalGraph:
        """The graph of all components."""
        return self.attribute_scm.causal_graph

    @property
    def image_format(self) -> ImageFormat:
        """What images the model takes."""
        taken, size = self.network.config["in_channels"], network_size(self.network)
        if self.vae is None:
            channels, patch_size = patch_size_of(taken)
            return ImageFormat(channels, patch_size * size)
        channels, _ = patch_size_of(self.vae.config["in_channels"])
        _, patch_size = patch_size_of(taken, (self.vae.config["latent_channels"],))
        return ImageFormat(channels, latent_stride(self.vae) * patch_size * size)

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        parents: Values | list[Values] | None = None,
        do: Values | list[Values] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Mapping[str, float] = 1.0,
        invariant_guidance_scale: float | None = None,
        abduction: Solver = "bdia",
        generator: Generator = None,
        output_type: OutputType = "pil",
        infer_missing_parents: bool = False,
        fit: bool = False,
        mask: Images | None = None,
        strength: float = 1.0,
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
    ) -> DSCMPipelineOutput | tuple[Any, ...]:
        """Predict what images would have been under an intervention, had all else been the same.

        Args:
            image: Factual images of the model's size (with ``fit``: of any), see :meth:`softcft.DSCMPipeline.__call__`.
            parents: Their attributes in natural units, see there.
            do: The intervention in natural units, see there.
            num_inference_steps: Levels of noise of abduction and of prediction; a divisor of the scheduler's training
                steps (flow matching: any number up to these).
            guidance_scale: Above 1 the attributes are exaggerated, also those that do not change; a mapping
                (``{"sex": 2.0, "age": 1.5}``) has weights of single ones, see
                :class:`~softcft.counterfactuals.diffusion_backbone.DiffusionBackbone`.
            invariant_guidance_scale: The guidance scale of the attributes that do not change; left out, that of all.
            abduction: ``"bdia"``, which is exact, or ``"ddim"``, the usual one.
            generator: Randomness of the attributes' abduction, see there: one for all, or a list with one per
                counterfactual. The abduction of images has none.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            infer_missing_parents: Whether the classifier may fill in the factual attributes that ``parents`` lacks.
            fit: Whether images, of any size or in files, are brought to the model's size as in training, see there.
            mask: Where images may change, see there.
            strength: Share of the levels that abduction goes up, above 0 and at most 1. Below 1 counterfactuals keep
                more of the image; 0.9 or less helps where they fall apart into squares.
            callback_on_step_end: Called after each step with the pipeline, the number of the step, the time that the
                network gets for its noisier end, and ``{"latents": ...}``, float64 of shape (B, C, H, W); returns a
                dict, whose ``latents``, if any, replace these. The first half of the steps are abduction, the
                others prediction. If it sets ``pipe._interrupt = True``, the call ends with the noisy images of that
                step.
            return_dict: Whether to return a :class:`DSCMPipelineOutput` or a tuple of its images, parents, effects,
                factual and counterfactual predictions.

        Raises:
            ValueError: As :meth:`softcft.DSCMPipeline.__call__`, and if a setting of the diffusion model is out of
                range, or the callback is no function or does not return such a dict.
        """
        check_flag("return_dict", return_dict)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end must be a function, got {shown(callback_on_step_end)}.")
        backbone = self.make_backbone(
            num_inference_steps=num_inference_steps,
            strength=strength,
            abduction=abduction,
            guidance_scale=guidance_scale,
            invariant_guidance_scale=invariant_guidance_scale,
        )
        with self._steps(backbone, 2 * len(backbone.levels), callback_on_step_end):
            query = Query(image, parents, do, generator, output_type, infer_missing_parents, fit, mask)
            output = predict_counterfactuals(self, backbone, query)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_full_tuple()

    @torch.no_grad()
    def sample(
        self,
        num_images: int = 1,
        do: Values | list[Values] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Mapping[str, float] = 1.0,
        generator: Generator = None,
        output_type: OutputType = "pil",
    ) -> DSCMPipelineOutput:
        """Draw attributes and images, observational or under an intervention.

        Args:
            num_images: See :meth:`softcft.DSCMPipeline.sample`, also for the other arguments and what is returned.
            do: See there.
            num_inference_steps: Levels of noise, see :meth:`__call__`.
            guidance_scale: Above 1 the attributes are exaggerated; a mapping has weights of single ones.
            generator: See there.
            output_type: See there.

        Raises:
            ValueError: As there, and if a setting of the diffusion model is out of range.
        """
        backbone = self.make_backbone(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
        with self._steps(backbone, len(backbone.levels)):
            output = draw_samples(self, backbone, num_images, do, generator, output_type)
        self.maybe_free_model_hooks()
        return output

    @contextmanager
    def _steps(self, backbone: DiffusionBackbone, total: int, callback: StepCallback | None = None) -> Iterator[None]:
        """Show the progress of a backbone; after each step call back, and stop if this has set ``_interrupt``."""
        levels, steps = backbone.levels, iter(range(total))
        self._interrupt = False
        with self.progress_bar(total=total) as bar:

            def on_step(latents: Tensor, level: int) -> Tensor:
                bar.update()
                step = next(steps)
                if callback is not None:
                    timestep = levels.timesteps[level - 1 if step < len(levels) else level]
                    latents = _changed(callback(self, step, timestep, {"latents": latents}), latents)
                if self._interrupt:
                    logger.warning("Interrupted after step %d of %d: the images are unfinished.", step + 1, total)
                    raise Interrupted(latents)
                return latents

            backbone.on_step = on_step
            yield


def _changed(given: Any, latents: Tensor) -> Tensor:
    """The latents that a callback has returned, or else the given ones."""
    changed = given.get("latents", latents) if isinstance(given, dict) else None
    if not isinstance(changed, Tensor) or changed.shape != latents.shape:
        raise ValueError(
            f"callback_on_step_end must return a dict, with latents of shape {tuple(latents.shape)} if with any, got "
            f"{shown(given)}."
        )
    return changed.to(latents)
