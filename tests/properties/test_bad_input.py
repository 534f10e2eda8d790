"""Whatever people pass either works or is refused by a message of softcft's own, before any network is asked.

Each property tries inputs that are known to be bad, whose message must name what is wrong, or anything at all.
Sizes that are fine but do not fit into memory are left out: there the machine refuses.
"""

import io
import math
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softcft import (
    AttributeClassifier,
    AttributeSCM,
    CausalGraph,
    DiffusionDSCMPipeline,
    DSCMPipeline,
    HVAEModel,
    Intervention,
    ParentEncoder,
    Variable,
)
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.training.parsing import parse_config, write_config
from tests.models.test_denoiser import GRAPH
from tests.own_models import Sampler
from tests.pipelines import test_counterfactual, test_diffusion_dscm, test_dscm
from tests.properties import calls
from tests.properties.graphs import bad_graphs, good_graphs, spoiled_graphs
from tests.properties.junk import JUNK, OBJECTS
from tests.properties.models import BAD_WHOLE, CLASSIFIER, ENCODER, HVAE, bad_arguments, bad_entries, bad_tensors
from tests.properties.models import SCM as SCM_ARGUMENTS
from tests.properties.outcome import attempt, is_refusal, refuse, tally
from tests.properties.settings_files import RECIPES, bad_settings, flags, small, spoiled_settings

pytestmark = pytest.mark.slow


def examples(number: int) -> Any:
    """That many, the same ones each time."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# ---- graphs -------------------------------------------------------------------------------------------------------


def use(variables: Any) -> None:
    """Whatever is taken for a graph does what graphs do."""
    graph = CausalGraph(variables)
    assert CausalGraph(graph.to_list()) == graph
    assert repr(graph)
    values = {v.name: [v.low, v.high] if v.kind == "continuous" else v.categories[:2] for v in graph.variables}
    encoded = graph.encode(values)
    assert encoded.isfinite().all()
    torch.testing.assert_close(graph.encode(graph.decode(encoded)), encoded, rtol=0, atol=1e-5)
    assert graph.affected(graph.encode_do(values, 2).mask).all()


@examples(150)
@given(good_graphs())
def test_good_graphs_work(variables: Any) -> None:
    assert attempt(use, variables) is None


@examples(700)
@given(bad_graphs())
def test_bad_graphs_are_refused(case: tuple[Any, str]) -> None:
    variables, word = case
    refuse(word, CausalGraph, variables)


@examples(400)
@given(spoiled_graphs())
def test_graphs_with_anything_in_them_work_or_are_refused(variables: Any) -> None:
    attempt(use, variables)


@examples(300)
@given(st.data())
def test_bad_values_are_refused_by_the_graph(data: st.DataObject) -> None:
    batch = data.draw(st.integers(2, 3))
    encode = data.draw(st.sampled_from([PHANTOM_GRAPH.encode, PHANTOM_GRAPH.encode_do]))
    values = data.draw(calls.bad_values(PHANTOM_GRAPH, batch, part=encode == PHANTOM_GRAPH.encode_do))
    refuse("", encode, values, batch)


@examples(300)
@given(st.data())
def test_graphs_are_asked_anything(data: st.DataObject) -> None:
    function = data.draw(
        st.sampled_from(
            ["encode", "encode_do", "decode", "affected", "expand", "affected_by", "descendants", "__getitem__"]
        )
    )
    anything = data.draw(JUNK)
    good = calls.row(PHANTOM_GRAPH, 0)
    spoiled = st.sampled_from(
        [
            (anything, 1),
            (good, anything),
            ({**good, "age": anything}, 1),
            ({**good, "sex": anything}, 1),
            ({anything if isinstance(anything, str | int) else 3: 1}, 1),
        ]
    )
    arguments = data.draw(spoiled) if function.startswith("encode") else (anything,)
    attempt(getattr(PHANTOM_GRAPH, function), *arguments)


# ---- the model of the attributes ------------------------------------------------------------------------------------

SCM = test_dscm.build().attribute_scm
VALUES = PHANTOM_GRAPH.encode({name: values for name, values in test_dscm.PARENTS.items()})
DO = PHANTOM_GRAPH.encode_do({"age": 40, "race": "White"}, 3)


@examples(400)
@given(st.data())
def test_bad_tensors_are_refused_by_the_model_of_the_attributes(data: st.DataObject) -> None:
    function = data.draw(
        st.sampled_from(
            ["log_prob", "abduct", "predict", "counterfactual", "do", "mask", "do in predict", "do in sample"]
        )
    )
    tensor = data.draw(bad_tensors(VALUES))
    entries = data.draw(st.one_of(bad_entries(VALUES), bad_tensors(VALUES)))
    if function == "log_prob":
        refuse("values", SCM.log_prob, tensor)
    elif function == "predict":
        refuse("noise", SCM.predict, tensor)
    elif function == "abduct":
        refuse("values", SCM.abduct, entries)
    elif function == "counterfactual":
        refuse("values", SCM.counterfactual, entries, PHANTOM_GRAPH.encode_do({}, 3))
    else:
        mask = data.draw(bad_tensors(DO.mask)) if function == "mask" else torch.ones_like(DO.mask)
        do = Intervention(VALUES if function == "mask" else entries, mask)
        if data.draw(st.integers(0, 3)) == 0:
            do = data.draw(st.sampled_from([thing for thing in OBJECTS if thing is not None]))
        if function == "do in sample":
            refuse("intervention", SCM.sample, 3, do)
        elif function == "do in predict":
            refuse("intervention", SCM.predict, torch.zeros_like(VALUES), do)
        else:
            refuse("intervention", SCM.counterfactual, VALUES, do)


@examples(100)
@given(st.sampled_from(calls.BAD_GENERATORS), st.sampled_from(["abduct", "counterfactual", "sample", "do"]))
def test_bad_generators_are_refused_by_the_model_of_the_attributes(generator: Any, function: str) -> None:
    if function == "abduct":
        refuse("generator", SCM.abduct, VALUES, generator)
    elif function == "counterfactual":
        refuse("generator", SCM.counterfactual, VALUES, DO, generator)
    elif function == "sample":
        refuse("generator", SCM.sample, 3, None, generator)
    else:
        refuse("generator", SCM.sample, 3, DO, generator)


# ---- pipelines ------------------------------------------------------------------------------------------------------

PIPELINES = {
    "hvae": (test_dscm.build(), PHANTOM_GRAPH, 16, calls.HVAE_ARGUMENTS, {}),
    "diffusion": (test_diffusion_dscm.build(), GRAPH, 8, calls.DIFFUSION_ARGUMENTS, {"num_inference_steps": 2}),
    "own": (test_counterfactual.make(Sampler()), PHANTOM_GRAPH, 16, calls.SHARED, {}),
}
WEIGHTS = {
    kind: {
        f"{part}.{name}": tensor.clone()
        for part, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
        for name, tensor in model.state_dict().items()
    }
    for kind, (pipe, *_) in PIPELINES.items()
}


def good_call(data: st.DataObject, kind: str, batch: int) -> dict[str, Any]:
    _, graph, size, _, extra = PIPELINES[kind]
    return {
        "image": data.draw(calls.good_images(batch, size)),
        "parents": data.draw(calls.good_values(graph, batch)),
        "do": data.draw(calls.good_values(graph, batch, part=True)),
        "mask": data.draw(st.sampled_from([None, np.tri(size, dtype=bool), np.stack([np.tri(size)] * batch)])),
        **extra,
    }


@pytest.mark.parametrize("kind", PIPELINES)
@examples(15)
@given(data=st.data())
def test_good_calls_work(kind: str, data: st.DataObject) -> None:
    assert attempt(PIPELINES[kind][0], **good_call(data, kind, data.draw(st.integers(1, 3)))) is None


@pytest.mark.parametrize("kind", PIPELINES)
@examples(700)
@given(data=st.data())
def test_bad_calls_are_refused(kind: str, data: st.DataObject) -> None:
    pipe, graph, size, arguments, _ = PIPELINES[kind]
    batch = data.draw(st.sampled_from([2, 3]))
    call = good_call(data, kind, batch)
    name = data.draw(st.sampled_from(["image", "image", "image", "parents", "parents", "do", "do", *arguments]))
    if name == "image":
        call[name] = data.draw(calls.bad_images(size))
    elif name in ("parents", "do"):
        call[name] = data.draw(calls.bad_values(graph, batch, part=name == "do"))
    else:
        call[name] = data.draw(st.sampled_from(arguments[name]))
    refuse(name, pipe, **call)


@pytest.mark.parametrize("kind", PIPELINES)
@examples(250)
@given(data=st.data())
def test_calls_with_anything_work_or_are_refused(kind: str, data: st.DataObject) -> None:
    pipe, graph, _, arguments, _ = PIPELINES[kind]
    call = good_call(data, kind, data.draw(st.integers(1, 3)))
    name = data.draw(st.sampled_from(["image", "parents", "do", "value", "value", "value", *arguments]))
    if name == "value":
        call["do"] = {data.draw(st.sampled_from(graph.names)): data.draw(JUNK)}
    else:
        call[name] = data.draw(JUNK)
    attempt(pipe, **call)


@pytest.mark.parametrize("kind", PIPELINES)
@examples(150)
@given(data=st.data())
def test_bad_requests_for_samples_are_refused(kind: str, data: st.DataObject) -> None:
    pipe, graph, _, arguments, extra = PIPELINES[kind]
    call: dict[str, Any] = {"num_images": 3, **extra}
    name = data.draw(
        st.sampled_from(
            [
                "num_images",
                "do",
                *({"generator", "output_type", "num_inference_steps", "guidance_scale"} & set(arguments)),
            ]
        )
    )
    if name == "do":
        call[name] = data.draw(calls.bad_values(graph, 3, part=True))
    else:
        call[name] = data.draw(st.sampled_from(BAD_WHOLE if name == "num_images" else arguments[name]))
    refuse(name, pipe.sample, **call)


@examples(100)
@given(st.sampled_from(["hvae", "attribute_scm", "classifier"]), st.sampled_from(OBJECTS))
def test_components_that_are_none_are_refused(name: str, anything: Any) -> None:
    parts = {**PIPELINES["hvae"][0].components, name: anything}
    if not (name == "classifier" and anything is None):
        refuse(name, DSCMPipeline, **parts)


@examples(100)
@given(
    st.sampled_from(
        ["unet", "parent_encoder", "scheduler", "attribute_scm", "classifier", "vae", "transformer", "prompt"]
    ),
    st.sampled_from(OBJECTS),
)
def test_components_of_a_diffusion_model_that_are_none_are_refused(name: str, anything: Any) -> None:
    parts = {**PIPELINES["diffusion"][0].components, name: anything}
    if not (name in ("classifier", "vae", "transformer", "prompt") and anything is None):
        refuse(name, DiffusionDSCMPipeline, **parts)


# ---- settings -------------------------------------------------------------------------------------------------------


def read(folder: Path, section: str, text: str | None, argv: list[str] = []) -> None:  # noqa: B006
    """Read settings, and if they are taken, write them and read them again."""
    path = folder / "settings.yaml"
    path.write_text(yaml.dump(small(section)) if text is None else text, encoding="utf-8", errors="surrogatepass")
    config, *_ = parse_config(section, *RECIPES[section], default_config=path, argv=argv)
    config["output_dir"] = str(folder / "run")
    write_config(config, folder / "run")
    again, *_ = parse_config(
        section, *RECIPES[section], default_config=path, argv=["--config", str(folder / "run" / "config.yaml")]
    )
    assert repr(again) == repr(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@examples(450)
@given(case=bad_settings())
def test_bad_settings_are_refused(folder: Path, case: tuple[str, str, str]) -> None:
    section, text, word = case
    refuse(word, read, folder, section, text)


@examples(200)
@given(case=spoiled_settings())
def test_files_with_anything_in_them_work_or_are_refused(folder: Path, case: tuple[str, str]) -> None:
    section, text = case
    attempt_usage(read, folder, section, text)


@examples(200)
@given(case=flags())
def test_flags_with_anything_in_them_work_or_are_refused(folder: Path, case: tuple[str, list[str]]) -> None:
    section, argv = case
    attempt_usage(read, folder, section, None, argv)


def attempt_usage(call: Any, *args: Any) -> None:
    """Attempt, where the program may also end in argparse's way: with usage and what is wrong, and no traceback."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            attempt(call, *args)
    except SystemExit as exit_:
        if not isinstance(exit_.code, str) and not (exit_.code == 2 and "error: " in said.getvalue()):
            raise
        tally["refused"] += 1


# ---- models ---------------------------------------------------------------------------------------------------------

MODELS = {
    "HVAEModel": (HVAEModel, HVAE),
    "AttributeClassifier": (AttributeClassifier, CLASSIFIER),
    "AttributeSCM": (AttributeSCM, SCM_ARGUMENTS),
    "ParentEncoder": (ParentEncoder, ENCODER),
}


@pytest.mark.parametrize("name", MODELS)
@examples(250)
@given(data=st.data())
def test_bad_arguments_of_models_are_refused(name: str, data: st.DataObject) -> None:
    model, good = MODELS[name]
    arguments, word = data.draw(bad_arguments(name, good))
    with torch.device("meta"):
        refuse(word, model, **arguments)


@pytest.mark.parametrize("name", MODELS)
@examples(60)
@given(data=st.data())
def test_models_are_made_of_anything_or_refuse_it(name: str, data: st.DataObject) -> None:
    model, good = MODELS[name]
    argument = data.draw(st.sampled_from(sorted(good)))
    with torch.device("meta"):
        attempt(model, **{**good, argument: data.draw(JUNK)})


# ---- what no property prints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--config", "--graph"])
@pytest.mark.parametrize("name", ["x" * 5000, "\x00", "\udcff", "nowhere.yaml"])
def test_files_that_cannot_be_are_refused(folder: Path, flag: str, name: str) -> None:
    refuse(flag, read, folder, "hvae", None, [flag, name])


LONG = 10**5000
"""An integer of more digits than Python prints."""


@pytest.mark.parametrize(
    ("word", "call"),
    [
        ("age", lambda: PHANTOM_GRAPH.encode({**calls.row(PHANTOM_GRAPH, 0), "age": LONG})),
        ("sex", lambda: PHANTOM_GRAPH.encode_do({"sex": LONG}, 1)),
        ("no variable", lambda: PHANTOM_GRAPH.encode_do({LONG: 1}, 1)),
        ("low", lambda: CausalGraph([{"name": "a", "kind": "continuous", "low": -LONG, "high": LONG}])),
        ("z_dim", lambda: HVAEModel(**{**HVAE, "z_dim": LONG})),
        ("beta", lambda: HVAEModel(**{**HVAE, "beta": LONG})),
        ("num_inference_steps", lambda: PIPELINES["diffusion"][0].sample(num_inference_steps=LONG)),
        ("guidance_scale", lambda: PIPELINES["diffusion"][0].sample(guidance_scale=LONG)),
        ("num_images", lambda: PIPELINES["hvae"][0].sample(LONG)),
    ],
)
def test_integers_longer_than_python_prints_are_refused(word: str, call: Any) -> None:
    refuse(word, call)


@pytest.mark.parametrize("given_back", [None, 3, {"latents": None}, {"latents": torch.zeros(1)}])
def test_callbacks_that_give_back_nothing_useful_are_refused(given_back: Any) -> None:
    image, values = torch.full((1, 1, 8, 8), 0.5), calls.row(GRAPH, 0)
    with pytest.raises(ValueError, match=r"callback_on_step_end must return a dict") as error:
        PIPELINES["diffusion"][0](image, values, num_inference_steps=2, callback_on_step_end=lambda *_: given_back)
    assert is_refusal(error.value)


def test_what_a_logarithm_cannot_hold_decodes_to_infinity() -> None:
    """A classifier's mean of an odd image may lie far beyond the range."""
    volume = Variable(name="volume", kind="continuous", low=1, high=1000, log=True)
    assert volume.decode(torch.tensor([[-1.0], [1e4]])) == [1.0, math.inf]


# ---- all together ---------------------------------------------------------------------------------------------------


def test_no_weight_has_changed() -> None:
    for kind, (pipe, *_) in PIPELINES.items():
        for name, before in WEIGHTS[kind].items():
            part, _, key = name.partition(".")
            assert torch.equal(pipe.components[part].state_dict()[key], before), name


def test_more_than_5000_inputs_were_refused(request: pytest.FixtureRequest) -> None:
    here = {item.originalname for item in request.session.items if item.path == request.path}
    if not {name for name in globals() if name.startswith("test_")} - {"test_dscm", "test_diffusion_dscm"} <= here:
        pytest.skip("counts the inputs of all tests of this file, and some of them were left out")
    assert tally["refused"] > 5000
    assert tally["worked"] > 200
