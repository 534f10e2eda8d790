"""``SD3Transformer2DModel``: tokens are some of those of the text, which the network transforms with the image's."""

from __future__ import annotations

from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor

from softcft.models.networks import Conditions, Prompt
from softcft.models.prompt import pooled, text


def conditions(network: SD3Transformer2DModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    return Conditions(network.config["joint_attention_dim"], pooled_size=network.config["pooled_projection_dim"])


def predict(
    network: SD3Transformer2DModel, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: Prompt | None
) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    return network(
        noisy,
        encoder_hidden_states=text(prompt, tokens),
        pooled_projections=pooled(prompt, tokens, network.config["pooled_projection_dim"]),
        timestep=timestep,
        return_dict=False,
    )[0]
