"""Counterfactuals of a diffusion model of toy size."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from softcft.counterfactuals.diffusion_backbone import DiffusionBackbone
from tests.models.test_denoiser import GRAPH, draw_parents, make_denoiser


def make_backbone(prediction_type: str = "epsilon", **settings: Any) -> DiffusionBackbone:
    denoiser = make_denoiser(prediction_type=prediction_type)
    torch.manual_seed(1)
    nn.init.normal_(denoiser.parent_encoder.absent)
    # A network at its start hardly sees its input. Small changes of the image, so that none is clamped.
    for parameter in denoiser.network.conv_out.parameters():
        parameter.data *= 0.3
    return DiffusionBackbone(denoiser, **{"num_inference_steps": 10, **settings}).eval()


def images(n: int) -> Tensor:
    return 0.5 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(5)) - 0.25


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "autocast"])
@pytest.mark.parametrize(
    ("steps", "prediction_type"), [(10, "epsilon"), (50, "v_prediction"), (10, "flow"), (33, "flow")]
)
def test_nothing_changes_where_nothing_is_changed(steps: int, prediction_type: str, precision: str) -> None:
    """However coarsely the network computes: all that is left is the last digits of float32."""
    image, parents = images(4), draw_parents(4)
    error = {}
    for solver in ("ddim", "bdia"):
        backbone = make_backbone(prediction_type=prediction_type, num_inference_steps=steps, abduction=solver)
        if precision != "autocast":
            backbone.denoiser.network.to(getattr(torch, precision))
            backbone.denoiser.parent_encoder.to(getattr(torch, precision))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            output = backbone.counterfactual(image, parents, parents)
        assert output.image.dtype == torch.float32
        error[solver] = (output.image - image).abs().max()
    assert error["bdia"] < 1e-6
    assert error["ddim"] > 3e-4


@torch.no_grad()
@pytest.mark.parametrize(("strength", "calls"), [(1.0, 21), (0.6, 13), (0.2, 5)])
def test_less_strength_is_less_noise_and_still_exact(strength: float, calls: int) -> None:
    image, parents, others = images(4), draw_parents(4), draw_parents(4, seed=1)
    backbone = make_backbone("flow", strength=strength, on_step=lambda x, level: x)
    assert backbone.levels.noise[-1] == pytest.approx(strength, abs=0.02)
    passes: list[Tensor] = []
    handle = backbone.denoiser.network.register_forward_hook(lambda *a: passes.append(a[2]))
    same = backbone.counterfactual(image, parents, parents).image
    handle.remove()
    assert (same - image).abs().max() < 1e-6
    assert len(passes) == calls + 1  # and one for the fidelity
    moved = backbone.counterfactual(image, parents, others).image - image
    assert moved.abs().max() > 1e-4
    whole = make_backbone("flow").counterfactual(image, parents, others).image - image
    assert (moved.abs().mean() < whole.abs().mean()) == (strength < 1)


@torch.no_grad()
def test_other_parents_give_another_image_of_each() -> None:
    image, parents, others = images(3), draw_parents(3), draw_parents(3, seed=1)
    backbone = make_backbone()
    output = backbone.counterfactual(image, parents, others, generator=torch.Generator().manual_seed(0))
    assert (output.image - image).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert output.fidelity.ndim == 0
    for i in range(3):
        row = slice(i, i + 1)
        alone = backbone.counterfactual(image[row], parents[row], others[row]).image
        torch.testing.assert_close(output.image[row], alone, rtol=0, atol=3e-3)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["ddim", "bdia"])
def test_one_abduction_serves_several_predictions(solver: Any) -> None:
    image, parents, others = images(3), draw_parents(3), [draw_parents(3, seed=i) for i in (1, 2)]
    backbone = make_backbone(abduction=solver)
    together = backbone.counterfactual(image, parents, torch.stack(others, dim=1))
    assert together.image.shape == (3, 2, 1, 8, 8)
    for i, other in enumerate(others):
        alone = backbone.counterfactual(image, parents, other)
        torch.testing.assert_close(together.image[:, i], alone.image)
        torch.testing.assert_close([z[:, i] for z in together.latents], alone.latents)


@torch.no_grad()
def test_guidance_is_a_weighted_sum() -> None:
    """Of what the network sees without attributes, with the changed ones, and with the others."""
    backbone = make_backbone()
    parents, others = draw_parents(4), draw_parents(4)
    others[:, GRAPH.slices["size"]] += 0.1
    others[:2, GRAPH.slices["state"]] = 1 - others[:2, GRAPH.slices["state"]]
    changed = torch.tensor([[True, True, False]] * 2 + [[True, False, False]] * 2)
    x = images(4)

    timestep = torch.full((4,), 499)

    def noise(present: Tensor) -> Tensor:
        return backbone.denoiser(x, timestep, others, present)

    def guided() -> Tensor:
        return backbone._denoise(x, 5, 5, others, changed)[1]

    none, everything = noise(torch.zeros_like(changed)), noise(torch.ones_like(changed))
    torch.testing.assert_close(guided(), everything)
    backbone.guidance_scale = 3.0
    torch.testing.assert_close(guided(), none + 3 * (everything - none))
    torch.testing.assert_close(backbone._denoise(x, 5, 5, others)[1], everything)  # not in abduction
    backbone.invariant_guidance_scale = 0.5
    expected = none + 3 * (noise(changed) - none) + 0.5 * (noise(~changed) - none)
    torch.testing.assert_close(guided(), expected)
    assert (expected - everything).abs().max() > 1e-3

    # One variable with a weight of its own: factored, as if it alone had changed, and whatever has.
    backbone.guidance_scale, backbone.invariant_guidance_scale = {"size": 3.0}, None
    alone = torch.tensor([[name == "size" for name in GRAPH.names]]).expand(4, -1)
    torch.testing.assert_close(guided(), none + 3 * (noise(alone) - none) + (noise(~alone) - none))
    assert torch.equal(guided(), backbone._denoise(x, 5, 5, others, ~changed)[1])
    weights = {"state": 0.5, "size": 3.0, "site": 2.0}
    assert set(weights) == set(GRAPH.names)
    groups = {name: torch.tensor([[n == name for n in GRAPH.names]]).expand(4, -1) for name in weights}
    backbone.guidance_scale = weights
    expected = none + sum(weights[name] * (noise(groups[name]) - none) for name in weights)
    torch.testing.assert_close(guided(), expected)
    backbone.guidance_scale = dict.fromkeys(weights, 0.0)
    torch.testing.assert_close(guided(), none)
    backbone.guidance_scale = {}
    assert torch.equal(guided(), everything)
    backbone.guidance_scale, backbone.invariant_guidance_scale = 3.0, 0.5

    # What changes is read from the attributes.
    seen = []
    original = backbone._predict_guided
    backbone._predict_guided = lambda *a: seen.append(a[3]) or original(*a)  # type: ignore[method-assign]
    backbone.counterfactual(x, parents, others)
    assert all(mask is None for mask in seen[:11])
    assert all(torch.equal(mask, changed) for mask in seen[11:])
    assert len(seen) == 21


@torch.no_grad()
def test_guidance_moves_an_image_further_and_leaves_abduction_alone() -> None:
    image, parents, others = images(4), draw_parents(4), draw_parents(4, seed=1)
    outputs = [make_backbone(guidance_scale=w).counterfactual(image, parents, others) for w in (1.0, 2.0)]
    torch.testing.assert_close(outputs[0].latents, outputs[1].latents, rtol=0, atol=0)
    assert (outputs[0].image - outputs[1].image).abs().max() > 1e-3


def test_gradients_of_the_last_steps() -> None:
    """Fewer steps have others than all of them. Abduction has none."""
    image, parents, others = images(4), draw_parents(4), draw_parents(4, seed=1)
    gradients = {}
    for steps in (1, 3, None):
        backbone = make_backbone(num_inference_steps=4, gradient_steps=steps)
        output = backbone.counterfactual(image, parents, others)
        assert not any(z.requires_grad for z in output.latents)
        output.image.square().mean().backward()
        weight = backbone.denoiser.network.conv_in.weight
        gradients[steps] = weight.grad.clone()
    assert (gradients[1] - gradients[3]).norm() > 0.01 * gradients[3].norm()


def test_image_and_fidelity_train_every_parameter() -> None:
    backbone = make_backbone(guidance_scale=2.0, gradient_steps=2, condition_dropout=0.8).train()
    output = backbone.counterfactual(images(6), draw_parents(6), draw_parents(6, seed=1))
    output.image.square().mean().backward()
    still = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still
    backbone.zero_grad()
    output = backbone.counterfactual(images(6), draw_parents(6), draw_parents(6, seed=1))
    output.fidelity.backward()
    still = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


@torch.no_grad()
def test_latents_of_an_autoencoder() -> None:
    """The diffusion model sees scaled latents, and what it makes of them is decoded."""
    torch.manual_seed(2)
    vae = AutoencoderKL(block_out_channels=(4, 8), in_channels=1, out_channels=1, latent_channels=1, norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        scaling_factor=0.5, shift_factor=0.1).eval()  # fmt: skip
    backbone = make_backbone(vae=vae)
    image, parents = images(2).repeat(1, 1, 2, 2), draw_parents(2)
    latent = vae.encode(image).latent_dist.mode()
    torch.testing.assert_close(backbone._encode(image), (latent - 0.1) * 0.5)
    output = backbone.counterfactual(image, parents, parents)
    torch.testing.assert_close(output.image, vae.decode(latent).sample.clamp(-1, 1), rtol=0, atol=0.01)
    assert output.latents[0].shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 30}, "num_inference_steps must .* 1000 training steps .* divide"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"invariant_guidance_scale": -2.0}, "invariant_guidance_scale"),
        ({"guidance_scale": {"size": -1.0}}, r"guidance_scale\['size'\]"),
        ({"guidance_scale": {"weight": 1.0}}, "guidance_scale .*'weight'"),
        ({"guidance_scale": {"size": 2.0}, "invariant_guidance_scale": 1.0}, "invariant_guidance_scale"),
        ({"gradient_steps": 0}, "gradient_steps"),
        ({"gradient_steps": 11}, r"gradient_steps"),
        ({"gradient_steps": 9, "strength": 0.8}, "gradient_steps"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": 0.1}, "strength 0.1 .* num_inference_steps 10"),
        ({"abduction": "edict"}, r"abduction must be one of \['ddim', 'bdia'\], got 'edict'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_backbone(**settings)


def test_images_are_drawn_from_pure_noise_only() -> None:
    with pytest.raises(ValueError, match="strength"):
        make_backbone(strength=0.9).sample(draw_parents(2))
