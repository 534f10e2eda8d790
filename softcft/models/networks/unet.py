"""UNets: tokens are summed up and added to the time embedding (``UNet2DModel``), or attended to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from softcft.graph import CausalGraph
from softcft.models.parent_encoder import ParentEncoder

if TYPE_CHECKING:
    from softcft.models.prompt import PromptEmbedding

UNet = UNet2DModel | UNet2DConditionModel


def channels(network: UNet) -> int:
    """See :class:`softcft.models.networks.Family`."""
    if network.config["in_channels"] != network.config["out_channels"]:
        raise ValueError(
            f"network must predict as many channels as it takes, {network.config['in_channels']}, but predicts "
            f"{network.config['out_channels']}: a variance cannot be used."
        )
    return network.config["in_channels"]


def token_size(network: UNet, prompt: PromptEmbedding | None) -> int:
    """See :class:`softcft.models.networks.Family`."""
    if _attends(network):
        return network.config["cross_attention_dim"]
    if network.config["class_embed_type"] != "identity":
        raise ValueError(
            "network must have class_embed_type 'identity', so that the tokens of parent_encoder can be added to its "
            f"time embedding, got {network.config['class_embed_type']!r}."
        )
    return _time_embedding_size(network)


def predict(network: UNet, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: PromptEmbedding | None) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    if _attends(network):
        return network(noisy, timestep, encoder_hidden_states=tokens).sample
    return network(noisy, timestep, class_labels=tokens.sum(dim=1)).sample


def adopt(network: UNet, graph: CausalGraph, prompt: PromptEmbedding | None) -> tuple[UNet, ParentEncoder]:
    """See :func:`softcft.models.networks.adopt_network`."""
    if _attends(network):
        size = network.config["cross_attention_dim"]
        others = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")
        if not isinstance(size, int) or any(network.config.get(other) is not None for other in others):
            raise ValueError(
                "network must attend to tokens of one size, cross_attention_dim, and have no other conditions; it has "
                f"{ {name: network.config.get(name) for name in ('cross_attention_dim', *others)} }."
            )
        return network, ParentEncoder(graph.to_list(), size)
    if network.config["class_embed_type"] not in (None, "identity"):
        raise ValueError(
            f"network must be conditioned on classes or on nothing, got class_embed_type "
            f"{network.config['class_embed_type']!r}."
        )
    encoder = ParentEncoder(graph.to_list(), _time_embedding_size(network))
    if network.config["class_embed_type"] == "identity":
        return network, encoder
    weights = dict(network.state_dict())
    embedding = weights.pop("class_embedding.weight", None)
    # from_config would put back what was left at its default.
    settings = {key: value for key, value in network.config.items() if not key.startswith("_")}
    conditional = UNet2DModel(**{**settings, "class_embed_type": "identity", "num_class_embeds": None})
    conditional.load_state_dict(weights)
    last_layers = encoder.silence()
    if embedding is None:
        return conditional, encoder
    classes = len(embedding)
    places = [i for i, v in enumerate(graph.variables) if len(v.categories) == classes]
    if len(places) != 1:
        raise ValueError(
            f"network was trained with {classes} classes, so one variable of the graph must have {classes} "
            f"categories, but {[graph.names[i] for i in places]} have."
        )
    layer = last_layers[places[0]]
    with torch.no_grad():
        if graph.variables[places[0]].kind == "binary":
            layer.weight.copy_((embedding[1] - embedding[0])[:, None])
            layer.bias.copy_(embedding[0])
        else:
            layer.weight.copy_(embedding.T)
        encoder.absent[places[0]] = embedding.mean(dim=0)
    return conditional, encoder


def _attends(network: UNet) -> bool:
    """Whether a UNet attends to tokens; by its config, as it may be compiled."""
    return "cross_attention_dim" in network.config


def _time_embedding_size(network: UNet) -> int:
    return network.config["time_embedding_dim"] or 4 * network.config["block_out_channels"][0]
