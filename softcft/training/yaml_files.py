"""YAML files by the scalar rules of YAML 1.2: ``1e-3`` is a number, and ``no`` is a word.

By YAML 1.1, PyYAML's, the first is a string and the second is false.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["dump_yaml", "load_yaml", "parse_yaml"]

SCALARS = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
"""What is no word, by the rules of YAML 1.2, and how it begins. Codes such as 007 and dates are words."""

MOST_ENTRIES = 100_000  # of a YAML file: a few lines of aliases can stand for more than any memory holds


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, see :data:`SCALARS`."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML reads this class attribute

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A node's value. PyYAML raises many kinds of errors for a bad one, such as KeyError for ``!!bool maybe``."""
        try:
            return super().construct_object(node, deep=True)  # then one that contains itself is refused, too
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"this is no {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error


class _Dumper(yaml.SafeDumper):
    """Puts what :class:`_Loader` would take for something else in quotes."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


for kind, (pattern, first) in SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"), first)


def dump_yaml(config: Mapping[str, Any]) -> str:
    """A mapping as text that :func:`load_yaml` reads as the same."""
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False)


def load_yaml(path: Path) -> Any:
    """The content of a YAML file, see :func:`parse_yaml`."""
    return parse_yaml(path.read_bytes(), str(path))


def parse_yaml(content: str | bytes, name: str) -> Any:
    """The value that a text of YAML, of that name in messages, stands for.

    Raises:
        ValueError: If it is no valid YAML, or has more than 100,000 entries.
    """
    try:
        loader = _Loader(content if isinstance(content, str) else content.decode())
        node = loader.get_single_node()
        if _entries(node, {}) > MOST_ENTRIES:
            raise ValueError(
                f"{name} has more than {MOST_ENTRIES:,} entries, with those that aliases (*name) repeat; write fewer."
            )
        return None if node is None else loader.construct_document(node)
    except (RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{name} is not valid YAML: {error}") from error


def _entries(node: Any, known: dict[int, float]) -> float:
    """How many entries a node has. An alias counts as many as what it repeats."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: a node that contains itself has no end
        content = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in content for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_entries(part, known) for part in parts)
    return known[id(node)]
