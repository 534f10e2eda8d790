"""Train a conditional diffusion model on images and their attributes, or fine-tune one that diffusers has saved.

    accelerate launch recipes/train_diffusion.py --config recipes/configs/phantom_diffusion.yaml
    accelerate launch recipes/train_diffusion.py --unet_dir my_pipeline/unet --scheduler_dir my_pipeline/scheduler

With --unet_dir training starts from a UNet2DModel or UNet2DConditionModel of diffusers, whatever it was conditioned on:
where it was trained with classes, they become the categories of the variable that has as many. With --vae_dir the
model is one of the latents of an AutoencoderKL, for example from train_vae.py.

Reads the sections data, graph and diffusion. Writes unet, parent_encoder, scheduler and vae into
--output_dir/diffusion.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel

from softcft import CausalGraph, ConditionalDenoiser
from softcft.data.sources import DataConfig, load_data, training_images
from softcft.models.denoiser import adopt_unet
from softcft.models.vae import encode_latents
from softcft.training.config import MemoryConfig, TrainingConfig
from softcft.training.loop import train
from softcft.training.objectives import DiffusionObjective
from softcft.training.parsing import begin_run, model_arguments, parse_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom_diffusion.yaml"
UNETS = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}


@dataclass(kw_only=True)
class DiffusionConfig:
    """What a diffusion model learns."""

    unet: Literal["UNet2DModel", "UNet2DConditionModel"] = field(
        default="UNet2DModel",
        metadata={
            "help": "How the network sees attributes: their tokens are added to its time embedding (UNet2DModel), or "
            "attended to (UNet2DConditionModel). diffusion.model has its arguments."
        },
    )
    prediction_type: Literal["epsilon", "v_prediction"] = field(
        default="v_prediction", metadata={"help": "What the network predicts: the noise, or the velocity."}
    )
    condition_dropout: float = field(
        default=0.3, metadata={"help": "Share of the images that lose some or all of their attributes, for guidance."}
    )
    min_snr_gamma: float = field(
        default=5.0, metadata={"help": "Largest weight of a noise level, see min-SNR weighting. inf turns it off."}
    )
    unet_dir: str | None = field(
        default=None, metadata={"help": "Folder of a trained UNet to go on from, as diffusers saves it."}
    )
    scheduler_dir: str | None = field(
        default=None, metadata={"help": "With --unet_dir: the scheduler that the UNet was trained with."}
    )
    vae_dir: str | None = field(
        default=None, metadata={"help": "AutoencoderKL, whose latents are modelled. Left out: the pixels are."}
    )

    def __post_init__(self) -> None:
        if self.unet not in UNETS:
            raise ValueError(f"--unet must be one of {sorted(UNETS)}, got {self.unet!r}.")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"--prediction_type must be 'epsilon' or 'v_prediction', got {self.prediction_type!r}.")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"--condition_dropout must be in [0, 1], got {self.condition_dropout}.")
        if not self.min_snr_gamma > 0:
            raise ValueError(f"--min_snr_gamma must be > 0, got {self.min_snr_gamma}.")
        if (self.unet_dir is None) != (self.scheduler_dir is None):
            raise ValueError(
                "--unet_dir and --scheduler_dir go together: a UNet knows only the noise of its scheduler."
            )


def build(
    config: dict[str, Any], graph: CausalGraph, diffusion: DiffusionConfig, channels: int, size: int
) -> ConditionalDenoiser:
    """The network, new or trained by others, with its tokens and noise schedule."""
    arguments = model_arguments(config, "diffusion", UNETS[diffusion.unet])
    if diffusion.unet_dir is None or diffusion.scheduler_dir is None:
        arguments |= {"in_channels": channels, "out_channels": channels, "sample_size": size}
        unet, encoder = adopt_unet(UNETS[diffusion.unet](**arguments), graph)
        scheduler = DDIMScheduler(
            prediction_type=diffusion.prediction_type, beta_schedule="squaredcos_cap_v2", clip_sample=False
        )
        return ConditionalDenoiser(unet, encoder, scheduler)
    kind = UNet2DConditionModel.load_config(diffusion.unet_dir).get("_class_name")
    if kind not in UNETS:
        raise ValueError(f"--unet_dir {diffusion.unet_dir} holds a {kind}, and not one of {sorted(UNETS)}.")
    unet = UNETS[kind].from_pretrained(diffusion.unet_dir)
    if (unet.config["in_channels"], unet.config["sample_size"]) != (channels, size):
        raise ValueError(
            f"--unet_dir {diffusion.unet_dir} was trained on images of {unet.config['in_channels']} channels and size "
            f"{unet.config['sample_size']}, but these have {channels} and {size}; set --sample_size."
        )
    scheduler = DDIMScheduler.from_pretrained(diffusion.scheduler_dir, clip_sample=False, thresholding=False)
    return ConditionalDenoiser(*adopt_unet(unet, graph), scheduler)


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, training, memory, diffusion = parse_config(
        "diffusion",
        DataConfig,
        TrainingConfig,
        MemoryConfig,
        DiffusionConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
    )
    training = replace(training, output_dir=str(Path(training.output_dir, "diffusion")))
    graph = CausalGraph(config["graph"])
    vae = None if diffusion.vae_dir is None else AutoencoderKL.from_pretrained(diffusion.vae_dir).eval()
    with PartialState().main_process_first():  # the others find the data in the cache
        splits = load_data(data, graph, config["columns"])
    images = training_images(splits["train"], data, graph, config["columns"])

    channels, size = images.image_channels, images.sample_size
    if vae is not None:
        with torch.no_grad():
            _, channels, size, _ = encode_latents(vae, torch.zeros(1, channels, size, size)).shape
    set_seed(training.seed)
    denoiser = build(config, graph, diffusion, channels, size)
    if PartialState().is_main_process:
        begin_run(config, "diffusion", training.output_dir)
    if memory.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    objective = DiffusionObjective(denoiser, vae, diffusion.condition_dropout, diffusion.min_snr_gamma)
    train(objective, images.subset(complete=True), training, name="diffusion")
    if PartialState().is_main_process:
        parts = {"unet": denoiser.unet, "parent_encoder": denoiser.parent_encoder, "vae": vae}
        for name, part in parts.items():
            if part is not None:
                part.eval().save_pretrained(Path(training.output_dir, name))
        denoiser.scheduler.save_pretrained(Path(training.output_dir, "scheduler"))
        print(f"Saved to {training.output_dir}")


if __name__ == "__main__":
    main()
