"""Settings of training that all models share. :mod:`softcft.training.parsing` reads them from files and flags.

All of them raise ValueError if a value is out of range; the message names the argument.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from softcft.arguments import Count, Natural, Positive, ProperShare, Range, Share, check_fields
from softcft.cft import CFTMode
from softcft.models import CONDITION_DROPOUT, MIN_SNR_GAMMA

__all__ = [
    "PRECISION_HELP",
    "AdapterConfig",
    "Coupling",
    "DiffusionConfig",
    "MemoryConfig",
    "PatchConfig",
    "Precision",
    "TrainingConfig",
    "TrunkConfig",
    "UtilityConfig",
    "ValidationConfig",
]

Coupling = Literal["independent", "optimal_transport"]
Precision = Literal["auto", "no", "bf16", "fp16"]
PRECISION_HELP = (
    "Type of the forward pass; weights stay float32. auto: bf16 on machines that compute in it, else no. A CPU without "
    "such instructions takes up to a hundred times as long in bf16. fp16 needs a GPU."
)
VALIDATION_IMAGES = 2048
"""Up to so many validation images are looked at while a classifier learns."""


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of the training loop, the same for every model.

    The defaults are those that the published HVAEs were trained with (causal-gen, De Sousa Ribeiro et al., "High
    Fidelity Image Counterfactuals with Probabilistic Causal Models", 2023), unless the help of a field says otherwise.

    Raises:
        ValueError: Also if the package of ``report_to`` is not installed.
    """

    output_dir: str = field(
        metadata={
            "help": "Folder of the whole run, the same for all recipes. Each has a folder of its own below it (scm, "
            "guide, judge, hvae, none, hard, soft) for checkpoints, metrics.jsonl, tracker logs and the model."
        }
    )
    seed: Annotated[int, Range(0, 2**32, has_high=False)] = field(
        default=0, metadata={"help": "Seed of the data order and of all noise. Same seed, same machine: same model."}
    )
    max_train_steps: Count = field(
        default=10_000, metadata={"help": "Number of optimizer steps, skipped ones included."}
    )
    max_train_epochs: Count | None = field(
        default=None,
        metadata={
            "help": "Number of passes over the training images, where these are fewer than --max_train_steps: a few "
            "hundred images are learned by heart long before. No limit if left out; a stream has none."
        },
    )
    train_batch_size: Count = field(default=32, metadata={"help": "Images per forward pass and process."})
    gradient_accumulation_steps: Count = field(
        default=1,
        metadata={
            "help": "Forward passes per optimizer step. The effective batch is train_batch_size times this times the "
            "number of processes: raise this when a batch does not fit into memory."
        },
    )
    learning_rate: Annotated[float, Range(0, has_low=False, has_high=False)] = field(
        default=1e-3,
        metadata={
            "help": "Peak learning rate of AdamW. 1e-3 suits training from scratch; fine-tuning wants 5e-6 to 1e-4."
        },
    )
    adam_beta1: ProperShare = field(default=0.9, metadata={"help": "Decay of AdamW's mean of the gradient."})
    adam_beta2: ProperShare = field(
        default=0.9,
        metadata={
            "help": "Decay of AdamW's mean of the squared gradient. 0.9 (not the usual 0.999) follows the rare, large "
            "gradients of a hierarchical VAE more closely."
        },
    )
    adam_weight_decay: Annotated[float, Range(0, has_high=False)] = field(
        default=0.01, metadata={"help": "Decoupled weight decay of AdamW."}
    )
    lr_scheduler: Literal["constant_with_warmup", "cosine"] = field(
        default="constant_with_warmup",
        metadata={"help": "Learning rate after the warm-up: held, or lowered to 0 at max_train_steps along a cosine."},
    )
    lr_warmup_steps: Natural = field(
        default=100, metadata={"help": "Steps over which the learning rate rises linearly from 0. 0 turns it off."}
    )
    max_grad_norm: Positive = field(
        default=350.0,
        metadata={"help": "Gradients are scaled down to this global L2 norm, if theirs is larger. inf turns it off."},
    )
    skip_grad_norm: Positive = field(
        default=500.0,
        metadata={
            "help": "A step whose gradient norm before clipping is above this leaves the weights alone; so does, "
            "whatever this is, one whose loss or gradient is not finite. metrics.jsonl counts them as 'skipped'."
        },
    )
    ema_decay: ProperShare = field(
        default=0.999,
        metadata={
            "help": "Decay of the moving average of the weights, which is what training returns. It starts at "
            "(1 + n) / (10 + n) after n steps, so that short runs forget the initial weights. 0 turns it off."
        },
    )
    mixed_precision: Precision = field(default="no", metadata={"help": PRECISION_HELP})
    checkpointing_steps: Natural = field(
        default=500,
        metadata={"help": "Save a resumable checkpoint each so many steps, and at the end. 0 turns it off."},
    )
    checkpoints_total_limit: Natural = field(
        default=3, metadata={"help": "Keep the newest so many checkpoints and delete older ones. 0 keeps all."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Continue from this checkpoint: a path, or 'latest' for the newest one in output_dir. 'latest' "
            "starts anew where there is none yet, so a job that may be requeued can always pass it."
        },
    )
    logging_steps: Count = field(
        default=50, metadata={"help": "Write a line of averages to metrics.jsonl each so many steps, and at the end."}
    )
    report_to: Literal["tensorboard", "trackio", "wandb"] | None = field(
        default=None, metadata={"help": "Experiment tracker that gets the lines of metrics.jsonl too."}
    )
    dataloader_num_workers: Natural = field(
        default=0, metadata={"help": "Processes that load data beside the training. 0 loads in the training process."}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.output_dir:
            raise ValueError(f"output_dir must be a folder, got {self.output_dir!r}.")
        if self.report_to is not None and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f"report_to {self.report_to} needs a package that is not installed: pip install {self.report_to}"
            )


@dataclass(kw_only=True)
class MemoryConfig:
    """Memory of the training."""

    gradient_checkpointing: bool = field(
        default=False,
        metadata={
            "help": "Recompute activations in the backward pass: about a third slower, a fraction of the memory."
        },
    )


@dataclass(kw_only=True)
class AdapterConfig:
    """Adapters of a diffusion model.

    Raises:
        ValueError: Also if peft is needed and not installed.
    """

    lora_rank: Count | None = field(
        default=None,
        metadata={
            "help": "Diffusion only: train adapters of this rank on each layer of the network (and the encoder of its "
            "tokens), and add them to its weights at the end; all weights if left out. Needs pip install peft."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lora_rank is not None and importlib.util.find_spec("peft") is None:
            raise ValueError("lora_rank needs a package that is not installed: pip install peft")

    def check_start(self, diffusion: DiffusionConfig) -> None:
        """Raise ValueError if adapters were to be trained of a new network, whose weights would stay random."""
        if self.lora_rank is not None and diffusion.pipeline_dir is None:
            raise ValueError(
                f"lora_rank {self.lora_rank} is for a pretrained network; set pipeline_dir, or leave it out."
            )


@dataclass(kw_only=True)
class PatchConfig:
    """Input of an image model that does not fold pixels into patches itself."""

    patch_size: Count = field(
        default=4, metadata={"help": "Side of the patches of pixels that are folded into channels; 1 is none."}
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class TrunkConfig:
    """What a classifier starts from."""

    trunk_dir: str | None = field(
        default=None,
        metadata={
            "help": "Start from a pretrained image model in place of a new one: a folder as transformers saves it, "
            "config.json and .safetensors, or the name of a model of the Hub. It must have a pooled output (ResNet, "
            "ConvNeXt, ViT, DINOv2, Swin and others)."
        },
    )

    def __post_init__(self) -> None:
        self.trunk_dir = None if self.trunk_dir is None else os.path.expanduser(self.trunk_dir)


@dataclass(kw_only=True)
class DiffusionConfig:
    """What a diffusion model learns.

    Raises:
        ValueError: Also if a setting is given without the one that it belongs to, or two exclude each other.
    """

    network: Literal[
        "UNet2DModel",
        "UNet2DConditionModel",
        "DiTTransformer2DModel",
        "PixArtTransformer2DModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
    ] = field(
        default="UNet2DModel",
        metadata={
            "help": "Class of a new network, by how it sees attributes: their tokens are added to the time embedding "
            "of a UNet (UNet2DModel) or of a transformer (DiTTransformer2DModel), or take the place of a text's (the "
            "others). diffusion.model has its arguments."
        },
    )
    prediction_type: Literal["epsilon", "v_prediction", "flow"] = field(
        default="v_prediction",
        metadata={
            "help": "What a new network predicts: the noise or the velocity of diffusion, or flow matching's flow."
        },
    )
    condition_dropout: Share = field(
        default=CONDITION_DROPOUT,
        metadata={"help": "Share of the images that lose some or all of their attributes, for guidance."},
    )
    min_snr_gamma: Positive = field(
        default=MIN_SNR_GAMMA,
        metadata={
            "help": "Largest weight of an image's error, see min-SNR weighting; inf for the plain error of the noise. "
            "Not for flow matching, which has more of the times that matter instead."
        },
    )
    coupling: Coupling = field(
        default="independent",
        metadata={
            "help": "Which noise an image is mixed with: any, or with optimal_transport that of its batch which lies "
            "nearest, among images of equal or near attributes. Larger batches gain more."
        },
    )
    patch_size: Count = field(
        default=1,
        metadata={
            "help": "Side of the patches of pixels that a new network sees as channels, for most of the work is at "
            "full resolution; 1 is none. Not for latents."
        },
    )
    pipeline_dir: str | None = field(
        default=None,
        metadata={
            "help": "Start from a pipeline that diffusers has saved in place of a new network: a folder, or the name "
            "of a repository of the Hub. Network, VAE and scheduler are its own."
        },
    )
    prompt: str = field(
        default="", metadata={"help": "With --pipeline_dir: a text for all images, if the network reads text."}
    )
    latents: bool = field(
        default=False, metadata={"help": "Model the latents of --vae_dir in place of pixels: for large images."}
    )
    vae_dir: str | None = field(
        default=None,
        metadata={
            "help": "With --latents: an AutoencoderKL, for example from train_vae.py; OUTPUT_DIR/vae if left out."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.vae_dir is not None and not self.latents:
            raise ValueError("vae_dir is for models of its latents; set latents=True, or leave it out.")
        if self.patch_size > 1 and self.latents:
            raise ValueError(f"patch_size {self.patch_size} is not for models of latents; set it to 1.")
        self.pipeline_dir = None if self.pipeline_dir is None else os.path.expanduser(self.pipeline_dir)
        if self.prompt and self.pipeline_dir is None:
            raise ValueError(f"prompt {self.prompt!r} is for a pretrained network; set pipeline_dir, or leave it out.")
        if self.latents and self.pipeline_dir is not None:
            raise ValueError("latents must be left out with pipeline_dir: a pipeline has its own VAE, or none.")


@dataclass(kw_only=True)
class UtilityConfig:
    """What a predictor of the paper's Table 2 learns from.

    Raises:
        ValueError: Also if ``train_on`` names no set of counterfactuals.
    """

    train_on: str = field(
        default="real",
        metadata={
            "help": "Counterfactuals, CFT/ATTRIBUTE, of generate_counterfactuals.py, soft/race for instance, or the "
            "real images."
        },
    )
    num_images: Annotated[int, Range(2)] | None = field(
        default=None,
        metadata={
            "help": "Number of training images to learn from, or whose counterfactuals to learn from: some that miss "
            "no value, drawn by --data_seed, as in generate_counterfactuals.py. Left out: all."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        cft, _, attribute = self.train_on.partition("/")
        if self.train_on != "real" and (cft not in get_args(CFTMode) or not attribute):
            raise ValueError(
                f"train_on must be real or one of {', '.join(get_args(CFTMode))}, a slash and a variable, got "
                f"{self.train_on!r}."
            )


@dataclass(kw_only=True)
class ValidationConfig:
    """How often the loss on validation images is measured in training."""

    validation_steps: Natural = field(
        default=100,
        metadata={
            "help": f"Measure the loss on up to {VALIDATION_IMAGES:,} random validation images each so many steps, and "
            "save the weights with which it was lowest. 0 turns it off: the last ones are saved."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
