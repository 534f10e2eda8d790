r"""The structural causal model of the attributes: one invertible mechanism per variable of a causal graph.

Each variable is a function of its parents and of its own exogenous noise, ``value = f(parents, noise)``. Pearl's three
steps then give counterfactuals: *abduction* infers the noise of the observed values, *action* replaces the mechanisms
of the intervened variables, *prediction* runs the mechanisms again with the same noise.

===========  ===========================  ================================  =====================================
kind         noise                        value                             abduction
===========  ===========================  ================================  =====================================
continuous   normal                       inverse neural spline flow [1]_   exact, deterministic
binary       logistic                     1 where logit + noise > 0         draw from p(noise | value)
categorical  Gumbel, one each category    one-hot argmax(logits + noise)    draw from p(noise | value): the maximum
                                          [2]_                              first, the others below it [3]_
===========  ===========================  ================================  =====================================

References:
    .. [1] Durkan et al., *Neural Spline Flows*, 2019. https://arxiv.org/abs/1906.04032
    .. [2] Oberst and Sontag, *Counterfactual Off-Policy Evaluation with Gumbel-Max Structural Causal Models*, 2019.
       https://arxiv.org/abs/1905.05824
    .. [3] Maddison et al., *A\* Sampling*, 2014. https://arxiv.org/abs/1411.0030
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from softcft.arguments import check_generator, check_whole, check_wholes, plain, shown, takes_any_numbers
from softcft.graph import CausalGraph, Intervention, Variable
from softcft.models.mechanisms import GumbelMechanism, LogisticMechanism, SplineMechanism
from softcft.models.weights import SafetensorsOnly
from softcft.noise import Generator

__all__ = ["AttributeSCM"]


def _without_autocast(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a method in full precision, also under autocast: see ``_keep_in_fp32_modules``."""

    @functools.wraps(method)
    def run(self: AttributeSCM, *args: Any, **kwargs: Any) -> Tensor:
        self._check_loaded()
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


class AttributeSCM(SafetensorsOnly, ModelMixin, ConfigMixin):
    """Structural causal model of the attributes of an image.

    Values are encoded tensors of shape (B, K), see :class:`~softcft.graph.CausalGraph`. Noise has the same shape, each
    variable's in the columns of its value. Both are computed in float32 or better, whatever the type of the values.

    Args:
        graph: The variables as plain data, see :meth:`~softcft.graph.CausalGraph.to_list`, in any order.
        num_bins: Number of bins of the spline of each continuous variable.
        hidden_features: Widths of the hidden layers of the networks that condition a mechanism on its parents.

    Attributes:
        causal_graph: The graph built from ``graph``.

    Raises:
        ValueError: If the graph is invalid, ``num_bins`` is no whole number of at least 2, or ``hidden_features`` no
            list of whole numbers of at least 1.

    Example:
        >>> scm = AttributeSCM([
        ...     {"name": "sex", "kind": "binary", "categories": ["male", "female"]},
        ...     {"name": "age", "kind": "continuous", "low": 20, "high": 90, "unit": "years", "parents": ["sex"]},
        ... ])
        >>> factual = scm.causal_graph.encode({"sex": "male", "age": [40, 90]})
        >>> do = scm.causal_graph.encode_do({"age": 55}, batch_size=2)
        >>> scm.causal_graph.decode(scm.counterfactual(factual, do))
        {'sex': ['male', 'male'], 'age': [55.0, 55.0]}
    """

    # Rounded weights would be other mechanisms, and half precision would save next to nothing.
    _keep_in_fp32_modules = ["mechanisms"]  # noqa: RUF012 - the loader wants a list

    @takes_any_numbers
    @register_to_config
    def __init__(
        self, graph: list[dict[str, Any]], num_bins: int = 8, hidden_features: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        check_whole("num_bins", num_bins, least=2)
        check_wholes("hidden_features", hidden_features)
        self.causal_graph = CausalGraph(graph)
        # A list in graph order: as keys of a ModuleDict, names such as "type" or "v1.2" would clash.
        self.mechanisms = nn.ModuleList()
        for variable in self.causal_graph.variables:
            parents_width = sum(self.causal_graph[parent].width for parent in variable.parents)
            if variable.kind == "continuous":
                self.mechanisms.append(SplineMechanism(parents_width, num_bins, hidden_features))
            elif variable.kind == "binary":
                self.mechanisms.append(LogisticMechanism(parents_width, hidden_features))
            else:
                self.mechanisms.append(GumbelMechanism(parents_width, variable.width, hidden_features))

    def forward(self, values: Tensor) -> Tensor:
        """The same as :meth:`log_prob`."""
        return self.log_prob(values)

    @_without_autocast
    def log_prob(self, values: Tensor) -> Tensor:
        """Log-likelihood under the observational distribution, differentiable.

        Args:
            values: Encoded values, shape (B, K), NaN where a variable's value is missing.

        Returns:
            Shape (B,), in nats: the sum of log densities in encoded units and log probabilities of the variables that
            are not missing and have no missing parent.

        Raises:
            ValueError: If ``values`` are not encoded values of this graph.
        """
        self._check_encoded("values", values)
        graph = self.causal_graph
        known = ~graph.any_column(values.isnan())
        # A missing value is replaced by any valid one, and the terms that it enters get the weight 0.
        some = torch.zeros_like(values)
        for variable in graph.variables:
            if variable.kind == "categorical":
                some[:, graph.slices[variable.name].start] = 1
        columns = self._columns(torch.where(graph.expand(known), values, some))
        terms = []
        for name in graph.names:
            term = self._mechanism(name).log_prob(columns[name], self._parents(name, columns))
            needed = [known[:, graph.names.index(n)] for n in (name, *graph[name].parents)]
            terms.append(term * torch.stack(needed).all(dim=0))
        return torch.stack(terms).sum(dim=0)

    @_without_autocast
    def abduct(self, values: Tensor, generator: Generator = None) -> Tensor:
        """Infer noise (B, K) of encoded values (B, K), from which :meth:`predict` gives these values.

        Args:
            values: Encoded values, shape (B, K).
            generator: Randomness of the discrete variables' posterior draw: one, or a list with one per sample.

        Raises:
            ValueError: If ``values`` are not encoded values of this graph, or ``generator`` is neither one nor B.
        """
        columns = self._columns(values)
        normal = self.causal_graph.split(self._normal(len(values), generator, values.dtype))
        noise = [
            self._mechanism(n).abduct(columns[n], self._parents(n, columns), normal[n]) for n in self.causal_graph.names
        ]
        return torch.cat(noise, dim=1)

    def predict(self, noise: Tensor, intervention: Intervention | None = None) -> Tensor:
        """Run the mechanisms on noise (B, K), causes before effects, to encoded values (B, K).

        Variables of the ``intervention`` take its values in place of their mechanism's.

        Raises:
            ValueError: If ``noise`` has the wrong shape or NaN, or ``intervention`` the wrong shape or values.
        """
        self._check_encoded("noise", noise)
        if noise.isnan().any():
            raise ValueError(f"noise must be numbers, got NaN in {int(noise.isnan().sum())} places.")
        if intervention is not None:
            self._check_intervention(intervention, len(noise))
        return self._predict(noise, intervention)

    @_without_autocast
    def _predict(self, noise: Tensor, intervention: Intervention | None) -> Tensor:
        if intervention is None:
            intervention = Intervention(noise, noise.new_zeros(len(noise), len(self.causal_graph), dtype=torch.bool))
        noises, given = self.causal_graph.split(noise), self.causal_graph.split(intervention.values)
        columns: dict[str, Tensor] = {}
        for name in self.causal_graph.causal_order:
            value = self._mechanism(name).predict(noises[name], self._parents(name, columns))
            is_given = intervention.mask[:, self.causal_graph.names.index(name), None]
            columns[name] = torch.where(is_given, given[name], value)
        return torch.cat([columns[name] for name in self.causal_graph.names], dim=1)

    def counterfactual(self, values: Tensor, intervention: Intervention, generator: Generator = None) -> Tensor:
        """What the values would have been under the intervention, with the same noise.

        Each sample has its own intervention, on none, one or several variables. Variables that are intervened on take
        their given values exactly. Their other descendants are predicted from their abducted noise. All others keep
        their factual values exactly: the null intervention returns ``values``.

        Args:
            values: Factual encoded values, shape (B, K).
            intervention: One for each sample.
            generator: Randomness of the abduction: one, or a list with one per sample.

        Returns:
            Counterfactual encoded values, shape (B, K).

        Raises:
            ValueError: If ``values`` are not encoded values of this graph, ``intervention`` has the wrong shape or
                values, or ``generator`` is neither one nor B.
        """
        self._check_encoded("values", values)
        self._check_intervention(intervention, len(values))
        given = torch.where(self.causal_graph.expand(intervention.mask), intervention.values, values)
        # Variables that cannot change are held at their factual values, which makes them exact, also as parents.
        held = intervention.mask | ~self.causal_graph.affected(intervention.mask)
        return self._predict(self.abduct(values, generator), Intervention(given, held))

    @torch.no_grad()
    def sample(self, n: int, intervention: Intervention | None = None, generator: Generator = None) -> Tensor:
        """Draw n samples, observational or under an intervention.

        Args:
            n: Number of samples.
            intervention: One for each of the n samples.
            generator: Randomness: one, or a list with one per sample.

        Returns:
            Encoded values, shape (n, K), without gradient.

        Raises:
            ValueError: If ``n`` is no whole number of at least 1, ``intervention`` has the wrong shape or values, or
                ``generator`` is neither one nor n.
        """
        n = plain(n)
        check_whole("n", n)
        self._check_loaded()
        if intervention is not None:
            self._check_intervention(intervention, n)
        normal = self.causal_graph.split(self._normal(n, generator, self.dtype))
        noise = torch.cat([self._mechanism(name).noise(normal[name]) for name in self.causal_graph.names], dim=1)
        return self._predict(noise, intervention)

    def _mechanism(self, name: str) -> Any:
        return self.mechanisms[self.causal_graph.names.index(name)]

    def _parents(self, name: str, columns: dict[str, Tensor]) -> Tensor | None:
        parents = [columns[parent] for parent in self.causal_graph[name].parents]
        return torch.cat(parents, dim=1).to(self.dtype) if parents else None

    def _normal(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        check_generator(generator, n)
        dtype = torch.promote_types(dtype, torch.float32)
        return randn_tensor((n, self.causal_graph.width), generator=generator, device=self.device, dtype=dtype)

    def _columns(self, values: Tensor) -> dict[str, Tensor]:
        """The checked values of each variable."""
        self._check_encoded("values", values)
        self._refuse("values are", ~self._is_encoded(values))
        return self.causal_graph.split(values.to(torch.promote_types(values.dtype, torch.float32)))

    def _check_loaded(self) -> None:
        if self.device.type == "meta":  # its splines keep weights from one layer to the next
            raise ValueError(
                "AttributeSCM has its weights on device 'meta': it cannot be offloaded layer by layer. It is small: "
                "leave it where it computes, as enable_sequential_cpu_offload of a pipeline does."
            )

    def _check_encoded(self, argument: str, encoded: Tensor) -> None:
        self._check_loaded()
        self.causal_graph.check_encoded(argument, encoded)
        if self._is_elsewhere(encoded):
            raise ValueError(f"{argument} is on {encoded.device}, but the model is on {self.device}; move one of them.")

    def _is_elsewhere(self, tensor: Tensor) -> bool:
        here, there = self.device, tensor.device
        return (here.type, here.index or 0) != (there.type, there.index or 0)  # a CPU may be called cpu or cpu:0

    def _check_intervention(self, intervention: Intervention, batch_size: int) -> None:
        if not isinstance(intervention, Intervention):
            raise ValueError(f"intervention must be made by causal_graph.encode_do, got {shown(intervention)}.")
        values, mask = intervention
        self._check_encoded("values of intervention", values)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout != torch.strided:
            raise ValueError(
                f"mask of intervention must be a bool tensor, got {shown(mask)}; use causal_graph.encode_do."
            )
        expected = (batch_size, self.causal_graph.width), (batch_size, len(self.causal_graph))
        if (tuple(values.shape), tuple(mask.shape)) != expected or self._is_elsewhere(mask):
            raise ValueError(
                f"intervention must have values of shape {expected[0]} and a bool mask of shape {expected[1]} on "
                f"{self.device}, got {tuple(values.shape)} and {tuple(mask.shape)} on {mask.device}; use "
                f"causal_graph.encode_do."
            )
        self._refuse("values of intervention are", mask & ~self._is_encoded(values))

    def _is_encoded(self, values: Tensor) -> Tensor:
        """Which values are valid for their variable: bool of shape (B, V), False for NaN."""
        columns = self.causal_graph.split(values)
        return torch.stack([_is_encoded(v, columns[v.name]) for v in self.causal_graph.variables], dim=1)

    def _refuse(self, subject: str, invalid: Tensor) -> None:
        # A program that torch.export makes cannot look at values.
        if not torch.compiler.is_exporting() and invalid.any():
            wrong = [self.causal_graph.names[i] for i in invalid.any(dim=0).nonzero()[:, 0].tolist()]
            raise ValueError(
                f"{subject} not encoded for {wrong}: binary columns must be 0 or 1, categorical ones one-hot, "
                f"continuous ones in [-1, 1]; use causal_graph.encode."
            )


def _is_encoded(variable: Variable, value: Tensor) -> Tensor:
    """Which rows of a variable's columns (B, width) are valid: bool of shape (B,)."""
    if variable.kind == "continuous":
        return (value.abs() <= 1 + 1e-4).all(dim=1)
    zero_or_one = ((value == 0) | (value == 1)).all(dim=1)
    return zero_or_one if variable.kind == "binary" else zero_or_one & (value.sum(dim=1) == 1)
