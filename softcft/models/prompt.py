"""The text that a pretrained network is told with all images, encoded once; attributes are added to its tokens."""

from __future__ import annotations

from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from softcft.arguments import check_whole
from softcft.models.weights import SafetensorsOnly

__all__ = ["PromptEmbedding", "image_size", "mask", "pooled", "text"]


class PromptEmbedding(SafetensorsOnly, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers declares config_name twice
    """What the text encoders of a pipeline made of one prompt, so that they are not needed again. It is not trained.

    Args:
        num_tokens: L, of the text, padding among them.
        token_dim: D, the size of each.
        pooled_dim: P, the size of the embedding of the whole text; None if the network takes none.
        masked: Whether the network must not see some of the tokens.
        image_size: Side of the images in pixels, which some networks (SDXL, PixArt) are told as well. Left out, they
            are told eight times the side of what they take, which is right for latents of their own VAEs.

    Attributes:
        tokens: Shape (L, D).
        pooled: Shape (P,), or None.
        mask: Which tokens the network sees, boolean, shape (L,), or None: all.

    Raises:
        ValueError: If a size is no whole number of at least 1.
    """

    tokens: Tensor
    pooled: Tensor | None
    mask: Tensor | None

    @register_to_config
    def __init__(
        self,
        num_tokens: int,
        token_dim: int,
        pooled_dim: int | None = None,
        masked: bool = False,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_whole("num_tokens", num_tokens)
        check_whole("token_dim", token_dim)
        if pooled_dim is not None:
            check_whole("pooled_dim", pooled_dim)
        if image_size is not None:
            check_whole("image_size", image_size)
        self.register_buffer("tokens", torch.zeros(num_tokens, token_dim))
        self.register_buffer("pooled", None if pooled_dim is None else torch.zeros(pooled_dim))
        self.register_buffer("mask", torch.ones(num_tokens, dtype=torch.bool) if masked else None)

    @classmethod
    def of(
        cls, tokens: Tensor, pooled: Tensor | None = None, mask: Tensor | None = None, image_size: int | None = None
    ) -> Self:
        """Of what text encoders have made: tokens (L, D), pooled (P,) or None, mask (L,) or None, not 0 where seen.

        Raises:
            ValueError: If shapes are others, or the mask hides all tokens.
        """
        for name, value, shape in (
            ("tokens", tokens, [*tokens.shape, 0, 0][:2]),
            ("pooled", pooled, None if pooled is None else [pooled.numel()]),
            ("mask", mask, [len(tokens)]),
        ):
            if value is not None and list(value.shape) != shape:
                raise ValueError(f"{name} must have shape {tuple(shape or ())}, got {tuple(value.shape)}.")
        if mask is not None and not mask.any():
            raise ValueError("mask must show at least one token, for attributes are added to those that are seen.")
        prompt = cls(*tokens.shape, None if pooled is None else len(pooled), mask is not None, image_size)
        prompt.tokens = tokens.detach().clone()
        prompt.pooled = None if pooled is None else pooled.detach().to(tokens.dtype, copy=True)
        prompt.mask = None if mask is None else mask.detach() != 0
        return prompt

    def forward(self, attributes: Tensor) -> Tensor:
        """The text with tokens of attributes (B, V, D) added to its last tokens that are seen, shape (B, L, D).

        The last of a text are mostly padding. If fewer than V are seen, several attributes share one.
        """
        places = torch.arange(len(self.tokens)) if self.mask is None else self.mask.nonzero().flatten()
        places = places.to(attributes.device)
        variables = attributes.shape[1]
        own = places[-1 - torch.arange(variables - 1, -1, -1, device=places.device) % len(places)]
        return self.tokens.to(attributes).expand(len(attributes), -1, -1).index_add(1, own, attributes)


def text(prompt: PromptEmbedding | None, tokens: Tensor) -> Tensor:
    """The tokens of a text to which those of attributes (B, V, D) were added, or these alone, shape (B, L, D)."""
    return tokens if prompt is None else prompt(tokens)


def mask(prompt: PromptEmbedding | None, tokens: Tensor) -> Tensor | None:
    """Which tokens of :func:`text` a network sees, 1 or 0 of the type of ``tokens``, shape (B, L); None: all."""
    if prompt is None or prompt.mask is None:
        return None
    return prompt.mask.to(tokens).expand(len(tokens), -1)


def pooled(prompt: PromptEmbedding | None, tokens: Tensor, size: int) -> Tensor:
    """The embedding of a whole text, zeros where there is none, shape (B, size)."""
    if prompt is None or prompt.pooled is None:
        return tokens.new_zeros(len(tokens), size)
    return prompt.pooled.to(tokens).expand(len(tokens), -1)


def image_size(prompt: PromptEmbedding | None, noisy: Tensor) -> int:
    """What a network is told of the side of the images in pixels, see :class:`PromptEmbedding`."""
    told: int | None = None if prompt is None else prompt.config["image_size"]
    return told or 8 * noisy.shape[-1]
