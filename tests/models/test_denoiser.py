"""A conditional diffusion model of toy size: what its loss is, and which attributes it listens to."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from softcft.graph import CausalGraph, Variable
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.networks import adopt_network
from softcft.models.noise_schedule import Scheduler
from softcft.models.parent_encoder import ParentEncoder

GRAPH = CausalGraph(
    [
        Variable(name="size", kind="continuous", low=0, high=10),
        Variable(name="state", kind="binary", categories=("off", "on")),
        Variable(name="site", kind="categorical", categories=("a", "b", "c"), parents=("state",)),
    ]
)
UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}


def make_scheduler(**settings: Any) -> Scheduler:
    if settings.get("prediction_type") == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(**{"clip_sample": False, **settings})


def make_unet(attention: bool, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    size = {**UNET, "in_channels": channels, "out_channels": channels}
    if attention:
        blocks = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (4, 8),
            "attention_head_dim": 4,
            "cross_attention_dim": 16,
        }
        return UNet2DConditionModel(**size, **blocks).eval()
    blocks = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "block_out_channels": (4, 8),
        "class_embed_type": "identity",
    }
    return UNet2DModel(**size, **blocks).eval()


def make_denoiser(attention: bool = False, **settings: Any) -> ConditionalDenoiser:
    unet = make_unet(attention)
    return ConditionalDenoiser(unet, ParentEncoder(GRAPH.to_list(), 16), make_scheduler(**settings)).eval()


def draw_parents(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    site = nn.functional.one_hot(torch.randint(3, (n,), generator=generator), 3).float()
    size = 2 * torch.rand(n, 1, generator=generator) - 1
    return torch.cat([size, torch.randint(2, (n, 1), generator=generator).float(), site], dim=1)


@pytest.fixture(params=[False, True], ids=["class embedding", "cross attention"])
def denoiser(request: pytest.FixtureRequest) -> ConditionalDenoiser:
    denoiser = make_denoiser(request.param)
    nn.init.normal_(denoiser.parent_encoder.absent)
    return denoiser


@torch.no_grad()
def test_it_listens_to_each_variable_that_is_present_and_to_no_other(denoiser: ConditionalDenoiser) -> None:
    x, timestep, parents = torch.randn(6, 1, 8, 8), torch.full((6,), 300), draw_parents(6)
    before = denoiser(x, timestep, parents)
    assert before.shape == x.shape
    for i, name in enumerate(GRAPH.names):
        other = parents.clone()
        columns = GRAPH.slices[name]
        other[:, columns] = -0.5 if name == "size" else other[:, columns].roll(1, dims=1)
        if name == "state":
            other[:, columns] = 1 - parents[:, columns]
        present = torch.ones(6, 3, dtype=torch.bool)
        torch.testing.assert_close(denoiser(x, timestep, parents, present), before)
        assert (denoiser(x, timestep, other) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-5
        present[:, i] = False
        without = denoiser(x, timestep, parents, present)
        assert (without - before).abs().amax(dim=(1, 2, 3)).min() > 1e-5
        assert torch.equal(denoiser(x, timestep, other, present), without)
        other[:, columns] = torch.nan
        assert torch.equal(denoiser(x, timestep, other, present), without)


@torch.no_grad()
@pytest.mark.parametrize("attention", [False, True])
def test_a_network_of_more_channels_sees_patches(attention: bool) -> None:
    denoiser = ConditionalDenoiser(make_unet(attention, 4), ParentEncoder(GRAPH.to_list(), 16), make_scheduler()).eval()
    image, parents, timestep = torch.randn(2, 1, 16, 16), draw_parents(2), torch.tensor([3, 700])
    tokens = denoiser.parent_encoder(parents)
    condition = {"encoder_hidden_states": tokens} if attention else {"class_labels": tokens.sum(dim=1)}
    corners = torch.stack([image[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)
    seen = denoiser.network(corners, timestep, **condition).sample
    prediction = denoiser(image, timestep, parents)
    assert prediction.shape == image.shape
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        torch.testing.assert_close(prediction[:, 0, i::2, j::2], seen[:, k])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_noise_is_that_of_the_scheduler(prediction_type: str) -> None:
    """From what the network predicts, the scheduler and we find the same noise, and the same image."""
    denoiser = make_denoiser(prediction_type=prediction_type)
    scheduler = make_scheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(1000)
    x, parents = torch.randn(2, 1, 8, 8), draw_parents(2)
    for t in (0, 400, 999):
        timestep = torch.full((2,), t)
        signal, noise = (
            factor.item() for factor in (scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt())
        )
        prediction = denoiser(x, timestep, parents)
        clean, epsilon = denoiser.schedule.split(x, prediction, signal, noise)
        expected = scheduler.step(prediction, t, x).pred_original_sample
        torch.testing.assert_close(clean, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(signal * clean + noise * epsilon, x, rtol=1e-3, atol=1e-3)


class Told(nn.Module):
    """A network that knows the images, so that it predicts perfectly but for a constant error."""

    config, dtype = UNET, torch.float32

    def __init__(self, image: Tensor, prediction_type: str) -> None:
        super().__init__()
        self.image, self.prediction_type, self.scheduler = image, prediction_type, make_scheduler()

    def __call__(self, noisy: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        kept = self.scheduler.alphas_cumprod[timestep][:, None, None, None]
        epsilon = (noisy - kept.sqrt() * self.image) / (1 - kept).sqrt()
        velocity = kept.sqrt() * epsilon - (1 - kept).sqrt() * self.image
        self.ratio = (kept / (1 - kept)).flatten()
        target = epsilon if self.prediction_type == "epsilon" else velocity
        return type("Output", (), {"sample": target + 0.5})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_error_of_the_prediction(prediction_type: str) -> None:
    """Weighted, it is that of the image, with the weight min(SNR, gamma)."""
    image, parents = torch.randn(64, 1, 8, 8), draw_parents(64)
    denoiser = make_denoiser(prediction_type=prediction_type)
    denoiser.network = told = Told(image, prediction_type)
    torch.testing.assert_close(denoiser.loss(image, parents), torch.full((64,), 0.25), rtol=1e-3, atol=0)
    weighted = denoiser.loss(image, parents, min_snr_gamma=5)
    # Errors of noise and velocity, and those of the image that follow: x = (x_t - s e) / a, and x = a x_t - s v.
    ratio = told.ratio
    image_error = 0.25 / ratio if prediction_type == "epsilon" else 0.25 / (ratio + 1)
    torch.testing.assert_close(weighted, image_error * ratio.clamp_max(5), rtol=2e-3, atol=1e-6)
    assert (ratio > 5).any()
    assert (ratio < 5).any()


def test_times_are_uniform_and_reproducible() -> None:
    image, parents = torch.zeros(4000, 1, 8, 8), draw_parents(4000)
    denoiser = make_denoiser()
    seen = []
    denoiser.network.forward = lambda noisy, timestep, class_labels: (  # type: ignore[method-assign]
        seen.append(timestep) or type("Output", (), {"sample": noisy})
    )
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    denoiser.loss(image, parents, generator=generators)
    assert seen[0].min() < 10
    assert seen[0].max() > 989
    histogram = torch.histc(seen[0].float(), bins=10, min=0, max=1000)
    assert (histogram - 400).abs().max() < 5 * 400**0.5
    # By one generator they are spread evenly, from a random start.
    for seed in (0, 1):
        denoiser.loss(image[:10], parents[:10], generator=torch.Generator().manual_seed(seed))
        gaps = seen[-1].sort().values.diff()
        assert (gaps - 100).abs().max() <= 1
    assert not torch.equal(seen[-1].sort().values, seen[-2].sort().values)
    # An image's time and noise are its own generator's.
    one = denoiser.loss(image[:2], parents[:2], generator=[torch.Generator().manual_seed(i) for i in (7, 3)])
    two = denoiser.loss(image[:1], parents[:1], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(one[1:], two)


def test_equally_many_attributes_are_left_out() -> None:
    """Of 30 % of the images 1, 2 or all 3, each number as often; and each variable as often."""
    torch.manual_seed(0)
    denoiser, seen = make_denoiser(), []
    denoiser.forward = lambda noisy, timestep, parents, present: seen.append(present) or noisy  # type: ignore
    image, parents = torch.zeros(40_000, 1, 1, 1), draw_parents(40_000)
    for dropout in (0.3, 0.0, 1.0):
        denoiser.loss(image, parents, dropout)
    shares = torch.bincount(3 - seen[0].sum(dim=1), minlength=4) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.1, 0.1, 0.1]), rtol=0, atol=0.006)
    torch.testing.assert_close(seen[0].float().mean(dim=0), torch.full((3,), 0.8), rtol=0, atol=0.01)
    assert seen[1].all()
    assert not seen[2].all(dim=1).any()


def test_gradients_reach_every_parameter(denoiser: ConditionalDenoiser) -> None:
    loss = denoiser.train().loss(torch.randn(8, 1, 8, 8), draw_parents(8), condition_dropout=0.8)
    assert loss.shape == (8,)
    loss.mean().backward()
    still = [n for n, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_the_encoder_is_saved(tmp_path: Any) -> None:
    encoder = ParentEncoder(GRAPH.to_list(), 16)
    nn.init.normal_(encoder.absent)
    encoder.save_pretrained(tmp_path)
    again = ParentEncoder.from_pretrained(tmp_path)
    parents, present = draw_parents(5), torch.rand(5, 3) < 0.5
    assert again.causal_graph == GRAPH
    assert torch.equal(encoder(parents, present), again(parents, present))


@pytest.mark.parametrize(
    ("attention", "network", "embedding_dim", "scheduler", "named"),
    [
        (False, {"out_channels": 3}, 16, {}, "network must"),
        (False, {"class_embed_type": None}, 16, {}, "network must .*class_embed_type"),
        (False, {}, 8, {}, "size 8, .* size 16"),
        (True, {}, 8, {}, "size 8, .* size 16"),
        (False, {}, 16, {"prediction_type": "sample"}, "'sample'"),
        (False, {}, 16, {"clip_sample": True}, "clip_sample=False"),
        (False, {}, 16, {"thresholding": True}, "thresholding=False"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    attention: bool, network: dict[str, Any], embedding_dim: int, scheduler: dict[str, Any], named: str
) -> None:
    unet = make_unet(attention)
    if network:
        unet = UNet2DModel.from_config({**unet.config, **network})
    with pytest.raises(ValueError, match=named):
        ConditionalDenoiser(unet, ParentEncoder(GRAPH.to_list(), embedding_dim), make_scheduler(**scheduler))


SCHEDULERS = {
    name: getattr(diffusers, name)
    for name in diffusers.schedulers.__all__  # those that need no further packages
    if name.endswith("Scheduler") and hasattr(diffusers, name)
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_scheduler_that_would_be_ignored_is_refused_by_name(name: str) -> None:
    """Whoever swaps the scheduler expects another solver, and other classes have other schedules by default."""
    try:
        scheduler = SCHEDULERS[name].from_config(make_scheduler().config)
    except Exception:  # it needs other settings
        scheduler = object.__new__(SCHEDULERS[name])
    denoiser = make_denoiser()
    if SCHEDULERS[name] in (DDIMScheduler, FlowMatchEulerDiscreteScheduler):
        ConditionalDenoiser(denoiser.network, denoiser.parent_encoder, scheduler)
    else:
        with pytest.raises(ValueError, match=f"scheduler must be a DDIMScheduler .* got {name}"):
            ConditionalDenoiser(denoiser.network, denoiser.parent_encoder, scheduler)


@pytest.mark.parametrize(
    "schedule",
    [
        {"rescale_betas_zero_snr": True},
        {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_end": 0.05},
        {"trained_betas": [0.1] * 199 + [1.0]},
    ],
)
def test_no_noise_can_be_predicted_where_nothing_is_left_of_the_image(schedule: dict[str, Any]) -> None:
    for prediction_type in ("v_prediction", "epsilon"):
        scheduler = make_scheduler(prediction_type=prediction_type, **schedule)
        parts = make_unet(False), ParentEncoder(GRAPH.to_list(), 16), scheduler
        if prediction_type == "epsilon":
            with pytest.raises(ValueError, match="epsilon"):
                ConditionalDenoiser(*parts)
        else:
            image = torch.rand(64, 1, 8, 8)
            assert ConditionalDenoiser(*parts).loss(image, draw_parents(64), min_snr_gamma=5).isfinite().all()


# ---- networks of others ----------------------------------------------------------------------------------------------


def stock_unet(**settings: Any) -> UNet2DModel:
    torch.manual_seed(4)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**UNET, **blocks, block_out_channels=(4, 8), **settings).eval()


@torch.no_grad()
@pytest.mark.parametrize(("classes", "column"), [(2, "state"), (3, "site")])
def test_a_class_conditional_network_goes_on_as_it_was(classes: int, column: str) -> None:
    unet = stock_unet(num_class_embeds=classes)
    adopted, encoder = adopt_network(unet, GRAPH)
    denoiser = ConditionalDenoiser(adopted, encoder, make_scheduler())
    x, timestep, parents = torch.randn(8, 1, 8, 8), torch.full((8,), 300), draw_parents(8)
    own = parents[:, GRAPH.slices[column]]
    labels = own[:, 0].long() if classes == 2 else own.argmax(dim=1)
    expected = unet(x, timestep, class_labels=labels).sample
    torch.testing.assert_close(denoiser(x, timestep, parents), expected, rtol=1e-4, atol=1e-5)
    assert unet.config["num_class_embeds"] == classes
    assert adopted.config["class_embed_type"] == "identity"


@torch.no_grad()
@pytest.mark.parametrize("time_embedding_dim", [None, 24])
def test_an_unconditional_network_goes_on_as_it_was(time_embedding_dim: int | None) -> None:
    unet = stock_unet(time_embedding_dim=time_embedding_dim)
    denoiser = ConditionalDenoiser(*adopt_network(unet, GRAPH), make_scheduler())
    x, timestep = torch.randn(8, 1, 8, 8), torch.full((8,), 300)
    expected = unet(x, timestep).sample
    for present in (None, torch.rand(8, 3) < 0.5):
        torch.testing.assert_close(denoiser(x, timestep, draw_parents(8), present), expected, rtol=1e-4, atol=1e-5)


def test_adopted_networks_can_learn_all_attributes() -> None:
    denoiser = ConditionalDenoiser(*adopt_network(stock_unet(), GRAPH), make_scheduler())
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.01)
    for _ in range(2):  # at first tokens are 0, and the layers below the last have no gradient
        optimizer.zero_grad()
        denoiser.loss(torch.randn(16, 1, 8, 8), draw_parents(16), condition_dropout=0.8).mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in denoiser.parent_encoder.parameters())


def test_a_network_that_has_tokens_is_taken_as_it_is() -> None:
    for attention in (False, True):
        unet = make_unet(attention)
        adopted, encoder = adopt_network(unet, GRAPH)
        assert adopted is unet
        ConditionalDenoiser(adopted, encoder, make_scheduler())


def test_conditions_of_another_kind_are_refused() -> None:
    settings = {key: value for key, value in make_unet(True).config.items() if not key.startswith("_")}
    for unet, named in (
        (stock_unet(class_embed_type="timestep"), "class_embed_type 'timestep'"),
        (UNet2DConditionModel(**{**settings, "num_class_embeds": 3}), "tokens of one size"),
        (stock_unet(num_class_embeds=10), r"10 classes.*\[\] have"),
    ):
        with pytest.raises(ValueError, match=named):
            adopt_network(unet, GRAPH)


def test_a_compiled_network_is_known() -> None:
    denoiser = make_denoiser(attention=True)
    compiled = ConditionalDenoiser(
        torch.compile(denoiser.network, backend="eager"), denoiser.parent_encoder, make_scheduler()
    )
    assert compiled.network.config["cross_attention_dim"] == 16
