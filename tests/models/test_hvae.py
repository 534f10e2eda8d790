import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from softcft.models.hvae import HVAEModel
from softcft.models.hvae_blocks import (
    MIN_LOG_SCALE,
    ConvBlock,
    ParentBias,
    convolve_shared,
)

GRAPH = [
    {"name": "age", "kind": "continuous", "low": 20, "high": 90},
    {"name": "site", "kind": "categorical", "categories": ["x", "y", "z"]},
    {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age"]},
]
WIDTH = 5
TINY: dict[str, Any] = {
    "sample_size": 16,
    "resolutions": [16, 8, 4, 2, 1],
    "channels": [8, 8, 16, 16, 16],
    "encoder_blocks": [1, 1, 1, 1, 1],
    "decoder_blocks": [1, 2, 1, 1, 1],
    "z_dim": 3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "bottleneck": {},
    "light": {"block_type": "light"},
    "patches": {
        "patch_size": 4,
        "in_channels": 2,
        "resolutions": [4, 1],
        "channels": [16, 16],
        "encoder_blocks": [2, 0],
        "decoder_blocks": [2, 1],
    },
    "conditional prior": {"conditional_prior": True, "z_max_resolution": 8},
    "conditional prior, light": {"conditional_prior": True, "block_type": "light"},
    "smooth": {
        "smooth": True,
        "patch_size": 4,
        "resolutions": [4, 2, 1],
        "channels": [16, 16, 16],
        "encoder_blocks": [1, 1, 1],
        "decoder_blocks": [2, 1, 1],
    },
    "smooth, no patches": {"smooth": True},
    "few latents, few biases": {"z_max_resolution": 4, "bias_max_resolution": 2, "beta": 3.0},
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(**config: Any) -> HVAEModel:
    torch.manual_seed(0)
    return HVAEModel(GRAPH, **{**TINY, **config})


def perturbed(scale: float = 0.1, **config: Any) -> HVAEModel:
    """A model in which nothing is zero any more, so that everything has an effect."""
    model, generator = build(**config), seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def batch(model: HVAEModel, n: int = 4, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    size = model.config.sample_size
    image = torch.randint(256, (n, model.config.in_channels, size, size), generator=generator) / 127.5 - 1
    return image, random_parents(n, generator)


def random_parents(n: int, generator: torch.Generator) -> Tensor:
    age = 2 * torch.rand(n, 1, generator=generator) - 1
    site = F.one_hot(torch.randint(3, (n,), generator=generator), 3).float()
    return torch.cat([age, site, torch.randint(2, (n, 1), generator=generator).float()], dim=1)


# ---- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [3, 4, 8, 16])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_parent_bias_is_a_convolution_of_constant_maps(kernel_size: int, resolution: int) -> None:
    bias = ParentBias(WIDTH, 6, kernel_size)
    parents = torch.randn(2, WIDTH, generator=seeded())
    expected = bias.conv(parents[:, :, None, None].expand(-1, -1, resolution, resolution))
    torch.testing.assert_close(bias(parents, resolution).expand_as(expected), expected)
    if kernel_size == 3:  # the border differs, or this test would not see it
        assert (expected[:, :, 0] - expected[:, :, 1]).abs().max() > 0.01


@pytest.mark.parametrize("block_type", ["light", "bottleneck"])
@pytest.mark.parametrize(("kernel_size", "resolution"), [(1, 1), (1, 2), (3, 4), (3, 7)])
def test_several_inputs_equal_their_concatenation(block_type: str, kernel_size: int, resolution: int) -> None:
    block = ConvBlock([4, 6], 8, 5, kernel_size, block_type, parents_dim=WIDTH)
    assert block.parents is not None
    generator = seeded()
    maps = [torch.randn(2, c, resolution, resolution, generator=generator) for c in (4, 6)]
    parents = torch.randn(2, WIDTH, generator=generator)

    activation = F.relu if block_type == "light" else F.gelu
    convolutions = [*block.inputs, block.parents.conv]
    first = nn.Conv2d(4 + 6 + WIDTH, 8, convolutions[0].kernel_size, padding=convolutions[0].padding)
    first.weight.data = torch.cat([conv.weight for conv in convolutions], dim=1)
    first.bias.data = block.inputs[0].bias
    layers = [first, *block.middle, block.last]
    assert len(layers) == (2 if block_type == "light" else 4)
    h = torch.cat([*maps, parents[:, :, None, None].expand(-1, -1, resolution, resolution)], dim=1)
    for layer in layers:
        h = layer(activation(h))
    other = ConvBlock([4, 6], 8, 5, kernel_size, block_type, parents_dim=WIDTH)
    _, convolved = convolve_shared([other, block], maps[1])
    torch.testing.assert_close(block.last(block.hidden(maps[0], parents, convolved)), h)


@torch.no_grad()
@variants
def test_maps_are_in_channels_last(variant: dict[str, Any]) -> None:
    model = perturbed(**variant)
    image, parents = batch(model)
    output, walked = model(image, parents), model.walk_prior(parents)
    maps = [*output.latents, *(q for pair in output.posteriors for q in pair), *output.injections]
    maps += [*walked.latents, *walked.injections]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps if x.shape[-1] > 1)


def test_prior_starts_as_a_standard_normal() -> None:
    for block in build().decoder:
        channels = block.prior.inputs[0].in_channels
        state = torch.randn(2, channels, block.resolution, block.resolution, generator=seeded())
        hidden, loc, log_scale = block.run_prior(state, torch.ones(2, WIDTH))
        assert loc.shape == (2, 3, block.resolution, block.resolution)
        assert (loc == 0).all()
        assert (log_scale == 0).all()
        injection, _ = block.inject(hidden, loc)
        assert (injection == 0).all()


# ---- the bound -------------------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("make", [build, perturbed])
def test_bound_is_finite_and_adds_up(make: Any, variant: dict[str, Any]) -> None:
    model = make(**variant)
    image, parents = batch(model)
    output = model(image, parents)
    assert output.nelbo.shape == output.nll.shape == output.kl.shape == (4,)
    assert output.loc.shape == output.log_scale.shape == image.shape
    assert output.nelbo.isfinite().all()
    assert (output.kl > 0).all()
    torch.testing.assert_close(output.nelbo, output.nll + model.config.beta * output.kl)


@variants
def test_kl_sums_the_stochastic_blocks(variant: dict[str, Any]) -> None:
    model = perturbed(**variant)
    image, parents = batch(model)
    output = model(image, parents)
    priors = model.walk_prior(parents, output.latents).priors
    total = torch.zeros(4)
    for (q_loc, q_log_scale), (p_loc, p_log_scale) in zip(output.posteriors, priors, strict=True):
        divergence = kl_divergence(Normal(q_loc, q_log_scale.exp()), Normal(p_loc, p_log_scale.exp()))
        total = total + divergence.sum(dim=(1, 2, 3))
    torch.testing.assert_close(output.kl, total / image[0].numel())


@variants
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing: bool, variant: dict[str, Any]) -> None:
    model = perturbed(**variant).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    model(*batch(model, n=8)).nelbo.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in model.named_parameters() if (p.grad == 0).all()] == []


@variants
def test_every_parameter_takes_part_from_the_first_step(variant: dict[str, Any]) -> None:
    # Distributed training waits for the gradient of each of them.
    model = build(**variant)
    model(*batch(model)).nelbo.mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients, calls = [], 0
    for checkpointing in (False, True):
        model = perturbed(0.05).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            checkpoint = model._gradient_checkpointing_func

            def counting(*args: Any, checkpoint: Any = checkpoint) -> Any:
                nonlocal calls
                calls += 1
                return checkpoint(*args)

            model._gradient_checkpointing_func = counting
        loss = model(*batch(model), generator=seeded(7)).nelbo.mean()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert calls == len(model.encoder) + 3 * len(model.decoder) + len(model.config.resolutions)


# ---- latents and decoding --------------------------------------------------------------------------------------------


@variants
@torch.no_grad()
def test_decoding_under_the_factual_parents_is_the_posterior_pass(variant: dict[str, Any]) -> None:
    model = perturbed(**variant)
    image, parents = batch(model)
    output = model(image, parents)
    loc, log_scale = model.decode(output.injections, parents)
    torch.testing.assert_close(loc, output.loc, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_scale, output.log_scale, rtol=0, atol=1e-6)
    other, _ = model.decode(output.injections, random_parents(4, seeded(9)))
    assert (other - loc).flatten(1).abs().amax(dim=1).min() > 1e-4


@torch.no_grad()
def test_samples_follow_the_prior_of_the_first_block() -> None:
    model = perturbed()
    first = model.decoder[0]
    hidden, loc, log_scale = first.run_prior(model.biases["1"], torch.zeros(1, WIDTH))
    expected, _ = first.inject(hidden, loc)
    spread = (first.z_proj.weight[:, :, 0, 0].square() @ (2 * log_scale[0, :, 0, 0]).exp()).sqrt()
    drawn = model.walk_prior(torch.zeros(4000, WIDTH), generator=seeded()).injections[0][:, :, 0, 0]
    torch.testing.assert_close(drawn.mean(dim=0), expected[0, :, 0, 0], rtol=0, atol=float(4 * spread.max() / 63))
    torch.testing.assert_close(drawn.std(dim=0), spread, rtol=0.06, atol=0)


@variants
@torch.no_grad()
def test_the_prior_walks_over_given_latents_as_the_posterior_did(variant: dict[str, Any]) -> None:
    model = perturbed(**variant)
    image, parents = batch(model)
    abducted = model(image, parents)
    walked = model.walk_prior(parents, abducted.latents)
    torch.testing.assert_close(walked.injections, abducted.injections)
    assert all(z is given for z, given in zip(walked.latents, abducted.latents, strict=True))
    others = model.walk_prior(random_parents(4, seeded(9)), abducted.latents).injections
    same = [torch.equal(one, other) for one, other in zip(walked.injections, others, strict=True)]
    assert not any(same) if model.config.conditional_prior else all(same)


def test_walking_the_prior_needs_all_latents() -> None:
    model = build()
    with pytest.raises(ValueError, match="latents must"):
        model.walk_prior(torch.zeros(1, WIDTH), [torch.zeros(1, 3, 1, 1)] * 2)


@variants
@torch.no_grad()
def test_one_generator_per_image_makes_a_batch_of_single_calls(variant: dict[str, Any]) -> None:
    model = perturbed(**variant)
    image, parents = batch(model)
    together = model(image, parents, generator=[seeded(s) for s in range(4)])
    for i in range(4):
        alone = model(image[i : i + 1], parents[i : i + 1], generator=seeded(i))
        torch.testing.assert_close(together.nelbo[i : i + 1], alone.nelbo, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.loc[i : i + 1], alone.loc, rtol=1e-4, atol=1e-4)


@variants
@torch.no_grad()
def test_noise_is_drawn_once_and_may_be_given(variant: dict[str, Any]) -> None:
    model = perturbed(**variant)
    image, parents = batch(model)
    drawn = model(image, parents, generator=seeded(5))
    given = model(image, parents, noise=model.draw_noise(4, seeded(5)))
    for one, other in zip(drawn.latents, given.latents, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous(memory_format=torch.channels_last)
    for noise, (loc, log_scale), z in zip(model.draw_noise(4, seeded(5)), drawn.posteriors, drawn.latents, strict=True):
        torch.testing.assert_close((z - loc) / log_scale.exp(), noise, rtol=1e-3, atol=1e-3)
    noise = torch.cat([part.flatten() for part in model.draw_noise(4000, seeded())])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # other tests leave a hook on all modules
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>")  # of torch's own compiler
def test_a_step_compiles_as_a_whole() -> None:
    model = perturbed(**VARIANTS["patches"])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    image, parents = batch(model)
    noise = model.draw_noise(4, seeded(5))
    output = compiled(image, parents, noise=noise)
    torch.testing.assert_close(output.nelbo, model(image, parents, noise=noise).nelbo)
    output.nelbo.mean().backward()


# ---- sizes and types -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pixels_keep_their_place_through_patches() -> None:
    # A 7x7 stem sees three patches around: a change in one corner cannot reach the far corner's activation.
    model = perturbed(patch_size=2, resolutions=[8, 1], channels=[8, 8], encoder_blocks=[0, 0], decoder_blocks=[1, 1])
    image, _ = batch(model)
    moved = image.clone()
    moved[:, :, 0, 0] += 1
    difference = (model._encode(image)[8] - model._encode(moved)[8]).abs().amax(dim=(0, 1))
    assert (difference[:4, :4] > 0).all()
    assert (difference[4:] == 0).all()
    assert (difference[:, 4:] == 0).all()


@torch.no_grad()
def test_bfloat16_stays_close_to_float32() -> None:
    model = perturbed(0.03)
    image, parents = batch(model)
    exact = model(image, parents, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(image, parents, generator=seeded())
    for value in (mixed.nelbo, mixed.nll, mixed.kl, mixed.loc, mixed.log_scale):
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    torch.testing.assert_close(mixed.nelbo, exact.nelbo, rtol=0.02, atol=0)
    torch.testing.assert_close(mixed.loc, exact.loc, rtol=0, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.01)])
def test_weights_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = perturbed(0.03)
    image, parents = batch(model)
    exact = model(image, parents, generator=seeded())
    half = model.to(dtype)(image, parents, generator=seeded())
    assert {value.dtype for value in (half.nelbo, half.nll, half.kl, half.loc, half.log_scale)} == {torch.float32}
    torch.testing.assert_close(half.nelbo, exact.nelbo, rtol=tolerance, atol=0)


def test_log_scales_beyond_float32_are_held() -> None:
    model = build()
    with torch.no_grad():
        for block in model.decoder:
            block.prior.last.bias[model.config.z_dim : 2 * model.config.z_dim] = 100
            block.posterior.last.bias[model.config.z_dim :] = -100
        model.x_log_scale.bias.fill_(-100)
    output = model(*batch(model))
    assert output.nelbo.isfinite().all()
    assert all((q == MIN_LOG_SCALE).all() for _, q in output.posteriors)


# ---- the encoding of parents -----------------------------------------------------------------------------------------


@variants
@torch.no_grad()
def test_parents_are_scaled_and_shifted_before_the_network_sees_them(variant: dict[str, Any]) -> None:
    scale, shift = [2.0, 1.0, 1.0, 1.0, 0.5], [0.5, 0.0, 0.0, 0.0, -1.0]
    plain, other = perturbed(**variant), perturbed(**variant, parents_scale=scale, parents_shift=shift)
    image, parents = batch(plain)
    seen = parents * torch.tensor(scale) + torch.tensor(shift)
    one, two = (m(image, p, generator=seeded()) for m, p in ((plain, seen), (other, parents)))
    torch.testing.assert_close(one.nelbo, two.nelbo)
    walks = [m.walk_prior(p, generator=seeded()).injections for m, p in ((plain, seen), (other, parents))]
    torch.testing.assert_close(*walks)
    torch.testing.assert_close(plain.decode(walks[0], seen), other.decode(walks[1], parents))


# ---- saving ----------------------------------------------------------------------------------------------------------


@variants
@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(tmp_path: Path, variant: dict[str, Any]) -> None:
    model = perturbed(**variant).eval()
    model.save_pretrained(tmp_path)
    loaded = HVAEModel.from_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert loaded.causal_graph == model.causal_graph
    public = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (model, loaded)]
    assert public[0] == public[1]
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    image, parents = batch(model)
    # Loaded weights lie in memory as in the file, unaligned, where kernels may add in another order; a copy does not.
    first, second = (m(image, parents, generator=seeded()) for m in (model, copy.deepcopy(loaded)))
    assert torch.equal(first.nelbo, second.nelbo)
    assert torch.equal(first.loc, second.loc)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", [8, 8, 16, 16, 18]),
        ("sample_size", 32),
        ("patch_size", 2),
        ("resolutions", [16, 8, 4, 3, 2]),
        ("resolutions", [16, 8, 3, 2, 1]),
        ("resolutions", [16, 8, 8, 2, 1]),
    ],
)
def test_wrong_settings_are_named(name: str, value: Any) -> None:
    """Those that do not fit each other; all that could not be in any model are in tests/properties."""
    with pytest.raises(ValueError, match=name):
        build(**{name: value})


def test_wrong_shapes() -> None:
    model = build()
    image, parents = batch(model)
    for wrong in (image[0], image[:, :, :8], image.repeat(1, 3, 1, 1)):
        with pytest.raises(ValueError, match="image must"):
            model(wrong, parents)
    for wrong in (parents[:, 1:], parents[:3], parents[0]):
        with pytest.raises(ValueError, match="parents must"):
            model(image, wrong)
