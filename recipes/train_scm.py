"""Train the attribute mechanisms of a causal graph by maximum likelihood.

    accelerate launch recipes/train_scm.py --config recipes/configs/phantom.yaml

Reads the sections data, graph and scm. Writes the AttributeSCM into --output_dir/scm.
"""

from dataclasses import replace
from pathlib import Path

from softcft.data.config import DataConfig
from softcft.hub.config import HubConfig
from softcft.training.config import TrainingConfig
from softcft.training.parsing import model_arguments, parse_config, run_main

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, training, hub = parse_config(
        "scm", DataConfig, TrainingConfig, HubConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    # Here, once there is no mistake in the settings: it takes seconds.
    from accelerate.utils import set_seed
    from torch.utils.data import StackDataset

    from softcft import AttributeSCM, CausalGraph
    from softcft.data.schema import ImageAttributeDataset
    from softcft.data.sources import load_data, training_images
    from softcft.training.checkpoints import save_whole
    from softcft.training.loop import train
    from softcft.training.objectives import SCMObjective
    from softcft.training.preparation import begin_training, main_process_first
    from softcft.training.processes import this_process

    training = replace(training, output_dir=str(Path(training.output_dir, "scm")))
    graph = CausalGraph(config["graph"])
    arguments = model_arguments(config, "scm", AttributeSCM)
    with main_process_first():  # the others find the data in the cache
        hub.reserve(config)
        splits = load_data(data, graph, config["columns"])
    learned = training_images(splits["train"], data, graph, config["columns"]).parents
    validation = ImageAttributeDataset(splits["validation"], graph).parents

    set_seed(training.seed)
    scm = AttributeSCM(graph=graph.to_list(), **arguments)
    begin_training(config, "scm", training.output_dir)
    train(SCMObjective(scm), StackDataset(parents=learned), training, name="scm")
    if this_process().is_main_process:
        save_whole(training.output_dir, scm.eval())
        nats = scm.log_prob(validation.to(scm.device)).mean().item()
        print(f"Attribute mechanisms: log likelihood {nats:.3f} nats per image on validation data.")
        print(f"Saved to {training.output_dir}")
        if hub.push_to_hub:
            print(f"Published as {hub.publish(training.output_dir, config)}")
    this_process().destroy_process_group()  # else a process of several may abort at its exit


if __name__ == "__main__":
    run_main(main)
