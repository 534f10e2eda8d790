"""Values that nobody should pass, and that somebody will."""

import datetime
import decimal
import fractions
import math
import pathlib
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

ITSELF: list[Any] = []
ITSELF.append(ITSELF)

HUGE = [2**31, 2**63, 10**30, 10**400, -(10**400)]

OBJECTS: list[Any] = [
    None, True, False, 0, 1, -1, 2, *HUGE, 0.5, -0.0, 1e-320, 1e39, 1e308, -1e308, math.nan, math.inf, -math.inf, 3j,
    "", " ", "63", "nan", "1e3", "male", "female", "age", "image", "\x00", "ä\u202e", "%s %d {}", "x" * 1000,
    b"", b"63", bytearray(b"male"), memoryview(b"63"), (), [], {}, set(), frozenset({1}),
    range(3), slice(None), Ellipsis, NotImplemented, object(), object, int, len, lambda *_: None, iter([1, 2]),
    decimal.Decimal("63"), fractions.Fraction(1, 3), datetime.date(2020, 1, 1), pathlib.Path("x"), ITSELF, {1: 2},
    np.float32(63), np.int64(63), np.bool_(True), np.str_("male"), np.datetime64("2020"), np.array(63.0),
    np.array("male"), np.array([30.0, 61.0]), np.array(["male", "female"]), np.array([]), np.zeros((2, 2)),
    np.array([None, {}], dtype=object), np.array([1 + 1j]), np.zeros(2, dtype=[("a", "i4"), ("b", "f4")]),
    np.array([30.0, np.nan, 61.0]), torch.tensor(63.0), torch.tensor([30, 61, 80]), torch.tensor([]),
    torch.tensor(True), torch.zeros(2, 2), torch.tensor([math.nan]), torch.tensor([1j]), torch.empty(2, device="meta"),
    torch.eye(2).to_sparse(), torch.ones(2, requires_grad=True), torch.float32, torch.device("meta"),
    torch.nn.Linear(1, 1), torch.Generator(), Image.new("L", (16, 16)), [np.array([1, 2])], [torch.zeros(3)],
    [torch.empty(1, device="meta")],
]  # fmt: skip


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What containers can be made of some values."""
    keys = st.one_of(st.text(max_size=4), st.integers(-2, 2), st.none())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(keys, inner, max_size=3),
        ),
        max_leaves=4,
    )


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6))
JUNK = st.one_of(st.sampled_from(OBJECTS), SCALARS, nested(st.one_of(st.sampled_from(OBJECTS), SCALARS)))
