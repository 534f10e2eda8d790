"""Convert checkpoints of causal-gen, the published code of De Sousa Ribeiro et al. (ICML 2023), to :class:`HVAEModel`.

The tensors are the same under other names, except that causal-gen convolves the concatenation of state, parents and
encoder activation, and softcft each of them: the weights of first convolutions are split. Only the image model is
converted, see :data:`NOT_CONVERTED`. A checkpoint is a pickle; only tensors, plain data and NumPy scalars are read.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softcft.data.morphomnist import MORPHOMNIST_GRAPH
from softcft.graph import CausalGraph, Variable
from softcft.models.hvae import HVAEModel
from softcft.models.hvae_blocks import ConvBlock

__all__ = ["NOT_CONVERTED", "Checkpoint", "convert_hvae", "hvae_config", "load_checkpoint", "parents_graph"]

NOT_CONVERTED = {
    "pgm.": "attribute mechanisms: their rational-linear splines and affine flows have no equal among the neural "
    "spline flows here; train new ones in seconds with recipes/train_scm.py",
    "predictor.": "attribute predictors: one network per variable there, one for all here; train one with "
    "recipes/train_classifier.py",
    "lmbda": "the Lagrange multiplier of their fine-tuning",
    "eps": "the slack of their fine-tuning",
}
"""Prefixes of a fine-tuning checkpoint that have no counterpart, and why."""

# The order is that of the published one-hot codes; ranges are those that causal-gen scales to [-1, 1].
_VARIABLES = {
    **{variable.name: variable for variable in MORPHOMNIST_GRAPH.variables},
    "age": Variable(name="age", kind="continuous", low=0, high=100, unit="years"),
    "race": Variable(name="race", kind="categorical", categories=("White", "Asian", "Black")),
    "sex": Variable(name="sex", kind="binary", categories=("male", "female")),
    "finding": Variable(name="finding", kind="binary", categories=("no finding", "pleural effusion"), parents=("age",)),
}
# UK Biobank: age is no parent of the image, sex is coded the other way round, and volumes are log-standardised.
_UKBB_VARIABLES = {
    "mri_seq": Variable(name="mri_seq", kind="binary", categories=("T1", "T2 FLAIR")),
    "brain_volume": Variable(
        name="brain_volume", kind="continuous", low=841919, high=1629520, unit="mm3", log=True, parents=("sex",)
    ),
    "ventricle_volume": Variable(
        name="ventricle_volume",
        kind="continuous",
        low=7613.27,
        high=157075,
        unit="mm3",
        log=True,
        parents=("brain_volume",),
    ),
    "sex": Variable(name="sex", kind="binary", categories=("female", "male")),
}
# Mean and standard deviation of the logarithms, as causal-gen has them.
_LOG_STANDARD = {
    "brain_volume": (13.965583801269531, 0.09537758678197861),
    "ventricle_volume": (10.345998764038086, 0.43127763271331787),
}


class Checkpoint(NamedTuple):
    """The HVAE in a file of causal-gen.

    Attributes:
        state: Its moving-average weights by name, the prefix ``vae.`` removed.
        hparams: The arguments of the run.
        left_out: Names of the other tensors in the file.
    """

    state: dict[str, Tensor]
    hparams: dict[str, Any]
    left_out: list[str]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint (``.pt``) of causal-gen, of an image model or of counterfactual fine-tuning.

    The weights are their moving average, which causal-gen evaluates, too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint of causal-gen, is damaged, or holds more than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors and plain data: {reason} If it is whole, it was pickled "
            "with objects of other classes, and reading those would run code from the file."
        ) from error
    needed = ("ema_model_state_dict", "hparams")
    if not isinstance(loaded, Mapping) or any(not isinstance(loaded.get(key), Mapping) for key in needed):
        found = sorted(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ValueError(f"{path} is no checkpoint of causal-gen: it needs {' and '.join(needed)}, and has {found}.")
    state = dict(loaded["ema_model_state_dict"])
    broken = sorted(name for name, tensor in state.items() if not isinstance(tensor, Tensor))
    if broken:
        raise ValueError(f"{path}: ema_model_state_dict holds something other than tensors under {broken}.")
    left_out: list[str] = []
    if any(name.startswith("vae.") for name in state):
        left_out = [name for name in state if name.startswith(tuple(NOT_CONVERTED))]
        unknown = [name for name in state if not name.startswith(("vae.", *NOT_CONVERTED))]
        if unknown:
            raise ValueError(f"{path}: unknown tensors {unknown}.")
        state = {name.removeprefix("vae."): tensor for name, tensor in state.items() if name.startswith("vae.")}
    return Checkpoint(state, dict(loaded["hparams"]), left_out)


def hvae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Arguments of :class:`HVAEModel`, all but the graph, for the architecture of a checkpoint.

    Args:
        checkpoint: Of an image model. One of fine-tuning lacks the architecture: give it the ``hparams`` of the image
            model that was fine-tuned, its ``vae_path``.

    Raises:
        ValueError: If ``hparams`` lack a part of the architecture, or have one that :class:`HVAEModel` has not.
    """
    state, hparams = checkpoint.state, checkpoint.hparams
    needed = ("enc_arch", "dec_arch", "widths", "z_dim", "z_max_res", "bias_max_res", "input_res", "beta")
    missing = [name for name in needed if name not in hparams]
    if missing:
        began_with = hparams.get("vae_path", "its vae_path")
        raise ValueError(
            f"hparams do not say {missing}, of which the architecture is made. If this checkpoint is of counterfactual "
            f"fine-tuning, take the hparams of the image model that it began with: {began_with}."
        )
    unlike = {
        "vae": ("hierarchical", hparams.get("vae", "hierarchical")),
        "bottleneck": (4, hparams.get("bottleneck", 4)),
        "q_correction": (False, hparams.get("q_correction", False)),
        "x_like": ("dgauss", str(hparams.get("x_like", "diag_dgauss")).split("_")[-1]),
        "input_channels": (1, state["encoder.stem.weight"].shape[1] if "encoder.stem.weight" in state else 1),
    }
    for name, (ours, theirs) in unlike.items():
        if theirs != ours:
            raise ValueError(f"{name} is {theirs!r} in this checkpoint; only {ours!r} has a counterpart here.")

    encoder = [re.fullmatch(r"(\d+)b(\d+)(?:d(\d))?", stage) for stage in hparams["enc_arch"].split(",")]
    decoder = [re.fullmatch(r"(\d+)b(\d+)", stage) for stage in hparams["dec_arch"].split(",")]
    if None in encoder or None in decoder:
        raise ValueError(
            f"enc_arch {hparams['enc_arch']!r} or dec_arch {hparams['dec_arch']!r} is not of the form 32b3d2,16b3,..."
        )
    stages = [tuple(int(number or 1) for number in stage.groups()) for stage in encoder if stage]
    resolutions = [resolution for resolution, _, _ in stages]
    decoder_stages = [(int(stage[1]), int(stage[2])) for stage in decoder if stage][::-1]
    reached = [(this // rate, following) for (this, _, rate), following in zip(stages, resolutions[1:], strict=False)]
    if [resolution for resolution, _ in decoder_stages] != resolutions or any(one != other for one, other in reached):
        raise ValueError(
            f"enc_arch {hparams['enc_arch']!r} and dec_arch {hparams['dec_arch']!r} must have the same resolutions, "
            "each the one before divided by its d."
        )
    if len(hparams["widths"]) != len(resolutions):
        raise ValueError(f"widths needs {len(resolutions)} entries, one per resolution, got {hparams['widths']}.")
    return {
        "sample_size": int(hparams["input_res"]),
        "in_channels": 1,
        "resolutions": resolutions,
        "channels": [int(width) for width in hparams["widths"]],
        "encoder_blocks": [count for _, count, _ in stages],
        "decoder_blocks": [count for _, count in decoder_stages],
        "z_dim": int(hparams["z_dim"]),
        "z_max_resolution": int(hparams["z_max_res"]),
        "bias_max_resolution": int(hparams["bias_max_res"]),
        # The name of the run's settings decides it there; the weights tell it as well.
        "block_type": "bottleneck" if "encoder.blocks.0.conv.5.weight" in state else "light",
        "conditional_prior": bool(hparams.get("cond_prior", False)),
        "beta": float(hparams["beta"]),
    }


def parents_graph(hparams: Mapping[str, Any]) -> CausalGraph:
    """The causal graph of causal-gen's own data sets: Morpho-MNIST, MIMIC-CXR and UK Biobank.

    Args:
        hparams: Of an image model; ``parents_x`` has the parents of the image in their order.

    Raises:
        ValueError: If ``parents_x`` is missing or names other variables.
    """
    names = hparams.get("parents_x")
    if not names:
        raise ValueError("hparams have no parents_x, so the order of the parents is unknown; give the graph.")
    is_ukbb = not {"mri_seq", "brain_volume", "ventricle_volume"}.isdisjoint(names)
    known = _UKBB_VARIABLES if is_ukbb else _VARIABLES
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"parents_x has {unknown}, of which neither kind nor range is known; give the graph.")
    variables = [known[name] for name in names]
    return CausalGraph([replace(v, parents=tuple(p for p in v.parents if p in names)) for v in variables])


def convert_hvae(checkpoint: Checkpoint, graph: CausalGraph | None = None) -> HVAEModel:
    """Build the :class:`HVAEModel` that computes what the checkpoint's model computes.

    Args:
        checkpoint: From :func:`load_checkpoint`.
        graph: The parents of the image, in the order of ``parents_x`` and encoded as in training; left out, those of
            :func:`parents_graph`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If the architecture has no counterpart (see :func:`hvae_config`), the graph has a wrong number of
            columns, or tensors are missing, unknown or of the wrong shape. The message lists them.
    """
    config = hvae_config(checkpoint)
    if graph is None:
        graph = parents_graph(checkpoint.hparams)
        config |= _log_standardised(graph)
    width = int(checkpoint.hparams.get("context_dim", graph.width))
    if width != graph.width:
        raise ValueError(
            f"The checkpoint has {width} columns of parents, {checkpoint.hparams.get('parents_x')}, but the graph's "
            f"variables {list(graph.names)} have {graph.width}."
        )
    model = HVAEModel(graph.to_list(), **config)
    state = dict(checkpoint.state)
    converted: dict[str, Tensor] = {}
    missing, misshapen = [], []
    for theirs, ours in _names(model):
        tensor = state.pop(theirs, None)
        if tensor is None:
            missing.append(theirs)
            continue
        shapes = [model.get_parameter(name).shape for name in ours]
        whole = (shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:]) if len(ours) > 1 else shapes[0]
        if tensor.shape != whole:
            misshapen.append(f"{theirs}: {tuple(tensor.shape)} instead of {tuple(whole)}")
        elif len(ours) > 1:
            converted |= dict(zip(ours, tensor.split([shape[1] for shape in shapes], dim=1), strict=True))
        else:
            converted[ours[0]] = tensor
    unknown = sorted(set(state) - set(_unused_names(model)))
    problems = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"The checkpoint's tensors do not fit its architecture. {listed}.")
    model.load_state_dict({name: tensor.float().contiguous() for name, tensor in converted.items()})
    return model.eval()


def _log_standardised(graph: CausalGraph) -> dict[str, list[float]]:
    """Arguments that turn encoded logarithms into standardised ones: (log v - mean) / deviation."""
    if not any(variable.log for variable in graph.variables):
        return {}
    scale, shift = [1.0] * graph.width, [0.0] * graph.width
    for variable in graph.variables:
        if variable.log:
            low, high = map(math.log, variable.bounds)
            mean, deviation = _LOG_STANDARD[variable.name]
            column = graph.slices[variable.name].start
            scale[column] = (high - low) / 2 / deviation
            shift[column] = ((high + low) / 2 - mean) / deviation
    return {"parents_scale": scale, "parents_shift": shift}


# ---- names -----------------------------------------------------------------------------------------------------------


def _names(model: HVAEModel) -> Iterator[tuple[str, list[str]]]:
    """Each tensor of causal-gen with its parameters here; several are slices of its input channels."""
    yield from _both("encoder.stem", "stem")
    for i, encoder_block in enumerate(model.encoder):
        yield from _conv_block(f"encoder.blocks.{i}", f"encoder.{i}.block", encoder_block.block)
        if encoder_block.width_proj is not None:
            yield from _both(f"encoder.blocks.{i}.width_proj", f"encoder.{i}.width_proj")
    for i, block in enumerate(model.decoder):
        theirs, ours = f"decoder.blocks.{i}", f"decoder.{i}"
        yield from _conv_block(f"{theirs}.prior", f"{ours}.prior", block.prior)
        if block.posterior is not None:
            yield from _conv_block(f"{theirs}.posterior", f"{ours}.posterior", block.posterior)
        yield f"{theirs}.z_proj.weight", [f"{ours}.z_proj.weight", f"{ours}.z_parents.conv.weight"]
        yield f"{theirs}.z_proj.bias", [f"{ours}.z_proj.bias"]
        if block.z_feat_proj is not None:
            yield from _both(f"{theirs}.z_feat_proj", f"{ours}.z_feat_proj")
        yield from _conv_block(f"{theirs}.conv", f"{ours}.conv.block", block.conv.block)
        if block.conv.width_proj is not None:
            yield from _both(f"{theirs}.conv.width_proj", f"{ours}.conv.width_proj")
    for i, resolution in enumerate(sorted(model.biases, key=int)):
        yield f"decoder.bias.{i}", [f"biases.{resolution}"]
    yield from _both("likelihood.x_loc", "x_loc")
    yield from _both("likelihood.x_logscale", "x_log_scale")


def _both(theirs: str, ours: str) -> Iterator[tuple[str, list[str]]]:
    for kind in ("weight", "bias"):
        yield f"{theirs}.{kind}", [f"{ours}.{kind}"]


def _conv_block(theirs: str, ours: str, block: ConvBlock) -> Iterator[tuple[str, list[str]]]:
    """A block's convolutions are the odd entries of a sequence there; the first has state, parents, image as input."""
    columns = [f"{ours}.inputs.{i}.weight" for i in range(len(block.inputs))]
    if block.parents is not None:
        columns.insert(1, f"{ours}.parents.conv.weight")
    yield f"{theirs}.conv.1.weight", columns
    yield f"{theirs}.conv.1.bias", [f"{ours}.inputs.0.bias"]
    names = [*(f"{ours}.middle.{i}" for i in range(len(block.middle))), f"{ours}.last"]
    for i, name in enumerate(names):
        yield from _both(f"{theirs}.conv.{2 * i + 3}", name)


def _unused_names(model: HVAEModel) -> Iterator[str]:
    """Parameters that causal-gen has and never uses."""
    unused = [f"decoder.blocks.{len(model.decoder) - 1}.z_feat_proj"]
    unused += [f"encoder.blocks.{i}.width_proj" for i, block in enumerate(model.encoder) if block.width_proj is None]
    unused += [f"decoder.blocks.{i}.conv.width_proj" for i, b in enumerate(model.decoder) if b.conv.width_proj is None]
    for name in unused:
        yield from (f"{name}.weight", f"{name}.bias")


def _numpy_scalars() -> list[Any]:
    """The classes and functions of a pickled NumPy number, also under the name that older files have."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    ]
