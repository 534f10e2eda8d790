"""One attribute of an image: its values, and how they become columns of a tensor.

===========  =======  =====================================================================
kind         columns  encoding
===========  =======  =====================================================================
binary       1        0 for ``categories[0]``, 1 for ``categories[1]``
categorical  C        one-hot over ``categories``
continuous   1        ``low..high`` mapped linearly to [-1, 1]; with ``log``, its logarithm
===========  =======  =====================================================================
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from softcft.arguments import is_finite, plain, shown

__all__ = ["Kind", "Variable", "has_no_values", "is_list"]

Kind = Literal["binary", "categorical", "continuous"]
ROUNDING = 1.001 * 2.0**-25  # half of the last bit of float32 in [0.5, 1], plus 0.1 % for the arithmetic
LARGEST_LOG = math.log(sys.float_info.max)


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One attribute of the image.

    Attributes:
        name: Unique name.
        kind: ``"binary"``, ``"categorical"`` or ``"continuous"``.
        parents: Names of the variables that cause this one.
        categories: Category names of a discrete variable, in encoding order; exactly two if binary.
        low: Smallest value of a continuous variable, in ``unit``. Encoded as -1.
        high: Largest value of a continuous variable, in ``unit``. Encoded as 1.
        log: Encode the logarithm of a continuous variable, such as a volume or a dose; ``low`` must be above 0.
        unit: Unit of a continuous variable, for texts and figures.

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
            if not is_list(names) or not all(isinstance(n, str | int) and not isinstance(n, bool) for n in names):
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
        for field in ("low", "high"):
            object.__setattr__(self, field, plain(getattr(self, field)))
        if self.categories:
            raise ValueError(f"Variable '{self.name}' is continuous and takes no categories, got {self.categories}.")
        largest = torch.finfo(torch.float32).max  # values come in float32, too
        if not all(is_finite(bound, largest) for bound in (self.low, self.high)):
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
        number = len(self.categories)
        if number < 2 or (self.kind == "binary" and number > 2):
            wanted = "exactly" if self.kind == "binary" else "at least"
            raise ValueError(
                f"Variable '{self.name}' is {self.kind} and needs {wanted} two categories, got {list(self.categories)}."
            )

    @property
    def width(self) -> int:
        """Number of columns of the encoded variable."""
        return len(self.categories) if self.kind == "categorical" else 1

    @property
    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high`` of a continuous variable."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def encode(self, values: Any) -> Tensor:
        """Encode natural values as float32 of shape (B, width).

        Args:
            values: A scalar (B is 1) or a list, array or tensor of length B: numbers in [low, high] for a continuous
                variable, category names for a discrete one.

        Raises:
            ValueError: If a value is not a number, is NaN, lies outside [low, high], or is no category.
        """
        if hasattr(values, "tolist") and not has_no_values(values):
            values = values.tolist()
        # Entries may be scalars of NumPy or PyTorch.
        values = [
            value.item() if getattr(value, "ndim", None) == 0 and not has_no_values(value) else value
            for value in (values if is_list(values) else [values])
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
        least, most = self.bounds
        # Float32 round trips may overshoot the ends a little.
        below, above = (least, most) if self.log else (most - least,) * 2
        if not least - 1e-5 * below <= value <= most + 1e-5 * above:  # also false for NaN
            raise ValueError(f"'{self.name}' must lie in [{least:g}, {most:g}]{self._in_unit()}, got {shown(value)}.")
        low, high = self._encoded_range()
        if self.log:
            value = math.log(value)
        return min(max(2 * (value - low) / (high - low) - 1, -1.0), 1.0)

    def _decode_number(self, encoded: float) -> float:
        low, high = self._encoded_range()
        value = low + (encoded + 1) / 2 * (high - low)
        error = ROUNDING * (high - low) / 2
        if self.log:
            value = math.inf if value > LARGEST_LOG else math.exp(value)
            error *= value
        if math.isfinite(value) and error > 0:
            value = _shortest(value, error)
        if abs(encoded) <= 1:  # what a network predicts may lie outside
            value = min(max(value, float(self.bounds[0])), float(self.bounds[1]))
        return value

    def _encoded_range(self) -> tuple[float, float]:
        low, high = self.bounds
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def _in_unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _index(self, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            value = shown(value)  # digits and grades are categories that people write as numbers
        if not isinstance(value, str) or value not in self.categories:
            raise ValueError(f"'{self.name}' has no category {shown(value)}; use one of {list(self.categories)}.")
        return self.categories.index(value)

    def decode(self, encoded: Tensor) -> list[Any]:
        """B natural values of encoded ones (B, width); the inverse of :meth:`encode`.

        A number is the shortest decimal that encodes to the same float32: 54 and not 53.999999. Discrete columns may
        hold probabilities: the most probable category is taken.
        """
        if self.kind == "continuous":
            return [self._decode_number(value) for value in encoded[:, 0].tolist()]
        return [self.categories[i] for i in self.category_index(encoded).tolist()]

    def category_index(self, encoded: Tensor) -> Tensor:
        """The index of the most probable category, int64 of shape (...); 0 for a continuous variable.

        Args:
            encoded: Labels or probabilities, shape (..., width).
        """
        if self.kind == "categorical":
            return encoded.argmax(dim=-1)
        return (encoded[..., 0] > 0.5).long() if self.kind == "binary" else torch.zeros_like(encoded[..., 0]).long()

    def category_probabilities(self, encoded: Tensor) -> Tensor:
        """The probability of each category, shape (..., C), two for a binary variable; 1 for a continuous one.

        Args:
            encoded: Labels or probabilities, shape (..., width).
        """
        if self.kind == "categorical":
            return encoded
        return torch.cat([1 - encoded, encoded], dim=-1) if self.kind == "binary" else torch.ones_like(encoded)

    def other_category(self, encoded: Tensor, steps: int | Tensor) -> Tensor:
        """Another category of a discrete variable, encoded, shape (B, width).

        Args:
            encoded: Labels, shape (B, width).
            steps: By how many categories it comes after the own one, cyclically, from 1 to C - 1: one number, or int64
                of shape (B,).
        """
        other = (self.category_index(encoded) + steps) % len(self.categories)
        others = other[:, None]
        if self.kind == "categorical":  # one-hot; PyTorch's function waits for the device
            others = others == torch.arange(self.width, device=other.device)
        return others.to(encoded.dtype)

    # ---- in words ---------------------------------------------------------------------------------------------

    def in_words(self, value: Any, digits: int = 3, with_unit: bool = True) -> str:
        """A value as text: a category, or a number of a few significant digits with its unit."""
        if self.kind != "continuous":
            return str(value)
        # Rounded first, for 1230 is easier to read than 1.23e+03.
        return f"{float(f'{value:.{digits}g}'):g}{self._in_unit() if with_unit else ''}"

    def values_in_words(self) -> str:
        """The categories, or the range of a continuous variable with its unit."""
        if self.kind != "continuous":
            return ", ".join(self.categories)
        return f"{self.low:g} to {self.high:g}{self._in_unit()}"


def _shortest(value: float, error: float) -> float:
    """The decimal with the fewest digits that is no further off than error."""
    digits = math.ceil(-math.log10(2 * error))  # after the point; below 0, zeros before it
    shortest = value
    # Fewer digits are never nearer, so the search ends at the first that are too far off, or at 0.
    while shortest and abs(round(value, digits) - value) <= error:
        shortest = round(value, digits)
        digits -= 1
    return shortest


def is_list(value: Any) -> bool:
    """Whether a value is a sequence other than text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def has_no_values(value: Any) -> bool:
    """Whether a value is a tensor that cannot be read entry by entry."""
    return isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided)
