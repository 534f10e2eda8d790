"""The trunk of a classifier: an image model of transformers with a ``pooler_output``, new or pretrained.

A configuration is tried on PyTorch's meta device, where nothing has data. Models without a pooled output, such as
``vit_mae`` and ``segformer``, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from softcft.arguments import shown
from softcft.models.hub_errors import explain_hub_errors

__all__ = ["PretrainedTrunk", "make_trunk", "read_trunk", "trunk_width"]

TRIAL_SIZE = 64  # of models that do not say for which size they are
NOT_NEEDED = ("architectures", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "problem_type")
SUCH_AS = "'resnet', 'convnextv2', 'vit', 'dinov2' or 'swin'"


@dataclass(frozen=True)
class PretrainedTrunk:
    """A trunk that was read from a folder.

    Attributes:
        arguments: For :class:`~softcft.models.classifier.AttributeClassifier`: ``backbone``, ``image_size``,
            ``image_mean`` and ``image_std``.
        weights: Of the trunk, by name.
        summary: What was taken from the folder, for people.
    """

    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    summary: str

    def load_into(self, trunk: nn.Module) -> None:
        """Load these weights into a trunk of this configuration; weights that the folder lacks stay as they are."""
        trunk.load_state_dict(trunk.state_dict() | self.weights)


def make_trunk(backbone: Mapping[str, Any], image_size: int | None = None) -> tuple[PreTrainedModel, int]:
    """A trunk with random weights, and the width of its pooled output.

    Args:
        backbone: Configuration of a transformers image model, ``model_type`` among its keys.
        image_size: Height and width of its images, for the trial.

    Raises:
        ValueError: If this is no configuration, or not of an image model with a pooled output.
    """
    if not isinstance(backbone, Mapping) or "model_type" not in backbone:
        raise ValueError(f"backbone needs a 'model_type' such as 'resnet' or 'convnextv2', got {shown(backbone)}.")
    if str(backbone["model_type"]) not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone has the model_type {shown(backbone['model_type'])}, which transformers does not know; use one "
            f"such as {SUCH_AS}."
        )
    with _name_backbone(backbone):
        config = AutoConfig.for_model(**backbone)
    width = trunk_width(config, image_size, "backbone")
    with _name_backbone(backbone):
        return AutoModel.from_config(config), width


def trunk_width(config: PreTrainedConfig, image_size: int | None, where: str) -> int:
    """The width of a trunk's pooled output, by trial; ``where`` is the argument's name for messages.

    Images have the height and width ``image_size``; if None, the configuration's own, or 64.

    Raises:
        ValueError: If it is no image model, has no pooled output, or takes no such images.
    """
    what = f"{where} has the model_type {config.model_type!r}"
    size = image_size or _own_size(config) or TRIAL_SIZE
    try:
        with torch.device("meta"), torch.no_grad():
            trunk = AutoModel.from_config(config).eval()
    except Exception as error:
        raise ValueError(f"{what}, but its configuration makes no model: {type(error).__name__}: {error}") from error
    if trunk.main_input_name != "pixel_values":
        raise ValueError(
            f"{what}, a model that reads {trunk.main_input_name} and not images; use an image model such as {SUCH_AS}."
        )
    try:
        with torch.no_grad():
            output = trunk(torch.empty(1, _channels(config), size, size, device="meta"))
    except Exception as error:
        raise ValueError(
            f"{what}, which does not take images of {size} x {size} pixels ({type(error).__name__}: {error}); set "
            "image_size to what it takes, or use another."
        ) from error
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        raise ValueError(f"{what}, a model without a pooled output; use one that has it, such as {SUCH_AS}.")
    return int(pooled.flatten(1).shape[1])


def read_trunk(name: str, sample_size: int, image_size: int | None = None) -> PretrainedTrunk:
    """Read a pretrained trunk as transformers saves it, from safetensors only.

    Args:
        name: A folder, or the name of a repository of the Hub.
        sample_size: Height and width of the images. They are resized to the trunk's own size if it does not take them.
        image_size: Height and width to which images are resized in any case.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no ``config.json`` or no safetensors; the model is no image model with a pooled output,
            does not take the images, or lacks the weights of its configuration.
        OSError: If the Hub refuses it or cannot be reached.
    """
    where = f"trunk_dir {name}"
    _check_folder(name, where)
    with _name_folder(where), explain_hub_errors(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if image_size is None:
            image_size = _needed_size(config, sample_size, where)
        trunk_width(config, image_size or sample_size, where)
        # In float32, whatever the folder has: it will be trained.
        trunk, info = AutoModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        file = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        mean, std = _pixel_statistics(json.loads(Path(file).read_text())) if file else (None, None)
    missing = sorted(set(info["missing_keys"]) & set(trunk.state_dict()))
    weights = {key: value for key, value in trunk.state_dict().items() if key not in missing}
    if not any(key in weights for key, _ in trunk.named_parameters()):
        raise ValueError(f"{where} has no weight of a {config.model_type!r}, which its config.json says it is.")
    backbone = {key: value for key, value in config.to_diff_dict().items() if key not in NOT_NEEDED and key[0] != "_"}
    channels = _channels(config)
    backbone = {"num_channels": channels, **backbone}
    facts = [
        f"{where}: {config.model_type}, {sum(value.numel() for value in weights.values()):,} weights",
        f"{channels} channel{'s' * (channels > 1)}{' (grey images are repeated)' * (channels == 3)}",
        f"images resized to {image_size} x {image_size}" if image_size else f"images as they are, {sample_size} wide",
        "no preprocessor_config.json, so pixels stay in [-1, 1]"
        if mean is None
        else f"pixels in [0, 1] normalised by mean {_rounded(mean)} and standard deviation {_rounded(std)}",
    ]
    if missing:
        facts.append(f"not in the folder, so random at the start: {', '.join(missing)}")
    arguments = {"backbone": backbone, "image_size": image_size, "image_mean": mean, "image_std": std}
    return PretrainedTrunk(arguments, weights, "; ".join(facts) + ".")


def _check_folder(name: str, where: str) -> None:
    """Refuse a folder that cannot be one of transformers with safetensors. The name of a repository passes."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
            raise FileNotFoundError(f"{where}: there is no such folder; give one that transformers has saved.")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{where} has no config.json; give a folder as save_pretrained of transformers writes it.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{where} has no .safetensors, and softcft reads no pickles (.bin, .pt), for that may run code from the "
            "file. If you trust them, load them with transformers and save them by save_pretrained."
        )


def _needed_size(config: PreTrainedConfig, sample_size: int, where: str) -> int | None:
    """The trunk's own image size, if it does not take images of ``sample_size``."""
    own = _own_size(config)
    try:
        trunk_width(config, sample_size, where)
    except ValueError:
        if own in (None, sample_size):
            raise
        return own
    return None


def _own_size(config: PreTrainedConfig) -> int | None:
    """Height and width of the images that a configuration is for, if it has them."""
    size = getattr(config, "image_size", None)
    if isinstance(size, list | tuple):
        size = size[0] if size and len(set(size)) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def _channels(config: PreTrainedConfig) -> int:
    return int(getattr(config, "num_channels", 3))


def _pixel_statistics(settings: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by which a preprocessor normalises pixels in [0, 1]."""
    # It rescales pixels in 0..255, may move them by one, and then normalises.
    scale = 255 * (settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 255.0
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not settings.get("do_normalize", True) or mean is None or std is None:
        mean, std = 0.0, 1.0
    means, stds = (list(value) if isinstance(value, list | tuple) else [value] for value in (mean, std))
    return [(float(value) + offset) / scale for value in means], [float(value) / scale for value in stds]


def _rounded(values: list[float] | None) -> str:
    return ", ".join(f"{value:.4g}" for value in values or [])


@contextmanager
def _name_folder(where: str) -> Iterator[None]:
    """Name the argument in errors."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{where}: {error}") from error
    except Exception as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where} cannot be read as a trunk: {type(error).__name__}: {error}") from error


@contextmanager
def _name_backbone(backbone: Mapping[str, Any]) -> Iterator[None]:
    """Name the argument in errors: transformers checks little."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"backbone must be a configuration of transformers, but of {shown(backbone)} it makes no model: "
            f"{type(error).__name__}: {error}"
        ) from error
