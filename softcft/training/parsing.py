"""Settings of the recipes: one YAML file per data set, and command-line flags that override it.

The file has one section per recipe (``scm``, ``guide``, ``judge``, ``watcher``, ``hvae``, ``vae``, ``diffusion``,
``cft``, ``evaluate``, ``generate``, ``utility``; ``guidance`` has one for each evaluation of a diffusion model), the
``data`` that all of them read, the folder of the run, and the ``graph`` as a list of variables. Several guides are a
list ``guides`` in place of ``guide``: their sections are then ``guide``, ``guide_2``, ``guide_3`` and so on.
``base: FILE`` takes from another file the sections, and in them the keys, that this one does not have; but no section
``hvae`` if this one has ``diffusion``.

.. code-block:: yaml

    output_dir: outputs/mine
    data: {sample_size: 32}
    graph:
      - {name: age, kind: continuous, low: 20, high: 90, unit: years}
    hvae:
      learning_rate: 1e-3
      model: {z_dim: 16}

A recipe describes its flags by flat dataclasses. Each of their fields takes, in rising priority, its own default, the
value under ``data``, the value under the recipe's section, the flag. ``model`` holds the arguments of the model, which
are no flags.

With ``--graph FILE`` the graph, its ``columns`` (:mod:`softcft.data.columns`) and ``rows``, the values that rows of the
table must have in some columns, come from a file of their own.
With ``--dataset_name`` and no ``--config`` the settings are those of ``recipes/configs/own_data.yaml``, which suit most
data.

Files are read by the rules of YAML 1.2 (:mod:`softcft.training.yaml_files`).
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from os.path import isfile  # unlike Path.is_file, False of what cannot be the name of a file
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from softcft.arguments import in_terms_of_flags, is_finite, shown
from softcft.training.writing import CONFIG, replace_file
from softcft.training.yaml_files import dump_yaml, load_yaml

__all__ = [
    "FLAGS",
    "FURTHER_GUIDE",
    "SECTIONS",
    "further_guides",
    "model_arguments",
    "parse_config",
    "read_config",
    "run_main",
    "write_config",
]

SECTIONS = (
    "base", "note", "output_dir", "data", "graph", "columns", "rows", "scm", "guide", "guides", "judge",
    "watcher", "hvae", "vae", "diffusion", "cft", "evaluate", "guidance", "generate", "utility",
)  # fmt: skip
"""The sections that a YAML file may have."""

OF_TABLES = ("columns", "rows")
"""Sections that belong to a graph and a table; a recipe finds ``rows`` as an entry of ``columns``."""

FURTHER_GUIDE = re.compile("guide_[2-9]")
"""Sections of further guides, which a file has as the entries of ``guides`` after the first."""

SET_BY_RECIPES: defaultdict[str, tuple[str, ...]] = defaultdict(
    lambda: ("self", "graph", "sample_size"),
    diffusion=("self", "sample_size", "in_channels", "out_channels"),
    vae=("self", "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types"),
)
"""Arguments of models that follow from data and other settings."""

REPLACED = {"trunk_dir": ("backbone", "image_mean", "image_std")}
"""Flags that replace arguments of the model. A file must not have both."""

FLAGS: set[str] = set()
"""The flags of this process's recipe, once they are parsed."""

PRESETS = {
    "standard": "own_data.yaml",
    "quick": "own_data_quick.yaml",
    "flow": "own_data_flow.yaml",
    "pretrained": "own_data_pretrained.yaml",
}
"""Files of settings for your own data."""


def parse_config(  # noqa: C901  # file, section, flags: one reading, in order
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
        default_config: The file that is read when there is no ``--config FILE``; with ``--dataset_name NAME``, the file
            ``NAME.yaml`` beside it, or if there is none that of the ``--preset``, see ``PRESETS``.
        description: What ``--help`` says before the flags; recipes pass their ``__doc__``. The flags of each config
            type are a group there, headed by the first line of its docstring.
        argv: The command line without the program's name, by default that of this process.

    Returns:
        The resolved file as a plain dict, followed by one instance of each config type. "Resolved" means that ``data``,
        ``section``, ``graph`` and ``columns`` hold the final values: saved as YAML, the dict repeats the run.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not valid YAML or not a mapping of known sections; if it lacks ``graph`` or
            ``section``; if ``data`` or ``section`` has an unknown key or a value of the wrong type; if a flag is
            unknown; or if a config type refuses a value. The message names file, key and value.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for argument in argv:
        if argument.startswith("--") and argument.endswith("=--"):  # of which argparse makes an empty list
            raise ValueError(f"argument '{argument}' needs a value, got '--', which only separates arguments.")
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with the settings. (default: {}; with --dataset_name, {} beside it)".format(
            str(default_config).replace("%", "%%"),  # argparse fills in what follows a single one
            PRESETS["standard"],
        ),
    )
    flags.add_argument(
        "--preset",
        choices=PRESETS,
        help="Settings for your own data, in place of --config: standard; quick, with a fifth of the steps, for a "
        "first look within a quarter of an hour on two CPU cores; flow, with flow matching in place of the HVAE; "
        "pretrained, for --pipeline_dir. (default: standard)",
    )
    flags.add_argument(
        "--graph",
        metavar="FILE",
        help="YAML file with the causal graph, in place of that in --config: a list of variables, or a section 'graph' "
        "with this list, a section 'columns' that says where the table differs from it, and 'rows', which of its rows "
        "to use.",
    )
    first = argparse.ArgumentParser(parents=[flags], add_help=False, allow_abbrev=False)
    first.add_argument("--dataset_name")
    files = first.parse_known_args(argv)[0]
    path = _settings_file(files, Path(default_config))
    config = read_config(path)
    if files.graph is not None:
        config = {name: value for name, value in config.items() if name not in OF_TABLES}
        config |= _read_graph(Path(files.graph))
    if section not in config:
        raise ValueError(f"{path} has no section '{section}'; it has {sorted(config)}.")

    for config_type in config_types:  # the attribute that HfArgumentParser makes groups of --help by
        title = inspect.cleandoc(config_type.__doc__ or config_type.__name__).splitlines()[0].rstrip(".")
        config_type._argument_group_name = title  # type: ignore[attr-defined]
    parser = HfArgumentParser(
        config_types,  # type: ignore[arg-type]  # any dataclasses will do
        parents=[flags],
        usage="%(prog)s [--config FILE | --preset NAME] [--graph FILE] [--FLAG VALUE ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    hints = {name: hint for config_type in config_types for name, hint in get_type_hints(config_type).items()}
    values: dict[str, Any] = {}
    if "output_dir" in config:
        values["output_dir"] = _cast(config["output_dir"], str, f"{path}: output_dir")
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
    for key, replaced in REPLACED.items():
        both = [name for name in replaced if name in config[section].get("model", {})]
        if both and values.get(key) is not None:
            raise ValueError(
                f"{path}: {key} {values[key]} and model.{both[0]} both say what the model is; leave out one of them."
            )
    if "graph" not in config:
        raise ValueError(
            f"{path} has no section 'graph', the list of variables; add one, or pass --graph FILE. "
            "recipes/check_data.py --dataset_name NAME drafts it."
        )
    config["columns"] = _mapping(config.get("columns"), f"{path}: section 'columns'")
    if rows := _mapping(config.pop("rows", None), f"{path}: section 'rows'"):  # with what else is read of the table
        config["columns"]["rows"] = rows
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values

    try:
        *instances, _, unknown = parser.parse_args_into_dataclasses(argv, True, look_for_args_file=False)
    except ValueError as error:
        raise ValueError(in_terms_of_flags(str(error), hints)) from error
    if unknown:
        name = unknown[0].partition("=")[0]
        raise ValueError(f"unknown argument '{name}'{_suggest(name, [f'--{hint}' for hint in hints])}")
    for instance in instances:
        for key, value in asdict(instance).items():
            if key == "output_dir":  # one for all sections
                config[key] = value
                config[section].pop(key, None)
                continue
            if value is not None and "model" in config[section]:
                for name in REPLACED.get(key, ()):
                    config[section]["model"].pop(name, None)
            only_data = key in config["data"] and key not in config[section]
            config["data" if only_data else section][key] = value
    FLAGS.update(hints)
    return config, *instances


def run_main(main: Callable[[], None]) -> None:
    """Run a recipe. Errors of the library, which name arguments, name the recipe's flags."""
    try:
        main()
    except (ValueError, OSError) as error:
        if len(error.args) == 1:  # not of the operating system
            error.args = (in_terms_of_flags(str(error), FLAGS),)
        raise


def write_config(config: Mapping[str, Any], output_dir: str | Path) -> None:
    """Write the resolved settings as ``config.yaml`` into a run's folder; as ``--config`` they repeat the run."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    replace_file(Path(output_dir, CONFIG), dump_yaml(config))


def model_arguments(config: Mapping[str, Any], section: str, model_class: type) -> dict[str, Any]:
    """The arguments of a model under ``model`` of a section, checked against the model's constructor.

    Raises:
        ValueError: If an argument is unknown. The message names it and the nearest known one.
    """
    arguments = config[section].get("model", {})
    known = [name for name in inspect.signature(model_class).parameters if name not in SET_BY_RECIPES[section]]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{section}.model: {model_class.__name__} takes no '{name}'{_suggest(name, known)}")
    return dict(arguments)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but for those that are None, one spelling of each flag, and the description's line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.option_strings and all(flag.startswith("--") for flag in action.option_strings):
            flag = action.option_strings[0]  # another has hyphens in place of underscores
            return flag if action.nargs == 0 else f"{flag} {self._format_args(action, 'VALUE')}"
        return super()._format_action_invocation(action)


def read_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The sections of a YAML file and its ``base``; those of a list ``guides`` are ``guide``, ``guide_2`` and so on.

    ``above`` are the files that name this one as their base.

    Raises:
        FileNotFoundError: If there is no such file, or no such ``base``.
        ValueError: If it is no YAML, too large a one, or has a section of another name than those of :data:`SECTIONS`;
            if ``guides`` is no list of up to 9 sections, or one of its guides has a section of its own, too; or if
            ``base`` is no file's name, or leads back to the file.
    """
    if not isfile(path):
        raise FileNotFoundError(f"{f'{above[-1]}: base' if above else '--config'} {path}: there is no such file.")
    config = _mapping(load_yaml(path), str(path))
    for name in config:
        if name not in SECTIONS and not FURTHER_GUIDE.fullmatch(name):
            raise ValueError(f"{path}: unknown section '{name}'{_suggest(name, SECTIONS)}")
    name, replaces_guides = config.pop("base", None), "guides" in config
    config.update(_named_guides(path, config))
    if name is None:
        return config
    if not isinstance(name, str) or path.resolve() in above:
        raise ValueError(f"{path}: base must be the name of another YAML file, got {shown(name)}.")
    base = read_config(path.parent / name, (*above, path.resolve()))
    if "graph" in config:  # its columns are not those of another graph
        base = {name: section for name, section in base.items() if name not in OF_TABLES}
    other_model = "diffusion" in config and "hvae" not in config
    for name, section in base.items():
        is_guide = name == "guide" or FURTHER_GUIDE.fullmatch(name)
        if (replaces_guides and is_guide) or (other_model and name == "hvae"):
            continue
        if name in config and name not in OF_TABLES and isinstance(section, Mapping):
            config[name] = {**section, **_mapping(config[name], f"{path}: section '{name}'")}
        config.setdefault(name, section)
    return config


def _named_guides(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Take the list ``guides`` out of a file's sections, and name its entries."""
    guides = config.pop("guides", [])
    if not isinstance(guides, list) or len(guides) > 9:
        raise ValueError(f"{path}: guides must be a list of up to 9 sections, one for each guide, got {shown(guides)}.")
    named = {"guide" if number == 1 else f"guide_{number}": guide for number, guide in enumerate(guides, start=1)}
    if twice := named.keys() & config.keys():
        raise ValueError(f"{path}: guides and the section '{min(twice)}' are both settings of one guide; keep one.")
    return named


def further_guides(sections: Iterable[str]) -> list[str]:
    """The sections of further guides, ``guide_2`` and so on, by their numbers."""
    return sorted(filter(FURTHER_GUIDE.fullmatch, sections))


def _settings_file(files: argparse.Namespace, default_config: Path) -> Path:
    """The file of ``--config``; where none is named, that of the data set if it comes with softcft, or of a preset."""
    name = files.dataset_name
    is_own = name is not None and not (Path(name).name == name and isfile(default_config.with_name(f"{name}.yaml")))
    if files.preset is not None and (files.config is not None or not is_own):
        reason = "leave out --config" if files.config is not None else "they need --dataset_name"
        raise ValueError(f"--preset {files.preset} stands for settings for your own data: {reason}.")
    if files.config is not None:
        return Path(files.config)
    if name is None:
        return default_config
    return default_config.with_name(PRESETS[files.preset or "standard"] if is_own else f"{name}.yaml")


def _read_graph(path: Path) -> dict[str, Any]:
    """Sections ``graph``, ``columns`` and ``rows`` from a file of their own."""
    if not isfile(path):
        raise FileNotFoundError(f"--graph {path}: there is no such file.")
    content = load_yaml(path)
    sections = {"graph": content} if isinstance(content, list) else _mapping(content, f"--graph {path}")
    if "graph" not in sections or not set(sections) <= {"graph", *OF_TABLES}:
        raise ValueError(
            f"--graph {path} must be a list of variables, or have a section 'graph' with this list and perhaps "
            f"sections 'columns' and 'rows'; it has {sorted(sections)}."
        )
    return sections


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """The value as a dict; nothing after the colon means an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping of keys to values, got {shown(value)}.")
    return {str(key): entry for key, entry in (value or {}).items()}


def _cast(value: Any, hint: Any, where: str) -> Any:
    """Convert a YAML value to the type of its field if that loses nothing."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        first, *others = (option for option in get_args(hint) if option is not type(None))
        if isinstance(value, dict) and dict in [get_origin(option) for option in others]:
            return value  # whose entries its class checks
        hint = first
    is_number = is_finite(value) or (isinstance(value, float) and hint is float)  # infinity turns a limit off
    if get_origin(hint) is list and isinstance(value, list | str):  # one word is a list of one
        return [_cast(entry, get_args(hint)[0], where) for entry in ([value] if isinstance(value, str) else value)]
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and float(value).is_integer() and abs(value) < 2**63:
        return int(value)  # also 1e5, which YAML takes for a float
    if get_origin(hint) is Literal and type(value) in map(type, get_args(hint)) and value in get_args(hint):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    expected = f"one of {list(get_args(hint))}" if get_origin(hint) is Literal else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} must be {expected}, got {shown(value)} ({type(value).__name__}).")


def _suggest(name: str, known: Iterable[str]) -> str:
    """How an error message about an unknown name ends."""
    known = sorted(known)
    match = get_close_matches(name, known, n=1)
    return f"; did you mean '{match[0]}'?" if match else f"; use one of {known}."
