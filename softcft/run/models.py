"""The models of a run: whether they can be made, before anything is trained."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

import softcft
from softcft.graph import CausalGraph
from softcft.models.trunk import read_trunk
from softcft.run.plan import Plan, Settings
from softcft.training.config import DiffusionConfig, TrunkConfig
from softcft.training.parsing import model_arguments

__all__ = ["arguments_of", "check_models"]


def check_models(plan: Plan) -> None:
    """Raise ValueError if a model cannot be made from its settings."""
    for settings in plan.trainings.values():
        graph = CausalGraph(settings.config["graph"])
        arguments = arguments_of(settings)
        if settings.section == "hvae":
            with torch.device("meta"):  # no memory: whether it can be built is all that is asked
                softcft.HVAEModel(graph.to_list(), settings.data.sample_size, **arguments)


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
