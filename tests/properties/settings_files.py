"""Settings of the recipes as YAML text and flags, good ones and bad ones."""

import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hypothesis import strategies as st

from softcft.data.config import AugmentationConfig, DataConfig, SubsetConfig
from softcft.evaluation.config import EvaluationSettings, GenerationSettings
from softcft.hub.config import HubConfig
from softcft.training.cft_config import CFTConfig, DiffusionTuningConfig, SolverConfig, WatchConfig
from softcft.training.config import (
    AdapterConfig,
    DiffusionConfig,
    MemoryConfig,
    PatchConfig,
    TrainingConfig,
    ValidationConfig,
)
from softcft.training.parsing import SECTIONS
from softcft.training.yaml_files import _Dumper
from tests.recipes.small_pipeline import load_recipe

RECIPES: dict[str, tuple[type, ...]] = {
    "hvae": (DataConfig, TrainingConfig, HubConfig, MemoryConfig),
    "vae": (DataConfig, TrainingConfig, PatchConfig),
    "guide": (DataConfig, TrainingConfig, HubConfig, SubsetConfig, ValidationConfig, AugmentationConfig),
    "diffusion": (DataConfig, TrainingConfig, MemoryConfig, DiffusionConfig, AdapterConfig),
    "cft": (DataConfig, SubsetConfig, TrainingConfig, MemoryConfig, CFTConfig, AugmentationConfig, WatchConfig,
            SolverConfig, DiffusionTuningConfig, AdapterConfig, load_recipe("soft_cft").PretrainedConfig),
    "evaluate": (DataConfig, load_recipe("evaluate").EvaluateConfig, EvaluationSettings, SolverConfig),
    "generate": (DataConfig, load_recipe("generate_counterfactuals").GenerateConfig, GenerationSettings,
                 SolverConfig),
}  # fmt: skip
"""What recipes read, by section."""

HINTS = {
    section: {
        name: hint
        for one in types_
        for name, hint in get_type_hints(one).items()
        if name in {f.name for f in fields(one)}
    }
    for section, types_ in RECIPES.items()
}

WORDS = [10**30, -(10**30), 10**400, 1e308, "1e-3", "007", "no", "~", "2020-01-01", "\t", "é\u202e", "%s"]
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(WORDS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=4,
)
"""What plain YAML can hold."""

BROKEN_YAML = [
    "[", "{", "}", "a: b: c", "\t- a", "a:\n\t- b", "*nobody", "&a &b 1", "'", '"', "- a\nb: c", "? [a]\n: b\n: c",
    "%YAML 9", "@", "`x`", "!!int x", "!!int ''", "!!int 0x", "!!float x", "!!float ''", "!!bool x", "!!timestamp x",
    "!!timestamp 2020-13-45", "!!binary é", "!!null x: 1", "!!python/object/apply:os.system [ls]", "!nobody 1",
    "!!map 3", "!!seq {a: 1}", "!!omap {a: 1}", "!!pairs 3", "!!set [a]", "{<<: 3}", "{[a]: 1}", "{{a: 1}: 2}",
    "--- 1\n--- 2", "\x00", "\x07", "9" * 5000, "[" * 600, "{a: " * 600, "&a [*a]", "&a {a: *a}", "- " * 600,
]  # fmt: skip
"""Texts that are no values of YAML, or none that end."""


def small(section: str) -> dict[str, Any]:
    """What a recipe reads at toy size."""
    data = {"dataset_name": "phantom", "sample_size": 16}
    own = {"max_train_steps": 3} if TrainingConfig in RECIPES[section] else {}
    graph = [{"name": "sex", "kind": "binary", "categories": ["no", "yes"]}]
    return {"output_dir": "runs", "data": data, "graph": graph, section: own}


def bad_for(hint: Any) -> list[Any]:
    """Values that a field of that type must not get from a file."""
    optional = type(None) in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        hint, *others = (option for option in get_args(hint) if option is not type(None))
        if others:  # a number, a text with a mapping, or a mapping
            return [[], [None], [[]], "2020-01-01", True, 10**400]
    common: list[Any] = [[], {}, [None], {"a": 1}, [[]], "2020-01-01", *([] if optional else [None])]
    if hint is str:
        return [*(value for value in common if not isinstance(value, str)), 7, 1.5, True]
    if hint is int:
        return [*common, 1.5, float("inf"), float("nan"), True, "1", -(10**30), 10**30, 10**400]
    if hint is float:
        return [*common, True, "1e-3", "1", 10**400, -(10**400)]
    if hint is bool:
        return [*common, 0, 1, 0.0, "yes", "True"]
    if get_origin(hint) is Literal:
        return [*common, "nobody", True, -1, 0.5]
    return [{"a": 1}, 3, "a", True, [3], [None]]


@st.composite
def bad_settings(draw: st.DrawFn) -> tuple[str, str, str]:
    """A section, a file with one defect, and a word that a message about it has."""
    section = draw(st.sampled_from(sorted(RECIPES)))
    settings = small(section)
    place = draw(st.sampled_from(["data", section]))
    defect = draw(st.sampled_from(["value", "value", "value", "key", "section", "unknown", "lacks", "top", "text"]))
    word = place
    if defect == "value":
        word = draw(st.sampled_from(sorted(HINTS[section])))
        settings[place][word] = draw(st.sampled_from(bad_for(HINTS[section][word])))
    elif defect == "key":
        word = draw(
            st.one_of(
                st.text(st.characters(categories=["L"]), max_size=5).map("no_{}".format),
                st.sampled_from(["self", "graph", "config"]),
            )
        )
        settings[place][word] = draw(PLAIN)
    elif defect == "section":
        settings[place] = draw(st.sampled_from([[], 3, "a", True, [1], ["a"], 0.5, [{}]]))
    elif defect == "unknown":
        word = draw(
            st.one_of(
                st.integers(),
                st.sampled_from(["", "hvea", "DATA", None, True, "x" * 500]).filter(lambda x: x not in SECTIONS),
            )
        )
        settings[word] = draw(PLAIN)  # type: ignore[index]
        word = str(word)
    elif defect == "lacks":
        word = draw(st.sampled_from([section, "graph"]))
        del settings[word]
    elif defect == "top":
        return (
            section,
            yaml.dump(draw(PLAIN.filter(lambda x: not isinstance(x, dict) and x is not None)), allow_unicode=True),
            "mapping",
        )
    else:
        bad = draw(st.sampled_from(BROKEN_YAML))
        where = draw(st.sampled_from(["{bad}\n{text}", "{text}\n{bad}\n", "{text}\nutility: {bad}\n", "{bad}"]))
        text = where.format(bad=bad, text=yaml.dump(settings))
        return section, text, ""
    return (
        section,
        yaml.dump(settings, Dumper=_Dumper, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans())),
        word,
    )


@st.composite
def spoiled_settings(draw: st.DrawFn) -> tuple[str, str]:
    """A section and a file with anything anywhere, which may be good or bad."""
    section = draw(st.sampled_from(sorted(RECIPES)))
    settings = small(section)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from(["data", section, section, "graph", "columns", "output_dir"]))
        if place in ("graph", "columns", "output_dir"):
            settings[place] = draw(PLAIN)
        else:
            settings[place][
                draw(st.one_of(st.sampled_from(sorted([*HINTS[section], "model"])), st.text(max_size=4)))
            ] = draw(PLAIN)
    text = yaml.dump(settings, Dumper=_Dumper, allow_unicode=True)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 12))
        text = (
            text[:start]
            + draw(
                st.one_of(
                    st.text(max_size=4), st.sampled_from(BROKEN_YAML), st.sampled_from("\t\n:-&*!|>%@`'\"[]{}#,?")
                )
            )
            + text[end:]
        )
    return section, text


FLAG_WORDS = [
    "", "-1", "0", "1", "2", "1e400", "nan", "inf", "-inf", "9" * 5000, "1" * 400, "true", "False", "\x00",
    "a/b", "..", "/", "--", "-", "=", "@x", "%s", "none", "None", "[1]", "bf16", "ddim", "phantom", "morphomnist",
    "\udcff",
]  # fmt: skip


@st.composite
def flags(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A section and a command line with anything in it."""
    section = draw(st.sampled_from(sorted(RECIPES)))
    names = st.sampled_from(["--config", "--graph", "--dataset_name", *(f"--{name}" for name in HINTS[section])])
    words = st.one_of(st.text(max_size=5), st.sampled_from(FLAG_WORDS))
    argv: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(names, names, names, words))
        given = draw(st.lists(words, max_size=2))
        argv += [f"{name}={given[0]}"] if len(given) == 2 and draw(st.booleans()) else [name, *given]
    return section, argv
