"""The pipeline of a diffusion model of toy size; what it shares with DSCMPipeline is tested there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from softcft import AttributeClassifier, AttributeSCM, DiffusionDSCMPipeline, ParentEncoder, PromptEmbedding
from softcft.data.pictures import read_picture
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline as Pipeline
from tests.models.test_denoiser import GRAPH, make_unet
from tests.stock_pipelines import make_stock

PARENTS = {"size": [2.0, 5.0, 9.0], "state": ["off", "on", "on"], "site": ["a", "c", "b"]}
STEPS = 10


def build(
    attention: bool = False, with_classifier: bool = True, vae: AutoencoderKL | None = None, channels: int = 1
) -> Pipeline:
    torch.manual_seed(3)
    plain = GRAPH.to_list()
    encoder = ParentEncoder(plain, 16)
    nn.init.normal_(encoder.absent)
    unet = make_unet(attention, channels)
    for parameter in unet.conv_out.parameters():
        parameter.data *= 0.3  # small changes, so that none is clamped
    backbone = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    pipe = DiffusionDSCMPipeline(
        unet=unet,
        parent_encoder=encoder.eval(),
        scheduler=DDIMScheduler(clip_sample=False),
        attribute_scm=AttributeSCM(plain, num_bins=4, hidden_features=[8]).eval(),
        classifier=AttributeClassifier(plain, {**backbone, "layer_type": "basic"}).eval() if with_classifier else None,
        vae=vae,
        transformer=None,
        prompt=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return build()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.4, 0.6, size=(3, 8, 8)).astype(np.float32)


def ask(pipe: Pipeline, images: np.ndarray, do: Any = None, **settings: Any) -> Any:
    settings = {"num_inference_steps": STEPS, "output_type": "pt", **settings}
    return pipe(list(images), parents=PARENTS, do=do, generator=torch.Generator().manual_seed(0), **settings)


def test_a_null_intervention_returns_the_images(pipe: Pipeline, images: np.ndarray) -> None:
    output = ask(pipe, images)
    torch.testing.assert_close(output.images[:, 0], torch.as_tensor(images), rtol=0, atol=1e-6)
    assert output.parents["state"] == PARENTS["state"]
    assert ask(pipe, images, abduction="ddim").effects.abs().max() > 0.005


@pytest.mark.parametrize("attention", [False, True])
def test_an_intervention_moves_images_and_descendants(attention: bool, images: np.ndarray) -> None:
    pipe = build(attention)
    output = ask(pipe, images, {"state": ["on", "off", "off"]})
    assert output.images.shape == (3, 1, 8, 8)
    assert output.effects.abs().amax(dim=(1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(output.images[:, 0] - torch.as_tensor(images), output.effects[:, 0], rtol=0, atol=1e-6)
    assert output.parents["state"] == ["on", "off", "off"]
    assert output.parents["size"] == pytest.approx(PARENTS["size"])
    assert set(output.counterfactual_predictions) == set(GRAPH.names)


def test_images_of_another_size_are_fitted_on_request(pipe: Pipeline, images: np.ndarray) -> None:
    large = [image.repeat(3, axis=0).repeat(2, axis=1) for image in images]
    fitted = np.stack([read_picture(image, 1, 8) for image in large]) / 255
    np.testing.assert_allclose(ask(pipe, large, fit=True).images[:, 0], fitted, rtol=0, atol=1e-6)
    torch.testing.assert_close(ask(pipe, images, fit=True).images, ask(pipe, images).images)
    with pytest.raises(ValueError, match=r"image\[0\] .*fit=True"):
        ask(pipe, large)


def test_guidance_takes_it_further(pipe: Pipeline, images: np.ndarray) -> None:
    """Of the changed attributes or of all; factored guidance of nothing but what changes leaves the others out."""
    settings = [{}, {"guidance_scale": 3.0}, {"guidance_scale": 3.0, "invariant_guidance_scale": 1.0}]
    effects = [ask(pipe, images, {"size": 7.0}, **s).effects for s in settings]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (effects[i] - effects[j]).abs().max() > 1e-3


@pytest.mark.parametrize("abduction", ["ddim", "bdia"])
def test_a_callback_sees_each_step_and_may_change_it(pipe: Pipeline, images: np.ndarray, abduction: Any) -> None:
    seen = []

    def look(pipeline: Any, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe
        seen.append((step, timestep))
        return {}

    plain = ask(pipe, images, {"size": 7.0}, abduction=abduction)
    looked = ask(pipe, images, {"size": 7.0}, abduction=abduction, callback_on_step_end=look)
    assert torch.equal(plain.images, looked.images)
    assert [step for step, _ in seen] == list(range(2 * STEPS))
    up, down = range(1, STEPS + 1), range(STEPS, 0, -1)
    assert [timestep for _, timestep in seen] == [100 * i - 1 for i in (*up, *down)]
    black = ask(
        pipe,
        images,
        {"size": 7.0},
        abduction=abduction,
        callback_on_step_end=lambda p, s, t, given: {"latents": torch.full_like(given["latents"], -1).float()},
    )
    assert black.images.max() == 0


@pytest.mark.parametrize("abduction", ["ddim", "bdia"])
@pytest.mark.parametrize("last", [0, STEPS - 1, STEPS, 2 * STEPS - 1, None])
def test_it_stops_when_it_is_told_to(
    pipe: Pipeline, images: np.ndarray, abduction: Any, last: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """In abduction as in prediction, with the images as they are then; the next call goes on as ever."""
    seen = []

    def stop(pipeline: Any, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"])
        pipeline._interrupt = step == last
        return {}

    output = ask(pipe, images, {"size": 7.0}, abduction=abduction, callback_on_step_end=stop)
    assert len(seen) == (2 * STEPS if last is None else last + 1)
    torch.testing.assert_close(2 * output.images - 1, seen[-1].float().clamp(-1, 1), rtol=0, atol=1e-6)
    assert ("unfinished" in caplog.text) == (last is not None)
    expected = ask(pipe, images, {"size": 7.0}, abduction=abduction)
    assert not pipe.interrupt
    assert torch.equal(expected.images, output.images) == (last in (None, 2 * STEPS - 1))


def test_samples(pipe: Pipeline) -> None:
    one = pipe.sample(3, do={"state": "on"}, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1))
    two = pipe.sample(3, do={"state": "on"}, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1))
    assert one.parents["state"] == ["on"] * 3
    assert one.parents == two.parents
    assert [image.size for image in one.images] == [(8, 8)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(one.images, two.images, strict=True))
    assert one.effects is None


def make_vae(latents: int = 1) -> AutoencoderKL:
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    channels = {"in_channels": 1, "out_channels": 1, "latent_channels": latents, "block_out_channels": (4, 8)}
    return AutoencoderKL(**channels, **blocks, norm_num_groups=4).eval()


def test_latents_of_an_autoencoder(images: np.ndarray, tmp_path: Path) -> None:
    pipe = build(vae=make_vae())
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    output = ask(pipe, large, {"size": 7.0})
    assert output.images.shape == (3, 1, 16, 16)
    pipe.save_pretrained(tmp_path)
    again = DiffusionDSCMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(ask(again, large, {"size": 7.0}).images, output.images)
    assert pipe.sample(2, num_inference_steps=STEPS).images[0].size == (16, 16)
    with pytest.raises(ValueError, match="16"):
        ask(pipe, images)


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_offloaded_it_gives_the_same_answers(images: np.ndarray, layer_by_layer: bool) -> None:
    """Each network or layer is brought in when it is needed, and sent away after it; here from the CPU to the CPU."""
    pipe = build(vae=make_vae())
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    expected = ask(pipe, large, {"size": 7.0})
    if layer_by_layer:  # as enable_sequential_cpu_offload does, which wants an accelerator
        for name in ("unet", "vae", "classifier"):
            assert name not in pipe._exclude_from_cpu_offload
            cpu_offload(pipe.components[name], torch.device("cpu"))
        assert pipe.unet.device.type == "meta"
    else:
        pipe.enable_model_cpu_offload(device="cpu")
        assert all(hasattr(getattr(pipe, name), "_hf_hook") for name in ("unet", "vae", "classifier"))
    output = ask(pipe, large, {"size": 7.0})
    assert torch.equal(output.images, expected.images)
    assert output.counterfactual_predictions == expected.counterfactual_predictions


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_that_lie_in_another_type(images: np.ndarray, storage: torch.dtype) -> None:
    pipe = build()
    for name in ("unet", "parent_encoder", "classifier"):
        pipe.components[name].enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.bfloat16)
    assert ask(pipe, images, {"size": 7.0}).images.isfinite().all()
    torch.testing.assert_close(ask(pipe, images).images[:, 0], torch.as_tensor(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loading_class", [DiffusionDSCMPipeline, DiffusionPipeline])
def test_a_loaded_pipeline_gives_the_same_answers(
    pipe: Pipeline, images: np.ndarray, tmp_path: Path, loading_class: Any
) -> None:
    pipe.save_pretrained(tmp_path)
    again = loading_class.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again, DiffusionDSCMPipeline)
    assert again.vae is None
    output, expected = ask(again, images, {"size": 7.0}), ask(pipe, images, {"size": 7.0})
    assert torch.equal(output.images, expected.images)
    assert output.counterfactual_predictions == expected.counterfactual_predictions
    without = loading_class.from_pretrained(tmp_path, classifier=None)
    without.set_progress_bar_config(disable=True)
    assert ask(without, images).factual_predictions is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(images: np.ndarray, tmp_path: Path, dtype: torch.dtype) -> None:
    """The answers are those of a coarser network, but what is not changed stays."""
    build().save_pretrained(tmp_path)
    pipe = DiffusionDSCMPipeline.from_pretrained(tmp_path, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(ask(pipe, images).images[:, 0], torch.as_tensor(images), rtol=0, atol=1e-6)
    assert ask(pipe, images, {"size": 7.0}).images.isfinite().all()


def test_a_pipeline_that_was_saved_before_transformers_loads(
    pipe: Pipeline, images: np.ndarray, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("transformer") == index.pop("prompt") == [None, None]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    again = DiffusionDSCMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(ask(again, images, {"size": 7.0}).images, ask(pipe, images, {"size": 7.0}).images)


def build_transformer(kind: str) -> Pipeline:
    """Of pixels without a prompt (DiT), or of latents with one, by diffusion or by flow matching."""
    parts = build().components
    if kind == "dit":
        torch.manual_seed(0)
        sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "sample_size": 8}
        network: Any = DiTTransformer2DModel(**sizes, num_layers=1, num_embeds_ada_norm=1)
        parts |= {"transformer": network}
    else:
        torch.manual_seed(0)
        stock = make_stock(kind)
        config = stock.transformer.config
        width, pooled = config.get("joint_attention_dim") or 24, config.get("pooled_projection_dim")
        prompt = PromptEmbedding.of(torch.randn(5, width), None if pooled is None else torch.randn(pooled))
        parts |= {"transformer": stock.transformer, "prompt": prompt, "vae": make_vae(4)}
        if kind == "flux":
            stock.transformer.register_to_config(sample_size=4)
        if kind in ("flux", "sd3"):
            parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=3.0)
    encoder = ParentEncoder(GRAPH.to_list(), 16 if kind == "dit" else width)
    pipe = DiffusionDSCMPipeline(**{**parts, "unet": None, "parent_encoder": encoder})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("loading_class", [DiffusionDSCMPipeline, DiffusionPipeline])
@pytest.mark.parametrize("kind", ["dit", "pixart", "sd3", "flux"])
def test_a_transformer_in_place_of_a_unet(kind: str, images: np.ndarray, tmp_path: Path, loading_class: Any) -> None:
    pipe = build_transformer(kind)
    side = pipe.image_format.size
    large = images.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    expected = ask(pipe, large, {"size": 7.0}, num_inference_steps=4)
    assert expected.images.shape == (3, 1, side, side)
    assert (expected.images != ask(pipe, large, num_inference_steps=4).images).any()
    assert pipe.sample(1, num_inference_steps=4, output_type="pt").images.shape == (1, 1, side, side)
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "unet").exists()
    again = loading_class.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.transformer) is type(pipe.transformer)
    assert torch.equal(ask(again, large, {"size": 7.0}, num_inference_steps=4).images, expected.images)
    again.enable_model_cpu_offload(device="cpu")
    assert hasattr(again.transformer, "_hf_hook")
    assert torch.equal(ask(again, large, {"size": 7.0}, num_inference_steps=4).images, expected.images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # other tests leave a hook that counts passes
@pytest.mark.parametrize("kind", ["dit", "pixart", "sd3", "flux"])
def test_a_transformer_that_is_coarse_or_offloaded(kind: str, images: np.ndarray, tmp_path: Path) -> None:
    pipe = build_transformer(kind)
    if kind == "dit":  # the VAE is not exact
        pipe.save_pretrained(tmp_path)
        for dtype in (torch.bfloat16, torch.float16):
            half = DiffusionDSCMPipeline.from_pretrained(tmp_path, dtype=dtype)
            torch.testing.assert_close(ask(half, images).images[:, 0], torch.as_tensor(images), rtol=0, atol=1e-6)
    side = pipe.image_format.size
    large = images.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    expected = ask(pipe, large, {"size": 7.0}, num_inference_steps=4).images
    cpu_offload(pipe.transformer, torch.device("cpu"))
    assert pipe.transformer.device.type == "meta"
    assert torch.equal(ask(pipe, large, {"size": 7.0}, num_inference_steps=4).images, expected)
    compiled = build_transformer(kind)
    compiled.transformer = torch.compile(compiled.transformer, backend="eager")
    torch.testing.assert_close(ask(compiled, large, {"size": 7.0}, num_inference_steps=4).images, expected)
    for name in ("transformer", "parent_encoder"):
        compiled.components[name].to(torch.bfloat16)
    assert ask(compiled, large, {"size": 7.0}, num_inference_steps=4).images.isfinite().all()


@pytest.mark.parametrize("loading_class", [DiffusionDSCMPipeline, DiffusionPipeline])
def test_parts_that_are_passed_replace_those_that_were_saved(tmp_path: Path, loading_class: Any) -> None:
    pipe, other = build_transformer("pixart"), build_transformer("pixart")
    pipe.save_pretrained(tmp_path)
    again = loading_class.from_pretrained(tmp_path, transformer=other.transformer, prompt=other.prompt)
    assert again.transformer is other.transformer
    assert again.prompt is other.prompt
    assert loading_class.from_pretrained(tmp_path, prompt=None).prompt is None


def test_there_is_one_network_under_its_own_name(pipe: Pipeline) -> None:
    transformer = build_transformer("dit").transformer
    for given in (
        {"unet": None},
        {"transformer": transformer},
        {"unet": transformer},
        {"unet": None, "transformer": pipe.unet},
    ):
        with pytest.raises(ValueError, match=r"unet|transformer"):
            DiffusionDSCMPipeline(**{**pipe.components, **given})


def test_what_is_not_finite_is_no_image(images: np.ndarray) -> None:
    pipe = build()
    pipe.unet.conv_out.bias.data += torch.nan
    for question in (lambda: ask(pipe, images, {"size": 7.0}), lambda: pipe.sample(1, num_inference_steps=STEPS)):
        with pytest.raises(ValueError, match="NaN"):
            question()


NUMBERS = [np.int64, np.int32, np.uint8, np.float32, np.float64, np.float16, np.array, torch.tensor]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_numpy_and_torch_are_numbers(pipe: Pipeline, images: np.ndarray, number: Any) -> None:
    whole = number if number in (np.array, torch.tensor) or issubclass(number, np.integer) else np.int64
    plain = {"num_inference_steps": 10, "guidance_scale": 2, "invariant_guidance_scale": 1}
    given = {name: (whole if name == "num_inference_steps" else number)(value) for name, value in plain.items()}
    expected = ask(pipe, images, {"size": 7}, **plain)
    assert torch.equal(ask(pipe, images, {"size": number(7)}, **given).images, expected.images)
    drawn = pipe.sample(whole(2), do={"size": number(7)}, num_inference_steps=whole(10), guidance_scale=number(2))
    assert drawn.parents["size"] == [7, 7]


@pytest.mark.parametrize("size", [(8, 8), [8, 8], np.int64(8)])
def test_a_size_may_be_a_pair(pipe: Pipeline, images: np.ndarray, size: Any) -> None:
    unet = make_unet(False)
    unet.register_to_config(sample_size=size)
    parts = {**pipe.components, "unet": unet}
    again = DiffusionDSCMPipeline(**parts)
    assert again.image_format == pipe.image_format
    assert again.sample(1, num_inference_steps=STEPS, output_type="pt").images.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("size", [None, (8, 16), (8,), (8, 8, 8), "8", ()])
def test_a_size_that_is_no_square_is_refused(pipe: Pipeline, size: Any) -> None:
    unet = make_unet(False)
    unet.register_to_config(sample_size=size)
    with pytest.raises(ValueError, match="sample_size"):
        DiffusionDSCMPipeline(**{**pipe.components, "unet": unet})


def test_a_scheduler_that_is_swapped_is_refused(images: np.ndarray) -> None:
    for scheduler_class in (EulerDiscreteScheduler, DDPMScheduler):
        pipe = build()
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
        with pytest.raises(ValueError, match=scheduler_class.__name__):
            ask(pipe, images)
    pipe.scheduler = DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="epsilon"):
        pipe.sample(1)


def test_parts_that_do_not_fit_are_refused(pipe: Pipeline) -> None:
    parts = dict(pipe.components)
    other = AttributeSCM([{"name": "size", "kind": "continuous", "low": 0, "high": 10}])
    with pytest.raises(ValueError, match="parent_encoder and attribute_scm must have the same causal graph"):
        DiffusionDSCMPipeline(**{**parts, "attribute_scm": other})
    with pytest.raises(ValueError, match="clip_sample=False"):
        DiffusionDSCMPipeline(**{**parts, "scheduler": DDIMScheduler()})
