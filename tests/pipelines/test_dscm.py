import io
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softcft import AttributeClassifier, CausalGraph, DSCMPipeline, HVAEBackbone, HVAEModel
from softcft.data.phantom import PHANTOM_GRAPH, draw_block, render
from softcft.data.pictures import fit_picture
from softcft.models.sight import Sight
from softcft.noise import own_generators
from tests.small_models import TRUNK, make_hvae, make_scm, perturb

SIZE = 16
GREY = np.full((SIZE, SIZE), 0.5, np.float32)
PARENTS = {
    "age": [30.0, 61.0, 80.0],
    "sex": ["male", "female", "male"],
    "race": ["Black", "White", "Asian"],
    "disease": ["no finding", "pleural effusion", "no finding"],
}


def randomised(model: Any) -> Any:
    """An untrained model whose every output answers to every input."""
    return perturb(model, 0.2, torch.Generator().manual_seed(1)).eval()


def build(graph: CausalGraph = PHANTOM_GRAPH, channels: int = 1, with_classifier: bool = True) -> DSCMPipeline:
    torch.manual_seed(0)
    plain = graph.to_list()
    classifier = randomised(AttributeClassifier(plain, TRUNK | {"num_channels": channels}))
    with torch.no_grad():
        classifier.heads.weight[0] *= 0.05  # age stays in its range
    return DSCMPipeline(
        hvae=randomised(make_hvae(plain, in_channels=channels, channels=[8, 8, 8], z_dim=2)),
        attribute_scm=randomised(make_scm(plain)),
        classifier=classifier if with_classifier else None,
    )


@pytest.fixture(scope="module")
def pipe() -> DSCMPipeline:
    return build()


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    """Three phantom images, uint8 (3, H, W)."""
    attributes, noise = draw_block("test", 0, SIZE, seed=0)
    images = render(attributes[:3], noise[:3])
    return ((images[:, 0] + 1) * 127.5).round().byte().numpy()


@pytest.fixture(scope="module")
def images(arrays) -> list[Image.Image]:
    return [Image.fromarray(array) for array in arrays]


def first(values: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: value[0] for name, value in values.items()}


def row(i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in PARENTS.items()}


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def close(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> bool:
    return all(
        values == pytest.approx(other[name], abs=1e-3) if isinstance(values[0], float) else values == other[name]
        for name, values in one.items()
    )


# ---- what a counterfactual is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", [None, {}, [{}, {}, {}]])
def test_null_intervention_returns_the_images(pipe, images, arrays, do):
    output = pipe(images, PARENTS, do)
    assert all((np.asarray(image) == array).all() for image, array in zip(output.images, arrays, strict=True))
    assert np.abs(output.effects).max() < 1e-5
    assert close(output.parents, PARENTS)
    assert output.counterfactual_predictions["age"] == pytest.approx(output.factual_predictions["age"], abs=1e-2)


def test_intervention_moves_image_and_effects_are_in_units_of_the_grey_range(pipe, images, arrays):
    output = pipe(images, PARENTS, {"sex": ["female", "male", "female"]}, output_type="np")
    assert output.images.shape == output.effects.shape == (3, SIZE, SIZE, 1)
    assert np.abs(output.effects).max() > 0.01
    np.testing.assert_allclose(output.images - output.effects, arrays[..., None] / 255, atol=1e-5)
    assert output.counterfactual_predictions != output.factual_predictions


def test_an_intervention_that_the_guide_does_not_see_is_told_once(images, caplog):
    pipe = build()
    sight = {name: Sight("auc", 0.9, 0.8, 1.0) for name in PHANTOM_GRAPH.names}
    pipe.classifier.store_sight(sight | {"sex": Sight("auc", 0.558, 0.52, 0.6)})
    pipe(images, PARENTS, {"race": "Asian"})
    assert caplog.records == []
    for _ in range(2):
        pipe(images, PARENTS, [{"race": "Asian"}, {"sex": "female"}, {}])
    (record,) = caplog.records
    assert "sex" in record.getMessage()
    assert "55.8" in record.getMessage()


def test_only_intervened_variables_and_their_descendants_move(pipe, images):
    output = pipe(images, PARENTS, {"disease": "pleural effusion"})
    assert output.parents["disease"] == ["pleural effusion"] * 3
    assert close(output.parents | {"disease": PARENTS["disease"]}, PARENTS)
    # Age causes disease: somewhere on the way the finding must change, and nothing but age and disease may.
    ages = [20, 30, 40, 50, 60, 70, 80, 90]
    outputs = [
        pipe(images[0], row(0), {"age": ages}, generator=torch.Generator().manual_seed(seed)) for seed in range(8)
    ]
    assert len({tuple(output.parents["disease"]) for output in outputs}) > 1
    for output in outputs:
        assert output.parents["age"] == pytest.approx(ages, abs=1e-3)
        assert output.parents["sex"] == ["male"] * 8
        assert output.parents["race"] == ["Black"] * 8


def test_each_image_may_have_its_own_intervention(pipe, images):
    do = [{"sex": "female"}, {}, {"race": "White", "age": 20}]
    output = pipe(images, PARENTS, do)
    assert output.parents["sex"] == ["female", "female", "male"]
    assert output.parents["race"] == ["Black", "White", "White"]
    assert output.parents["age"] == pytest.approx([30, 61, 20], abs=1e-3)
    moved = np.abs(output.effects).max(axis=(1, 2, 3))
    assert moved[1] < 1e-5
    assert (moved[[0, 2]] > 1e-3).all()


# ---- batches and randomness ---------------------------------------------------------------------------------------


def test_batch_equals_single_calls_with_a_generator_for_each_image(pipe, images):
    do = {"age": [80, 40, 25], "race": "White"}
    batch = pipe(images, PARENTS, do, generator=seeds(7, 8, 9), output_type="np")
    for i in range(3):
        one = {"age": do["age"][i], "race": "White"}
        single = pipe(images[i], row(i), one, generator=seeds(7 + i)[0], output_type="np")
        np.testing.assert_allclose(batch.images[i], single.images[0], atol=1e-5)
        np.testing.assert_allclose(batch.effects[i], single.effects[0], atol=1e-5)
        assert {name: values[i] for name, values in batch.parents.items()} == first(single.parents)
        for name in ("sex", "race"):
            assert batch.counterfactual_predictions[name][i] == pytest.approx(
                single.counterfactual_predictions[name][0], abs=1e-4
            )


def test_one_image_with_several_interventions_shares_its_noise(pipe, images):
    values = ["White", "Asian", "Black"]
    together = pipe(images[0], row(0), {"race": values}, generator=seeds(3)[0], output_type="np")
    assert together.parents["race"] == values
    assert len(together.factual_predictions["age"]) == 3
    for i, value in enumerate(values):
        alone = pipe(images[0], row(0), {"race": value}, generator=seeds(3)[0], output_type="np")
        np.testing.assert_allclose(together.images[i], alone.images[0], atol=1e-5)
    dicts = pipe(images[0], row(0), [{"race": value} for value in values], generator=seeds(3)[0], output_type="np")
    assert (dicts.images == together.images).all()
    # Without a generator as well: the same intervention twice gives the same image twice.
    twice = pipe(images[0], row(0), {"race": ["White", "White"]}, output_type="np").images
    np.testing.assert_allclose(twice[0], twice[1], atol=1e-6)


def test_generators_make_calls_reproducible_and_their_noise_matters(pipe, images):
    def call(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return pipe(images, PARENTS, {"sex": "female"}, generator=generator, output_type="np").images

    assert (call(0) == call(0)).all()
    assert (call(0) != call(1)).any()


def test_without_a_generator_an_image_has_the_same_noise_in_any_call(pipe, images, arrays):
    together = pipe(images, PARENTS, {"age": 80}, output_type="pt").images
    with torch.random.fork_rng():
        torch.manual_seed(5)
        again = pipe(images, PARENTS, {"age": 80}, output_type="pt").images
    assert torch.equal(together, again)
    floats = torch.from_numpy(arrays.astype(np.float32) / 255)
    for i, form in enumerate([images[0], arrays[1], floats[None, 2]]):  # alone, and beside another intervention
        alone = pipe(form, row(i), {"age": [80, 20]}, output_type="pt")
        torch.testing.assert_close(alone.images[0], together[i], atol=1e-5, rtol=0)


def test_noise_of_images_is_unrelated_however_similar_they_are() -> None:
    image = -torch.ones(1, 1, 4, 4)
    other = image.clone()
    other[..., 0, 0] += 2 / 255
    draws = [torch.randn(1000, generator=generator) for generator in own_generators(torch.cat([image, other, image]))]
    assert torch.equal(draws[0], draws[2])
    assert abs(torch.corrcoef(torch.stack(draws[:2]))[0, 1]) < 0.15


# ---- forms of input and output ------------------------------------------------------------------------------------


def test_all_forms_of_images_agree(pipe, images, arrays):
    floats = arrays.astype(np.float32) / 255
    read_only = floats[..., None].astype(">f8")
    read_only.flags.writeable = False
    forms = [
        images,
        tuple(images),
        list(arrays),
        arrays[..., None],
        floats[..., None],
        floats[:, ::-1, :, None][:, ::-1],
        read_only,
        list(floats),
        torch.from_numpy(arrays)[:, None],
        torch.from_numpy(floats)[:, None],
        list(torch.from_numpy(floats)[:, None].double().requires_grad_()),
    ]
    outputs = [pipe(form, PARENTS, {"age": 50}, generator=seeds(0, 1, 2), output_type="pt").images for form in forms]
    assert not outputs[-1].requires_grad
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=0)
    singles = [images[1], arrays[1], arrays[1][..., None], torch.from_numpy(floats[1])[None]]
    for single in singles:
        output = pipe(single, row(1), {"age": 50}, generator=seeds(1)[0], output_type="pt").images
        torch.testing.assert_close(output, outputs[0][[1]], atol=1e-5, rtol=0)


def test_all_forms_of_values_agree(pipe, images):
    tensors = {"age": torch.tensor(PARENTS["age"]), **{name: tuple(PARENTS[name]) for name in ("sex", "disease")}}
    forms = [PARENTS, [row(0), row(1), row(2)], tensors | {"race": np.array(PARENTS["race"])}]
    results = [
        pipe(images, parents, do, generator=seeds(0, 1, 2), output_type="np").images
        for parents in forms
        for do in ({"sex": "male"}, {"sex": ["male"] * 3}, [{"sex": "male"}] * 3)
    ]
    assert all((result == results[0]).all() for result in results)


def test_all_forms_of_output_agree(pipe, images):
    def call(**options: Any) -> Any:
        return pipe(images, PARENTS, {"age": 50}, generator=seeds(0, 1, 2), **options)

    as_pil, as_array, as_tensor = (call(output_type=output_type) for output_type in ("pil", "np", "pt"))
    assert [image.mode for image in as_pil.images] == ["L"] * 3
    assert [image.size for image in as_pil.images] == [(SIZE, SIZE)] * 3
    assert as_array.images.min() >= 0
    assert as_array.images.max() <= 1
    np.testing.assert_array_equal(np.stack(as_pil.images), (255 * as_array.images[..., 0]).round())
    np.testing.assert_array_equal(as_tensor.images.permute(0, 2, 3, 1), as_array.images)
    np.testing.assert_array_equal(as_tensor.effects.permute(0, 2, 3, 1), as_pil.effects)
    plain = call(output_type="np", return_dict=False)
    assert isinstance(plain, tuple)
    assert (plain[0] == as_array.images).all()
    assert plain[1:2] + plain[3:] == (
        as_array.parents,
        as_array.factual_predictions,
        as_array.counterfactual_predictions,
    )


def test_colour_images(arrays):
    pipe = build(channels=3)
    colour = Image.fromarray(np.stack(arrays, axis=-1))
    assert (np.asarray(pipe(colour, row(0)).images[0]) == np.asarray(colour)).all()
    assert pipe(colour, row(0), {"age": 20}, output_type="pt").images.shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize(
    "shape", [(40, 30), (9, 50), (SIZE, 20), (31, 31, 1), (30, 40, 3), (SIZE, SIZE, 3), (SIZE, SIZE)]
)
def test_fitted_it_is_as_in_training(shape, kind, channels):
    """Pictures in files are in tests/data/test_pictures.py."""
    eight_bits = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    eight_bits.flat[0] = 255
    expected = fit_picture(Image.fromarray(eight_bits[..., 0] if shape[2:] == (1,) else eight_bits), SIZE, channels)
    scale = {"u1": 1, "u2": 16, "i4": 2**16, "f4": 1 / 255, "f8": 1 / 255}[kind]
    image = (eight_bits.astype(float) * scale).astype(kind)
    forms = [image, [image]]
    if kind in ("u1", "f4", "f8"):
        forms.append(torch.from_numpy(image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)))
    pipe = build(channels=channels, with_classifier=False)
    for form in forms:
        assert (np.asarray(pipe(form, row(0), fit=True).images[0]) == expected).all()


def test_what_fits_is_not_fitted(pipe, images, arrays):
    """Not even to 8 bits."""
    deep = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    for image in (images[0], arrays[0], deep, deep[..., None], torch.from_numpy(deep)[None]):
        plain, fitted = (pipe(image, row(0), output_type="np", fit=fit).images for fit in (False, True))
        np.testing.assert_allclose(fitted, plain, rtol=0, atol=1e-6)
    many = pipe([images[0], images[1].resize((50, 40))], [row(0), row(1)], fit=True, output_type="np")
    assert many.images.shape == (2, SIZE, SIZE, 1)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("nowhere.png", r"image .*nowhere\.png"),
        ([GREY, "nowhere.png"], r"image\[1\]"),
        ([GREY, None], r"image\[1\] .*NoneType"),
        (np.full((9, 9), -1.0), "image .*-1"),
        (torch.full((1, 9, 9), float("nan")), "image .*NaN"),
        (torch.zeros(9, 9), r"image .*\(9, 9\)"),
        (torch.zeros(1, 9, 9, dtype=torch.int64), "image .*int64"),
        (np.zeros((9, 9, 7), np.uint8), "image "),
        (np.zeros((0, 9), np.uint8), "image "),
        (b"scan", "image .*bytes"),
    ],
)
def test_what_cannot_be_fitted_is_refused(pipe, image, named):
    with pytest.raises(ValueError, match=named):
        pipe(image, [row(0), row(1)] if isinstance(image, list) else row(0), fit=True)


def test_other_sizes_are_refused_with_the_way_out(pipe, images):
    for image in (images[0].resize((40, 30)), np.zeros((40, 30), np.uint8), torch.zeros(1, 40, 30)):
        with pytest.raises(ValueError, match=r"image .*fit=True"):
            pipe(image, row(0))
    two = build(channels=2)
    with pytest.raises(ValueError, match="fit=True"):
        two(np.zeros((40, 30, 2), np.uint8), row(0), fit=True, output_type="np")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["RGBA", "P", "turned"])
def test_a_picture_is_read_as_in_training(form, channels, arrays):
    """See tests/data/test_pixels.py for all forms."""
    grey, file = Image.fromarray(arrays[0]), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    if form == "turned":
        grey.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    else:
        grey.convert(form).save(file, "PNG")
    read = np.asarray(build(channels=channels)(Image.open(file), row(0)).images[0])
    assert (read == fit_picture(Image.open(file), SIZE, channels)).all()
    assert (read.reshape(SIZE, SIZE, channels) == arrays[0][..., None]).all()


def test_other_channels_go_as_arrays(arrays):
    pipe = build(channels=2)
    image = np.stack([arrays[0], arrays[1]], axis=-1)
    assert np.abs(pipe(image, row(0), output_type="np").images[0] * 255 - image).max() < 1e-2
    with pytest.raises(ValueError, match=r"'pil' .*2"):
        pipe(image, row(0))


def test_half_precision_keeps_the_factual_image(images, arrays):
    pipe = build().to(torch.bfloat16)
    output = pipe(images, PARENTS, output_type="pil")
    assert all((np.asarray(image) == array).all() for image, array in zip(output.images, arrays, strict=True))
    assert np.isfinite(pipe(images, PARENTS, {"sex": "female", "age": 40}, output_type="np").images).all()
    assert pipe.sample(2, output_type="pt").images.isfinite().all()


# ---- the classifier -----------------------------------------------------------------------------------------------


def test_predictions_are_in_natural_units(pipe, images):
    output = pipe(images, PARENTS, {"sex": "female"})
    for predictions in (output.factual_predictions, output.counterfactual_predictions):
        assert list(predictions) == list(PHANTOM_GRAPH.names)
        for variable in PHANTOM_GRAPH.variables:
            assert len(predictions[variable.name]) == 3
            for prediction in predictions[variable.name]:
                if variable.kind == "continuous":
                    assert isinstance(prediction, float)
                else:
                    assert tuple(prediction) == variable.categories
                    assert sum(prediction.values()) == pytest.approx(1)
    with torch.no_grad():
        encoded = pipe.classifier.predict(torch.tensor(np.stack(images))[:, None] / 127.5 - 1)
    age = (encoded[:, 0] + 1) / 2 * (92 - 18) + 18
    assert output.factual_predictions["age"] == pytest.approx(age.tolist(), abs=1e-3)
    assert [p["female"] for p in output.factual_predictions["sex"]] == pytest.approx(encoded[:, 1].tolist(), abs=1e-4)


def test_missing_parents_are_inferred_on_request(pipe, images):
    known = [{"age": 30}, {}, {"age": 80, "sex": "male"}]
    output = pipe(images, known, infer_missing_parents=True)
    seen = output.factual_predictions
    best = {name: [max(p, key=p.get) for p in seen[name]] for name in ("sex", "race", "disease")}
    assert output.parents["age"] == pytest.approx([30, seen["age"][1], 80], abs=1e-3)
    assert output.parents["sex"] == [*best["sex"][:2], "male"]
    assert output.parents["race"] == best["race"]
    assert output.parents["disease"] == best["disease"]
    assert close(pipe(images, infer_missing_parents=True).parents, best | {"age": seen["age"]})


def test_predictions_beyond_the_range_are_clamped(images):
    pipe = build()
    with torch.no_grad():
        pipe.classifier.heads.bias[0] = 50
    output = pipe(images[0], infer_missing_parents=True)
    assert output.factual_predictions["age"][0] > 92
    assert output.parents["age"] == pytest.approx([92], abs=1e-3)


def test_works_without_a_classifier(images, arrays):
    pipe = build(with_classifier=False)
    output = pipe(images, PARENTS)
    assert output.factual_predictions is output.counterfactual_predictions is None
    assert (np.stack(output.images) == arrays).all()
    with pytest.raises(ValueError, match=r"no value for \['sex'\].*needs a classifier"):
        pipe(images, {k: v for k, v in PARENTS.items() if k != "sex"}, infer_missing_parents=True)


def test_a_classifier_in_training_mode_is_refused(images):
    pipe = build()
    pipe.classifier.train()
    with pytest.raises(ValueError, match="training mode"):
        pipe(images, PARENTS)


# ---- samples ------------------------------------------------------------------------------------------------------


def test_sample(pipe):
    output = pipe.sample(4, generator=seeds(0)[0])
    assert len(output.images) == 4
    assert output.images[0].size == (SIZE, SIZE)
    assert output.effects is output.factual_predictions is output.counterfactual_predictions is None
    assert list(output.parents) == list(PHANTOM_GRAPH.names)
    PHANTOM_GRAPH.encode(output.parents)  # valid values
    again = pipe.sample(4, generator=seeds(0)[0])
    assert output.parents == again.parents
    assert (np.stack(output.images) == np.stack(again.images)).all()


def test_sample_under_an_intervention(pipe):
    output = pipe.sample(3, do={"age": [20, 50, 90], "sex": "female"}, generator=seeds(0, 1, 2), output_type="np")
    assert output.parents["age"] == pytest.approx([20, 50, 90], abs=1e-3)
    assert output.parents["sex"] == ["female"] * 3
    alone = pipe.sample(1, do={"age": 50, "sex": "female"}, generator=seeds(1)[0], output_type="np")
    np.testing.assert_allclose(output.images[1], alone.images[0], atol=1e-5)
    # With the same noise, the intervention is all that differs, and it shows.
    other = pipe.sample(1, do={"age": 50, "sex": "male"}, generator=seeds(1)[0], output_type="np")
    assert np.abs(other.images - alone.images).max() > 1e-3


# ---- errors -------------------------------------------------------------------------------------------------------


def with_pixel(value: float) -> np.ndarray:
    image = GREY.copy()
    image[3, 4] = value
    return image


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ([], "image"),
        ("scan.png", "image .*str"),
        ([GREY, None], r"image\[1\] .*NoneType"),
        (np.zeros((SIZE, 20), np.float32), "image is 16 x 20 pixels .*16 x 16"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), "image has 3 channels, .*1 channel "),
        (torch.zeros(SIZE, SIZE, 1), "image has 16 channels.*first in tensors"),
        (np.zeros(SIZE, np.float32), r"image .*\(16,\)"),
        ([GREY, Image.new("F", (SIZE, SIZE), -1)], r"image\[1\] .*from -1 to -1"),
        (with_pixel(float("nan")), "image .*1 pixels"),
        (with_pixel(-1), r"-1 to 0.5.*\[0, 1\]"),
        (255 * GREY, "127.5"),
        (GREY.astype(np.int64) - 3, "image .*from -3 to -3"),
        (GREY.astype(bool), "bool"),
    ],
)
def test_bad_images(pipe, image, named):
    """More of them in tests/properties, as of all arguments."""
    with pytest.raises(ValueError, match=named):
        pipe(image, row(0))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parents": None}, r"\['age', 'sex', 'race', 'disease'\].*infer_missing_parents"),
        ({"parents": [row(0), row(1), {"age": 3e1}]}, r"\['sex', 'race', 'disease'\]"),
        ({"parents": PARENTS | {"weight": 80}}, "parents: .*'weight'"),
        ({"parents": PARENTS | {"age": [30, None, 50]}}, "parents: 'age' .*None"),
        ({"parents": PARENTS | {"age": [30, 40]}}, "parents: 'age' .*2 .*3"),
        ({"parents": [row(0), row(1)]}, "parents .*2 .*3"),
        ({"parents": [row(0), row(1), row(2) | {"age": 5}]}, r"parents\[2\]: 'age'"),
        ({"parents": [row(0), row(1), "male"]}, r"parents\[2\] .*str"),
        ({"do": {"race": "green"}}, "do: 'race' .*'green'"),
        ({"do": {"age": []}}, "do: 'age' .*0"),
        ({"do": [{}, {}, {"sex": "x"}]}, r"do\[2\]: 'sex' .*'x'"),
        ({"image": GREY, "parents": row(0), "do": []}, "do .*0"),
        ({"image": GREY, "parents": row(0), "do": {"age": [20, 30, 40], "sex": ["male", "female"]}}, "do: 'sex' .*2"),
        ({"image": GREY, "do": {"sex": ["male", "female", "male"]}}, "parents: 'age' .*3 .*1"),
        ({"generator": seeds(0, 1)}, "generator .*2 .*3"),
        ({"output_type": "latent"}, "output_type .*'latent'"),
        ({"effect": "total"}, "'total'"),  # the model has no mediator
    ],
)
def test_bad_arguments(pipe, images, changes, named):
    with pytest.raises(ValueError, match=named):
        pipe(**({"image": images, "parents": PARENTS} | changes))


AGE, SEX, RACE, DISEASE = PHANTOM_GRAPH.variables


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ([replace(AGE, high=90), SEX, RACE, DISEASE], "'age' has high 92 in hvae and 90 in {}"),
        ([AGE, replace(SEX, categories=("female", "male")), RACE, DISEASE], "'sex' has categories"),
        ([AGE, SEX, RACE, replace(DISEASE, parents=())], r"'disease' has parents \('age',\) in hvae and \(\) in {}"),
        ([AGE, SEX, DISEASE], r"only hvae has \['race'\]"),
        ([AGE, SEX, RACE, DISEASE, replace(SEX, name="x")], r"only {} has \['x'\]"),
        ([SEX, AGE, RACE, DISEASE], "another order"),
    ],
)
@pytest.mark.parametrize("component", ["attribute_scm", "classifier"])
def test_components_of_another_graph_are_refused(pipe, variables, message, component):
    other = build(CausalGraph(variables)).components[component]
    with pytest.raises(ValueError, match=f"hvae and {component} must have the same .*{message.format(component)}"):
        DSCMPipeline(**(pipe.components | {component: other}))


# ---- the differentiable core --------------------------------------------------------------------------------------


def test_the_pipeline_is_its_backbone_without_gradients(pipe, images):
    """What fine-tuning differentiates is what the pipeline shows."""
    output = pipe(images, PARENTS, {"race": "White"}, generator=seeds(0, 1, 2), output_type="pt")
    assert not output.images.requires_grad
    factual = torch.tensor(np.stack(images))[:, None] / 127.5 - 1
    parents = PHANTOM_GRAPH.encode(PARENTS)
    generators = seeds(0, 1, 2)
    intervention = PHANTOM_GRAPH.encode_do({"race": "White"}, 3)
    counterfactual_parents = pipe.attribute_scm.counterfactual(parents, intervention, generators).detach()
    core = HVAEBackbone(pipe.hvae).counterfactual(factual, parents, counterfactual_parents.requires_grad_(), generators)
    torch.testing.assert_close((core.image + 1) / 2, output.images, atol=1e-5, rtol=0)
    core.image.square().sum().backward()
    assert counterfactual_parents.grad.abs().max() > 0
    assert pipe.hvae.x_loc.weight.grad.abs().max() > 0
    pipe.hvae.zero_grad()


# ---- effects ----------------------------------------------------------------------------------------------------


def test_effects_of_a_model_with_a_mediator(pipe, images) -> None:
    config = {name: value for name, value in pipe.hvae.config.items() if not name.startswith("_")}
    hvae = randomised(HVAEModel(**config | {"conditional_prior": True}))
    mediated = DSCMPipeline(hvae=hvae, attribute_scm=pipe.attribute_scm, classifier=None)
    results = {
        effect: mediated(
            images[0], row(0), do={"sex": "female"}, generator=seeds(0)[0], output_type="pt", effect=effect
        ).images
        for effect in ("direct", "indirect", "total")
    }
    assert all((results[one] - results[other]).abs().max() > 1e-3 for one, other in itertools.combinations(results, 2))
