"""Causal graphs over image attributes: what they are, who causes whom, and how values become tensors.

A :class:`CausalGraph` is plain data. It travels inside the config of every model, so that a checkpoint knows its own
variables, categories and units. At the public surface values are in natural units and category *names*
(``{"age": 63, "sex": "female"}``); inside the library they are one encoded tensor of shape (B, K):

===========  =======  =====================================================================
kind         columns  encoding
===========  =======  =====================================================================
binary       1        0 for ``categories[0]``, 1 for ``categories[1]``
categorical  C        one-hot over ``categories``
continuous   1        ``low..high`` mapped linearly to [-1, 1]; with ``log``, its logarithm
===========  =======  =====================================================================

The image is not listed: every variable of the graph is a parent of the image. ``"image"``, the name of its column, is
no name of a variable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import networkx as nx
import torch
from torch import Tensor

from softcft.arguments import check_whole, is_finite, shown

__all__ = ["CausalGraph", "Intervention", "Variable"]

Kind = Literal["binary", "categorical", "continuous"]
Values = Mapping[str, Any]
"""Values in natural units by variable name: a scalar or a category name, or a sequence of them, one per image."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One attribute of the image.

    Attributes:
        name: Unique name.
        kind: ``"binary"``, ``"categorical"`` or ``"continuous"``.
        parents: Names of the variables that cause this one.
        categories: Category names of a discrete variable, in encoding order; exactly two if binary.
        low: Smallest value of a continuous variable, in ``unit``. Mapped to -1.
        high: Largest value of a continuous variable, in ``unit``. Mapped to 1.
        log: Encode the logarithm of a continuous variable, for volumes, doses and the like; ``low`` must be above 0.
        unit: Unit of a continuous variable, for people and figures.

    Raises:
        ValueError: If the name is empty or ``"image"``, the kind is unknown, or categories or range do not fit it.
    """

    name: str
    kind: Kind
    parents: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"Variable needs a non-empty string as its name, got {shown(self.name)}.")
        if self.name == "image":
            raise ValueError(
                "Variable 'image': this is the name of the image's column; leave the image out, or rename the "
                "variable. Every variable is a parent of the image."
            )
        for field in ("parents", "categories"):
            names = getattr(self, field)
            if not _is_list(names) or not all(isinstance(n, str | int) and not isinstance(n, bool) for n in names):
                raise ValueError(
                    f"Variable '{self.name}': {field} must be a list of names, got {shown(names)}; "
                    f"give a list, or leave {field} out if there are none."
                )
            # JSON and YAML give lists; a tuple keeps the variable hashable. Digits and grades are names, too.
            names = tuple(name if isinstance(name, str) else shown(name) for name in names)
            object.__setattr__(self, field, names)
            if len(set(names)) != len(names):
                raise ValueError(f"Variable '{self.name}': {field} has duplicates: {list(names)}.")
        if not isinstance(self.unit, str):
            raise ValueError(
                f"Variable '{self.name}': unit must be a string, got {shown(self.unit)}; put it in quotes."
            )
        if not isinstance(self.log, bool):
            raise ValueError(f"Variable '{self.name}': log must be true or false, got {shown(self.log)}.")
        if not isinstance(self.kind, str) or self.kind not in get_args(Kind):
            raise ValueError(
                f"Variable '{self.name}': unknown kind {shown(self.kind)}; use 'binary', 'categorical' or 'continuous'."
            )
        if self.kind == "continuous":
            self._check_range()
        else:
            self._check_categories()

    def _check_range(self) -> None:
        if self.categories:
            raise ValueError(f"Variable '{self.name}' is continuous and takes no categories, got {self.categories}.")
        largest = torch.finfo(torch.float32).max  # values come in float32, too
        if not all(is_finite(bound) and -largest <= bound <= largest for bound in (self.low, self.high)):
            raise ValueError(
                f"Variable '{self.name}' is continuous and needs finite low and high, got low={shown(self.low)}, "
                f"high={shown(self.high)}; give both as numbers, without quotes, of at most {largest:.1e}."
            )
        if self.log and not self.low > 0:  # type: ignore[operator]
            raise ValueError(f"Variable '{self.name}': log needs a low above 0, got low={self.low}.")
        if not self.low < self.high or len({float(end) for end in self._encoded_range()}) < 2:  # type: ignore[operator]
            raise ValueError(f"Variable '{self.name}': low must be below high, got low={self.low}, high={self.high}.")

    def _check_categories(self) -> None:
        if self.low is not None or self.high is not None or self.log:
            raise ValueError(
                f"Variable '{self.name}' is {self.kind} and takes no low, high or log, got low={shown(self.low)}, "
                f"high={shown(self.high)}, log={self.log}; leave them out."
            )
        if self.kind == "binary" and len(self.categories) != 2:
            raise ValueError(
                f"Variable '{self.name}' is binary and needs exactly two categories, got {list(self.categories)}."
            )
        if len(self.categories) < 2:
            raise ValueError(
                f"Variable '{self.name}' is categorical and needs at least two categories, got {list(self.categories)}."
            )

    @property
    def width(self) -> int:
        """Number of columns of the encoded variable."""
        return len(self.categories) if self.kind == "categorical" else 1

    def encode(self, values: Any) -> Tensor:
        """Encode values in natural units.

        Args:
            values: A scalar or a sequence (list, array or tensor) of length B: numbers in [low, high] for a
                continuous variable, category names for a discrete one.

        Returns:
            Encoded values, float32 of shape (B, width); B is 1 for a scalar.

        Raises:
            ValueError: If a value is not a number, is NaN, lies outside [low, high], or is no category.
        """
        if hasattr(values, "tolist") and not _has_no_values(values):
            values = values.tolist()
        # Lists of NumPy or PyTorch scalars are lists of plain numbers to the caller.
        values = [
            value.item() if getattr(value, "ndim", None) == 0 and not _has_no_values(value) else value
            for value in (values if _is_list(values) else [values])
        ]
        if self.kind == "continuous":
            return torch.tensor([self._encode_number(value) for value in values], dtype=torch.float32)[:, None]
        index = torch.tensor([self._index(value) for value in values], dtype=torch.long)
        if self.kind == "binary":
            return index[:, None].float()
        return torch.nn.functional.one_hot(index, self.width).float()

    def _encode_number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"'{self.name}' must be a number{self._in_unit()}, got {shown(value)}.")
        assert self.low is not None and self.high is not None
        # Float32 round trips may overshoot the ends by a hair; that is not the caller's mistake.
        below, above = (self.low, self.high) if self.log else (self.high - self.low,) * 2
        if not self.low - 1e-5 * below <= value <= self.high + 1e-5 * above:  # also false for NaN
            raise ValueError(
                f"'{self.name}' must lie in [{self.low:g}, {self.high:g}]{self._in_unit()}, got {shown(value)}."
            )
        low, high = self._encoded_range()
        if self.log:
            value = math.log(value)
        return min(max(2 * (value - low) / (high - low) - 1, -1.0), 1.0)

    def _encoded_range(self) -> tuple[float, float]:
        assert self.low is not None and self.high is not None
        return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)

    def _in_unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _index(self, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            value = shown(value)  # digits and grades are categories that people write as numbers
        if not isinstance(value, str) or value not in self.categories:
            raise ValueError(f"'{self.name}' has no category {shown(value)}; use one of {list(self.categories)}.")
        return self.categories.index(value)

    def decode(self, encoded: Tensor) -> list[Any]:
        """Decode to natural units; the inverse of :meth:`encode`.

        Args:
            encoded: Shape (B, width). Discrete columns may hold probabilities: the most probable category is taken.

        Returns:
            B numbers (continuous) or category names (discrete).
        """
        if self.kind == "continuous":
            assert self.low is not None and self.high is not None
            low, high = self._encoded_range()
            values = low + (encoded[:, 0].double() + 1) / 2 * (high - low)
            digits = 6 - math.floor(math.log10(high - low))  # float32 holds no more of them
            if self.log:  # to round a logarithm is to round to significant digits
                return [float(f"{value:.{digits + 1}g}") for value in values.exp().tolist()]
            return [round(value, digits) for value in values.tolist()]
        index = (encoded[:, 0] > 0.5).long() if self.kind == "binary" else encoded.argmax(dim=1)
        return [self.categories[i] for i in index.tolist()]


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
        variables: The variables, as :class:`Variable` or as plain dicts of its attributes. Their order is the
            column order of encoded tensors; it need not be causal.

    Attributes:
        variables: The variables in the given order.
        names: Their names.
        causal_order: The names, causes before effects.
        slices: For each name its columns in an encoded tensor of shape (B, K).
        width: K, the number of encoded columns.

    Raises:
        ValueError: If variables is not a list of :class:`Variable` and dicts or is empty, a name is given twice, a
            parent is unknown, or the graph has a cycle.

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
        if not _is_list(variables):
            raise ValueError(
                f"The variables of a causal graph must be a list, got {shown(variables)}; give one Variable or dict for "
                "each, such as {'name': 'age', 'kind': 'continuous', 'low': 0, 'high': 100}."
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
        self._reach = [[float(effect in self.affected_by(cause)) for effect in self.names] for cause in self.names]

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
        self[name]  # refuses what it has not
        return frozenset(nx.descendants(self._dag, name))

    def affected_by(self, names: str | Sequence[str] | Set[str]) -> frozenset[str]:
        """The variables that an intervention on ``names`` may move: themselves and all their descendants."""
        names = names if _is_list(names) or isinstance(names, Set) else [names]
        return frozenset[str]().union(*(self.descendants(name) | {name} for name in names))

    def affected(self, mask: Tensor) -> Tensor:
        """Which variables each image's intervention may move.

        Args:
            mask: Intervened variables, bool of shape (B, V).

        Returns:
            Intervened variables and their descendants, bool of shape (B, V).

        Raises:
            ValueError: If ``mask`` has another shape.
        """
        self._check_shape("mask", mask, "V", len(self))
        mask = mask.bool()
        return mask.float() @ torch.tensor(self._reach, device=mask.device) > 0

    def expand(self, per_variable: Tensor) -> Tensor:
        """Repeat each variable's entry over its encoded columns: (B, V) to (B, K).

        Raises:
            ValueError: If ``per_variable`` has another shape.
        """
        self._check_shape("per_variable", per_variable, "V", len(self))
        widths = torch.tensor([v.width for v in self.variables], device=per_variable.device)
        return per_variable.repeat_interleave(widths, dim=1, output_size=self.width)

    # ---- values -----------------------------------------------------------------------------------------------

    def encode(self, values: Values, batch_size: int | None = None) -> Tensor:
        """Encode one value, or one per image, of every variable.

        Args:
            values: Natural values of all variables; scalars are repeated over the batch.
            batch_size: B. Inferred from the longest entry if left out.

        Returns:
            Encoded values, float32 of shape (B, K).

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
        check_whole("batch_size", batch_size)
        values = torch.zeros(batch_size, self.width)
        mask = torch.zeros(batch_size, len(self), dtype=torch.bool)
        for name, column in self._encode_each(do, batch_size).items():
            values[:, self.slices[name]] = column
            mask[:, self.names.index(name)] = True
        return Intervention(values, mask)

    def _encode_each(self, values: Values, batch_size: int | None) -> dict[str, Tensor]:
        self._check_mapping(values)
        if batch_size is not None:
            check_whole("batch_size", batch_size)
        columns = {name: self[name].encode(value) for name, value in values.items()}
        size = batch_size or max((len(column) for column in columns.values()), default=1)
        for name, column in columns.items():
            if len(column) not in (1, size):
                raise ValueError(f"'{name}' has {len(column)} values for a batch of {size}; give 1 or {size}.")
        return {name: column.expand(size, -1) for name, column in columns.items()}

    def decode(self, encoded: Tensor) -> dict[str, list[Any]]:
        """Decode a tensor of shape (B, K) to B natural values per variable; the inverse of :meth:`encode`.

        Raises:
            ValueError: If ``encoded`` has another shape.
        """
        self.check_encoded("encoded", encoded)
        return {v.name: v.decode(encoded[:, self.slices[v.name]]) for v in self.variables}

    def check_encoded(self, argument: str, encoded: Tensor) -> None:
        """Raise ValueError, which names the argument, if it is no tensor of real numbers of shape (B, K)."""
        self._check_shape(argument, encoded, "K", self.width)
        if encoded.is_complex() or _has_no_values(encoded):
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


def _is_list(value: Any) -> bool:
    """Whether a value is a list, a tuple or the like, and not one word."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _has_no_values(value: Any) -> bool:
    """Whether a value is a tensor that cannot be read entry by entry."""
    return isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided)


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
