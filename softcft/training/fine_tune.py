"""Counterfactual fine-tuning of a pipeline in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from softcft.data.config import AugmentationConfig
from softcft.data.schema import ImageAttributeDataset
from softcft.models.classifier import AttributeClassifier
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline
from softcft.pipelines.query import CausalPipeline
from softcft.training.cft_config import CFTConfig, refuse_for_hvae
from softcft.training.cft_trainer import CFTTrainer
from softcft.training.config import AdapterConfig, TrainingConfig
from softcft.training.lora import adapters

__all__ = ["fine_tune"]


def fine_tune(
    pipeline: CausalPipeline,
    rows: Any,
    output_dir: str | Path,
    *,
    guides: Sequence[AttributeClassifier] | None = None,
    backbone_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Fine-tune the image model of a pipeline, in place, until its counterfactuals obey their attributes.

    ``recipes/soft_cft.py`` does the same, and has a watcher, who ends a fine-tuning that only deceives the guide.

    Args:
        pipeline: Of any class of softcft. Its image model is in evaluation mode afterwards.
        rows: The training split, a :class:`datasets.Dataset` as
            :class:`~softcft.data.schema.ImageAttributeDataset` takes it, with images of the pipeline's size. Images
            that miss a value are left out.
        output_dir: Gets checkpoints and ``metrics.jsonl``.
        guides: Classifiers that tell what counterfactuals show; the pipeline's own if left out.
        backbone_settings: Arguments of the pipeline's ``make_backbone``, such as ``{"num_inference_steps": 10}``.
        settings: Fields of :class:`~softcft.training.config.TrainingConfig`,
            :class:`~softcft.training.cft_config.CFTConfig`, :class:`~softcft.data.config.AugmentationConfig` and
            :class:`~softcft.training.config.AdapterConfig`, such as ``cft="soft"``, ``max_train_steps=1000``,
            ``learning_rate=1e-4`` and ``lora_rank=8``.

    Raises:
        ValueError: If there is no such setting or it is out of range, there is no classifier, graphs differ, images
            have another size, or the image model returns no fidelity or no images of the shape of the given ones.

    Example:
        >>> fine_tune(pipe, load_phantom(64)["train"], "runs/soft", cft="soft", learning_rate=1e-4)  # doctest: +SKIP
    """
    configs = TrainingConfig, CFTConfig, AugmentationConfig, AdapterConfig
    names = {config: [field.name for field in fields(config)] for config in configs}
    if unknown := set(settings) - {name for known in names.values() for name in known}:
        raise ValueError(
            f"settings has {sorted(unknown)}, which are fields of none of {[c.__name__ for c in configs]}."
        )
    settings = {"output_dir": str(output_dir), **settings}
    of: dict[Any, Any] = {
        config: config(**{name: settings[name] for name in names[config] if name in settings}) for config in configs
    }
    guides = guides or [guide for guide in [pipeline.classifier] if guide is not None]
    images = ImageAttributeDataset(rows, pipeline.causal_graph)
    given, taken = (images.image_channels, images.sample_size), tuple(pipeline.image_format)
    if given != taken:
        raise ValueError(f"rows has images of (channels, pixels) {given}, but the pipeline takes those of {taken}.")
    backbone = pipeline.make_backbone(**backbone_settings or {})
    training, cft, augmentation, lora = of.values()
    network: Any = pipeline.network if isinstance(pipeline, DiffusionDSCMPipeline) else None
    if network is None:
        refuse_for_hvae(lora)
    with adapters(network, lora.lora_rank):
        trainer = CFTTrainer(backbone, pipeline.attribute_scm, guides, training, cft, augmentation)
        trainer.train(images.subset(complete=True))
