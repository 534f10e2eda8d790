"""``Transformer2DModel``: an older class of the networks of DiT and PixArt; saved and loaded, it is one of these."""

from __future__ import annotations

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from softcft.models.networks import Conditions, Prompt, dit, pixart


def conditions(network: Transformer2DModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    config = network.config
    is_dit = config["norm_type"] == "ada_norm_zero" and config["cross_attention_dim"] is None
    if config["patch_size"] is None or not (is_dit or config["norm_type"] == "ada_norm_single"):
        names = ("patch_size", "norm_type", "cross_attention_dim")
        raise ValueError(
            "network must be as those of DiT (patches, norm_type 'ada_norm_zero', no cross_attention_dim) or of PixArt "
            f"(patches, norm_type 'ada_norm_single'): diffusers loads, and tells a time for each image to, no other "
            f"Transformer2DModel. It has { {name: config[name] for name in names} }."
        )
    return dit.conditions(network) if is_dit else pixart.conditions(network)


def predict(
    network: Transformer2DModel, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: Prompt | None
) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    family = dit if network.config["norm_type"] == "ada_norm_zero" else pixart
    return family.predict(network, noisy, timestep, tokens, prompt)
