"""Settings of counterfactual fine-tuning, and of how a diffusion model makes counterfactuals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from softcft.arguments import Count, NotNegative, Positive, Range, Share, check_fields
from softcft.cft import CFTMode
from softcft.counterfactuals import MOST_GUIDANCE, Solver, check_guidance
from softcft.models import CONDITION_DROPOUT, MIN_SNR_GAMMA
from softcft.training.yaml_files import parse_yaml

__all__ = [
    "CFTConfig",
    "DiffusionTuningConfig",
    "SolverConfig",
    "WatchConfig",
    "given_settings",
    "refuse_for_hvae",
]

WATCHED_IMAGES = 256
"""Up to so many validation images are looked at while fine-tuning runs."""


@dataclass(kw_only=True)
class CFTConfig:
    """Settings of counterfactual fine-tuning beside those of the training loop.

    Raises:
        ValueError: If a value is out of range. The message names the argument.
    """

    cft: CFTMode = field(
        default="soft",
        metadata={
            "help": "Target for attributes that the intervention must not move: their label (hard), or the guide's "
            "prediction on the factual image (soft, the paper's contribution). matched is soft, and what the guide "
            "says of real images is the target for those that it moves, in place of labels. none: no fine-tuning."
        },
    )
    damping: NotNegative = field(
        default=100.0,
        metadata={"help": "Weight of the squared violation of the fidelity constraint (published: 10 to 100)."},
    )
    multiplier_learning_rate: NotNegative = field(
        default=0.1, metadata={"help": "Step of the Lagrange multiplier's ascent, per nat of violation."}
    )
    published: bool = field(
        default=False,
        metadata={
            "help": "Algorithm 1 to the letter: the constraint is an equality, which also pulls a model back whose "
            "fidelity is better than the pretrained one's; descendants that keep their value have labels for targets; "
            "guides are asked for what they do not see, and see images as they are; and these may change however much "
            "(--minimality and random changes such as --random_shift have no effect)."
        },
    )
    slack_images: Count = field(
        default=2048, metadata={"help": "Random training images on which the pretrained fidelity is measured."}
    )
    reference_images: Count = field(
        default=10_000,
        metadata={
            "help": "For matched: random training images among which the guide's predictions are ranked, and of which "
            "average effects are measured."
        },
    )
    minimality: NotNegative | None = field(
        default=None,
        metadata={
            "help": "Weight of how much the images change, in nats per grey level of the mean absolute change: of all "
            "counterfactuals that the guide accepts, those that change the least. Left out: 0.02 with matched targets, "
            "else 0."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.minimality is None:
            self.minimality = 0.02 if self.cft == "matched" else 0.0


@dataclass(kw_only=True)
class WatchConfig:
    """Whether a watcher evaluates the fine-tuning, and how often.

    Raises:
        ValueError: If a value is out of range.
    """

    watch: bool = field(
        default=True,
        metadata={
            "help": f"Let a further classifier, the watcher, look at counterfactuals of up to {WATCHED_IMAGES} "
            "validation images on the way: the model that it finds best is saved, an attack on the guide is told, and "
            "after three looks in a row that find one fine-tuning ends."
        },
    )
    watch_steps: Count | None = field(
        default=None, metadata={"help": "Steps between two looks; a tenth of all if left out."}
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class SolverConfig:
    """How counterfactuals of a diffusion model are made. An HVAE has none of these settings."""

    num_inference_steps: Annotated[int, Range(2)] | None = field(
        default=None,
        metadata={"help": "Diffusion only: levels of noise; must divide its training steps. 50 if left out."},
    )
    strength: Annotated[float, Range(0, 1, has_low=False)] | None = field(
        default=None,
        metadata={
            "help": "Diffusion only: share of the levels that abduction goes up; 1, to pure noise, if left out. With "
            "less, counterfactuals keep more of the image."
        },
    )
    abduction: Solver | None = field(
        default=None, metadata={"help": "Diffusion only: the solver; bdia, which is exact, if left out."}
    )
    guidance_scale: float | str | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Diffusion only: weight of the attributes in prediction, 2, or of single ones, '{sex: 2, age: 1}'; "
            "1 if left out."
        },
    )
    invariant_guidance_scale: Annotated[float, Range(0, MOST_GUIDANCE)] | None = field(
        default=None, metadata={"help": "Diffusion only: weight of the attributes that stay; not apart if left out."}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.guidance_scale, str):  # a flag, which says what a file would
            self.guidance_scale = parse_yaml(self.guidance_scale, "guidance_scale")
        if self.guidance_scale is not None:
            check_guidance(self.guidance_scale, self.invariant_guidance_scale)


@dataclass(kw_only=True)
class DiffusionTuningConfig:
    """How a diffusion model is fine-tuned. An HVAE has none of these settings."""

    gradient_steps: Count | None = field(
        default=None,
        metadata={"help": "Diffusion only: gradients flow through the last so many steps; all if left out."},
    )
    condition_dropout: Share | None = field(
        default=None,
        metadata={"help": f"Diffusion only: of the fidelity, as in training; {CONDITION_DROPOUT} if left out."},
    )
    min_snr_gamma: Positive | None = field(
        default=None,
        metadata={"help": f"Diffusion only: of the fidelity, as in training; {MIN_SNR_GAMMA} if left out."},
    )

    def __post_init__(self) -> None:
        check_fields(self)


def given_settings(*configs: Any) -> dict[str, Any]:
    """The settings of diffusion models that were given."""
    return {name: value for config in configs for name, value in asdict(config).items() if value is not None}


def refuse_for_hvae(*configs: Any) -> None:
    """Raise ValueError if a setting of diffusion models was given."""
    for name in given_settings(*configs):
        raise ValueError(f"{name} is for diffusion models, which the image model is not; leave it out.")
