"""Flow matching as diffusers has it, and the schedules that can be followed. Diffusion: test_denoiser.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor, nn

from softcft.models.noise_schedule import NoiseSchedule, load_scheduler
from tests.models.test_denoiser import UNET, draw_parents, make_denoiser


class Straight(nn.Module):
    """A network that knows the images, and predicts the flow to within 0.5."""

    config, dtype = UNET, torch.float32

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def __call__(self, noisy: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        self.time = timestep / 1000
        time = self.time[:, None, None, None]
        noise = (noisy - (1 - time) * self.image) / time
        return type("Output", (), {"sample": noise - self.image + 0.5})


def test_the_flow_leads_from_images_to_noise_at_logit_normal_times() -> None:
    image, parents = torch.randn(4000, 1, 4, 4), draw_parents(4000)
    for shift in (1.0, 3.0):
        denoiser = make_denoiser(prediction_type="flow")
        denoiser.schedule = NoiseSchedule(FlowMatchEulerDiscreteScheduler(shift=shift))
        denoiser.network = told = Straight(image)
        loss = denoiser.loss(image, parents, min_snr_gamma=5)  # which is not for a flow
        torch.testing.assert_close(loss, torch.full((4000,), 0.25), rtol=0.02, atol=0)
        # Undo the shift: the logits are evenly spread quantiles of a standard normal.
        time = told.time.double()
        logits = (time / (shift - (shift - 1) * time)).logit().sort().values
        gaps = torch.special.ndtr(logits).diff()
        assert (gaps - 1 / 4000).abs().max() < 1e-4
        assert logits.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"use_dynamic_shifting": True, "time_shift_type": "linear"}])
def test_training_and_levels_are_shifted_alike(settings: dict[str, Any]) -> None:
    schedule = NoiseSchedule(FlowMatchEulerDiscreteScheduler(**settings), tokens=2048)
    _, _, sigmas = schedule.levels(8)
    _, signal, noise = schedule.at(torch.special.ndtr(torch.tensor([k / 8 for k in range(9)]).logit()))
    torch.testing.assert_close(noise.flatten(), torch.tensor(sigmas), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(signal, 1 - noise)


@pytest.mark.parametrize("name", ["stochastic_sampling", "invert_sigmas", "use_dynamic_shifting"])
def test_a_flow_that_cannot_be_followed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        NoiseSchedule(FlowMatchEulerDiscreteScheduler(**{name: True}))


@pytest.mark.parametrize("number", [1, 1001, 2.5])
def test_a_flow_takes_any_number_of_levels_up_to_its_steps(number: Any) -> None:
    schedule = NoiseSchedule(FlowMatchEulerDiscreteScheduler())
    for fine in (2, 7, 1000):
        assert len(schedule.levels(fine)[0]) == fine
    with pytest.raises(ValueError, match=f"num_inference_steps .* got {number}"):
        schedule.levels(number)


@pytest.mark.parametrize(
    ("scheduler", "kind", "shift"),
    [
        (DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"), "v_prediction", None),
        (PNDMScheduler(beta_schedule="scaled_linear"), "epsilon", None),
        (FlowMatchEulerDiscreteScheduler(shift=2.0), "flow", 2.0),
        (FlowMatchHeunDiscreteScheduler(shift=2.0), "flow", 2.0),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2), "flow", 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_schedule_of_any_solver_can_be_loaded(scheduler: Any, kind: str, shift: float, tmp_path: Path) -> None:
    scheduler.save_pretrained(tmp_path)
    loaded = load_scheduler(tmp_path)
    assert NoiseSchedule(loaded).kind == kind
    if shift is None:
        torch.testing.assert_close(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    else:
        assert loaded.config["shift"] == shift


def test_noise_of_another_kind_is_refused(tmp_path: Path) -> None:
    EDMEulerScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="EDMEulerScheduler"):
        load_scheduler(tmp_path)
