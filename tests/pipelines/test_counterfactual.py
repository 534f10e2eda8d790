"""A user's own model in a pipeline: asked, saved, loaded, evaluated and shown."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import softcft
from softcft import BackboneOutput, CounterfactualPipeline, DSCMPipeline
from softcft.data.phantom import PHANTOM_GRAPH
from tests import own_models
from tests.own_models import SAVED, SIZE, USED, Additive
from tests.pipelines.test_dscm import PARENTS, build, row, seeds
from tests.processes import run_python

IMAGE = np.linspace(0.2, 0.8, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
DO = {"sex": "female", "age": 40}


def make(model: Any, with_classifier: bool = True) -> CounterfactualPipeline:
    """With the attributes and the classifier of another pipeline; all models in evaluation mode."""
    parts = build(with_classifier=with_classifier)
    model = model.eval() if isinstance(model, torch.nn.Module) else model
    return CounterfactualPipeline(backbone=model, attribute_scm=parts.attribute_scm, classifier=parts.classifier)


def answer(pipe: Any, **arguments: Any) -> Any:
    return pipe(IMAGE, row(0), DO, generator=seeds(0)[0], output_type="np", **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "soft"
    make(Additive()).save_pretrained(folder)
    return folder


# ---- asked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", USED)
def test_a_null_intervention_returns_the_image(kind: str) -> None:
    output = make(USED[kind]())(IMAGE, row(0), output_type="np")
    np.testing.assert_allclose(output.images[0, ..., 0], IMAGE, atol=1e-5)


@pytest.mark.parametrize("kind", USED)
def test_the_answer_is_the_models(kind: str) -> None:
    model = USED[kind]()
    output = answer(make(model))
    values = [PHANTOM_GRAPH.encode(parents) for parents in (output.factual_parents, output.parents)]
    generator = seeds(0)[0]
    make(model).attribute_scm.counterfactual(values[0], PHANTOM_GRAPH.encode_do(DO, 1), generator)
    expected = model.counterfactual(2 * torch.tensor(IMAGE)[None, None] - 1, *values, generator).image
    np.testing.assert_allclose(2 * output.images[:, None, ..., 0] - 1, expected.detach().clamp(-1, 1), atol=1e-4)
    assert np.abs(output.effects).max() > 1e-3
    assert output.parents["sex"] == ["female"]


def test_interventions_on_one_image_share_its_noise() -> None:
    pipe = make(Additive())
    twice = pipe(IMAGE, row(0), [DO, DO], output_type="np").images
    np.testing.assert_array_equal(twice[0], twice[1])
    assert (answer(pipe).images != twice[:1]).any()


@pytest.mark.parametrize("generator", [None, "one", "list"])
def test_several_images_from_one_abduction(generator: str | None) -> None:
    """What evaluation asks of a backbone, though the model makes one at a time."""
    backbone = make(Additive()).make_backbone()
    image, parents = torch.rand(3, 1, SIZE, SIZE) - 0.5, PHANTOM_GRAPH.encode(PARENTS)
    others = parents.roll(1, dims=0)
    made = {None: None, "one": seeds(1)[0], "list": seeds(1, 2, 3)}[generator]
    output = backbone.counterfactual(image, parents, torch.stack([others, parents, others], dim=1), made)
    assert output.image.shape == (3, 3, 1, SIZE, SIZE)
    assert torch.equal(output.image[:, 0], output.image[:, 2])
    torch.testing.assert_close(output.image[:, 1], image)
    if generator is not None:
        again = {"one": seeds(1)[0], "list": seeds(1, 2, 3)}[generator]
        assert torch.equal(output.image[:, 0], backbone.counterfactual(image, parents, others, again).image)


def test_a_model_that_abducts_once_is_asked_once() -> None:
    once, each = own_models.Once(), Additive()
    each.load_state_dict(once.state_dict())
    asked = IMAGE, row(0), [DO, {}, DO]
    for generator in (lambda: None, lambda: seeds(1)[0], lambda: seeds(1, 2, 3)):
        answers = [make(model)(*asked, generator=generator(), output_type="np").images for model in (once, each)]
        np.testing.assert_allclose(*answers, atol=1e-6)
    assert once.abductions == 2  # not with three generators, of which each draws a noise of its own

    image, parents = torch.rand(3, 1, SIZE, SIZE) - 0.5, PHANTOM_GRAPH.encode(PARENTS)
    others = torch.stack([parents.roll(1, dims=0), parents], dim=1)
    made = [make(m).make_backbone().counterfactual(image, parents, others, seeds(1, 2, 3)).image for m in (once, each)]
    torch.testing.assert_close(*made)
    assert once.abductions == 2 + 3


def test_what_is_too_bright_is_white() -> None:
    model = Additive()
    with torch.no_grad():
        model.patterns.weight.fill_(50)
    image = np.asarray(make(model)(IMAGE, row(0), DO).images[0])
    assert set(np.unique(image)) <= {0, 255}


def test_samples() -> None:
    pipe = make(own_models.Sampler())
    output = pipe.sample(3, do={"sex": "female"}, generator=seeds(0)[0])
    assert [image.size for image in output.images] == [(SIZE, SIZE)] * 3
    assert output.parents["sex"] == ["female"] * 3
    with pytest.raises(ValueError, match=r"Additive.*sample"):
        make(Additive()).sample()


def test_half_precision(folder: Path) -> None:
    pipe = CounterfactualPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert pipe.backbone.dtype == torch.bfloat16
    assert np.abs(answer(pipe).images - answer(CounterfactualPipeline.from_pretrained(folder)).images).max() < 0.05


@pytest.mark.parametrize("kind", ["Additive", "Module"])
def test_a_model_in_training_mode_is_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = USED[kind]()
    pipe = make(model)
    answer(pipe)
    assert caplog.records == []
    model.train()
    answer(pipe)
    assert "training mode" in caplog.text


# ---- refused -------------------------------------------------------------------------------------------------------


def counterfactual(image: Tensor, parents: Tensor, others: Tensor, generator: Any = None) -> BackboneOutput:
    return BackboneOutput(image=image, fidelity=image.mean())


def toy(method: Any = counterfactual, **attributes: Any) -> Any:
    return SimpleNamespace(counterfactual=method, **{"in_channels": 1, "sample_size": SIZE, **attributes})


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (torch.nn.Linear(1, 1), "backbone .*counterfactual"),
        (None, "backbone .*counterfactual"),
        (Additive, "backbone .*class Additive"),
        (toy(lambda image, parents: image), "backbone .*generator"),
        (toy(in_channels=None), "backbone .*in_channels"),
        (toy(sample_size=None), "backbone .*sample_size"),
        (toy(sample_size=(16, 24)), "sample_size .*backbone"),
        (toy(sample_size=0), "sample_size .*backbone"),
        (toy(in_channels="grey"), "in_channels .*backbone"),
        (toy(causal_graph=softcft.CausalGraph(PHANTOM_GRAPH.to_list()[:2])), "backbone .*graph"),
    ],
)
def test_what_lacks_something_is_refused(model: Any, named: str) -> None:
    parts = build()
    with pytest.raises(ValueError, match=named):
        CounterfactualPipeline(model, parts.attribute_scm, parts.classifier)


@pytest.mark.parametrize(
    "returned",
    [
        lambda image: image,
        lambda image: None,
        lambda image: BackboneOutput(image=image[:, :, 1:]),
        lambda image: BackboneOutput(image=image[:, None]),
        lambda image: (image, image.mean()),
    ],
)
def test_what_is_no_counterfactual_is_refused(returned: Any) -> None:
    pipe = make(toy(lambda image, parents, others, generator: returned(image)))
    with pytest.raises(ValueError, match="counterfactual of backbone"):
        answer(pipe)


def test_several_counterfactuals_of_another_shape_are_refused() -> None:
    model = own_models.Once()
    model.counterfactuals = lambda image, *_: BackboneOutput(image=image)
    with pytest.raises(ValueError, match="counterfactuals of backbone"):
        make(model).make_backbone().counterfactual(
            torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2, 6), torch.zeros(2, 3, 6)
        )


def test_damaged_pixels_are_refused() -> None:
    pipe = make(toy(lambda image, *_: BackboneOutput(image=image * float("nan"))))
    with pytest.raises(ValueError, match="NaN"):
        answer(pipe)


def test_the_other_pipelines_tell_where_a_model_goes() -> None:
    parts = build()
    with pytest.raises(ValueError, match=r"hvae .*CounterfactualPipeline\(backbone"):
        DSCMPipeline(Additive(), parts.attribute_scm, parts.classifier)  # type: ignore[arg-type]


class Forgot(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Does not register its arguments."""

    in_channels, sample_size, counterfactual = 1, SIZE, staticmethod(counterfactual)

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, width)


@pytest.mark.parametrize(
    ("model", "named"), [(USED["Module"], "Module"), (USED["Object"], "Object"), (Forgot, "width")]
)
def test_what_cannot_be_saved_is_refused(model: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"backbone.*{named}"):
        make(model()).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# ---- saved and loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAVED)
def test_a_loaded_pipeline_gives_the_same_answers(kind: str, tmp_path: Path) -> None:
    pipe = make(SAVED[kind]())
    pipe.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    for loading_class in (CounterfactualPipeline, DiffusionPipeline):
        loaded = loading_class.from_pretrained(tmp_path)
        assert type(loaded) is CounterfactualPipeline
        assert type(loaded.backbone) is type(pipe.backbone)
        # Weights that lie elsewhere in memory may add up in another order.
        np.testing.assert_allclose(answer(loaded).images, answer(pipe).images, rtol=0, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    again = CounterfactualPipeline.from_pretrained(tmp_path / "again")
    assert all(
        torch.equal(value, pipe.backbone.state_dict()[name]) for name, value in again.backbone.state_dict().items()
    )


def test_parts_can_be_replaced_or_left_out(folder: Path, tmp_path: Path) -> None:
    other = make(own_models.Latents())
    for loading_class in (CounterfactualPipeline, DiffusionPipeline):
        loaded = loading_class.from_pretrained(folder, backbone=other.backbone, classifier=None)
        assert loaded.backbone is other.backbone
        assert loaded.classifier is None
    loaded.save_pretrained(tmp_path)
    assert type(CounterfactualPipeline.from_pretrained(tmp_path).backbone) is own_models.Latents
    loaded.backbone = Additive()
    loaded.save_pretrained(tmp_path / "again")
    assert type(CounterfactualPipeline.from_pretrained(tmp_path / "again").backbone) is Additive


MY_MODEL = """
import diffusers
from diffusers.configuration_utils import register_to_config
import torch

class Mine(diffusers.ModelMixin, diffusers.ConfigMixin):
    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 16):
        super().__init__()
        self.layer = torch.nn.Linear(6, 1)

    def counterfactual(self, image, parents, others, generator=None):
        from softcft import BackboneOutput
        return BackboneOutput(image=image + self.layer(others - parents)[..., None, None])
"""
ASK = """
import numpy as np
from softcft import CounterfactualPipeline

for name in "module", "script":
    try:
        CounterfactualPipeline.from_pretrained(name)
    except ValueError as error:
        print(error)

import ddim.my_model

mine = ddim.my_model.Mine.from_pretrained("script/backbone")
for name, parts in ("module", {}), ("script", {"backbone": mine}):
    pipe = CounterfactualPipeline.from_pretrained(name, **parts)
    print(pipe(np.full((16, 16), 0.5), {"age": 50}, {"sex": "female"}, infer_missing_parents=True).parents["sex"])
"""


def test_another_process_must_import_the_module(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """The class is in a module, or nowhere: then the model is passed."""
    (tmp_path / "ddim").mkdir()  # the name of a pipeline of diffusers
    (tmp_path / "ddim" / "my_model.py").write_text(MY_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    cls = importlib.import_module("ddim.my_model").Mine
    make(cls()).save_pretrained(tmp_path / "module")
    assert caplog.records == []
    monkeypatch.setattr(cls, "__module__", "__main__")  # as in a script or a notebook
    make(cls()).save_pretrained(tmp_path / "script")
    assert "Mine" in caplog.text
    module, script, *answers = run_python("-c", ASK, cwd=tmp_path).splitlines()
    assert "import ddim.my_model" in module
    assert "--modules ddim.my_model" in module
    assert "backbone=Mine.from_pretrained" in script
    assert answers == ["['female']", "['female']"]


def test_no_module_is_imported_because_a_file_names_it(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    copy = make(Additive())
    copy.save_pretrained(tmp_path / "saved")
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    for named in (["softcft", "payload:Mine"], ["payload", "Mine"], ["softcft", "os:system"], ["softcft", "sys:path"]):
        (tmp_path / "saved" / "model_index.json").write_text(json.dumps(index | {"backbone": named}))
        for loading_class in (CounterfactualPipeline, DiffusionPipeline):
            with pytest.raises(ValueError, match=":".join(named).split(":")[-2]):
                loading_class.from_pretrained(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()
