"""``PixArtTransformer2DModel``: tokens are attended to, as those of captions; large networks are told the size, too."""

from __future__ import annotations

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from softcft.models.networks import Conditions, Prompt
from softcft.models.prompt import image_size, mask, text


def conditions(network: PixArtTransformer2DModel | Transformer2DModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    size = network.config["caption_channels"] or network.config["cross_attention_dim"]
    if size is None:
        raise ValueError("network must attend to tokens: its cross_attention_dim is None.")
    return Conditions(size, masks=True)


def predict(
    network: PixArtTransformer2DModel | Transformer2DModel,
    noisy: Tensor,
    timestep: Tensor,
    tokens: Tensor,
    prompt: Prompt | None,
) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        ones = torch.ones(len(noisy), 1, dtype=tokens.dtype, device=tokens.device)
        added = {
            "resolution": (ones * image_size(prompt, noisy)).expand(-1, 2),
            "aspect_ratio": ones,
        }
    return network(
        noisy,
        encoder_hidden_states=text(prompt, tokens),
        encoder_attention_mask=mask(prompt, tokens),
        timestep=timestep,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
