"""What becomes of an input: it works, or softcft refuses it before anything is computed. All else is a bug."""

import dis
import reprlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

import softcft
from tests.recipes.small_pipeline import RECIPES

OURS = (ValueError, TypeError, FileNotFoundError)
SOURCES = Path(softcft.__file__).parent, RECIPES

tally: Counter[str] = Counter()
"""How many inputs were refused, and how many worked."""

_computed = 0


def _count(module: Any, inputs: Any) -> None:
    global _computed
    _computed += 1


register_module_forward_pre_hook(_count)  # of every network


def is_refusal(error: BaseException) -> bool:
    """Whether softcft or a recipe has raised the error by itself, and not what they called, be it Python or C."""
    last = error.__traceback__
    assert last is not None
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    is_raised = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    is_ours = any(source in Path(code.co_filename).parents for source in SOURCES)
    return isinstance(error, OURS) and is_raised and is_ours and str(error) != ""


def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """Call, and count: the message if softcft has refused the input, None if it works."""
    before = _computed
    try:
        call(*args, **kwargs)
    except Exception as error:
        given = reprlib.repr((args, kwargs))
        if not is_refusal(error):
            raise AssertionError(f"{type(error).__name__} that is not softcft's: {error}\nfor {given}") from error
        if _computed != before:
            raise AssertionError(f"refused after networks have computed: {error}\nfor {given}") from error
        tally["refused"] += 1
        return str(error)
    tally["worked"] += 1
    return None


def refuse(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Assert that the input is refused, and that the message names what is wrong with it."""
    message = attempt(call, *args, **kwargs)
    assert message is not None, f"taken, although {name} is wrong: {reprlib.repr((args, kwargs))}"
    assert name in message
