"""``UNet2DConditionModel``: tokens are attended to, as those of prompts; SDXL is told the size, too."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from softcft.models.networks import Conditions, Prompt
from softcft.models.prompt import image_size, mask, pooled, text


def conditions(network: UNet2DConditionModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    config = network.config
    size, added = config["cross_attention_dim"], config["addition_embed_type"]
    others = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
    if not isinstance(size, int) or added not in (None, "text_time") or any(config[other] for other in others):
        names = ("cross_attention_dim", "addition_embed_type", *others)
        raise ValueError(
            "network must attend to tokens of one size, cross_attention_dim, and have no conditions other than SDXL's, "
            f"addition_embed_type 'text_time'; it has { {name: config[name] for name in names} }."
        )
    if added is None:
        return Conditions(size, masks=True)
    return Conditions(
        size, True, config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"], True
    )


def predict(
    network: UNet2DConditionModel, noisy: Tensor, timestep: Tensor, tokens: Tensor, prompt: Prompt | None
) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    added = None
    if (pooled_size := conditions(network).pooled_size) is not None:
        side = image_size(prompt, noisy)
        # The size of the original, where it was cut, and the size that is asked for.
        sizes = torch.tensor([side, side, 0, 0, side, side], dtype=tokens.dtype, device=tokens.device)
        added = {"text_embeds": pooled(prompt, tokens, pooled_size), "time_ids": sizes.expand(len(noisy), -1)}
    return network(
        noisy,
        timestep,
        encoder_hidden_states=text(prompt, tokens),
        encoder_attention_mask=mask(prompt, tokens),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
