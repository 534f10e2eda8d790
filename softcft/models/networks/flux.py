"""``FluxTransformer2DModel``: tokens are some of those of the text, which the network transforms with the image's.

It takes patches of 2 x 2 latents as a sequence. Its config has no size: ``register_to_config(sample_size=...)`` adds
the number of patches along a side.
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from softcft.models.networks import Conditions, Prompt
from softcft.models.prompt import pooled, text

GUIDANCE = 3.5
"""What a distilled network is told that its guidance is, unless its pipeline is told otherwise."""


def conditions(network: FluxTransformer2DModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    return Conditions(network.config["joint_attention_dim"], pooled_size=network.config["pooled_projection_dim"])


def predict(
    network: FluxTransformer2DModel, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: Prompt | None
) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    height, width = noisy.shape[2:]
    words = text(prompt, tokens)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(noisy)
    guidance = None
    if network.config["guidance_embeds"]:
        guidance = torch.full((len(noisy),), GUIDANCE, device=noisy.device)
    sequence = network(
        noisy.flatten(2).transpose(1, 2),
        encoder_hidden_states=words,
        pooled_projections=pooled(prompt, tokens, network.config["pooled_projection_dim"]),
        timestep=timestep / 1000,
        img_ids=places,
        txt_ids=places.new_zeros(words.shape[1], 3),
        guidance=guidance,
        return_dict=False,
    )[0]
    return sequence.transpose(1, 2).unflatten(2, (height, width))
