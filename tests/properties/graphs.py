"""Causal graphs, good ones and those with one defect."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.properties.junk import JUNK, OBJECTS

Variables = list[dict[str, Any]]

NO_STRINGS = st.sampled_from([value for value in OBJECTS if not isinstance(value, str)])
NO_LISTS = st.sampled_from([None, 3, "ab", b"ab", {"a": 0}, {"a", "b"}, math.nan, np.array(["a", "b"]), object()])
NO_BOUNDS = st.sampled_from(
    [math.nan, math.inf, -math.inf, "0", True, [], [1], 10**400, -(10**400), 1e39, 3j, object()]
)
NO_NAMES = st.sampled_from([[None], ["a", None], [1.5, 2.5], [True, False], [{}, []], ["a", ["b"]], [b"a", b"b"]])


@st.composite
def good_graphs(draw: st.DrawFn) -> Variables:
    """Up to four variables, causes first."""
    variables: Variables = []
    for i in range(draw(st.integers(1, 4))):
        variable: dict[str, Any] = {
            "name": f"v{i}",
            "kind": draw(st.sampled_from(["binary", "categorical", "continuous"])),
        }
        if variable["kind"] == "continuous":
            if draw(st.booleans()):
                low = draw(st.floats(1e-30, 1e30))
                variable |= {"low": low, "high": low * draw(st.floats(1.01, 1e6)), "log": True}
            else:
                low = draw(st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6)))
                variable |= {"low": low, "high": low + draw(st.floats(0.1, 1e6))}
            variable["unit"] = draw(st.sampled_from(["", "years", "ä%d{}"]))
        else:
            names = st.lists(st.one_of(st.text(max_size=4), st.integers(0, 9)), min_size=2, max_size=4, unique_by=str)
            variable["categories"] = ["no", "yes"] if variable["kind"] == "binary" else draw(names)
        parents = [f"v{j}" for j in range(i) if draw(st.booleans())]
        variables.append(variable | ({"parents": parents} if parents else {}))
    return variables


def _spoil_field(draw: st.DrawFn, variable: dict[str, Any]) -> str:
    """Spoil one field of a variable; gives back its name."""
    discrete = variable["kind"] != "continuous"
    few = st.sampled_from([[], ["a"], ["a", "a"], ["a", "b", "a"], [1, "1"]])
    bad: dict[str, st.SearchStrategy[Any]] = {
        "name": st.one_of(NO_STRINGS, st.sampled_from(["", "image"])),
        "kind": st.one_of(NO_STRINGS, st.sampled_from(["", "Binary", "ordinal", "image"])),
        "parents": st.one_of(NO_LISTS, NO_NAMES, st.sampled_from([["nobody"], [variable["name"]], ["v0", "v0"]])),
        "categories": st.one_of(NO_LISTS, NO_NAMES, few if discrete else st.just(["a", "b"])),
        "low": st.one_of(
            NO_BOUNDS, st.just(0) if discrete else st.sampled_from([None, variable.get("high"), 1e31 * 1e6])
        ),
        "high": st.one_of(NO_BOUNDS, st.just(1) if discrete else st.sampled_from([None, variable.get("low"), -1e37])),
        "log": st.sampled_from([None, 0, 1, "true", [], [1], np.array([1, 2]), *([True] if discrete else [])]),
        "unit": NO_STRINGS,
    }
    field = draw(st.sampled_from(sorted(bad)))
    variable[field] = draw(bad[field])
    is_its_own_parent = (
        field == "parents" and isinstance(variable[field], list) and variable[field] == [variable["name"]]
    )
    return "cycle" if is_its_own_parent else "parent" if field == "parents" else field


@st.composite
def bad_graphs(draw: st.DrawFn) -> tuple[Any, str]:
    """A graph with one defect, and a word that a message about it has."""
    variables = draw(good_graphs())
    variable = draw(st.sampled_from(variables))
    defect = draw(
        st.sampled_from(["field", "field", "field", "field", "cycle", "twice", "lacks", "unknown", "junk", "no list"])
    )
    if defect == "field":
        return variables, _spoil_field(draw, variable)
    if defect == "cycle":
        ring = [
            {"name": f"r{i}", "kind": "binary", "categories": ["a", "b"], "parents": [f"r{i - 1}"]} for i in range(9)
        ]
        size = draw(st.integers(1, 9))
        ring[0]["parents"] = [f"r{size - 1}"]
        return draw(st.permutations(variables + ring[:size])), "cycle"
    if defect == "twice":
        return [*variables, variable], variable["name"]
    if defect == "lacks":
        del variable[draw(st.sampled_from(["name", "kind"]))]
        return variables, "needs a name and a kind"
    if defect == "unknown":
        key = draw(st.one_of(st.text(max_size=5).map("x{}".format), st.integers(), st.none(), st.just((1, 2))))
        return [*variables[:-1], variables[-1] | {key: draw(JUNK)}], "unknown fields"
    if defect == "junk":
        none = st.sampled_from([x for x in OBJECTS if not isinstance(x, dict)])
        return [*variables, draw(none)], "variables"
    return draw(
        st.sampled_from([None, 3, "age", {}, {"age": 1}, set(), iter([]), b"ab", [], (), np.zeros(2)])
    ), "variable"


@st.composite
def spoiled_graphs(draw: st.DrawFn) -> Any:
    """A graph with anything anywhere, which may be good or bad."""
    variables = draw(good_graphs())
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(["graph", "variable", "field", "field", "field", "entry", "entry"]))
        variable = draw(st.sampled_from(variables))
        if place == "graph":
            return draw(JUNK)
        if place == "variable":
            return [*variables, draw(JUNK)]
        if place == "field":
            fields = ["name", "kind", "parents", "categories", "low", "high", "log", "unit"]
            variable[draw(st.sampled_from(fields))] = draw(JUNK)
        elif place == "entry":
            variable[draw(st.sampled_from(["parents", "categories"]))] = draw(st.lists(JUNK, max_size=3))
    return variables
