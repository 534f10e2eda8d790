"""Settings of the recipes: one YAML file per data set, and command-line flags that override it.

The file has one section per recipe (``scm``, ``guide``, ``judge``, ``hvae``, ``cft``, ``evaluate``), the ``data``
that all of them read, and the ``graph`` as a list of variables:

.. code-block:: yaml

    data: {sample_size: 32}
    graph:
      - {name: age, kind: continuous, low: 20, high: 90, unit: years}
    hvae:
      output_dir: runs/hvae
      learning_rate: 1e-3
      model: {z_dim: 16}

A recipe describes its flags by flat dataclasses. Each of their fields takes, in rising priority, its own default, the
value under ``data``, the value under the recipe's section, the flag. What is nested under ``model`` are the arguments
of the model; they are no flags and reach the recipe as they stand.

Files are read by the scalar rules of YAML 1.2: ``1e-3`` is a number, and ``no`` is a word. (Under YAML 1.1, PyYAML's,
the first is a string and the second is false, which no list of categories survives.)
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import math
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

__all__ = ["SECTIONS", "MemoryConfig", "TrainingConfig", "begin_run", "model_arguments", "parse_config"]

SECTIONS = ("data", "graph", "scm", "guide", "judge", "hvae", "cft", "evaluate")
"""The sections that a YAML file may have."""

FREE_SETTINGS = (
    "checkpointing_steps",
    "checkpoints_total_limit",
    "data_dir",
    "dataloader_num_workers",
    "logging_steps",
    "max_train_steps",
    "output_dir",
    "report_to",
    "resume_from_checkpoint",
)
"""Settings that may change when a run is resumed."""


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of the training loop, the same for every model.

    The defaults are those that the published HVAEs were trained with (causal-gen, De Sousa Ribeiro et al., "High
    Fidelity Image Counterfactuals with Probabilistic Causal Models", 2023), unless the help of a field says otherwise.

    Raises:
        ValueError: If a value is out of range, or the package of ``report_to`` is not installed. The message names
            the flag.
    """

    output_dir: str = field(
        metadata={"help": "Folder for checkpoints, metrics.jsonl, tracker logs and the trained model."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the data order and of all noise. Same seed, same machine: same model."}
    )
    max_train_steps: int = field(default=10_000, metadata={"help": "Number of optimizer steps, skipped ones included."})
    train_batch_size: int = field(default=32, metadata={"help": "Images per forward pass and process."})
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={
            "help": "Forward passes per optimizer step. The effective batch is train_batch_size times this times the "
            "number of processes: raise this when a batch does not fit into memory."
        },
    )
    learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Peak learning rate of AdamW. 1e-3 suits training from scratch; fine-tuning wants 5e-6 to 1e-4."
        },
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Decay of AdamW's mean of the gradient."})
    adam_beta2: float = field(
        default=0.9,
        metadata={
            "help": "Decay of AdamW's mean of the squared gradient. 0.9 (not the usual 0.999) follows the rare, large "
            "gradients of a hierarchical VAE more closely."
        },
    )
    adam_weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay of AdamW."})
    lr_scheduler: Literal["constant_with_warmup", "cosine"] = field(
        default="constant_with_warmup",
        metadata={"help": "Learning rate after the warm-up: held, or lowered to 0 at max_train_steps along a cosine."},
    )
    lr_warmup_steps: int = field(
        default=100, metadata={"help": "Steps over which the learning rate rises linearly from 0. 0 turns it off."}
    )
    max_grad_norm: float = field(
        default=350.0,
        metadata={"help": "Gradients are scaled down to this global L2 norm, if theirs is larger. inf turns it off."},
    )
    skip_grad_norm: float = field(
        default=500.0,
        metadata={
            "help": "A step whose gradient norm before clipping is above this leaves the weights alone; so does, "
            "whatever this is, one whose loss or gradient is not finite. metrics.jsonl counts them as 'skipped'."
        },
    )
    ema_decay: float = field(
        default=0.999,
        metadata={
            "help": "Decay of the moving average of the weights, which is what training returns. It starts at "
            "(1 + n) / (10 + n) after n steps, so that short runs forget the initial weights. 0 turns it off."
        },
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no",
        metadata={"help": "Type of the forward pass; weights stay float32. bf16 needs no loss scaling, fp16 a GPU."},
    )
    checkpointing_steps: int = field(
        default=500,
        metadata={"help": "Save a resumable checkpoint each so many steps, and at the end. 0 turns it off."},
    )
    checkpoints_total_limit: int = field(
        default=3, metadata={"help": "Keep the newest so many checkpoints and delete older ones. 0 keeps all."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Continue from this checkpoint: a path, or 'latest' for the newest one in output_dir. 'latest' "
            "starts anew where there is none yet, so a job that may be requeued can always pass it."
        },
    )
    logging_steps: int = field(
        default=50, metadata={"help": "Write a line of averages to metrics.jsonl each so many steps, and at the end."}
    )
    report_to: Literal["tensorboard", "trackio", "wandb"] | None = field(
        default=None, metadata={"help": "Experiment tracker that gets the lines of metrics.jsonl too."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that load data beside the training. 0 loads in the training process."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "seed",
            "lr_warmup_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "dataloader_num_workers",
        ):
            self._check(name, getattr(self, name) >= 0, ">= 0")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            self._check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("max_grad_norm", "skip_grad_norm"):  # inf is a fair value; NaN fails the comparison
            self._check(name, getattr(self, name) > 0, "> 0")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "> 0 and finite")
        self._check("adam_weight_decay", 0 <= self.adam_weight_decay < math.inf, ">= 0 and finite")
        self._check("output_dir", bool(self.output_dir), "a folder")
        for name in ("lr_scheduler", "mixed_precision", "report_to"):
            choices = _choices(get_type_hints(type(self))[name])
            self._check(name, getattr(self, name) in choices, f"one of {choices}")
        if self.report_to is not None and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f"--report_to {self.report_to} needs a package that is not installed: pip install {self.report_to}"
            )

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"--{name} must be {rule}, got {getattr(self, name)!r}.")


@dataclass(kw_only=True)
class MemoryConfig:
    """How an image model is fitted into memory."""

    gradient_checkpointing: bool = field(
        default=False,
        metadata={
            "help": "Recompute activations in the backward pass: about a third slower, a fraction of the memory."
        },
    )


def parse_config(  # noqa: C901  # file, section, flags: one reading, told in order
    section: str,
    *config_types: type,
    default_config: str | Path,
    description: str | None = None,
    argv: Sequence[str] | None = None,
) -> tuple[Any, ...]:
    """Read a recipe's settings from its YAML file and the command line.

    Args:
        section: The recipe's own section of the file, for instance ``"hvae"``.
        config_types: Dataclasses whose fields are the recipe's flags. Each key under ``data`` must be a field of one
            of them, and so must each key under ``section``, except ``model``.
        default_config: The file that is read when there is no ``--config FILE``.
        description: What ``--help`` says before the flags; recipes pass their ``__doc__``.
        argv: The command line without the program's name, by default that of this process.

    Returns:
        The resolved file as a plain dict, followed by one instance of each config type. "Resolved" means that ``data``
        and ``section`` hold the final value of every field: saved as YAML, the dict repeats the run without flags.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not valid YAML or not a mapping of known sections; if it lacks ``graph`` or
            ``section``; if ``data`` or ``section`` has an unknown key or a value of the wrong type; if a flag is
            unknown; or if a config type refuses a value. The message names file, key and value.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--config", default=str(default_config), metavar="FILE", help="YAML file with the settings.")
    path = Path(flags.parse_known_args(argv)[0].config)
    config = _read(path)
    if section not in config:
        raise ValueError(f"{path} has no section '{section}'; it has {sorted(config)}.")

    parser = HfArgumentParser(
        config_types,  # type: ignore[arg-type]  # any dataclasses will do
        parents=[flags],
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    hints = {name: hint for config_type in config_types for name, hint in get_type_hints(config_type).items()}
    values: dict[str, Any] = {}
    for source in ("data", section):
        config[source] = _mapping(config.get(source), f"{path}: section '{source}'")
        for key, value in config[source].items():
            where = f"{path}: {source}.{key}"
            if key == "model" and source == section:
                config[source][key] = _mapping(value, where)
            elif key in hints:
                values[key] = config[source][key] = _cast(value, hints[key], where)
            else:
                raise ValueError(f"{path}: unknown key '{key}' in section '{source}'{_suggest(key, hints)}")
    if "graph" not in config:
        raise ValueError(f"{path} has no section 'graph', the list of variables; it has {sorted(config)}.")
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values

    *instances, _, unknown = parser.parse_args_into_dataclasses(argv, True, look_for_args_file=False)
    if unknown:
        name = unknown[0].partition("=")[0]
        raise ValueError(f"unknown argument '{name}'{_suggest(name, [f'--{hint}' for hint in hints])}")
    for instance in instances:
        for key, value in asdict(instance).items():
            only_data = key in config["data"] and key not in config[section]
            config["data" if only_data else section][key] = value
    return config, *instances


def begin_run(config: Mapping[str, Any], section: str, output_dir: str | Path) -> None:
    """Write the resolved settings as ``config.yaml`` into a run's folder; passed as ``--config`` they repeat the run.

    Raises:
        ValueError: If the run is to go on from a checkpoint, but the folder's ``config.yaml`` has other settings. The
            message names the first that differs. Those that do not change what is learned may differ.
    """
    path = Path(output_dir, "config.yaml")
    if config[section].get("resume_from_checkpoint") is not None and path.is_file():
        before = _flat({name: _read(path).get(name) for name in ("graph", "data", section)})
        now = _flat({name: config.get(name) for name in ("graph", "data", section)})
        for key in sorted(before | now):
            if key.rpartition(".")[2] not in FREE_SETTINGS and before.get(key) != now.get(key):
                raise ValueError(
                    f"{output_dir} holds a run with {key} = {before.get(key)!r}, now it is {now.get(key)!r}: restore "
                    "the setting to go on with that run, or choose another --output_dir, or delete the folder."
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def model_arguments(config: Mapping[str, Any], section: str, model_class: type) -> dict[str, Any]:
    """The arguments of a model under ``model`` of a section, checked against the model's constructor.

    Raises:
        ValueError: If an argument is unknown. The message names it and the nearest known one.
    """
    arguments = config[section].get("model", {})
    known = [name for name in inspect.signature(model_class).parameters if name not in ("self", "graph", "sample_size")]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{section}.model: {model_class.__name__} takes no '{name}'{_suggest(name, known)}")
    return dict(arguments)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each default, and the description with its line breaks."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the booleans and floats of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML reads this class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: there is no such file.")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    config = _mapping(config, str(path))
    for name in config:
        if name not in SECTIONS:
            raise ValueError(f"{path}: unknown section '{name}'{_suggest(name, SECTIONS)}")
    return config


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """The value as a dict; nothing after the colon means an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping of keys to values, got {value!r}.")
    return {str(key): entry for key, entry in (value or {}).items()}


def _cast(value: Any, hint: Any, where: str) -> Any:
    """Convert a YAML value to the type of its field, where nothing is lost by it."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (option for option in get_args(hint) if option is not type(None))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(hint) is list and isinstance(value, list):
        return [_cast(entry, get_args(hint)[0], where) for entry in value]
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)  # also 1e5, which YAML takes for a float
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    expected = f"one of {_choices(hint)}" if get_origin(hint) is Literal else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} must be {expected}, got {value!r} ({type(value).__name__}).")


def _choices(hint: Any) -> list[Any]:
    """The values that a Literal, or a union of Literals and None, allows."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for option in get_args(hint) for choice in ([None] if option is type(None) else _choices(option))]


def _suggest(name: str, known: Iterable[str]) -> str:
    """How an error message about an unknown name ends."""
    known = sorted(known)
    match = get_close_matches(name, known, n=1)
    return f"; did you mean '{match[0]}'?" if match else f"; use one of {known}."
