"""Networks of diffusers that predict noise, velocity or flow, given attributes: a module for each family of them.

A network's family is found by the name of its class. Attributes are tokens of a
:class:`~softcft.models.parent_encoder.ParentEncoder`; the family says where they go.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from softcft.arguments import plain
from softcft.graph import CausalGraph
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.weights import load_safetensors

if TYPE_CHECKING:
    from softcft.models.prompt import PromptEmbedding

__all__ = ["FAMILIES", "Family", "adopt_network", "family_of", "load_network", "network_class", "network_size"]

FAMILIES = {
    "UNet2DModel": "unet",
    "UNet2DConditionModel": "unet",
}
"""The module of each class of networks, by the name that diffusers saves."""


class Family(Protocol):
    """What the module of a family has: functions of a network and, where it reads text, its prompt."""

    def channels(self, network: ModelMixin) -> int:
        """Channels of what it takes; ValueError if it predicts something else than that."""

    def token_size(self, network: ModelMixin, prompt: PromptEmbedding | None) -> int:
        """Size of attribute tokens; ValueError if it takes none, or the prompt does not fit."""

    def predict(
        self, network: Any, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: PromptEmbedding | None
    ) -> Tensor:
        """The prediction for noisy images (B, C, H, W) at times (B,), given tokens (B, V, D); of the images' shape."""

    def adopt(
        self, network: ModelMixin, graph: CausalGraph, prompt: PromptEmbedding | None
    ) -> tuple[ModelMixin, ParentEncoder]:
        """See :func:`adopt_network`."""


def network_class(name: str) -> type[ModelMixin]:
    """The class of a network by its name; ValueError if it is of no known family."""
    if name not in FAMILIES:
        raise ValueError(f"network must be one of {', '.join(FAMILIES)}, got {name!r}.")
    return cast(type[ModelMixin], getattr(diffusers, name))


def family_of(network: ModelMixin) -> Family:
    """The family of a network, compiled or not; ValueError if its class is of none."""
    names = [kind.__name__ for kind in type(getattr(network, "_orig_mod", network)).__mro__]
    name = next((name for name in names if name in FAMILIES), names[0])
    if name not in FAMILIES:
        raise ValueError(f"network must be one of {', '.join(FAMILIES)}, got {name}.")
    return cast(Family, import_module(f"{__name__}.{FAMILIES[name]}"))


def adopt_network(
    network: ModelMixin, graph: CausalGraph, prompt: PromptEmbedding | None = None
) -> tuple[ModelMixin, ParentEncoder]:
    """Condition a network of diffusers on the attributes of a graph, so that it first computes what it did before.

    Tokens of attributes are 0 at first, and are added to what the network was conditioned on: text, classes or the time
    alone. If a ``UNet2DModel`` had an embedding of classes, its rows become the tokens of the variable with as many
    categories. Where a network that reads text has no prompt, it reads the tokens alone, and these are random.

    Args:
        network: The network, which is not changed.
        graph: The attributes.
        prompt: The text that a network was told, where it reads any.

    Returns:
        A network with the same weights, and the encoder of its tokens.

    Raises:
        ValueError: If the network is of no known family, or has conditions that attributes cannot be added to; or has
            classes, but not one discrete variable has as many categories (``UNet2DModel``).
    """
    return family_of(network).adopt(network, graph, prompt)


def load_network(folder: str | Path) -> ModelMixin:
    """A network of any family, as diffusers saves it.

    Raises:
        ValueError: If the folder holds a model of another class, or pickled weights.
    """
    name = cast(dict[str, Any], ParentEncoder.load_config(folder)).get("_class_name")
    if name not in FAMILIES:
        raise ValueError(f"{folder} holds a {name}, and not one of {', '.join(FAMILIES)}.")
    network: ModelMixin = load_safetensors(network_class(name), folder)
    return network


def network_size(network: ModelMixin) -> int:
    """Height and width of a network's input (images, patches or latents); ValueError if they are unknown or differ."""
    size = plain(network.config.get("sample_size"))
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise ValueError(
            f"sample_size of the network must be the side of square images, got {size!r}. If it is only missing, set "
            "it by network.register_to_config(sample_size=...)."
        )
    return sides[0]
