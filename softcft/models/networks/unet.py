"""``UNet2DModel``: tokens are summed up and added to the time embedding."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from softcft.graph import CausalGraph
from softcft.models.networks import Conditions, Prompt
from softcft.models.parent_encoder import ParentEncoder


def conditions(network: UNet2DModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    if network.config["class_embed_type"] != "identity":
        raise ValueError(
            "network must have class_embed_type 'identity', so that the tokens of parent_encoder can be added to its "
            f"time embedding, got {network.config['class_embed_type']!r}; softcft.models.networks.adopt_network makes "
            "such a network of another."
        )
    return Conditions(_time_embedding_size(network), reads_text=False)


def predict(network: UNet2DModel, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: Prompt | None) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    return network(noisy, timestep, class_labels=tokens.sum(dim=1)).sample


def adopt(network: UNet2DModel, graph: CausalGraph) -> tuple[UNet2DModel, ParentEncoder]:
    """See :func:`softcft.models.networks.adopt_network`."""
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


def _time_embedding_size(network: UNet2DModel) -> int:
    return network.config["time_embedding_dim"] or 4 * network.config["block_out_channels"][0]
