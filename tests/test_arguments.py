import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import softcft
from softcft.arguments import (
    Count,
    Natural,
    NotNegative,
    Positive,
    ProperShare,
    Range,
    Share,
    check_fields,
    in_terms_of_flags,
)


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
def test_what_is_out_of_range_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}\.$"):
        Settings(**{name: value})


PACKAGE = Path(softcft.__file__).parent
COMMAND_LINES = {PACKAGE / "cli.py", PACKAGE / "app" / "__init__.py", PACKAGE / "training" / "parsing.py"}
OF_CHECK_DATA = {
    PACKAGE / "data" / f"{name}.py" for name in ("draft", "keys", "report", "report_pictures", "unused_files")
}
"""What it reports, with flags to copy. These are no errors."""


def texts(tree: ast.Module) -> Iterator[ast.Constant | ast.JoinedStr]:
    """What a module may raise: not docstrings, not the help of flags, and not what is logged."""
    others: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_help = isinstance(node, ast.keyword) and node.arg in ("help", "metadata")
        is_log = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")
        if is_help or is_log or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            others |= set(ast.walk(node))
        elif isinstance(node, ast.JoinedStr):  # as one text
            others |= {part for part in ast.walk(node) if isinstance(part, ast.Constant)}
    for node in set(ast.walk(tree)) - others:
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node


@pytest.mark.parametrize(
    "path",
    sorted({*PACKAGE.rglob("*.py")} - COMMAND_LINES - OF_CHECK_DATA),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_errors_from_python_name_arguments_and_no_flags(path: Path) -> None:
    written = [ast.unparse(text) for text in texts(ast.parse(path.read_text(encoding="utf-8")))]
    sentences = [text for text in written if " " in text and not re.search(r"\.py|command line", text)]
    assert not [text for text in sentences if re.search(r"(?<![-\w'])(?<!var\()--[a-z{]", text)]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("max_train_steps must be at least 1, got 0.", "--max_train_steps must be at least 1, got 0."),
        ("cft must be one of ['none'], got 'cft'.", "--cft must be one of ['none'], got 'cft'."),
        ("vae_dir is for latents; set latents=True.", "--vae_dir is for latents; set --latents."),
        ("num_train and num_test are large", "--num_train and --num_test are large"),
        ("num_train_more is unknown", "num_train_more is unknown"),
        ("runs/num_train has no cft, nor vae_dir/x", "runs/num_train has no cft, nor vae_dir/x"),
        ("settings.yaml: 'num_train' is unknown", "settings.yaml: 'num_train' is unknown"),
        ("--num_train is a flag already", "--num_train is a flag already"),
    ],
)
def test_flags_are_named_to_those_who_gave_them(message: str, told: str) -> None:
    names = ("cft", "latents", "max_train_steps", "num_test", "num_train", "vae_dir")
    assert in_terms_of_flags(message, names) == told
