"""Turns the attributes of a causal graph into tokens that condition a network of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from softcft.arguments import check_whole, takes_any_numbers
from softcft.graph import CausalGraph
from softcft.models.weights import SafetensorsOnly

__all__ = ["ParentEncoder"]


class ParentEncoder(SafetensorsOnly, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers declares config_name twice
    """One token for each variable, which can be left out of an image one by one.

    A variable that is left out has a learned token of its own. Guidance needs a network that was trained with all, some
    or none of the variables.

    Args:
        graph: The causal graph as plain data (:meth:`~softcft.graph.CausalGraph.to_list`).
        embedding_dim: Size of a token, which the network tells: that of text, such as the ``cross_attention_dim`` of a
            ``UNet2DConditionModel``, or of what tokens are added to, such as the time embedding of a ``UNet2DModel``.

    Raises:
        ValueError: If the graph is invalid, or ``embedding_dim`` is no whole number of at least 1.
    """

    @takes_any_numbers
    @register_to_config
    def __init__(self, graph: list[dict[str, Any]], embedding_dim: int) -> None:
        super().__init__()
        check_whole("embedding_dim", embedding_dim)
        self.causal_graph = CausalGraph(graph)
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(1, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim))
            if variable.kind == "continuous"
            else nn.Linear(variable.width, embedding_dim)
            for variable in self.causal_graph.variables
        )
        self.absent = nn.Parameter(torch.zeros(len(self.causal_graph), embedding_dim))

    def forward(self, parents: Tensor, present: Tensor | None = None) -> Tensor:
        """Tokens of attributes, shape (B, V, embedding_dim).

        Args:
            parents: Encoded attributes, shape (B, K); those of variables that are left out may be NaN.
            present: Which variables the image is conditioned on, boolean, shape (B, V); all if left out.
        """
        columns = self.causal_graph.split(parents).values()
        if present is None:
            return torch.stack([encode(x) for encode, x in zip(self.encoders, columns, strict=True)], dim=1)
        tokens = torch.stack([encode(x.nan_to_num()) for encode, x in zip(self.encoders, columns, strict=True)], dim=1)
        return torch.where(present[:, :, None], tokens, self.absent.to(tokens.dtype))

    def silence(self) -> list[nn.Linear]:
        """Make all tokens 0 until they are trained; returns the last layer of each variable."""
        last = [[x for x in layer.modules() if isinstance(x, nn.Linear)][-1] for layer in self.encoders]
        with torch.no_grad():
            for parameter in (*nn.ModuleList(last).parameters(), self.absent):
                parameter.zero_()
        return last
