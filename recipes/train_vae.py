"""Train an unconditional VAE on real images: the yardstick of minimality (counterfactual latent divergence).

    accelerate launch recipes/train_vae.py --config recipes/configs/phantom.yaml

evaluate.py compares its posteriors of images and of their counterfactuals. It sees no attributes, so that it can judge
every model of a data set: train it once. Its latents are also what train_diffusion.py --latents models; it is saved
with their mean and spread. Reads the sections data, graph and vae. Writes an AutoencoderKL of diffusers into
--output_dir/vae.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from softcft.data.config import DataConfig
from softcft.hub.config import HubConfig
from softcft.training.config import MemoryConfig, PatchConfig, TrainingConfig
from softcft.training.parsing import model_arguments, parse_config, run_main

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch.utils.data import Dataset

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"
SCALE_IMAGES = 1000


def measure_scale(vae: AutoencoderKL, images: Dataset, seed: int) -> tuple[float, float]:
    """Mean of the latents of some images, and the factor that makes their standard deviation 1."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset, Subset

    from softcft.data.schema import random_part, scale_pixels
    from softcft.models.vae import image_posterior

    if not isinstance(images, IterableDataset):  # streams are mixed
        images = Subset(images, random_part(range(len(images)), SCALE_IMAGES, seed))
    batches = islice(DataLoader(images, batch_size=50), SCALE_IMAGES // 50)
    with torch.no_grad():
        loc = torch.cat([image_posterior(vae, scale_pixels(batch["image"].to(vae.device)))[0] for batch in batches])
    return loc.mean().item(), 1 / loc.std().item()


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, training, hub, memory, patches = parse_config(
        "vae",
        DataConfig,
        TrainingConfig,
        HubConfig,
        MemoryConfig,
        PatchConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
    )
    # Here, once there is no mistake in the settings: it takes seconds.
    from accelerate.utils import set_seed
    from diffusers import AutoencoderKL

    from softcft import CausalGraph
    from softcft.data.sources import load_data, training_images
    from softcft.training.checkpoints import save_whole
    from softcft.training.loop import train
    from softcft.training.objectives import VAEObjective
    from softcft.training.preparation import begin_training, main_process_first
    from softcft.training.processes import this_process

    training = replace(training, output_dir=str(Path(training.output_dir, "vae")))
    graph = CausalGraph(config["graph"])
    arguments = model_arguments(config, "vae", AutoencoderKL)
    stages = len(arguments.setdefault("block_out_channels", [32, 64, 64]))
    shrinkage = patches.patch_size * 2 ** (stages - 1)
    if data.sample_size % shrinkage:
        raise ValueError(
            f"--sample_size must be a multiple of {shrinkage}, got {data.sample_size}: patches of {patches.patch_size} "
            f"pixels, halved {stages - 1} times. Change --patch_size, or the stages in vae.model.block_out_channels."
        )
    with main_process_first():  # the others find the data in the cache
        hub.reserve(config)
        splits = load_data(data, graph, config["columns"])
    images = training_images(splits["train"], data, graph, config["columns"])

    channels = images.image_channels * patches.patch_size**2
    set_seed(training.seed)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        sample_size=images.sample_size // patches.patch_size,
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        **arguments,
    )
    begin_training(config, "vae", training.output_dir)
    if memory.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    train(VAEObjective(vae), images.subset(), training, name="vae")
    if this_process().is_main_process:
        shift_factor, scaling_factor = measure_scale(vae.eval(), images, training.seed)
        vae.register_to_config(shift_factor=shift_factor, scaling_factor=scaling_factor)
        save_whole(training.output_dir, vae)
        print(f"Saved to {training.output_dir}")
        if hub.push_to_hub:
            print(f"Published as {hub.publish(training.output_dir, config)}")
    this_process().destroy_process_group()  # else a process of several may abort at its exit


if __name__ == "__main__":
    run_main(main)
