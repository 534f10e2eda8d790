"""The models of a run: whether they can be made, before anything is trained."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

import softcft
from softcft.graph import CausalGraph
from softcft.models.adoption import read_pipeline
from softcft.models.denoiser import new_denoiser
from softcft.models.trunk import read_trunk
from softcft.run.plan import Plan, Settings
from softcft.training.config import DiffusionConfig, TrunkConfig
from softcft.training.parsing import model_arguments

__all__ = ["arguments_of", "check_models"]


def check_models(plan: Plan) -> None:
    """Raise ValueError if a model cannot be made from its settings, or a pipeline not be the start of one."""
    for settings in plan.trainings.values():
        graph, data = CausalGraph(settings.config["graph"]), settings.data
        arguments = arguments_of(settings)
        diffusion = settings.others.get(DiffusionConfig)
        with torch.device("meta"):  # no memory: whether it can be built is all that is asked
            if settings.section == "hvae":
                softcft.HVAEModel(graph.to_list(), data.sample_size, **arguments)
            elif diffusion is not None and not diffusion.latents and diffusion.pipeline_dir is None:
                kind = diffusion.network, diffusion.prediction_type, data.image_channels or 1
                new_denoiser(graph, *kind, data.sample_size, diffusion.patch_size, arguments)
        if diffusion is not None and diffusion.pipeline_dir is not None:
            read_pipeline(diffusion.pipeline_dir, graph, diffusion.prompt, data.sample_size)


def arguments_of(settings: Settings) -> dict[str, Any]:
    """The arguments of the model of a training, those of a pretrained trunk among them.

    Raises:
        ValueError: If there is an unknown one, or the trunk cannot be used.
    """
    diffusion = settings.others.get(DiffusionConfig)
    name = settings.kind.model if diffusion is None else diffusion.network
    if name is None:
        return {}
    model_class = getattr(softcft if name in softcft.__all__ else diffusers, name)
    arguments = model_arguments(settings.config, settings.section, model_class)
    trunk = settings.others.get(TrunkConfig)
    if trunk is not None and trunk.trunk_dir is not None:
        arguments |= read_trunk(trunk.trunk_dir, settings.data.sample_size, arguments.get("image_size")).arguments
    return arguments
