"""The image mechanism of a pipeline, with the settings of a recipe."""

from __future__ import annotations

from softcft.counterfactuals.diffusion_backbone import DiffusionBackbone
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.counterfactuals.own_backbone import OwnBackbone
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline
from softcft.pipelines.query import CausalPipeline
from softcft.training.cft_config import DiffusionTuningConfig, SolverConfig, given_settings, refuse_for_hvae

__all__ = ["make_backbone"]


def make_backbone(
    pipeline: CausalPipeline, *configs: SolverConfig | DiffusionTuningConfig
) -> HVAEBackbone | DiffusionBackbone | OwnBackbone:
    """The differentiable core of a pipeline, with the settings that were given.

    Raises:
        ValueError: If a setting was given that is for diffusion models only, or is out of range.
    """
    if isinstance(pipeline, DiffusionDSCMPipeline):
        return pipeline.make_backbone(**given_settings(*configs))
    refuse_for_hvae(*configs)
    return pipeline.make_backbone()
