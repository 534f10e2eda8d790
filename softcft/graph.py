"""Causal graphs over image attributes, and how values become tensors.

A :class:`CausalGraph` is plain data, saved in the config of every model. Users give values in natural units and
category *names* (``{"age": 63, "sex": "female"}``); inside the library they are one encoded tensor of shape (B, K), the
columns of each variable side by side, see :mod:`softcft.variable`. The image is not listed: every variable is its
parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import networkx as nx
import torch
from torch import Tensor

from softcft.arguments import check_whole, plain, shown
from softcft.variable import Variable, has_no_values, is_list

__all__ = ["CausalGraph", "Intervention", "Variable"]

Values = Mapping[str, Any]
"""Natural values by variable name: a number or a category name, or a sequence of them, one per image."""


class Intervention(NamedTuple):
    """An encoded ``do(...)``, possibly another one for each image of a batch.

    Attributes:
        values: Encoded values, shape (B, K). Columns of variables that are not intervened on are ignored.
        mask: Which variables are intervened on, bool of shape (B, V), V variables in graph order.
    """

    values: Tensor
    mask: Tensor


class CausalGraph:
    """A directed acyclic graph of variables, all of which are parents of the image.

    Args:
        variables: The variables, each a :class:`~softcft.variable.Variable` or a plain dict of its attributes. Their
            order is the column order of encoded tensors; it need not be causal.

    Attributes:
        variables: The variables in the given order.
        names: Their names.
        causal_order: The names, causes before effects.
        slices: For each name its columns in an encoded tensor of shape (B, K).
        width: K, the number of encoded columns.

    Raises:
        ValueError: If variables is not such a list or is empty, a name is given twice, a parent is unknown, or the
            graph has a cycle.

    Example:
        >>> graph = CausalGraph([
        ...     Variable(name="age", kind="continuous", low=20, high=90, unit="years"),
        ...     Variable(name="disease", kind="binary", categories=("healthy", "ill"), parents=("age",)),
        ... ])
        >>> graph.encode({"age": 55, "disease": "ill"})
        tensor([[0., 1.]])
        >>> sorted(graph.affected_by("age"))
        ['age', 'disease']
    """

    def __init__(self, variables: Sequence[Variable | Mapping[str, Any]]) -> None:
        if not is_list(variables):
            raise ValueError(
                f"The variables of a causal graph must be a list, got {shown(variables)}; give one Variable or "
                "dict for each, such as {'name': 'age', 'kind': 'continuous', 'low': 0, 'high': 100}."
            )
        self.variables = tuple(v if isinstance(v, Variable) else _variable_from_dict(v) for v in variables)
        if not self.variables:
            raise ValueError("A causal graph needs at least one variable, got none.")
        self.names = tuple(variable.name for variable in self.variables)
        duplicates = sorted({name for name in self.names if self.names.count(name) > 1})
        if duplicates:
            raise ValueError(f"Variable names must be unique, given more than once: {duplicates}.")
        self._dag = nx.DiGraph()
        self._dag.add_nodes_from(self.names)
        for variable in self.variables:
            for parent in variable.parents:
                if parent not in self.names:
                    raise ValueError(
                        f"Variable '{variable.name}' has unknown parent '{parent}'; the graph has {list(self.names)}."
                    )
                self._dag.add_edge(parent, variable.name)
        if not nx.is_directed_acyclic_graph(self._dag):
            cycle = [edge[0] for edge in nx.find_cycle(self._dag)]
            raise ValueError(f"The graph has a cycle: {' -> '.join([*cycle, cycle[0]])}.")
        self.causal_order: tuple[str, ...] = tuple(nx.lexicographical_topological_sort(self._dag))
        self.slices: dict[str, slice] = {}
        start = 0
        for variable in self.variables:
            self.slices[variable.name] = slice(start, start + variable.width)
            start += variable.width
        self.width = start
        self._causes = [[i for i, cause in enumerate(self.names) if v in self.affected_by(cause)] for v in self.names]

    def __len__(self) -> int:
        return len(self.variables)

    def __getitem__(self, name: str) -> Variable:
        """The variable of that name; raises ValueError with the known names if there is none."""
        if not isinstance(name, str) or name not in self.names:
            raise ValueError(f"The graph has no variable {shown(name)}; it has {list(self.names)}.")
        return self.variables[self.names.index(name)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausalGraph) and self.variables == other.variables

    def __hash__(self) -> int:
        return hash(self.variables)

    def __repr__(self) -> str:
        lines = [f"  {', '.join(v.parents) + ' -> ' if v.parents else ''}{v.name} ({v.kind})" for v in self.variables]
        return "CausalGraph(\n" + "\n".join(lines) + "\n)"

    # ---- plain data -------------------------------------------------------------------------------------------

    def to_list(self) -> list[dict[str, Any]]:
        """The graph as plain data for JSON and YAML: one dict per variable, defaults left out."""
        plain = []
        for variable in self.variables:
            fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(variable).items()}
            plain.append({k: v for k, v in fields.items() if v is not False and v not in ([], None, "")})
        return plain

    # ---- structure --------------------------------------------------------------------------------------------

    def descendants(self, name: str) -> frozenset[str]:
        """All variables that ``name`` causes, directly or not, itself excluded."""
        self[name]  # raises if there is none
        return frozenset(nx.descendants(self._dag, name))

    def affected_by(self, names: str | Sequence[str] | Set[str]) -> frozenset[str]:
        """The variables that an intervention on ``names`` may change: themselves and all their descendants."""
        several: Any = names if is_list(names) or isinstance(names, Set) else [names]
        return frozenset[str]().union(*(self.descendants(name) | {name} for name in several))

    def blanket(self, name: str) -> frozenset[str]:
        """The Markov blanket of ``name``: its causes, its effects, and the other causes of these."""
        self[name]  # raises if there is none
        effects = set(self._dag.successors(name))
        causes = set().union(*(self._dag.predecessors(each) for each in (name, *effects)))
        return frozenset(effects | causes) - {name}

    def affected(self, mask: Tensor) -> Tensor:
        """The intervened variables (bool of shape (B, V)) and their descendants, of the same shape.

        Raises:
            ValueError: If ``mask`` has another shape or type.
        """
        self._check_shape("mask", mask, "V", len(self))
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, got {mask.dtype}.")
        # Without constants, which would have to be copied to the device at each call; so are the functions below.
        return torch.stack([reduce(or_, (mask[:, i] for i in causes)) for causes in self._causes], dim=1)

    def changed(self, parents: Tensor, counterfactual_parents: Tensor) -> Tensor:
        """Which variables differ between two encoded tensors of shape (B, K), bool of shape (B, V).

        Differences of up to a ten-thousandth of the range do not count.

        Raises:
            ValueError: If a shape is wrong.
        """
        for name, values in (("parents", parents), ("counterfactual_parents", counterfactual_parents)):
            self._check_shape(name, values, "K", self.width)
        return self.any_column((counterfactual_parents - parents).abs() > 2e-4)  # encoded ranges are 2 wide

    def split(self, encoded: Tensor) -> dict[str, Tensor]:
        """The columns of each variable, shape (B, width), of a tensor of shape (B, K)."""
        return {name: encoded[:, columns] for name, columns in self.slices.items()}

    def any_column(self, mask: Tensor) -> Tensor:
        """For which variables a column is True: bool (B, K) to (B, V)."""
        return torch.stack([columns.any(dim=1) for columns in self.split(mask).values()], dim=1)

    def expand(self, per_variable: Tensor) -> Tensor:
        """Repeat each variable's entry over its encoded columns: (B, V) to (B, K).

        Raises:
            ValueError: If ``per_variable`` has another shape.
        """
        self._check_shape("per_variable", per_variable, "V", len(self))
        columns = zip(per_variable.split(1, dim=1), self.variables, strict=True)
        return torch.cat([column.expand(-1, variable.width) for column, variable in columns], dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, K) to probabilities; the means of continuous variables stay as they are."""
        columns = self.split(logits)
        for variable in self.variables:
            if variable.kind == "binary":
                columns[variable.name] = columns[variable.name].sigmoid()
            elif variable.kind == "categorical":
                columns[variable.name] = columns[variable.name].softmax(dim=1)
        return torch.cat(list(columns.values()), dim=1)

    # ---- values -----------------------------------------------------------------------------------------------

    def encode(self, values: Values, batch_size: int | None = None) -> Tensor:
        """Encode natural values of all variables, scalars or one per image, as float32 of shape (B, K).

        B is that of the longest entry if ``batch_size`` is left out.

        Raises:
            ValueError: If a variable is missing or unknown, a value is invalid, or lengths disagree.
        """
        self._check_mapping(values)
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f"No value given for {missing}; the graph needs {list(self.names)}.")
        columns = self._encode_each(values, batch_size)
        return torch.cat([columns[name] for name in self.names], dim=1)

    def encode_do(self, do: Values, batch_size: int) -> Intervention:
        """Encode an intervention ``do``: natural values of the intervened variables, scalars or one per image.

        Raises:
            ValueError: If a variable is unknown, a value is invalid, or lengths disagree with ``batch_size``.
        """
        check_whole("batch_size", batch_size := plain(batch_size))
        values = torch.zeros(batch_size, self.width)
        mask = torch.zeros(batch_size, len(self), dtype=torch.bool)
        for name, column in self._encode_each(do, batch_size).items():
            values[:, self.slices[name]] = column
            mask[:, self.names.index(name)] = True
        return Intervention(values, mask)

    def _encode_each(self, values: Values, batch_size: int | None) -> dict[str, Tensor]:
        self._check_mapping(values)
        if batch_size is not None:
            check_whole("batch_size", batch_size := plain(batch_size))
        columns = {name: self[name].encode(value) for name, value in values.items()}
        size = batch_size or max((len(column) for column in columns.values()), default=1)
        for name, column in columns.items():
            if len(column) not in (1, size):
                raise ValueError(f"'{name}' has {len(column)} values for a batch of {size}; give 1 or {size}.")
        return {name: column.expand(size, -1) for name, column in columns.items()}

    def decode(self, encoded: Tensor) -> dict[str, list[Any]]:
        """The inverse of :meth:`encode`: B natural values per variable; ValueError if the shape is not (B, K)."""
        self.check_encoded("encoded", encoded)
        return {name: self[name].decode(columns) for name, columns in self.split(encoded).items()}

    def in_words(self, values: Mapping[str, Any]) -> str:
        """The attributes of one image as text, for example ``"age 63 years, female, race ?"``.

        A category that is a number or a single letter gets its variable's name.

        Args:
            values: Natural values by name, None for an unknown one. Variables without an entry are left out.
        """
        words = []
        for variable in self.variables:
            if variable.name in values:
                value = values[variable.name]
                word = "?" if value is None else variable.in_words(value)
                is_clear = variable.kind != "continuous" and len(word) > 1 and not word.isdigit()
                words.append(word if is_clear else f"{variable.name} {word}")
        return ", ".join(words)

    def check_encoded(self, argument: str, encoded: Tensor) -> None:
        """Raise ValueError, with the argument's name, unless it is a tensor of real numbers of shape (B, K)."""
        self._check_shape(argument, encoded, "K", self.width)
        if encoded.is_complex() or has_no_values(encoded):
            raise ValueError(f"{argument} must be a dense tensor of real numbers, got {shown(encoded)}.")

    def _check_shape(self, argument: str, given: Any, letter: str, width: int) -> None:
        if not isinstance(given, Tensor):
            raise ValueError(f"{argument} must be a tensor of shape (B, {letter}), got {shown(given)}.")
        if given.ndim != 2 or given.shape[1] != width:
            raise ValueError(
                f"{argument} must have the shape (B, {letter}) with {letter} = {width}, got {tuple(given.shape)}."
            )

    @staticmethod
    def _check_mapping(values: Any) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"Values must be a dict from variable name to value, got {type(values).__name__}.")


def _variable_from_dict(fields: Mapping[str, Any]) -> Variable:
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"Each of the variables must be a Variable or a dict of its fields, got {shown(fields)}; "
            f"use the fields {list(Variable.__dataclass_fields__)}."
        )
    unknown = [field for field in fields if field not in Variable.__dataclass_fields__]
    if unknown:
        raise ValueError(
            f"Variable {shown(fields.get('name', '?'))} has unknown fields {shown(unknown)}; "
            f"use {list(Variable.__dataclass_fields__)}."
        )
    if "name" not in fields or "kind" not in fields:
        raise ValueError(f"A variable needs a name and a kind, got {shown(dict(fields))}.")
    return Variable(**fields)
