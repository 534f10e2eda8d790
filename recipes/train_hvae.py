"""Train a conditional hierarchical VAE on images and their attributes by maximum likelihood.

    accelerate launch recipes/train_hvae.py --config recipes/configs/phantom.yaml

Reads the sections data, graph and hvae. Writes the HVAEModel into --output_dir/hvae.
"""

from dataclasses import replace
from pathlib import Path

from softcft.data.config import DataConfig
from softcft.hub.config import HubConfig
from softcft.training.config import MemoryConfig, TrainingConfig
from softcft.training.parsing import model_arguments, parse_config, run_main

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, training, hub, memory = parse_config(
        "hvae", DataConfig, TrainingConfig, HubConfig, MemoryConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    # Here, once there is no mistake in the settings: it takes seconds.
    from accelerate.utils import set_seed

    from softcft import CausalGraph, HVAEModel
    from softcft.data.sources import load_data, training_images
    from softcft.training.checkpoints import save_whole
    from softcft.training.loop import train
    from softcft.training.objectives import HVAEObjective
    from softcft.training.preparation import begin_training, main_process_first
    from softcft.training.processes import this_process

    training = replace(training, output_dir=str(Path(training.output_dir, "hvae")))
    graph = CausalGraph(config["graph"])
    arguments = model_arguments(config, "hvae", HVAEModel)
    with main_process_first():  # the others find the data in the cache
        hub.reserve(config)
        splits = load_data(data, graph, config["columns"])
    images = training_images(splits["train"], data, graph, config["columns"])

    set_seed(training.seed)
    hvae = HVAEModel(
        graph=graph.to_list(), sample_size=images.sample_size, in_channels=images.image_channels, **arguments
    )
    begin_training(config, "hvae", training.output_dir)
    if memory.gradient_checkpointing:
        hvae.enable_gradient_checkpointing()
    train(HVAEObjective(hvae), images.subset(complete=True), training, name="hvae")
    if this_process().is_main_process:
        save_whole(training.output_dir, hvae.eval())
        print(f"Saved to {training.output_dir}")
        if hub.push_to_hub:
            print(f"Published as {hub.publish(training.output_dir, config)}")
    this_process().destroy_process_group()  # else a process of several may abort at its exit


if __name__ == "__main__":
    run_main(main)
