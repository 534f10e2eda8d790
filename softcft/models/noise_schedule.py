r"""How images are mixed with noise, and what a network predicts: noise, velocity or flow.

At each time a noisy image is :math:`x_t = \alpha_t x + \sigma_t \epsilon`. *Diffusion* keeps
:math:`\alpha_t^2 + \sigma_t^2 = 1`; its network predicts the noise :math:`\epsilon`, or the velocity
:math:`v = \alpha_t \epsilon - \sigma_t x` (Salimans and Ho, "Progressive distillation", ICLR 2022, appendix D). *Flow
matching* goes straight, :math:`x_s = (1 - s) x + s \epsilon`; its network predicts :math:`\epsilon - x` and gets s
times the number of training steps (Esser et al., "Scaling rectified flow transformers", ICML 2024).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from softcft.arguments import shown

__all__ = ["NoiseSchedule", "Prediction", "Scheduler", "load_scheduler", "new_scheduler"]

Prediction = Literal["epsilon", "v_prediction", "flow"]
"""The noise, the velocity, or the flow, which a network predicts."""

Scheduler = DDIMScheduler | FlowMatchEulerDiscreteScheduler
"""The schedulers of diffusers whose noise schedule can be followed."""
LEAST_KEPT = 1e-6
"""Least share of the image's variance at the last step, if the noise is predicted. The error of the image is that of
the noise over its root: 160 times as large by the schedule ``linear``, 20,000 times by ``squaredcos_cap_v2``."""


class NoiseSchedule:
    """The noise schedule of a scheduler of diffusers, and the kind of prediction; nothing else of it is used.

    Args:
        scheduler: A ``DDIMScheduler``, or a ``FlowMatchEulerDiscreteScheduler`` for flow matching, whose shift is that
            of training and of all levels.
        tokens: Number of image tokens that the network sees, by which ``use_dynamic_shifting`` shifts the levels.

    Attributes:
        kind: What the network predicts.

    Raises:
        ValueError: If the scheduler is of another class, has another ``prediction_type``, clips predictions or adds
            noise, which cannot be inverted, leaves nothing of the image at its last step while the network predicts
            the noise, runs backwards, or shifts by a number of tokens that is not given.
    """

    kind: Prediction

    def __init__(self, scheduler: Scheduler, tokens: int | None = None) -> None:
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            self.kind = "flow"
            self._mu = _check_flow(scheduler, tokens)
            self._scheduler = copy.deepcopy(scheduler)  # finding levels changes it
            self.steps: int = scheduler.config["num_train_timesteps"]
        else:
            _check_diffusion(scheduler)
            self.kind = scheduler.config["prediction_type"]
            self._kept = scheduler.alphas_cumprod.float()
            self.steps = len(self._kept)

    def levels(self, number: int) -> tuple[list[float], list[float], list[float]]:
        """The levels of a solver with S of them.

        Returns:
            For the levels 1 to S the time that the network gets; for the levels 0 (no noise) to S the factors of image
            and noise. Those of diffusion are evenly spaced, and the last is the last training step; those of flow
            matching are spaced as the scheduler has it.

        Raises:
            ValueError: If S is no whole number from 2 to the number of training steps or, but for flow matching, does
                not divide these.
        """
        is_flow = self.kind == "flow"
        if not isinstance(number, int) or not 2 <= number <= self.steps or (self.steps % number and not is_flow):
            divide = "" if is_flow else " and divide them, so that levels are evenly spaced"
            raise ValueError(
                f"num_inference_steps must be from 2 to the {self.steps} training steps of the scheduler{divide}, got "
                f"{shown(number)}."
            )
        if is_flow:
            # Given none, the scheduler would end with two levels next to each other, the last of them without noise.
            self._scheduler.set_timesteps(sigmas=np.linspace(1, 1 / number, number).tolist(), mu=self._mu)
            sigmas = self._scheduler.sigmas.double().flip(0).tolist()
            return [s * self.steps for s in sigmas[1:]], [1 - s for s in sigmas], sigmas
        timesteps = [(i + 1) * self.steps // number - 1 for i in range(number)]
        kept = [1.0, *self._kept[timesteps].double().tolist()]
        return [*timesteps], [k**0.5 for k in kept], [(1 - k) ** 0.5 for k in kept]

    def at(self, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training times of images.

        Args:
            time: Quantiles in [0, 1], shape (B,): 0 is no noise, 1 pure noise. Uniform ones become uniform training
                steps of diffusion, and logit-normal times of flow matching, shifted as the scheduler has it.

        Returns:
            What the network gets, shape (B,), and the factors of image and noise, shape (B, 1, 1, 1).
        """
        if self.kind == "flow":
            sigma = self._shifted(torch.special.ndtri(time).sigmoid())
            noise = sigma[:, None, None, None]
            return sigma * self.steps, 1 - noise, noise
        timestep = (time * self.steps).long().clamp_max(self.steps - 1)
        kept = self._kept.to(time.device)[timestep][:, None, None, None]
        return timestep, kept.sqrt(), (1 - kept).sqrt()

    def split(
        self, noisy: Tensor, prediction: Tensor, signal: float | Tensor, noise: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The image and the noise in noisy images (B, C, H, W), by a prediction and the factors of image and noise."""
        if self.kind == "flow":
            return noisy - noise * prediction, noisy + signal * prediction
        if self.kind == "epsilon":
            return (noisy - noise * prediction) / signal, prediction
        return signal * noisy - noise * prediction, signal * prediction + noise * noisy

    def target(self, image: Tensor, epsilon: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict for images that were mixed with the noise ``epsilon``."""
        if self.kind == "flow":
            return epsilon - image
        return epsilon if self.kind == "epsilon" else signal * epsilon - noise * image

    def weighted(self, error: Tensor, signal: Tensor, noise: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Errors of the prediction (B,), as they count: by min-SNR weighting; those of a flow by its times alone."""
        if min_snr_gamma is None or self.kind == "flow":
            return error
        ratio = (signal / noise).square().flatten()
        # The error of the image is that of the noise over the ratio, and that of the velocity over the ratio plus 1.
        scale = ratio if self.kind == "epsilon" else ratio + 1
        return error * ratio.clamp_max(min_snr_gamma) / scale

    def _shifted(self, sigma: Tensor) -> Tensor:
        """The scheduler's shift of evenly spaced levels of noise."""
        if self._mu is not None:
            return self._scheduler.time_shift(self._mu, 1.0, sigma)
        shift = self._scheduler.shift
        return shift * sigma / (1 + (shift - 1) * sigma)


def new_scheduler(kind: Prediction) -> Scheduler:
    """A scheduler for a network that is trained from scratch on pixels or small latents."""
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler()
    # A cosine leaves next to nothing of an image at the last step, and noise that is a little wrong hides it.
    beta_schedule = "squaredcos_cap_v2" if kind == "v_prediction" else "linear"
    return DDIMScheduler(prediction_type=kind, beta_schedule=beta_schedule, clip_sample=False)


def load_scheduler(folder: str | Path, **kwargs: Any) -> Scheduler:
    """The noise schedule of any scheduler that diffusers has saved, as one that is followed here.

    Args:
        folder: Where it is, or a repository of the Hub.
        kwargs: As for diffusers' ``load_config``, such as ``subfolder``.

    Raises:
        ValueError: If it adds noise in another way than DDIM or flow matching.
    """
    config = DDIMScheduler.load_config(folder, **kwargs)
    name = config.get("_class_name")
    if config.get("prediction_type") == "flow_prediction":  # solvers of other kinds, that were set to flow matching
        return FlowMatchEulerDiscreteScheduler(config["num_train_timesteps"], shift=config.get("flow_shift") or 1.0)
    if name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        flow: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        return flow
    names = {"DDIMScheduler", *(scheduler.__name__ for scheduler in DDIMScheduler().compatibles)}
    names -= {"EDMEulerScheduler"}  # its noise has no beta_schedule
    if name not in names:
        names |= {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
        raise ValueError(f"{folder} holds a {name}, and not one of {sorted(names)}.")
    ddim: DDIMScheduler = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    return ddim


def _check_diffusion(scheduler: Scheduler) -> None:
    """Refuse what abduction cannot invert, or would ignore."""
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"scheduler must be a DDIMScheduler or a FlowMatchEulerDiscreteScheduler, got {type(scheduler).__name__}: "
            "abduction and prediction are a solver of their own, and no other would be followed. The schedule of one "
            "that adds noise as DDIM does, such as DDPM's, is taken by "
            "DDIMScheduler.from_config(scheduler.config, clip_sample=False)."
        )
    prediction_type, kept = scheduler.config["prediction_type"], scheduler.alphas_cumprod[-1]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type of scheduler must be 'epsilon' or 'v_prediction', got {prediction_type!r}.")
    if scheduler.config["clip_sample"] or scheduler.config["thresholding"]:
        raise ValueError("scheduler must have clip_sample=False and thresholding=False: clipping has no inverse.")
    if prediction_type == "epsilon" and not kept.is_meta and kept < LEAST_KEPT:  # meta: a schedule without numbers
        raise ValueError(
            f"scheduler leaves nothing of the image at its last step (alphas_cumprod is {kept:.1g} there), and a "
            "network that predicts the noise, prediction_type 'epsilon', cannot tell the image then. Train with "
            "prediction_type 'v_prediction', or with beta_schedule 'linear' and without rescale_betas_zero_snr."
        )


def _check_flow(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int | None) -> float | None:
    """Refuse what abduction cannot invert; the mu of dynamic shifting, if that is on."""
    config = scheduler.config
    for name, why in (("stochastic_sampling", "new noise has no inverse"), ("invert_sigmas", "image must be at 0")):
        if config[name]:
            raise ValueError(f"scheduler must have {name}=False: {why}.")
    if not config["use_dynamic_shifting"]:
        return None
    if tokens is None:
        raise ValueError(
            "scheduler has use_dynamic_shifting=True, which shifts by the number of image tokens, but the network has "
            "none; use FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, use_dynamic_shifting=False)."
        )
    # As calculate_shift of diffusers' pipelines: a line through (base_image_seq_len, base_shift) and its like.
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (many - few)
    return config["base_shift"] + slope * (tokens - few)
