"""The models of a run at their real size, untrained, and noise for images: to measure what a step takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from softcft.data.config import AugmentationConfig
from softcft.graph import CausalGraph
from softcft.models.adoption import DiffusionParts
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.denoiser import ConditionalDenoiser, new_denoiser
from softcft.models.hvae import HVAEModel
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline
from softcft.pipelines.dscm import DSCMPipeline
from softcft.run.models import arguments_of
from softcft.run.plan import Plan, Settings
from softcft.training.backbones import make_backbone
from softcft.training.cft_config import CFTConfig, DiffusionTuningConfig, SolverConfig
from softcft.training.cft_trainer import CFTTrainer
from softcft.training.config import DiffusionConfig, MemoryConfig, PatchConfig
from softcft.training.objectives import (
    ClassifierObjective,
    DiffusionObjective,
    HVAEObjective,
    SCMObjective,
    VAEObjective,
)

__all__ = ["Timed", "draw", "make_objective", "make_pipeline"]


class Timed(nn.Module):
    """An objective that remembers when each of its steps began."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.began: list[float] = []

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :class:`~softcft.training.loop.Objective`."""
        self.began.append(time.perf_counter())
        return self.objective(batch)


def draw(plan: Plan, number: int) -> dict[str, Tensor]:
    """So many images of noise, uint8 (N, C, H, W), and attributes, encoded (N, K)."""
    size = plan.trainings["scm"].data.sample_size
    image = torch.randint(0, 256, (number, _channels(plan), size, size), dtype=torch.uint8)
    return {"image": image, "parents": _scm(plan).sample(number)}


def make_objective(plan: Plan, settings: Settings) -> nn.Module:
    """What a section trains, untrained."""
    augmentation = settings.others.get(AugmentationConfig)
    if settings.section == "scm":
        return SCMObjective(_scm(plan))
    if settings.section == "vae":
        return VAEObjective(_vae(plan, settings))
    if settings.section == "cft":
        return _tuning(plan, settings, augmentation)
    if settings.section not in ("hvae", "diffusion"):
        return ClassifierObjective(_classifier(plan, settings), augmentation)
    model = _image_model(plan)
    if settings.others[MemoryConfig].gradient_checkpointing:
        (model if isinstance(model, HVAEModel) else model.network).enable_gradient_checkpointing()
    return HVAEObjective(model) if isinstance(model, HVAEModel) else DiffusionObjective(model)


def make_pipeline(plan: Plan) -> DSCMPipeline | DiffusionDSCMPipeline:
    """The pipeline that a run will evaluate, untrained."""
    model, scm, guide = _image_model(plan), _scm(plan), _classifier(plan, plan.trainings["guide"])
    if isinstance(model, HVAEModel):
        return DSCMPipeline(model, scm, guide)
    parts = DiffusionParts(model.network, model.parent_encoder, model.scheduler, None, None)
    return DiffusionDSCMPipeline(**parts.components, attribute_scm=scm, classifier=guide)


def _tuning(plan: Plan, settings: Settings, augmentation: AugmentationConfig | None) -> nn.Module:
    pipeline = make_pipeline(plan)
    backbone = make_backbone(pipeline, settings.others[SolverConfig], settings.others[DiffusionTuningConfig])
    soft = CFTConfig(cft="soft", published=settings.others[CFTConfig].published)
    guide: Any = pipeline.components["classifier"]
    return CFTTrainer(backbone, _scm(plan), [guide], settings.training, soft, augmentation).objective


def _graph(plan: Plan) -> CausalGraph:
    return CausalGraph(plan.sections["graph"])


def _channels(plan: Plan) -> int:
    return plan.trainings["scm"].data.image_channels or 1  # hardly matters


def _scm(plan: Plan) -> AttributeSCM:
    return AttributeSCM(graph=_graph(plan).to_list(), **arguments_of(plan.trainings["scm"]))


def _classifier(plan: Plan, settings: Settings) -> AttributeClassifier:
    arguments = arguments_of(settings)
    backbone = {"num_channels": _channels(plan), **arguments.get("backbone", {})}
    return AttributeClassifier(graph=_graph(plan).to_list(), **arguments | {"backbone": backbone})


def _image_model(plan: Plan) -> HVAEModel | ConditionalDenoiser:
    settings = plan.trainings[plan.image_model]
    arguments, size = arguments_of(settings), settings.data.sample_size
    if plan.image_model == "hvae":
        return HVAEModel(graph=_graph(plan).to_list(), sample_size=size, in_channels=_channels(plan), **arguments)
    choice: DiffusionConfig = settings.others[DiffusionConfig]
    kind = choice.network, choice.prediction_type
    return new_denoiser(_graph(plan), *kind, _channels(plan), size, choice.patch_size, arguments)


def _vae(plan: Plan, settings: Settings) -> AutoencoderKL:
    arguments, side = arguments_of(settings), settings.others[PatchConfig].patch_size
    stages = len(arguments.setdefault("block_out_channels", [32, 64, 64]))
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * stages, "up_block_types": ["UpDecoderBlock2D"] * stages}
    channels, size = _channels(plan) * side**2, settings.data.sample_size // side
    return AutoencoderKL(in_channels=channels, out_channels=channels, sample_size=size, **blocks, **arguments)
