"""Networks of diffusers that predict noise, velocity or flow, given attributes: a module for each family of them.

A network's family is found by the name of its class. Attributes are tokens of a
:class:`~softcft.models.parent_encoder.ParentEncoder`; the family says where they go.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from softcft.arguments import plain
from softcft.graph import CausalGraph
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.prompt import PromptEmbedding as Prompt
from softcft.models.weights import load_safetensors

__all__ = [
    "FAMILIES",
    "Conditions",
    "Family",
    "adopt_network",
    "component_of",
    "conditions_of",
    "family_of",
    "image_tokens",
    "load_network",
    "network_channels",
    "network_class",
    "network_size",
    "new_network",
]

FAMILIES = {
    "UNet2DModel": "unet",
    "UNet2DConditionModel": "unet_condition",
    "DiTTransformer2DModel": "dit",
    "Transformer2DModel": "transformer2d",
    "PixArtTransformer2DModel": "pixart",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
}
"""The module of each class of networks, by the name that diffusers saves."""


class Conditions(NamedTuple):
    """What a network is conditioned on, besides the time.

    Attributes:
        token_size: Size of the tokens of attributes.
        reads_text: Whether these are tokens of a text, or else are summed up and added to an embedding.
        pooled_size: Size of an embedding of the whole text, if the network takes one.
        masks: Whether tokens can be hidden from it.
    """

    token_size: int
    reads_text: bool = True
    pooled_size: int | None = None
    masks: bool = False


class Family(Protocol):
    """What the module of a family has. One whose networks must be changed to take attributes has ``adopt``, too."""

    def conditions(self, network: ModelMixin) -> Conditions:
        """What the network is conditioned on; ValueError if attributes cannot be."""

    def predict(self, network: Any, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: Prompt | None) -> Tensor:
        """The network's own prediction for noisy images (B, C, H, W).

        Args:
            network: Of the family.
            noisy: Images, their patches, or latents, shape (B, C, H, W).
            timestep: Shape (B,), from 0 to the number of training steps.
            tokens: Of attributes, shape (B, V, D).
            prompt: What a network that reads text is told besides.

        Returns:
            Shape (B, C, H, W), or (B, 2 * C, H, W) with a variance.
        """


def network_class(name: str) -> type[ModelMixin]:
    """The class of a network by its name; ValueError if it is of no known family."""
    if name not in FAMILIES:
        raise ValueError(f"network must be one of {', '.join(FAMILIES)}, got {name!r}.")
    return cast(type[ModelMixin], getattr(diffusers, name))


def new_network(name: str, channels: int, size: int, **arguments: Any) -> ModelMixin:
    """A network of a class, by its name, for square inputs of so many channels and that side.

    Args:
        name: Of the class.
        channels: Of images, their patches, or latents.
        size: Their side.
        arguments: Others of the class.
    """
    kind: Any = network_class(name)
    arguments |= {"in_channels": channels, "out_channels": channels}
    knows_size = "sample_size" in inspect.signature(kind).parameters
    network: ModelMixin = kind(**arguments, **{"sample_size": size} if knows_size else {})
    if not knows_size:
        network.register_to_config(sample_size=size)
    return network


def family_of(network: ModelMixin) -> Family:
    """The family of a network, compiled or not; ValueError if its class is of none."""
    names = [kind.__name__ for kind in type(getattr(network, "_orig_mod", network)).__mro__]
    name = next((name for name in names if name in FAMILIES), names[0])
    if name not in FAMILIES:
        raise ValueError(f"network must be one of {', '.join(FAMILIES)}, got {name}.")
    return cast(Family, import_module(f"{__name__}.{FAMILIES[name]}"))


def conditions_of(network: ModelMixin, prompt: Prompt | None = None) -> Conditions:
    """What a network is conditioned on; ValueError if attributes cannot be, or the prompt does not fit."""
    conditions = family_of(network).conditions(network)
    if prompt is None:
        return conditions
    if not conditions.reads_text:
        raise ValueError("prompt must be left out: the network reads no text.")
    told = prompt.config["token_dim"], prompt.config["pooled_dim"]
    if told != (conditions.token_size, conditions.pooled_size):
        raise ValueError(
            f"prompt has tokens of size {told[0]} and a pooled embedding of size {told[1]}, but the network takes "
            f"{conditions.token_size} and {conditions.pooled_size}. Encode it by the network's own pipeline."
        )
    if prompt.config["masked"] and not conditions.masks:
        raise ValueError("prompt must have no mask: no token can be hidden from the network.")
    return conditions


def adopt_network(
    network: ModelMixin, graph: CausalGraph, prompt: Prompt | None = None
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
    family = family_of(network)
    if hasattr(family, "adopt"):
        adopted: tuple[ModelMixin, ParentEncoder] = family.adopt(network, graph)
        return adopted
    conditions = conditions_of(network, prompt)
    encoder = ParentEncoder(graph.to_list(), conditions.token_size)
    if prompt is not None or not conditions.reads_text:
        encoder.silence()
    return network, encoder


def component_of(network: ModelMixin) -> str:
    """What pipelines call a network: ``unet`` or ``transformer``."""
    family_of(network)
    return "unet" if "down_block_types" in network.config else "transformer"


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


def network_channels(network: ModelMixin) -> int:
    """Channels of a network's input; ValueError if it predicts neither as many nor, with a variance, twice as many."""
    taken = network.config["in_channels"]
    predicted = network.config.get("out_channels") or taken
    if predicted not in (taken, 2 * taken):
        raise ValueError(f"network must predict as many channels as it takes, {taken}, but predicts {predicted}.")
    return taken


def image_tokens(network: ModelMixin) -> int | None:
    """Number of patches that a transformer sees; None for UNets, and where its config has no size.

    Raises:
        ValueError: If patches do not fill the network's input.
    """
    if network.config.get("sample_size") is None or "patch_size" not in network.config:
        return None
    size, patch_size = network_size(network), network.config["patch_size"]
    if size % patch_size:
        raise ValueError(f"patch_size of the network, {patch_size}, must divide its sample_size, {size}.")
    return (size // patch_size) ** 2


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
