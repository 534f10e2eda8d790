"""Checks of arguments: each raises a ValueError with the argument's name, its value and what it must be.

Checks take Python's numbers; :func:`plain` converts those of NumPy and PyTorch. These are imported where they are
needed: settings are read, and wrong ones refused, without the seconds that takes.
"""

from __future__ import annotations

import functools
import math
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Count",
    "Natural",
    "NotNegative",
    "Positive",
    "ProperShare",
    "Range",
    "Share",
    "check_choice",
    "check_fields",
    "check_flag",
    "check_generator",
    "check_number",
    "check_whole",
    "check_wholes",
    "in_terms_of_flags",
    "is_finite",
    "is_hub_name",
    "plain",
    "shown",
    "takes_any_numbers",
]

P = ParamSpec("P")
R = TypeVar("R")

MOST = 2**31 - 1  # the largest count; larger sizes overflow


class _Shown(reprlib.Repr):
    """A short ``repr`` of any value, also of a list that contains itself or an int that is too long to print."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 300
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 300 else f"{'-' * (value < 0)}10^{value.bit_length() * 3 // 10}"

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:  # in its own order, not sorted
        if level <= 0:
            return "{...}"
        first = islice(value.items(), self.maxdict)
        pairs = [f"{self.repr1(key, level - 1)}: {self.repr1(entry, level - 1)}" for key, entry in first]
        return "{" + ", ".join([*pairs, "..."] if len(value) > self.maxdict else pairs) + "}"


def shown(value: Any) -> str:
    """The ``repr`` of a value, shortened where it is long, for messages."""
    return _Shown().repr(value)


def plain(value: Any, depth: int = 4) -> Any:
    """Scalars of NumPy or PyTorch as Python's numbers, also in lists, tuples and dicts; all else as it is.

    Args:
        value: Any value.
        depth: Of nested lists and dicts, which may contain themselves.
    """
    import numpy as np
    import torch

    if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0:
        if value is np.ma.masked or (isinstance(value, torch.Tensor) and (value.is_meta or value.is_sparse)):
            return value
        number = value.item()
        return number if isinstance(number, int | float) else value
    if depth and type(value) in (list, tuple):
        return type(value)(plain(entry, depth - 1) for entry in value)
    if depth and type(value) is dict:
        return {key: plain(entry, depth - 1) for key, entry in value.items()}
    return value


def takes_any_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Pass all arguments of a function through :func:`plain`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*(plain(arg) for arg in args), **{name: plain(arg) for name, arg in kwargs.items()})

    return call


def is_finite(value: Any, largest: float = sys.float_info.max) -> bool:
    """Whether a value is a Python number within ``-largest..largest``."""
    # Not math.isfinite: an int may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= largest


def check_number(
    name: str, value: Any, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Raise ValueError if ``value`` is no finite number, is below ``least``, not above ``above``, or above ``most``."""
    if not (is_finite(value) and least <= value <= most and value > above):
        rules = (f" of at least {least:g}", least), (f" above {above:g}", above), (f" of at most {most:g}", most)
        given = " and".join(rule for rule, limit in rules if math.isfinite(limit))
        raise ValueError(f"{name} must be a finite number{given}, got {shown(value)}.")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError if ``value`` is no int, is below ``least``, or is above 2**31 - 1."""
    if not _is_whole(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}.")


def check_wholes(name: str, values: Any, least: int = 1) -> None:
    """Raise ValueError if ``values`` is no list of such whole numbers as :func:`check_whole` wants."""
    if not isinstance(values, list | tuple) or not all(_is_whole(value, least) for value in values):
        raise ValueError(f"{name} must be a list of whole numbers of at least {least}, got {shown(values)}.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError if ``value`` is not True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}.")


def check_choice(name: str, value: Any, choices: Sequence[str | int]) -> None:
    """Raise ValueError if ``value`` is not one of some words or numbers."""
    # Types first: an array is compared entry by entry.
    if not isinstance(value, str | int) or isinstance(value, bool) or value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {shown(value)}.")


@dataclass(frozen=True)
class Range:
    """The range of a number, as metadata of its type (``Annotated[int, Range(1)]``), see :func:`check_fields`.

    Attributes:
        low: The lower end.
        high: The upper end.
        has_low: Whether the lower end is in the range.
        has_high: Whether the upper end is in the range; of ``math.inf`` whether infinity is.
    """

    low: float
    high: float = math.inf
    has_low: bool = True
    has_high: bool = True

    def __contains__(self, value: Any) -> bool:  # NaN is in no range
        above = self.low <= value if self.has_low else self.low < value
        return above and (value <= self.high if self.has_high else value < self.high)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {'[' if self.has_low else '('}{self.low}, {self.high}{']' if self.has_high else ')'}"
        return f"{'at least' if self.has_low else '>'} {self.low}" + " and finite" * (not self.has_high)


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, has_low=False)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ProperShare = Annotated[float, Range(0, 1, has_high=False)]


def check_fields(settings: Any) -> None:
    """Check the fields of a dataclass of settings, each of which is a flag, by their types.

    A field of type ``Literal`` must have one of its values, a number with a :class:`Range` must lie in it; None is
    allowed where the type has it. Other fields are not checked.

    Raises:
        ValueError: If a value is not allowed.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if value is None and type(None) in options:
            continue
        for option in options:
            if get_origin(option) is Literal:
                check_choice(name, value, get_args(option))
            for limits in getattr(option, "__metadata__", ()):
                is_whole = option.__origin__ is int
                is_number = isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool)
                if not is_number or value not in limits:
                    kind = "" if is_number else "a whole number, " if is_whole else "a number, "
                    raise ValueError(f"{name} must be {kind}{limits}, got {shown(value)}.")


def in_terms_of_flags(message: str, names: Iterable[str]) -> str:
    """A message that names arguments, for those who gave them as flags: ``max_train_steps`` is ``--max_train_steps``.

    Names without an underscore may be words. They are taken for names only where the message begins with them, or
    where ``=True`` follows, which is left out.
    """
    known = sorted(names, key=len, reverse=True)  # a longer one may begin with a shorter one
    any_name, long_name = ("|".join(part) for part in (known, [name for name in known if "_" in name] or ["$."]))
    message = re.sub(rf"(?<![-\w./])({any_name})=True\b", r"--\1", message)
    named = rf"(^({any_name})|(?<![-\w./'])({long_name}))\b(?![./=])"
    return re.sub(named, r"--\1", message)


def is_hub_name(name: str) -> bool:
    """Whether this looks like the name of a repository of the Hub, owner/name, and not like a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def check_generator(generator: Any, batch_size: int) -> None:
    """Raise ValueError unless ``generator`` is None, a generator, or a list with one for each of a batch."""
    import torch

    given = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise ValueError(f"generator must be a torch.Generator or a list of them, got {shown(generator)}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"generator is a list of {len(generator)} for a batch of {batch_size}; give one for each.")
