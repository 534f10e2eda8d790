"""Arguments of the pipelines' calls, good ones and bad ones."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from softcft.graph import CausalGraph
from tests.properties.junk import JUNK, OBJECTS

BAD_NUMBERS = [
    None, "50", "", b"2", math.nan, math.inf, -math.inf, -1e30, 1e39, 10**400, -(10**400), True, 3j, {}, {"a": 1},
]  # fmt: skip
BAD_NUMBERS += [
    set(), [None], ["50"], [[2.0]], [math.nan], [], [2.0] * 7, np.array(["2"]), np.zeros((2, 2)), np.array([1j]),
]  # fmt: skip
BAD_NUMBERS += [
    [np.array([1, 2])],
    torch.tensor([math.nan]),
    torch.zeros(0),
    torch.zeros(2, 2),
    torch.empty(1, device="meta"),
    object(),
]
BAD_NUMBERS += [
    [torch.zeros(3)],
    [torch.empty(1, device="meta")],
    torch.eye(3).to_sparse(),
]
BAD_CATEGORIES = [
    None, "nobody", "", " male", "63", 0.0, 1.5, True, math.nan, -1, b"male", [None], [], [[]], {}, object(),
]  # fmt: skip
BAD_CATEGORIES += [
    {"male"},
    ["nobody"],
    [["male"]],
    np.array([True]),
    torch.tensor([0.0]),
    torch.empty(1, device="meta"),
]
BAD_CATEGORIES += [[np.array(["male", "male"])], np.array([None])]


def row(graph: CausalGraph, i: int) -> dict[str, Any]:
    """Values of one image."""
    return {
        v.name: v.low + (v.high - v.low) * (i + 1) / 5
        if v.kind == "continuous"
        else v.categories[i % len(v.categories)]
        for v in graph.variables
    }


@st.composite
def good_values(draw: st.DrawFn, graph: CausalGraph, batch: int, part: bool = False) -> Any:
    """Values of all variables, or of some, in one of the forms that a call takes."""
    names = [name for name in graph.names if not part or draw(st.booleans())]
    rows = [{name: row(graph, i)[name] for name in names} for i in range(batch)]
    form = draw(st.sampled_from(["rows", "lists", "arrays", "tensors"]))
    if form == "rows":
        return rows[0] if batch == 1 and draw(st.booleans()) else rows
    wrap = {"lists": list, "arrays": np.array, "tensors": list}[form]
    values = {name: wrap([row[name] for row in rows]) for name in names}
    if form == "tensors":
        values = {n: torch.tensor(v) if graph[n].kind == "continuous" else v for n, v in values.items()}
    return values


@st.composite
def bad_values(draw: st.DrawFn, graph: CausalGraph, batch: int, part: bool = False) -> Any:
    """Values with one defect."""
    values = draw(good_values(graph, batch, part))
    defect = draw(st.sampled_from(["value", "value", "value", "key", "form", "rows", "lacks"]))
    whole = values if isinstance(values, dict) else values[0]
    if defect == "value":
        name = draw(st.sampled_from(graph.names))
        bad = BAD_NUMBERS if graph[name].kind == "continuous" else BAD_CATEGORIES
        whole[name] = draw(st.sampled_from(bad))
    elif defect == "key" or (part and defect == "lacks"):
        keys = st.sampled_from(["weight", "", "Age", "image", None, 0, True, (), "x" * 1000, frozenset()])
        whole[draw(keys)] = draw(JUNK)
    elif defect == "form":
        return draw(
            st.sampled_from(
                [x for x in OBJECTS if not isinstance(x, Mapping | list) and x is not None] + [[None], [[]], [[{}]]]
            )
        )
    elif defect == "rows":
        bad_rows: list[Any] = [
            [values] * (batch + 1),
            [],
            [*[{}] * (batch - 1), draw(JUNK.filter(lambda x: not isinstance(x, Mapping)))],
        ]
        return draw(st.sampled_from(bad_rows))
    else:
        del whole[draw(st.sampled_from(graph.names))]
    return values


@st.composite
def good_images(draw: st.DrawFn, batch: int, size: int) -> Any:
    """Grey images in one of the forms that a call takes."""
    pixels = np.linspace(0.2, 0.8, batch * size**2, dtype=np.float32).reshape(batch, size, size)
    form = draw(st.sampled_from(["pil", "array", "tensor", "batch", "bytes", "deep"]))
    if form == "array":
        return list(pixels)
    if form == "tensor":
        return torch.tensor(pixels)[:, None].to(draw(st.sampled_from([torch.float32, torch.float64, torch.float16])))
    if form == "deep":
        return list((4095 * pixels).round().astype(draw(st.sampled_from(["u2", ">i4", "i8", "f8"]))))
    if form == "batch":
        return pixels[..., None].astype(draw(st.sampled_from(["f2", ">f4", "f8", "g"])))
    eight_bits = (255 * pixels).astype(np.uint8)
    return [Image.fromarray(single) for single in eight_bits] if form == "pil" else list(eight_bits)


def _broken_picture(size: int) -> Image.Image:
    """A picture of the right size and mode whose file ends too early, which shows when its pixels are read."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:-60]))


def _closed_picture(size: int) -> Image.Image:
    picture = Image.new("L", (size, size))
    picture.close()
    return picture


@st.composite
def bad_images(draw: st.DrawFn, size: int) -> Any:
    """One picture, or a list of pictures, that no model for grey images of that size takes."""
    sizes = st.sampled_from([0, 1, size - 1, size + 1, 2 * size])
    kind = draw(st.sampled_from(["mode", "size", "dtype", "shape", "range", "tensor", "file", "none", "pixel"]))
    good = np.full((size, size), 0.5, np.float32)
    if kind == "mode":
        bad: Any = Image.new(draw(st.sampled_from(["I", "F"])), (size, size), draw(st.integers(-9, -1)))
    elif kind == "size":
        bad = Image.new("L", (draw(sizes), draw(st.sampled_from([0, size]))))
        bad = bad if draw(st.booleans()) else np.asarray(bad)
    elif kind == "dtype":
        dtypes = [
            "?", "c8", "c16", "U3", "S3", "O", "M8[s]", "m8[s]", [("a", "f4")],
        ]  # fmt: skip
        bad = np.zeros((size, size), dtype=draw(st.sampled_from(dtypes)))
    elif kind == "shape":
        shapes = [
            (), (size,), (size, size, 2), (3, size, size), (1, size, size), (2, 2, size, size), (size, size, 1, 1),
            (0, size, size, 1),
        ]  # fmt: skip
        shapes += [(2, size, size, 3), (1, 1, size, size, 1), (size, 0), (0, 0), (size, size + 1)]
        bad = np.zeros(draw(st.sampled_from(shapes)), draw(st.sampled_from([np.float32, np.uint8])))
    elif kind == "range":
        bad = good * draw(st.sampled_from([-1, 2.5, 255, -1e-3, 1e30, math.nan, math.inf, -math.inf]))
        bad = bad if draw(st.booleans()) else torch.tensor(bad)[None]
    elif kind == "pixel":
        bad = good.astype(draw(st.sampled_from(["f2", "f4", "f8", "g"])))
        bad[draw(st.integers(0, size - 1)), 0] = draw(st.sampled_from([math.nan, math.inf, -1, 1.01, 6e4]))
        if bad.dtype.itemsize >= 8:
            bad[0, 0] = draw(st.sampled_from([1e300, -1e300, math.nan]))
    elif kind == "tensor":
        tensor = torch.full((1, size, size), 0.5)
        forms = [
            tensor.int(), tensor.bool(), tensor + 0j, tensor[0], tensor[None, None], tensor[:, 1:],
            tensor.expand(3, -1, -1), tensor[:0],
        ]  # fmt: skip
        forms += [
            tensor.to("meta"),
            tensor.to_sparse(),
            tensor[None, :0],
        ]
        bad = draw(st.sampled_from(forms))
    elif kind == "file":
        bad = draw(st.sampled_from([_broken_picture, _closed_picture]))(size)
    else:
        bad = draw(st.sampled_from([x for x in OBJECTS if not isinstance(x, Image.Image)]))
    return draw(st.sampled_from([bad, [bad], [good, bad], (Image.new("L", (size, size)), bad), {"image": bad}]))


BAD_GENERATORS = [
    0, 42, "0", True, [], [None], [torch.Generator()] * 4, [torch.Generator(), 1], (torch.Generator(),),
    torch.Generator, object(),
]  # fmt: skip
BAD_CHOICES = [
    None, "", "PIL", "latent", 0, True, b"pil", [], ["pil"], {}, np.array(["pil", "np"]), torch.zeros(2), object(),
    "x" * 1000,
]  # fmt: skip
BAD_FLAGS = [None, 0, 1, "yes", "no", [], [True], np.array([True, False]), torch.tensor([0, 1]), object()]
BAD_STEPS = [
    None, 0, 1, -1, 3, 7, 999, 1001, 2.5, 10.0, "10", b"10", True, math.nan, math.inf, 10**30, [10], np.array([2, 5]),
    torch.tensor([2, 5]),
]  # fmt: skip
BAD_SCALES = [1001, 1e308,
    -1, -0.1, math.nan, math.inf, -math.inf, "1", b"1", True, [1.0], 3j, 10**400, np.array([1.0, 2.0]), torch.ones(2),
    object(),
]  # fmt: skip
BAD_MASKS = [
    True, 1, 0.5, "", b"", "nowhere.png", {}, [], [None], [[]], object(), np.zeros((0, 0)), np.ones((7, 9)), np.ones(3),
    np.zeros((8, 8)), np.zeros((16, 16), bool), np.full((16, 16), -1), np.full((16, 16), 3), np.full((8, 8), np.nan),
    np.ones((16, 16)) * 1j, np.array(["a"]), torch.zeros(2), torch.empty(1, 8, device="meta"), torch.eye(8).to_sparse(),
    Image.new("RGBA", (16, 16)), Image.new("L", (0, 0)), Image.new("F", (8, 8), 2.5),
]  # fmt: skip

SHARED = {
    "mask": BAD_MASKS,
    "generator": BAD_GENERATORS,
    "output_type": BAD_CHOICES,
    "infer_missing_parents": BAD_FLAGS,
    "fit": BAD_FLAGS,
    "return_dict": BAD_FLAGS,
}
HVAE_ARGUMENTS = {**SHARED, "effect": ["indirect", "total", *BAD_CHOICES]}
DIFFUSION_ARGUMENTS = {
    **SHARED,
    "num_inference_steps": BAD_STEPS,
    "guidance_scale": [None, *BAD_SCALES, {"nobody": 2.0}, {0: 1.0}, *({"size": scale} for scale in BAD_SCALES)],
    "invariant_guidance_scale": BAD_SCALES,
    "abduction": BAD_CHOICES,
    "callback_on_step_end": [0, "print", True, [], {}, object(), torch.zeros(2)],
}
"""For each argument values that no call takes."""
