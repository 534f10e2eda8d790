"""``DiTTransformer2DModel``: tokens are summed up and added to the embedding of "no class"."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from softcft.models.networks import Conditions, Prompt


def conditions(network: DiTTransformer2DModel | Transformer2DModel) -> Conditions:
    """See :class:`softcft.models.networks.Family`."""
    return Conditions(network.config["num_attention_heads"] * network.config["attention_head_dim"], reads_text=False)


def predict(
    network: DiTTransformer2DModel | Transformer2DModel,
    noisy: Tensor,
    timestep: Tensor,
    tokens: Tensor,
    prompt: Prompt | None,
) -> Tensor:
    """See :class:`softcft.models.networks.Family`."""
    take_tokens(network)
    return network(noisy, timestep=timestep, class_labels=tokens.sum(dim=1), return_dict=False)[0]


class _ClassOrTokens(LabelEmbedding):
    """As diffusers' of the same weights, but what is no number of a class is added to the embedding of no class."""

    def forward(self, labels: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        if not labels.is_floating_point():
            return super().forward(labels, force_drop_ids)  # type: ignore[arg-type]
        # The table is called, for it may lie elsewhere until then: weights can be offloaded layer by layer.
        none = torch.full((len(labels),), self.num_classes, device=labels.device)
        return self.embedding_table(none) + labels


def take_tokens(network: Any) -> None:
    """Let the class embedding of each block take tokens in place of a class."""
    for block in network.transformer_blocks:
        own = block.norm1.emb.class_embedder
        if not isinstance(own, _ClassOrTokens):
            taking = _ClassOrTokens(1, 1, own.dropout_prob)
            taking.embedding_table, taking.num_classes = own.embedding_table, own.num_classes
            block.norm1.emb.class_embedder = taking.train(own.training)
