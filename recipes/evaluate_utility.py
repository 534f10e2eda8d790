"""Test predictors that learned from counterfactuals alone on real test images: Table 2 of the paper.

    accelerate launch recipes/evaluate_utility.py --config recipes/configs/phantom.yaml

Needs what train_classifier.py --role utility made of the real images and of sets of generate_counterfactuals.py: all
that are found below OUTPUT_DIR/utility are tested. Reads the sections data and graph. Writes
OUTPUT_DIR/metrics/utility.csv, which evaluate.py and report.py make tables of:
the AUC (or mean absolute error) of each predictor on each variable, and its change from the predictor that learned from
real images, with 95 % intervals of a bootstrap over subjects (images where no subject is known).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from softcft.arguments import Count, Natural, check_fields
from softcft.cft import CFT_NAMES
from softcft.data.config import DataConfig
from softcft.training.config import PRECISION_HELP, Precision
from softcft.training.parsing import parse_config, read_config, run_main

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch.utils.data import Subset

    from softcft import AttributeClassifier, CausalGraph

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"
# Settings of the training that would else be what the change from real images shows.
ALIKE = (
    "num_images",
    "max_train_steps",
    "max_train_epochs",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "model",
)


@dataclass(kw_only=True)
class EvaluateUtilityConfig:
    """How to test the predictors."""

    output_dir: str = field(metadata={"help": "Folder of the whole run, which also gets metrics/utility.csv."})
    num_resamples: Natural = field(default=1000, metadata={"help": "Bootstrap resamples of the intervals; 0 for none."})
    eval_batch_size: Count = field(default=250, metadata={"help": "Images per forward pass and process."})
    mixed_precision: Precision = field(default="no", metadata={"help": PRECISION_HELP})
    seed: Natural = field(default=0, metadata={"help": "Seed of the bootstrap; the table names it."})

    def __post_init__(self) -> None:
        check_fields(self)


def load_predictors(output_dir: str, graph: "CausalGraph") -> "dict[tuple[str, str], AttributeClassifier]":
    """All predictors that were trained, by the fine-tuning and the intervention of their training images."""
    from softcft import AttributeClassifier
    from softcft.evaluation.utility import REAL

    folders = {REAL: Path(output_dir, "utility", "real")}
    folders |= {(cft, name): Path(output_dir, "utility", cft, name) for cft in CFT_NAMES for name in graph.names}
    folders = {key: folder for key, folder in folders.items() if (folder / "config.json").is_file()}
    if REAL not in folders or len(folders) == 1:
        wanted = "real" if REAL not in folders else f"soft/{graph.names[-1]}"
        raise SystemExit(
            f"There is no predictor in {Path(output_dir, 'utility', wanted)}. Make it, with the same flags, by\n"
            f"    accelerate launch recipes/train_classifier.py --role utility --train_on {wanted}"
        )
    predictors = {key: AttributeClassifier.from_pretrained(folder).eval() for key, folder in folders.items()}
    for key, predictor in predictors.items():
        if predictor.causal_graph != graph:
            raise ValueError(f"{folders[key]} was trained with another graph than that of --config.")
    settings = {key: read_config(folder / "config.yaml")["utility"] for key, folder in folders.items()}
    for key, folder in folders.items():
        for name in ALIKE:
            value, real = settings[key].get(name), settings[REAL].get(name)
            if value != real:
                raise ValueError(
                    f"{folder} was trained with {name} = {value!r}, but {folders[REAL]}, which it is compared with, "
                    f"with {real!r}: train them alike."
                )
    return predictors


def predict(
    predictors: "dict[tuple[str, str], AttributeClassifier]",
    images: "Subset",
    batch_size: int,
    accelerator: "Accelerator",
) -> "tuple[dict[tuple[str, str], torch.Tensor], torch.Tensor]":
    """Logits of each predictor and the labels of all images, (N, K), gathered from all processes."""
    import torch

    from softcft.evaluation.measuring import run_batches

    def measure(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = torch.stack([predictor(batch["image"]).logits for predictor in predictors.values()], dim=1)
        return {"logits": logits.float(), "labels": batch["parents"]}

    seen = run_batches(accelerator, images, measure, batch_size, "real images")
    return dict(zip(predictors, seen["logits"].unbind(1), strict=True)), seen["labels"]


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, settings = parse_config(
        "data", DataConfig, EvaluateUtilityConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    # Here, once there is no mistake in the settings: it takes seconds.
    import pandas as pd

    from softcft import CausalGraph
    from softcft.data.schema import ImageAttributeDataset
    from softcft.data.sources import load_data, subjects_of
    from softcft.evaluation.bootstrap import bootstrap_weights, resampled_unit
    from softcft.evaluation.utility import utility_rows
    from softcft.training.precision import start_accelerator
    from softcft.training.preparation import main_process_first

    graph = CausalGraph(config["graph"])
    predictors = load_predictors(settings.output_dir, graph)
    with main_process_first():  # the others find the data in the cache
        rows = load_data(data, graph, config["columns"])["test"]
        images = ImageAttributeDataset(rows, graph)
    accelerator = start_accelerator(settings.mixed_precision)
    for predictor in predictors.values():
        predictor.to(accelerator.device)
    logits, labels = predict(predictors, images.subset(complete=True), settings.eval_batch_size, accelerator)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    everyone = subjects_of(rows, data)
    subjects = [everyone[row] for row in images.complete]
    weights = bootstrap_weights(subjects, settings.num_resamples, settings.seed)
    table = utility_rows(graph, logits, labels, weights)
    run = {"table": "utility", "dataset": data.dataset_name, "seed": settings.seed}
    table = pd.DataFrame(run, index=table.index).join(table).assign(resampled=resampled_unit(subjects))
    path = Path(settings.output_dir, "metrics", "utility.csv")
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    shown = table[~table["metric"].str.endswith("_change")]
    shown = shown.pivot_table(values="value", index=["intervention", "cft"], columns=["metric", "variable"], sort=False)
    print(f"AUC in % or mean absolute error on real test images of predictors that learned from\n{shown.round(2)}")
    print(f"\nAll results, with intervals: {path}")


if __name__ == "__main__":
    run_main(main)
