import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from softcft.arguments import Count, Natural, NotNegative, Positive, ProperShare, Range, Share, check_fields


@dataclass(kw_only=True)
class Settings:
    """One field of each kind."""

    count: Count = 1
    steps: Natural | None = None
    seed: Annotated[int, Range(0, 2**32, has_high=False)] = 0
    rate: Annotated[float, Range(0, has_low=False, has_high=False)] = 0.1
    norm: Positive = math.inf
    weight: NotNegative = 0.0
    share: Share = 1.0
    decay: ProperShare = 0.0
    solver: Literal["bdia", "ddim"] | None = None
    channels: Literal[1, 3] = 1
    name: str = ""
    more: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"count": np.int64(3), "steps": 0, "seed": 2**32 - 1, "rate": 1, "norm": 1e-9, "weight": math.inf, "share": 0},
        {"solver": "ddim", "channels": 3, "decay": np.float32(0.5)},
    ],
)
def test_what_is_in_range_passes(given: dict[str, Any]) -> None:
    Settings(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("count", 2.5),
        ("count", True),
        ("count", None),
        ("steps", -1),
        ("seed", 2**32),
        ("rate", 0.0),
        ("rate", math.inf),
        ("norm", 0.0),
        ("weight", -1e-9),
        ("weight", "much"),
        ("share", 1.1),
        ("decay", 1.0),
        *((name, math.nan) for name in ("rate", "norm", "weight", "share", "decay")),
        ("solver", "euler"),
        ("channels", 2),
        ("channels", True),
        ("channels", None),
    ],
)
def test_what_is_out_of_range_is_named_by_its_flag_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^--{name} must be .*, got {value!r}\.$"):
        Settings(**{name: value})
