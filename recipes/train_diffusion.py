"""Train a conditional diffusion model on images and their attributes, or fine-tune one that diffusers has saved.

    accelerate launch recipes/train_diffusion.py --config recipes/configs/phantom_diffusion.yaml
    accelerate launch recipes/train_diffusion.py --pipeline_dir stable-diffusion --prompt "a chest X-ray" --lora_rank 8

With --pipeline_dir training starts from a pipeline that diffusers has saved: DDPM, DiT, Stable Diffusion 1, 2, XL or 3,
Flux, PixArt. It is told the prompt with all images, and at first does what it did. The settings of a new network, among
them the section's model, are not read then. With --latents a new network is one of the latents of an AutoencoderKL,
that of train_vae.py.

Reads the sections data, graph and diffusion. Writes unet or transformer, parent_encoder, scheduler, vae and prompt into
--output_dir/diffusion.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from softcft.data.config import DataConfig
from softcft.hub.config import HubConfig
from softcft.training.config import AdapterConfig, DiffusionConfig, MemoryConfig, TrainingConfig
from softcft.training.parsing import model_arguments, parse_config, run_main

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from softcft import ConditionalDenoiser

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom_diffusion.yaml"


def load_vae(folder: str | Path) -> AutoencoderKL:
    """The VAE whose latents are modelled; ends the program if there is none."""
    from diffusers import AutoencoderKL

    from softcft.models.weights import load_safetensors

    if not Path(folder, "config.json").is_file():
        raise SystemExit(
            f"There is no VAE in --vae_dir {folder}. Make it, with the same flags, by\n"
            "    accelerate launch recipes/train_vae.py"
        )
    return load_safetensors(AutoencoderKL, folder).eval()


def save(folder: str, denoiser: ConditionalDenoiser, vae: AutoencoderKL | None) -> None:
    """Write all parts, and remove those that only a model that was here before had."""
    from softcft.models.adoption import DiffusionParts
    from softcft.training.checkpoints import save_whole

    parts = DiffusionParts(denoiser.network, denoiser.parent_encoder, denoiser.scheduler, denoiser.prompt, vae)
    there = {name: part for name, part in parts.components.items() if part is not None}
    for name in set(parts.components) - set(there):
        shutil.rmtree(Path(folder, name), ignore_errors=True)
    save_whole(folder, **there)


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, training, hub, memory, diffusion, lora = parse_config(
        "diffusion",
        DataConfig,
        TrainingConfig,
        HubConfig,
        MemoryConfig,
        DiffusionConfig,
        AdapterConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
    )
    lora.check_start(diffusion)
    # Here, once there is no mistake in the settings: it takes seconds.
    from accelerate.utils import set_seed

    from softcft import CausalGraph, ConditionalDenoiser, adopt
    from softcft.data.sources import load_data, training_images
    from softcft.models.denoiser import new_denoiser
    from softcft.models.networks import network_class
    from softcft.models.patches import patch_size_of
    from softcft.models.vae import latent_stride
    from softcft.training.footprint import footprint
    from softcft.training.loop import train
    from softcft.training.lora import adapters
    from softcft.training.objectives import DiffusionObjective
    from softcft.training.preparation import begin_training, main_process_first
    from softcft.training.processes import this_process

    graph = CausalGraph(config["graph"])
    denoiser = vae = None
    if diffusion.pipeline_dir is not None:
        set_seed(training.seed)
        *parts, vae = adopt(diffusion.pipeline_dir, graph, diffusion.prompt, data.sample_size)
        denoiser = ConditionalDenoiser(*parts)
    elif diffusion.latents:
        vae = load_vae(diffusion.vae_dir or Path(training.output_dir, "vae"))
    training = replace(training, output_dir=str(Path(training.output_dir, "diffusion")))
    with main_process_first():  # the others find the data in the cache
        hub.reserve(config)
        splits = load_data(data, graph, config["columns"])
    images = training_images(splits["train"], data, graph, config["columns"])

    channels, size = images.image_channels, images.sample_size
    if vae is not None and size % latent_stride(vae):
        raise ValueError(f"--sample_size must be a multiple of {latent_stride(vae)} for this VAE, got {size}.")
    if denoiser is None:
        shape = (channels, size) if vae is None else (vae.config["latent_channels"], size // latent_stride(vae))
        set_seed(training.seed)
        model = model_arguments(config, "diffusion", network_class(diffusion.network))
        kind = diffusion.network, diffusion.prediction_type
        denoiser = new_denoiser(graph, *kind, *shape, diffusion.patch_size, model)
    taken, _ = patch_size_of(denoiser.channels if vae is None else vae.config["in_channels"])
    if taken != channels:
        raise ValueError(
            f"--image_channels must be {taken}, in all recipes, as the model takes, but the images have {channels}."
        )
    begin_training(config, "diffusion", training.output_dir)
    if memory.gradient_checkpointing:
        denoiser.network.enable_gradient_checkpointing()
    objective = DiffusionObjective(
        denoiser, vae, diffusion.condition_dropout, diffusion.min_snr_gamma, diffusion.coupling
    )
    with adapters(denoiser.network, lora.lora_rank):
        this_process().print(footprint(objective, averaged=training.ema_decay > 0))
        train(objective, images.subset(complete=True), training, name="diffusion")
    if this_process().is_main_process:
        save(training.output_dir, denoiser.eval(), vae)
        print(f"Saved to {training.output_dir}")
        if hub.push_to_hub:
            print(f"Published as {hub.publish(training.output_dir, config)}")
    this_process().destroy_process_group()  # else a process of several may abort at its exit


if __name__ == "__main__":
    run_main(main)
