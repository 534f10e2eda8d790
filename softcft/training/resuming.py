"""What may change when a run goes on from a checkpoint, and what may not.

How a model is trained may change at any step: the new value is used from then on, and ``changes.jsonl`` in the run's
folder lists what changed when. What is trained, on which images and in which order, may not change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from softcft.data.config import DataConfig, SubsetConfig
from softcft.training.checkpoints import checkpoint_to_resume
from softcft.training.config import MemoryConfig, TrainingConfig, UtilityConfig
from softcft.training.parsing import read_config
from softcft.training.writing import CONFIG

__all__ = ["record_changes"]

logger = get_logger(__name__)

CHANGES = "changes.jsonl"
NOT_LISTED = {"output_dir", "resume_from_checkpoint"}
MAY_CHANGE = {field.name for config in (TrainingConfig, MemoryConfig) for field in fields(config)} - {"seed"} | {
    "data_dir",
    "hub_model_id",
    "push_to_hub",
}
OF_IMAGES = {field.name for config in (DataConfig, SubsetConfig, UtilityConfig) for field in fields(config)}


def record_changes(config: Mapping[str, Any], section: str, output_dir: str | Path) -> None:
    """Compare the settings of a run that goes on with ``config.yaml`` beside its checkpoint.

    What changes is logged and added to ``changes.jsonl``: lines of ``step``, ``setting``, ``before`` and ``after``.

    Args:
        config: The resolved settings, see :func:`~softcft.training.parsing.parse_config`.
        section: The recipe's own section.
        output_dir: Folder of the run.

    Raises:
        FileNotFoundError: If the checkpoint to resume from does not exist.
        ValueError: If a setting changes that may not, or the checkpoint to resume from is damaged. The message names
            the setting and the reason.
    """
    flags = config["data"] | config[section]
    checkpoint, step, _ = checkpoint_to_resume(
        flags.get("resume_from_checkpoint"), Path(output_dir), flags["max_train_steps"]
    )
    if checkpoint is None:
        return
    path = checkpoint.parent / CONFIG
    if not path.is_file():
        logger.warning(f"{checkpoint} has no {CONFIG} beside it: whether it has the settings of this run is not known.")
        return
    before, now = (_settings(c, section) for c in (read_config(path), config))
    changes = {key: (before.get(key), now.get(key)) for key in sorted(before | now) if before.get(key) != now.get(key)}
    for key, (old, new) in changes.items():
        if reason := _why_not(key, old, new):
            in_file = f"{section}.{key}" if "." in key else key if key in ("graph", "columns") else None
            raise ValueError(
                f"{checkpoint} is of a run with {in_file or key} = {old!r}, now it is {new!r}: {reason}. "
                "Restore it to go on with that run, or start anew in another output_dir, without a checkpoint's path."
            )
    listed = {key: change for key, change in changes.items() if key not in NOT_LISTED}
    if not listed:
        return
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    with Path(output_dir, CHANGES).open("a", encoding="utf-8") as file:
        for key, (old, new) in listed.items():
            logger.warning(f"Changed after step {step}: {key}, from {old!r} to {new!r}.")
            file.write(json.dumps({"step": step, "setting": key, "before": old, "after": new}) + "\n")


def _settings(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    """What a run is made of, under the names of the flags; arguments of the model with dotted keys."""
    flags = {**(config.get("data") or {}), **(config.get(section) or {})}
    return {name: config.get(name) for name in ("graph", "columns")} | _flat(flags)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _why_not(key: str, old: Any, new: Any) -> str | None:
    """Why a setting may not change, None if it may."""
    if key == "ema_decay" and bool(old) != bool(new):
        return "a moving average cannot begin or end on the way"
    if key in MAY_CHANGE:
        return None
    if key.startswith("model."):
        return "weights fit only the model that they are of"
    if key in ("graph", "columns"):
        return "a model knows only the attributes that it began with"
    if key == "seed":
        return "the order of the images and their noise follow from it"
    if key in OF_IMAGES:
        return "it would go on with other images"
    return "it decides what is learned"
