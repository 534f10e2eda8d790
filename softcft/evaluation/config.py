"""Settings of evaluation, and of the generation of counterfactuals of training images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from softcft.arguments import Count, Natural, Range, check_fields

__all__ = ["EvaluationSettings", "GenerationSettings"]


@dataclass(kw_only=True)
class EvaluationSettings:
    """What is measured, and of how many images."""

    interventions: list[str] | None = field(
        default=None, metadata={"help": "Variables to intervene on, one at a time. Left out: all of the graph."}
    )
    eval_batch_size: Count = field(default=250, metadata={"help": "Images per forward pass and process."})
    num_resamples: Natural = field(default=1000, metadata={"help": "Bootstrap resamples of the intervals; 0 for none."})
    shift_images: Annotated[int, Range(20)] = field(
        default=1000,
        metadata={"help": "Test images, drawn at random, that the distribution shift is shown of."},
    )
    axiom_images: Annotated[int, Range(2)] = field(
        default=500,
        metadata={
            "help": "Test images, drawn at random, for composition, reversibility and minimality, each of which takes "
            "some 20 abductions and predictions for each intervention.",
        },
    )
    seed: Natural = field(default=0, metadata={"help": "Seed of interventions, abduction and resamples."})
    grid_images: Annotated[int, Range(2)] = field(
        default=3,
        metadata={"help": "Number of test images in the figures; three square ones fill a page."},
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class GenerationSettings:
    """Which counterfactuals are made."""

    attributes: list[str] | None = field(
        default=None, metadata={"help": "Variables to intervene on, one at a time. Left out: all discrete ones."}
    )
    values_per_image: Count = field(
        default=1, metadata={"help": "Number of counterfactuals of an image under a continuous variable."}
    )
    num_images: Annotated[int, Range(2)] | None = field(
        default=None,
        metadata={"help": "Only so many training images that miss no value, drawn by --data_seed. Left out: all."},
    )
    generate_batch_size: Count = field(default=256, metadata={"help": "Images per forward pass and process."})
    seed: Natural = field(default=0, metadata={"help": "Seed of abduction, and of the values of continuous variables."})

    def __post_init__(self) -> None:
        check_fields(self)
