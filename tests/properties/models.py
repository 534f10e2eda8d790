"""Arguments of the models' constructors, good ones and bad ones, and tensors for the model of the attributes."""

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from softcft.data.phantom import PHANTOM_GRAPH
from tests.properties.junk import OBJECTS

PLAIN_GRAPH = PHANTOM_GRAPH.to_list()
HVAE: dict[str, Any] = {
    "graph": PLAIN_GRAPH, "sample_size": 16, "in_channels": 1, "patch_size": 1, "resolutions": [16, 4, 1],
    "channels": [8, 8, 8], "encoder_blocks": [1, 0, 1], "decoder_blocks": [1, 1, 1], "z_dim": 2,
    "z_max_resolution": 16, "bias_max_resolution": 16, "block_type": "light", "conditional_prior": False,
    "parents_scale": [1.0] * 6, "parents_shift": [0.0] * 6, "beta": 1.0,
}  # fmt: skip
TRUNK: dict[str, Any] = {
    "model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1],
    "layer_type": "basic",
}  # fmt: skip
CLASSIFIER: dict[str, Any] = {
    "graph": PLAIN_GRAPH,
    "backbone": TRUNK,
    "scales": {"age": 0.5, "sex": 1, "race": 2.0, "disease": 1.0},
    "sees": {
        "age": {"metric": "skill", "value": 0.2, "low": 0.1, "high": 0.3},
        "sex": {"metric": "auc", "value": 0.7, "low": 0.6, "high": 0.8},
        "race": {"metric": "auc", "value": 0.7, "low": None, "high": None},
        "disease": {"metric": "auc", "value": 1, "low": 1, "high": 1},
    },
}
SCM: dict[str, Any] = {"graph": PLAIN_GRAPH, "num_bins": 4, "hidden_features": [8]}
ENCODER: dict[str, Any] = {"graph": PLAIN_GRAPH, "embedding_dim": 4}

BAD_WHOLE = [
    None, 0, -1, 1.5, 4.0, "4", b"4", True, math.nan, math.inf, 10**30, 10**400, [4], {}, np.array([4, 4]),
    torch.tensor([4, 4]), object(),
]  # fmt: skip
BAD_LISTS = [
    None, [], 16, "16", {"a": 1}, {16, 4, 1}, [16, 4], [16, 4, 1, 1], [16, 4, "1"], [16, 4, None], [16, 4, 1.0],
    [16, 4, True], [16, 4, -1], [16.0, 4.0, 1.0],
]  # fmt: skip
BAD_LISTS += [[16, 4, 10**30], [16, 4], [[16], [4], [1]], np.array([16, 4, 1]), object(), [3, 2, -1]]
BAD_COLUMNS = [
    [], [1.0] * 5, [1.0] * 7, 3, "111111", {"a": 1.0}, ["1"] * 6, [None] * 6, [math.nan] * 6, [math.inf] * 6,
    [[1.0]] * 6, [10**400] * 6, [True] * 6,
]  # fmt: skip
BAD_FLAGS = [None, 0, 1, "true", [], np.array([True, False]), object()]
BAD_BETAS = [None, 0, -1, math.nan, math.inf, "1", True, 10**400, [], 3j, np.array([1.0, 2.0]), object()]
BAD_GRAPHS = [
    None, [], 3, "age", {}, [None], [{}], [{"name": "age"}], PLAIN_GRAPH * 2, [{**PLAIN_GRAPH[0], "low": math.nan}],
]  # fmt: skip
BAD_TRUNKS = [
    None, 3, "model_type", [], ["model_type"], {}, {"model_type": "nobody"}, {"model_type": None},
    {"model_type": ["resnet"]}, {"model_type": "bert"},
]  # fmt: skip
BAD_TRUNKS += [TRUNK | {key: value} for key, value in [
    ("hidden_sizes", []), ("hidden_sizes", "8"), ("hidden_sizes", [None]), ("hidden_sizes", [-8]), ("hidden_sizes", 8),
    ("hidden_sizes", ["8"]), ("layer_type", "nobody"), ("layer_type", 3), ("depths", []), ("depths", ["1"]),
    ("depths", None), ("num_channels", "1"), ("num_channels", -1), ("embedding_size", None), ("hidden_act", "nobody"),
    (3, 4), (None, 1),
]]  # fmt: skip
GOOD_SCALES = CLASSIFIER["scales"]
BAD_SCALES = [3, [], "age", {}, {"age": 1.0}, GOOD_SCALES | {"weight": 1.0}, GOOD_SCALES | {3: 1.0}, {1: 1.0, "a": 2.0}]
BAD_SCALES += [
    GOOD_SCALES | {"sex": value}
    for value in [None, 0, -1, math.nan, math.inf, "1", True, 10**400, [1.0], np.array([1.0, 2.0])]
]
GOOD_SEES = CLASSIFIER["sees"]
BAD_SEES = [3, [], "age", {}, {"age": GOOD_SEES["age"]}, GOOD_SEES | {"weight": GOOD_SEES["age"]}]
BAD_SEES += [GOOD_SEES | {"sex": entry} for entry in [None, 0.6, "auc", [], {}, {"metric": "auc"}, math.nan]]
BAD_SEES += [
    GOOD_SEES | {"sex": GOOD_SEES["sex"] | {key: value}}
    for key, values in {"low": [math.nan, math.inf, "1", True, 2, [0.5]], "metric": [None, "mae", 3, ["auc"]]}.items()
    for value in values
]

BAD_WIDTHS = [None, 8, "8", [0], [-1], ["8"], [8.0], [None], [True], {8}, [10**30], np.array([8]), object()]
BAD_BLOCKS = ["", "heavy", None, 3, ["light"], np.array(["light", "light"]), object()]
COUNTS = ("in_channels", "patch_size", "z_dim", "z_max_resolution", "bias_max_resolution", "sample_size")

CONSTRUCTORS: dict[str, dict[str, list[Any]]] = {
    "HVAEModel": {
        **dict.fromkeys(COUNTS, BAD_WHOLE),
        **dict.fromkeys(("resolutions", "channels", "encoder_blocks", "decoder_blocks"), BAD_LISTS),
        **dict.fromkeys(("parents_scale", "parents_shift"), BAD_COLUMNS),
        "block_type": BAD_BLOCKS,
        "conditional_prior": BAD_FLAGS,
        "beta": BAD_BETAS,
        "graph": BAD_GRAPHS,
    },
    "AttributeClassifier": {"graph": BAD_GRAPHS, "backbone": BAD_TRUNKS, "scales": BAD_SCALES, "sees": BAD_SEES},
    "AttributeSCM": {"graph": BAD_GRAPHS, "num_bins": [1, *BAD_WHOLE], "hidden_features": BAD_WIDTHS},
    "ParentEncoder": {"graph": BAD_GRAPHS, "embedding_dim": BAD_WHOLE},
}
"""For each argument of each model values that are bad."""
WORDS = {"graph": "ariable", "resolutions": "resolution"}
"""What a message has where that is not the argument's name."""


@st.composite
def bad_arguments(draw: st.DrawFn, model: str, good: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Arguments of a model, one of them bad, and a word that a message about it has."""
    name = draw(st.sampled_from(sorted(CONSTRUCTORS[model])))
    return good | {name: draw(st.sampled_from(CONSTRUCTORS[model][name]))}, WORDS.get(name, name)


@st.composite
def bad_tensors(draw: st.DrawFn, good: torch.Tensor) -> Any:
    """What no function takes for a tensor like ``good``, (B, N)."""
    rows, columns = good.shape
    forms = [
        good[0], good[None], good[:, 1:], torch.cat([good, good], dim=1), good[0, 0], good.to("meta"),
        good.to_sparse(), good + 0j, good.expand(3, rows, columns), good.T[:, :, None],
        *(x for x in OBJECTS if not (isinstance(x, torch.Tensor) and x.ndim == 2)),
    ]  # fmt: skip
    return draw(st.sampled_from(forms))


@st.composite
def bad_entries(draw: st.DrawFn, good: torch.Tensor) -> torch.Tensor:
    """Encoded values of the phantom's graph with one entry that encodes nothing."""
    bad = good.clone().to(draw(st.sampled_from([torch.float32, torch.float64])))
    place = draw(st.integers(0, len(bad) - 1)), draw(st.integers(0, bad.shape[1] - 1))
    bad[place] = draw(st.sampled_from([2.0, -2.0, 1e30, math.inf, -math.inf, math.nan]))
    return bad
