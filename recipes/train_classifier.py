"""Train a classifier that predicts all attributes from an image, and calibrate it on validation data.

    accelerate launch recipes/train_classifier.py --role guide --config recipes/configs/phantom.yaml
    accelerate launch recipes/train_classifier.py --role judge --config recipes/configs/phantom.yaml

The guide steers counterfactual fine-tuning, the judge evaluates it. They should share nothing: the configs give them
other seeds, networks of other shapes and other halves of the training data. Reads the sections data, graph and that of
the role. Writes the AttributeClassifier into --output_dir/guide or judge.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from softcft import AttributeClassifier, CausalGraph
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.data.sources import DataConfig, SubsetConfig, load_data, training_images
from softcft.evaluation.metrics import variable_metrics
from softcft.training.config import TrainingConfig
from softcft.training.loop import train
from softcft.training.objectives import ClassifierObjective
from softcft.training.parsing import begin_run, model_arguments, parse_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@torch.no_grad()
def predict(classifier: AttributeClassifier, dataset: ImageAttributeDataset) -> torch.Tensor:
    """Logits of all images, shape (N, K)."""
    batches = DataLoader(dataset, batch_size=256)
    return torch.cat([classifier(scale_pixels(batch["image"].to(classifier.device))).logits for batch in batches])


def main() -> None:
    """Run the recipe; see the module's docstring."""
    role_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    role_parser.add_argument("--role", choices=["guide", "judge"], default="guide")
    role, argv = role_parser.parse_known_args()
    config, data, training, subset = parse_config(
        role.role,
        DataConfig,
        TrainingConfig,
        SubsetConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
        argv=argv,
    )
    training = replace(training, output_dir=str(Path(training.output_dir, role.role)))
    graph = CausalGraph(config["graph"])
    arguments = model_arguments(config, role.role, AttributeClassifier)
    if training.ema_decay:
        raise ValueError(
            f"--ema_decay must be 0 for a classifier, got {training.ema_decay}: the average would be of its weights, "
            "but not of its batch normalisation statistics."
        )
    with PartialState().main_process_first():  # the others find the data in the cache
        splits = load_data(data, graph, config["columns"])
    train_images = training_images(splits["train"], data, graph, config["columns"])
    validation_images = ImageAttributeDataset(splits["validation"], graph)

    arguments["backbone"] = {"num_channels": train_images.image_channels, **arguments.get("backbone", {})}
    set_seed(training.seed)
    classifier = AttributeClassifier(graph=graph.to_list(), **arguments)
    if PartialState().is_main_process:
        begin_run(config, role.role, training.output_dir)
    train(ClassifierObjective(classifier), train_images.subset(subset.half), training, name=role.role)
    if PartialState().is_main_process:
        labels = validation_images.parents.to(classifier.device)
        classifier.eval().calibrate(predict(classifier, validation_images), labels)
        classifier.save_pretrained(training.output_dir)
        logits = predict(classifier, validation_images)
        print(f"The {role.role} on validation data:")
        for variable in graph.variables:
            columns = graph.slices[variable.name]
            known = ~labels[:, columns].isnan().any(dim=1)
            weights = np.ones((1, int(known.sum())))
            metrics = variable_metrics(variable, logits[known][:, columns], labels[known][:, columns], weights)
            unit = variable.unit if variable.kind == "continuous" else "%"
            values = ", ".join(
                f"{metric.upper()} {value.item():.4g} {unit}".rstrip() for metric, value in metrics.items()
            )
            print(f"  {variable.name:12s} {values}, scale {classifier.config.scales[variable.name]:.3g}")
        print(f"Saved to {training.output_dir}")


if __name__ == "__main__":
    main()
