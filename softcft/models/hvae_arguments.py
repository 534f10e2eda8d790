"""What arguments an HVAE can have: checked before its layers are made, so that errors name an argument."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from softcft.arguments import check_choice, check_flag, check_number, check_whole, check_wholes, shown

__all__ = ["check_hvae_arguments"]


def check_hvae_arguments(config: Mapping[str, Any], parents_dim: int) -> None:  # noqa: C901  # one check per argument
    """Raise ValueError if one of the arguments is of the wrong type or size; ``parents_dim`` is the graph's width."""
    for name in ("sample_size", "in_channels", "patch_size", "z_dim", "z_max_resolution", "bias_max_resolution"):
        check_whole(name, config[name])
    resolutions, size, patch = config["resolutions"], config["sample_size"], config["patch_size"]
    for name, least in {"resolutions": 1, "channels": 4, "encoder_blocks": 0, "decoder_blocks": 1}.items():
        check_wholes(name, config[name], least)
        if len(config[name]) != len(resolutions):
            raise ValueError(f"{name} needs one entry per resolution {resolutions}, got {config[name]}.")
    if list(resolutions[-1:]) != [1]:
        raise ValueError(f"resolutions must end at 1, got {resolutions}.")
    if resolutions[0] * patch != size:
        raise ValueError(f"resolutions[0] must be sample_size / patch_size = {size}/{patch}, got {resolutions[0]}.")
    if any(large <= small or large % small for large, small in pairwise(resolutions)):
        raise ValueError(f"Each entry of resolutions must divide the one before, got {resolutions}.")
    if any(width % 4 for width in config["channels"]):
        raise ValueError(f"channels must be multiples of 4, got {config['channels']}.")
    for name in ("parents_scale", "parents_shift"):
        column = config[name]
        if column is not None and not (isinstance(column, list | tuple) and len(column) == parents_dim):
            raise ValueError(f"{name} needs {parents_dim} entries, one per encoded column, got {shown(column)}.")
        for i, value in enumerate(column or ()):
            check_number(f"{name}[{i}]", value)
    check_choice("block_type", config["block_type"], ("bottleneck", "light"))
    for name in ("conditional_prior", "smooth"):
        check_flag(name, config[name])
    if config["smooth"] and patch > 1 and patch % 2:
        raise ValueError(f"patch_size must be 1 or even where smooth is true, got {patch}.")
    check_number("beta", config["beta"], above=0)
