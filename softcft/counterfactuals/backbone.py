"""The interface between image models and pipelines or counterfactual fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from diffusers.utils import BaseOutput
from torch import Tensor

from softcft.noise import Generator

__all__ = ["BackboneOutput", "CounterfactualBackbone"]


@dataclass
class BackboneOutput(BaseOutput):
    """Counterfactual images and how well the model explains the factual ones.

    Attributes:
        image: Counterfactual images in [-1, 1], shape (B, C, H, W) or (B, I, C, H, W), differentiable in the model's
            parameters.
        fidelity: The quantity that fine-tuning constrains: a scalar, lower is better (HVAE: NELBO of the factual images
            in nats per dimension).
        latents: The noise that the images were predicted from, each tensor of shape (B, ...) or (B, I, ...).
    """

    image: Tensor
    fidelity: Tensor = None  # type: ignore[assignment]  # so that accelerate can make it from a dict
    latents: list[Tensor] = None  # type: ignore[assignment]


class CounterfactualBackbone(Protocol):
    """An image mechanism of a structural causal model: any object with this method.

    :class:`~softcft.training.cft_trainer.CFTTrainer` fine-tunes it if it is an ``nn.Module``. More is asked for more:

    - :class:`softcft.CounterfactualPipeline` must know what images it takes: ``in_channels`` and ``sample_size``, the
      height and width in pixels, in its ``config``, as diffusers' models have them, or as attributes;
    - it is saved and loaded if it is a ``ModelMixin`` and ``ConfigMixin`` of diffusers;
    - several counterfactuals of an image, as evaluation and lists of interventions want them, come from one abduction
      if it has a method ``counterfactuals``: as ``counterfactual``, but for counterfactual parents (B, I, K), with
      images (B, I, C, H, W). Without it each is asked for with an abduction of its own, with the same noise;
    - it draws new images if it has a method ``sample(parents, generator)``, from encoded attributes (B, K) to images
      (B, C, H, W) in [-1, 1].
    """

    def counterfactual(
        self,
        image: Tensor,
        parents: Tensor,
        counterfactual_parents: Tensor,
        generator: Generator = None,
    ) -> BackboneOutput:
        """Abduct the noise of images given their parents, predict images given other parents.

        Args:
            image: Factual images in [-1, 1], shape (B, C, H, W).
            parents: Encoded factual parents, shape (B, K).
            counterfactual_parents: Encoded counterfactual parents, shape (B, K). What the ``make_backbone`` of a
                pipeline returns also takes (B, I, K), and predicts I images of each.
            generator: Makes abduction reproducible; a list, as pipelines mostly pass it, has one generator per image.
                ``diffusers.utils.torch_utils.randn_tensor`` draws normal numbers from either.
        """
        ...
