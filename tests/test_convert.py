"""Conversion of causal-gen's checkpoints, on tiny models whose weights and results its own code made.

``tests/parity/golden`` is written by ``benchmarks/parity.py --golden``, which also makes the comparison at full size.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from softcft import CausalGraph, HVAEBackbone, HVAEModel
from softcft.convert import Checkpoint, convert_hvae, hvae_config, load_checkpoint, parents_graph

GOLDEN = sorted(Path(__file__).parent.glob("parity/golden/*.safetensors"))
golden_files = pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
Golden = tuple[Checkpoint, dict[str, Tensor], dict[str, Tensor]]


def read(path: Path) -> Golden:
    """The checkpoint, the inputs, and what the peer computed."""
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "batch": {}, "result": {}}
    with safe_open(path, "pt") as file:
        hparams = json.loads(file.metadata()["hparams"])
        for key in file.keys():  # noqa: SIM118 - not a dict
            part, name = key.split("/")
            parts[part][name] = file.get_tensor(key)
    return Checkpoint(parts["state"], hparams, []), parts["batch"], parts["result"]


@pytest.fixture
def morphomnist() -> Checkpoint:
    return read(next(path for path in GOLDEN if path.stem == "morphomnist"))[0]


def convert_in_network_encoding(checkpoint: Checkpoint) -> HVAEModel:
    """The golden parents are what the network sees."""
    model = convert_hvae(checkpoint)
    model.register_to_config(parents_scale=None, parents_shift=None)
    return model


def draw_by_block(model: HVAEModel) -> HVAEModel:
    """The same model with the peer's noise, which draws that of one block after the other."""
    sides = [block.resolution for block in model.decoder if block.posterior is not None]
    shapes = [(model.config.z_dim, side, side) for side in sides]
    model.draw_noise = lambda batch_size, *_: [torch.randn(batch_size, *shape) for shape in shapes]
    return model


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.square().mean().sqrt()
    assert error < 1e-4, f"relative error {error:.1e}"


def test_all_published_configurations_are_here() -> None:
    names = {"mimic192", "mimic224", "morphomnist", "morphomnist_conditional_prior", "ukbb192"}
    assert {path.stem for path in GOLDEN} == names


# ---- the same numbers ------------------------------------------------------------------------------------------------


@golden_files
@torch.no_grad()
def test_the_same_weights_and_noise_give_the_same_numbers(path: Path) -> None:
    checkpoint, batch, expected = read(path)
    model = draw_by_block(convert_in_network_encoding(checkpoint))
    torch.manual_seed(2)
    output = model(batch["image"], batch["parents"])
    for i, z in enumerate(output.latents):
        assert_close(z, expected[f"latents.{i}"])
    assert f"latents.{len(output.latents)}" not in expected
    assert_close(output.kl.mean(), expected["kl"])
    assert_close(output.loc.clamp(-1, 1), expected["reconstruction"])
    assert_close(output.log_scale.exp(), expected["scale"])
    decoded, _ = model.decode(model.walk_prior(batch["parents"], output.latents).injections, batch["parents"])
    assert_close(decoded.clamp(-1, 1), expected["reconstruction"])
    # causal-gen approximates the normal distribution function by tanh; that is worth about 1e-4 of the NLL.
    assert output.nll.mean() == pytest.approx(expected["nll"].item(), rel=2e-4)
    assert output.nelbo.mean() == pytest.approx(expected["nelbo"].item(), rel=2e-4)
    torch.manual_seed(2)
    sample, _ = model.decode(model.walk_prior(batch["parents"]).injections, batch["parents"])
    assert_close(sample.clamp(-1, 1), expected["sample"])


@golden_files
@torch.no_grad()
def test_counterfactuals_are_the_same(path: Path) -> None:
    checkpoint, batch, expected = read(path)
    model = draw_by_block(convert_in_network_encoding(checkpoint))
    effects = [effect for effect in ("direct", "indirect", "total") if effect in expected]
    assert len(effects) == (3 if model.config.conditional_prior else 1)
    for effect in effects:
        torch.manual_seed(2)
        output = HVAEBackbone(model, effect).counterfactual(
            batch["image"], batch["parents"], batch["counterfactual_parents"]
        )
        assert_close(output.image, expected[effect])
        if effect != "direct":
            for i, z in enumerate(output.latents):
                assert_close(z, expected[f"mediator.{i}"])


# ---- files -----------------------------------------------------------------------------------------------------------


def save(path: Path, checkpoint: Checkpoint, **more: Any) -> Path:
    torch.save({"ema_model_state_dict": checkpoint.state, "hparams": checkpoint.hparams, **more}, path)
    return path


def test_a_file_gives_a_folder_that_loads(morphomnist: Checkpoint, tmp_path: Path) -> None:
    # As the peer saves: a loss that is a NumPy number, and a device among the arguments.
    morphomnist.hparams["device"] = torch.device("cpu")
    path = save(tmp_path / "checkpoint.pt", morphomnist, best_loss=np.float64(1.5), epoch=3)
    model = convert_hvae(load_checkpoint(path))
    model.save_pretrained(tmp_path / "hvae")
    loaded = HVAEModel.from_pretrained(tmp_path / "hvae")
    assert not loaded.training
    assert {p.name for p in (tmp_path / "hvae").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    for (name, one), (_, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_a_fine_tuning_checkpoint_gives_its_image_model(morphomnist: Checkpoint, tmp_path: Path) -> None:
    state = {f"vae.{name}": tensor for name, tensor in morphomnist.state.items()}
    others = {"pgm.digit_logits": torch.zeros(1, 10), "predictor.fc.weight": torch.ones(2, 2), "lmbda": torch.ones(1)}
    hparams = {"vae_path": "runs/vae/checkpoint.pt", "parents_x": morphomnist.hparams["parents_x"]}
    path = save(tmp_path / "cft.pt", Checkpoint(state | others, hparams, []))
    loaded = load_checkpoint(path)
    assert set(loaded.left_out) == set(others)
    with pytest.raises(ValueError, match=r"hparams do not say \['enc_arch', .*runs/vae/checkpoint.pt"):
        convert_hvae(loaded)
    model = convert_hvae(loaded._replace(hparams=morphomnist.hparams))
    assert torch.equal(model.stem.weight, morphomnist.state["encoder.stem.weight"])


def test_unknown_parts_of_a_fine_tuning_checkpoint_are_refused(morphomnist: Checkpoint, tmp_path: Path) -> None:
    state = {f"vae.{name}": tensor for name, tensor in morphomnist.state.items()} | {"critic.weight": torch.ones(1)}
    path = save(tmp_path / "cft.pt", morphomnist._replace(state=state))
    with pytest.raises(ValueError, match=r"unknown tensors \['critic.weight'\]"):
        load_checkpoint(path)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, morphomnist: Checkpoint) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")
    whole = save(tmp_path / "whole.pt", morphomnist).read_bytes()
    for name, content in (("short", whole[: len(whole) // 2]), ("empty", b""), ("text", b"weights")):
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.pt"):
            load_checkpoint(tmp_path / f"{name}.pt")
    for content, named in (
        ({"ema_model_state_dict": {}, "hparams": argparse.Namespace(z_dim=2)}, r"other\.pt"),
        ({"model_state_dict": {}, "hparams": {}}, "needs ema_model_state_dict"),
        ([1], "has list"),
        ({"ema_model_state_dict": {"stem": 1}, "hparams": {}}, r"\['stem'\]"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=named):
            load_checkpoint(tmp_path / "other.pt")


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_old_checkpoints_without_newer_settings_convert(morphomnist: Checkpoint) -> None:
    newer = ("cond_prior", "q_correction", "vae", "dataset", "kl_free_bits", "input_channels", "context_dim")
    hparams = {name: value for name, value in morphomnist.hparams.items() if name not in newer} | {"free_bits": 0.0}
    old, new = convert_hvae(morphomnist._replace(hparams=hparams)), convert_hvae(morphomnist)
    assert old.config == new.config
    assert all(torch.equal(one, other) for one, other in zip(old.parameters(), new.parameters(), strict=True))


def test_tensors_that_do_not_fit_are_listed(morphomnist: Checkpoint) -> None:
    state = dict(morphomnist.state)
    del state["encoder.stem.bias"]
    state["decoder.blocks.9.prior.conv.1.weight"] = torch.ones(1)
    state["likelihood.x_loc.bias"] = torch.ones(3)
    state["decoder.blocks.0.z_proj.weight"] = state["decoder.blocks.0.z_proj.weight"][:, 1:]
    with pytest.raises(ValueError, match="do not fit") as caught:
        convert_hvae(morphomnist._replace(state=state))
    message = str(caught.value)
    assert "missing: encoder.stem.bias" in message
    assert "unknown: decoder.blocks.9.prior.conv.1.weight" in message
    assert "likelihood.x_loc.bias: (3,) instead of (1,)" in message
    assert "decoder.blocks.0.z_proj.weight: (16, 13, 1, 1) instead of (16, 14, 1, 1)" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"q_correction": True}, "q_correction is True"),
        ({"vae": "simple"}, "vae is 'simple'"),
        ({"bottleneck": 2}, "bottleneck is 2"),
        ({"x_like": "diag_gauss"}, "x_like is 'gauss'"),
        ({"enc_arch": "8b1e2,4b1d4,1b1"}, "is not of the form"),
        ({"enc_arch": "8b1d2,4b1d2,1b1"}, "divided by its d"),
        ({"dec_arch": "1b1,2b2,8b1"}, "the same resolutions"),
        ({"widths": [8, 8]}, "widths"),
        ({"parents_x": ["thickness", "slant"]}, "'slant'"),
        ({"parents_x": None}, "no parents_x"),
        ({"parents_x": ["thickness", "intensity"]}, "has 12 columns of parents, .* have 2"),
    ],
)
def test_settings_without_a_counterpart_are_refused(
    morphomnist: Checkpoint, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        convert_hvae(morphomnist._replace(hparams=morphomnist.hparams | changes))
    state = morphomnist.state | {"encoder.stem.weight": torch.zeros(8, 3, 7, 7)}
    with pytest.raises(ValueError, match="input_channels is 3"):
        hvae_config(morphomnist._replace(state=state))


def test_an_own_graph_names_the_parents(morphomnist: Checkpoint) -> None:
    graph = CausalGraph(
        [
            {"name": "width", "kind": "continuous", "low": 0, "high": 5},
            {"name": "ink", "kind": "binary", "categories": ["blue", "black"]},
            {"name": "letter", "kind": "categorical", "categories": list("abcdefghij")},
        ]
    )
    assert convert_hvae(morphomnist, graph).causal_graph == graph


def test_brain_volumes_reach_the_network_log_standardised() -> None:
    # The only weights of causal-gen in public were trained on these.
    checkpoint, batch, _ = read(next(path for path in GOLDEN if path.stem == "ukbb192"))
    model = convert_hvae(checkpoint)
    graph = parents_graph(checkpoint.hparams)
    assert model.causal_graph == graph
    volumes = [900_000.0, 1_161_000.0, 1_500_000.0], [10_000.0, 31_000.0, 120_000.0]
    subject = {"mri_seq": "T2 FLAIR", "sex": "male", "brain_volume": volumes[0], "ventricle_volume": volumes[1]}
    brain = (torch.tensor(volumes[0]).log() - 13.965584) / 0.095378
    ventricle = (torch.tensor(volumes[1]).log() - 10.345999) / 0.431278
    ones = torch.ones(3)
    expected = {"mri_seq": ones, "brain_volume": brain, "ventricle_volume": ventricle, "sex": ones}
    columns = torch.stack([expected[name] for name in checkpoint.hparams["parents_x"]], dim=1)
    image = batch["image"][:1].expand(3, -1, -1, -1)
    plain = convert_in_network_encoding(checkpoint)
    with torch.no_grad():
        seen, wanted = (
            one(image, parents, generator=torch.Generator().manual_seed(0))
            for one, parents in ((model, graph.encode(subject)), (plain, columns))
        )
    torch.testing.assert_close(seen.loc, wanted.loc, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.kl, wanted.kl, rtol=1e-4, atol=1e-4)
