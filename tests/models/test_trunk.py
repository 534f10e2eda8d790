"""Trunks with random weights, saved as transformers saves pretrained ones."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel, ViTForImageClassification, ViTImageProcessor

from softcft.models.classifier import AttributeClassifier
from softcft.models.trunk import PretrainedTrunk, read_trunk

GRAPH = [
    {"name": "age", "kind": "continuous", "low": 20, "high": 90},
    {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
]
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4, "image_size": 32}
TRUNKS: dict[str, dict[str, Any]] = {
    "resnet": STAGES,
    "convnextv2": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "vit": {**LAYERS, "image_size": 24, "patch_size": 8},
    "clip_vision_model": {**LAYERS, "image_size": 24, "patch_size": 8},
    "dinov2": {**LAYERS, "mlp_ratio": 2, "image_size": 28, "patch_size": 7},
    "swin": WINDOWS,
}
NEEDS_ITS_SIZE = {"vit": 24, "clip_vision_model": 24}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = 32


def make(model_type: str, **settings: Any) -> PreTrainedModel:
    return AutoModel.from_config(AutoConfig.for_model(model_type, **TRUNKS.get(model_type, {}) | settings))


def save(folder: Path, trunk: PreTrainedModel, **preprocessor: Any) -> str:
    trunk.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


def classify(trunk: PretrainedTrunk) -> AttributeClassifier:
    classifier = AttributeClassifier(GRAPH, **trunk.arguments)
    trunk.load_into(classifier.trunk)
    return classifier.eval()


def images(channels: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(2, channels, size, size) * 2 - 1


@pytest.mark.parametrize("model_type", TRUNKS)
def test_a_classifier_starts_from_the_folder_and_is_complete_without_it(tmp_path: Path, model_type: str) -> None:
    trunk = make(model_type).eval()
    folder = save(tmp_path / "trunk", trunk, do_rescale=True, do_normalize=True, image_mean=MEAN, image_std=STD)
    read = read_trunk(folder, SIZE)
    model = classify(read)
    assert model.trunk.state_dict().keys() == trunk.state_dict().keys()
    assert all(torch.equal(tensor, model.trunk.state_dict()[name]) for name, tensor in trunk.state_dict().items())
    assert model.config.image_size == NEEDS_ITS_SIZE.get(model_type)
    assert folder in read.summary

    # What its authors would feed it: pixels in [0, 1], normalised; and resized, where it takes no other size.
    image = images()
    pixels = image
    if model_type in NEEDS_ITS_SIZE:
        pixels = F.interpolate(image, (NEEDS_ITS_SIZE[model_type],) * 2, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = trunk(((pixels + 1) / 2 - mean) / std).pooler_output.flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(model(image).embedding, expected, rtol=1e-4, atol=1e-5)
        grey = images(1)
        torch.testing.assert_close(model(grey).logits, model(grey.repeat(1, 3, 1, 1)).logits)

    model.save_pretrained(tmp_path / "guide")
    loaded = AttributeClassifier.from_pretrained(tmp_path / "guide")
    assert loaded.config.backbone == model.config.backbone
    assert not {"id2label", "architectures"} & set(loaded.config.backbone)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(loaded)(image).logits, model(image).logits)


@pytest.mark.parametrize("model_type", TRUNKS)
def test_frozen_trunks_pass_gradients_to_the_image(tmp_path: Path, model_type: str) -> None:
    folder = save(tmp_path, make(model_type), image_mean=MEAN, image_std=STD)
    model = classify(read_trunk(folder, SIZE)).requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    for channels in (1, 3):
        image = images(channels).requires_grad_()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image.contiguous(memory_format=torch.channels_last)).logits
        logits.sum().backward()
        assert image.grad.isfinite().all()
        assert (image.grad.flatten(1).abs().amax(dim=1) > 0).all()
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, [0.5] * 3, [0.5] * 3),
        ({"image_mean": MEAN, "image_std": STD, "do_normalize": False}, [0], [1]),
        (
            {"image_mean": [0] * 3, "image_std": [1] * 3, "rescale_factor": 1 / 127.5, "rescale_offset": True},
            [0.5],
            [0.5],
        ),
        ({"image_mean": [127.5] * 3, "image_std": [127.5] * 3, "do_rescale": False}, [0.5], [0.5]),
    ],
)
def test_pixels_are_normalised_as_the_preprocessor_does(
    tmp_path: Path, settings: dict[str, Any], mean: list[float], std: list[float]
) -> None:
    model = classify(read_trunk(save(tmp_path, make("resnet"), **settings), SIZE))
    means, stds = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(3, 1, 1) for values in (mean, std))
    torch.testing.assert_close(model.pixel_mean.expand(3, 1, 1), means)
    torch.testing.assert_close(model.pixel_std.expand(3, 1, 1), stds)


def test_the_preprocessor_s_own_file_is_read(tmp_path: Path) -> None:
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    arguments = read_trunk(save(tmp_path, make("vit")), SIZE).arguments
    assert arguments["image_mean"] == pytest.approx(MEAN)
    assert arguments["image_std"] == pytest.approx(STD)


def test_images_stay_as_they_are_where_nothing_is_said(tmp_path: Path) -> None:
    trunk = make("resnet").eval()
    read = read_trunk(save(tmp_path, trunk), SIZE)
    assert [read.arguments[name] for name in ("image_size", "image_mean", "image_std")] == [None] * 3
    image = images()
    with torch.no_grad():
        torch.testing.assert_close(classify(read)(image).embedding, trunk(image).pooler_output.flatten(1))


def test_half_precision_is_trained_in_full(tmp_path: Path) -> None:
    read = read_trunk(save(tmp_path, make("resnet").to(torch.bfloat16)), SIZE)
    assert {tensor.dtype for tensor in classify(read).parameters()} == {torch.float32}


def test_what_the_folder_lacks_is_said_and_comes_from_the_seed(tmp_path: Path) -> None:
    config = AutoConfig.for_model("vit", **TRUNKS["vit"])
    trunk = ViTForImageClassification(config)  # has no pooler
    read = read_trunk(save(tmp_path, trunk), SIZE)
    assert "pooler.dense.weight" in read.summary
    torch.manual_seed(1)
    one = classify(read).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(tensor, one[name]) for name, tensor in classify(read).state_dict().items())


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path / "missing"), "./missing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=rf"trunk_dir {name}"):
            read_trunk(name, SIZE)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="trunk_dir nobody/no-such-trunk"):
        read_trunk("nobody/no-such-trunk", SIZE)


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_damaged_file_is_refused(tmp_path: Path, damaged: str) -> None:
    folder = save(tmp_path, make("resnet"), image_mean=MEAN, image_std=STD)
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:40])
    with pytest.raises((OSError, ValueError), match=f"trunk_dir {folder}"):
        read_trunk(folder, SIZE)


@pytest.mark.parametrize("statistics", [{"image_mean": MEAN[:2]}, {"image_std": [0.2, 0.2, 0]}, {"image_mean": "x"}])
def test_statistics_that_do_not_suit_the_trunk_are_refused(tmp_path: Path, statistics: dict[str, Any]) -> None:
    folder = save(tmp_path, make("resnet"), **{"image_mean": MEAN, "image_std": STD} | statistics)
    with pytest.raises(ValueError, match=f"trunk_dir {folder}|image_mean|image_std"):
        classify(read_trunk(folder, SIZE))


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_refused(tmp_path: Path, lacks: str) -> None:
    trunk = make("resnet")
    folder = save(tmp_path, trunk)
    torch.save(trunk.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / lacks).unlink()
    with pytest.raises(ValueError, match=f"trunk_dir {folder} has no .*{lacks[-5:]}"):
        read_trunk(folder, SIZE)


@pytest.mark.parametrize("model_type", ["bert", "vit_mae"])
def test_models_that_make_no_vector_of_an_image_are_refused(tmp_path: Path, model_type: str) -> None:
    sizes = {"decoder_hidden_size": 8, "decoder_num_attention_heads": 1} if model_type == "vit_mae" else {}
    folder = save(tmp_path, make(model_type, **LAYERS, **sizes))
    with pytest.raises(ValueError, match=f"trunk_dir {folder} .*'{model_type}'"):
        read_trunk(folder, SIZE)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, make("resnet"))
    make("resnet", hidden_sizes=[8, 24]).config.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"trunk_dir {folder}"):
        read_trunk(folder, SIZE)
    make("vit").config.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"trunk_dir {folder}"):
        read_trunk(folder, SIZE)


def test_a_size_that_it_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size"):
        read_trunk(save(tmp_path, make("vit")), SIZE, image_size=40)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_that_cannot_be_fed_are_refused(channels: int) -> None:
    model = AttributeClassifier(GRAPH, {"model_type": "resnet", **STAGES, "num_channels": channels})
    model.check_channels(channels)
    with pytest.raises(ValueError, match=f"num_channels = {channels}"):
        model.check_channels(3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_mean": [0.5]},
        {"image_std": [0.5]},
        {"image_mean": [0.5], "image_std": [0.0]},
        {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]},
        {"image_mean": 0.5, "image_std": 0.5},
        {"image_mean": [float("nan")], "image_std": [1.0]},
        {"image_size": 0},
        {"image_size": 32.5},
    ],
)
def test_what_is_said_of_images_must_suit_the_trunk(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments)).split("_")[0]):
        AttributeClassifier(GRAPH, {"model_type": "resnet", **STAGES}, **arguments)


def test_batch_statistics_stand_still_in_evaluation(tmp_path: Path) -> None:
    model = classify(read_trunk(save(tmp_path, make("resnet")), SIZE))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    before = [norm.running_mean.clone() for norm in norms]
    model(images())
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
