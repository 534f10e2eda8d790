"""Train a classifier that predicts all attributes from an image, and calibrate it on validation data.

    accelerate launch recipes/train_classifier.py --role guide --config recipes/configs/phantom.yaml
    accelerate launch recipes/train_classifier.py --role judge --config recipes/configs/phantom.yaml
    accelerate launch recipes/train_classifier.py --role watcher --config recipes/configs/phantom.yaml
    accelerate launch recipes/train_classifier.py --role guide_2 --config recipes/configs/phantom_32.yaml
    accelerate launch recipes/train_classifier.py --role utility --train_on real
    accelerate launch recipes/train_classifier.py --role utility --train_on soft/race

The guide steers counterfactual fine-tuning, the judge evaluates it. They share nothing: the configs give them other
seeds, networks of other shapes and other halves of the training data. The watcher evaluates fine-tuning while it runs
(soft_cft.py --watch). Several guides, guide_2 and guide_3 for instance, may steer together (soft_cft.py --more_guides).
The role utility is for the paper's Table 2: it learns from a set of counterfactuals of generate_counterfactuals.py, or,
to compare with, from the real images that they were made of; evaluate_utility.py tests it.

The weights with the lowest loss on validation images are saved (--validation_steps), but the last ones of utility. How
well the classifier sees each variable in validation images is printed and saved with it; fine-tuning does not ask a
guide for variables that it does not see. With --trunk_dir the classifier starts from a pretrained image model of
transformers, which is saved with it.

Reads the sections data, graph and that of the role; guides are the section guide or the list guides. Writes the
AttributeClassifier into --output_dir/guide, guide_2, judge, watcher, utility/real, utility/soft/race and so on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softcft.data.config import AugmentationConfig, DataConfig, SubsetConfig
from softcft.hub.config import HubConfig
from softcft.training.config import TrainingConfig, TrunkConfig, UtilityConfig, ValidationConfig
from softcft.training.parsing import FURTHER_GUIDE, model_arguments, parse_config, run_main

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Subset

    from softcft import AttributeClassifier, CausalGraph
    from softcft.data.schema import ImageAttributeDataset
    from softcft.models.trunk import PretrainedTrunk

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"
ROLES = ("guide", "judge", "watcher", "utility")


def _role(text: str) -> str:
    if text not in ROLES and not FURTHER_GUIDE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(ROLES)}, guide_2, ...)")
    return text


def counterfactuals_of(choice: UtilityConfig, output_dir: str) -> Path | None:
    """The folder of counterfactuals to learn from, None for real images; ends the program if it is not there."""
    if choice.train_on == "real":
        return None
    folder = Path(output_dir, "counterfactuals", choice.train_on)
    if not any(folder.glob("train-*.parquet")):
        raise SystemExit(
            f"There are no counterfactuals in {folder}. Make them, with the same flags, by\n    accelerate launch "
            f"recipes/generate_counterfactuals.py --pipelines {Path(output_dir, folder.parent.name)} "
            f"--attributes {folder.name}"
        )
    return folder


def utility_images(
    real: ImageAttributeDataset, num_images: int | None, folder: Path | None, seed: int
) -> Subset[dict[str, torch.Tensor]]:
    """So many real images that miss no value, or all counterfactuals of these in a folder and no others."""
    from torch.utils.data import Subset

    from softcft.data.own import read_table
    from softcft.data.schema import ImageAttributeDataset, random_part

    sources = random_part(real.complete, num_images, seed)
    if folder is None:
        return Subset(real, sources)
    rows = read_table(str(folder))["train"]
    if sorted(set(rows["source_row"])) != sources:
        raise ValueError(
            f"{folder} must have the counterfactuals of the {len(sources)} training images that --num_images and "
            f"--data_seed choose, but has those of {len(set(rows['source_row']))}: give generate_counterfactuals.py "
            "the same, and let it finish."
        )
    images = ImageAttributeDataset(rows, real.graph)
    if images.sample_size != real.sample_size:
        raise ValueError(f"--sample_size is {real.sample_size}, but {folder} has images of {images.sample_size}.")
    return images.subset()


def make_classifier(
    graph: CausalGraph, arguments: dict[str, Any], channels: int, trunk: PretrainedTrunk | None
) -> AttributeClassifier:
    """A new classifier of images of so many channels, of a pretrained trunk where there is one."""
    from softcft import AttributeClassifier
    from softcft.training.processes import this_process

    backbone = {"num_channels": channels, **arguments.get("backbone", {})}
    classifier = AttributeClassifier(graph=graph.to_list(), **arguments | {"backbone": backbone})
    classifier.check_channels(channels)
    if trunk is not None:
        trunk.load_into(classifier.trunk)
        if this_process().is_main_process:
            print(trunk.summary)
    return classifier


def tell_validation(classifier: AttributeClassifier, logits: torch.Tensor, labels: torch.Tensor, role: str) -> None:
    """Print how good a calibrated classifier is on validation images, and what it does not see in them."""
    import numpy as np

    from softcft.evaluation.metrics import variable_metrics
    from softcft.models.sight import not_seen

    graph = classifier.causal_graph
    print(f"The {'predictor' if role == 'utility' else role} on validation data:")
    for variable in graph.variables:
        columns = graph.slices[variable.name]
        known = ~labels[:, columns].isnan().any(dim=1)
        weights = np.ones((1, int(known.sum())))
        metrics = variable_metrics(variable, logits[known][:, columns], labels[known][:, columns], weights)
        unit = variable.unit if variable.kind == "continuous" else "%"
        values = ", ".join(f"{metric.upper()} {value.item():.4g} {unit}".rstrip() for metric, value in metrics.items())
        print(f"  {variable.name:12s} {values}, scale {classifier.config.scales[variable.name]:.3g}")
    if role != "utility":  # it steers and judges nothing
        for warning in not_seen(classifier.sight, role).values():
            print(f"  {warning}")


def main() -> None:
    """Run the recipe; see the module's docstring."""
    role_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    role_parser.add_argument("--role", type=_role, default="guide")
    role, argv = role_parser.parse_known_args()
    config, data, training, hub, augmentation, trunk_config, choice, *validation = parse_config(
        role.role,
        DataConfig,
        TrainingConfig,
        HubConfig,
        AugmentationConfig,
        TrunkConfig,
        *([UtilityConfig] if role.role == "utility" else [SubsetConfig, ValidationConfig]),
        default_config=DEFAULT_CONFIG,
        description=__doc__,
        argv=argv,
    )
    run = Path(training.output_dir, role.role)
    if role.role == "utility":
        if data.streaming:
            raise ValueError("--streaming: counterfactuals belong to rows of the training images; leave it out.")
        counterfactuals = counterfactuals_of(choice, training.output_dir)
        run /= choice.train_on
    # Here, once there is no mistake in the settings: it takes seconds.
    from accelerate.utils import set_seed

    from softcft import AttributeClassifier, CausalGraph
    from softcft.data.schema import ImageAttributeDataset, check_known
    from softcft.data.sources import load_data, subjects_of, training_images
    from softcft.evaluation.sight import measure_sight
    from softcft.models.trunk import read_trunk
    from softcft.training.checkpoints import save_whole
    from softcft.training.loop import train
    from softcft.training.objectives import ClassifierObjective
    from softcft.training.preparation import begin_training, main_process_first
    from softcft.training.processes import this_process
    from softcft.training.validation import ValidationLoss, predict_all

    training = replace(training, output_dir=str(run))
    graph = CausalGraph(config["graph"])
    arguments = model_arguments(config, role.role, AttributeClassifier)
    if training.ema_decay:
        raise ValueError(
            f"--ema_decay must be 0 for a classifier, got {training.ema_decay}: the average would be of its weights, "
            "but not of its batch normalisation statistics."
        )
    trunk = None
    with main_process_first():  # the others find the data in the cache
        hub.reserve(config)
        if trunk_config.trunk_dir is not None:
            trunk = read_trunk(trunk_config.trunk_dir, data.sample_size, arguments.get("image_size"))
            arguments |= trunk.arguments
        splits = load_data(data, graph, config["columns"])
        train_images = training_images(splits["train"], data, graph, config["columns"])
        if role.role == "utility":
            learned = utility_images(train_images, choice.num_images, counterfactuals, data.data_seed)
        else:
            learned = train_images.subset(choice.half)
    validation_images = ImageAttributeDataset(splits["validation"], graph)
    check_known(validation_images, "validation")
    if isinstance(train_images, ImageAttributeDataset):  # nobody knows beforehand what a stream will bring
        check_known(train_images, "training")

    set_seed(training.seed)
    classifier = make_classifier(graph, arguments, train_images.image_channels, trunk)
    begin_training(config, role.role, training.output_dir)
    objective = ClassifierObjective(classifier, augmentation)
    every = validation[0].validation_steps if validation else 0
    monitor = ValidationLoss(classifier, validation_images, every, training.seed) if every else None
    train(objective, learned, training, name=role.role, monitor=monitor)
    if this_process().is_main_process:
        classifier.eval().calibrate(*predict_all(classifier, validation_images))
        logits, labels = predict_all(classifier, validation_images)  # calibrated
        subjects = subjects_of(splits["validation"], data)
        classifier.store_sight(measure_sight(graph, logits, labels, subjects))
        save_whole(training.output_dir, classifier)
        if monitor is not None:
            print(f"{role.role}: {monitor.summary()}")
        tell_validation(classifier, logits, labels, role.role)
        print(f"Saved to {training.output_dir}")
        if hub.push_to_hub:
            print(f"Published as {hub.publish(training.output_dir, config)}")
    this_process().destroy_process_group()  # else a process of several may abort at its exit


if __name__ == "__main__":
    run_main(main)
