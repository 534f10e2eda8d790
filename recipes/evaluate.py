"""Test the counterfactuals of several pipelines on real test images: Table 1 and Figure 1 of the paper.

    accelerate launch recipes/evaluate.py --config recipes/configs/phantom.yaml

Each pipeline folder is named after its fine-tuning (none, hard, soft). The guide is the pipelines' own classifier; the
judge, which had no part in their training, has the last word. Reads the sections data, graph and evaluate. Writes into
--output_dir: table1.md, table1.csv, counterfactuals_*.png, comparison.png, training_curves.png, fine_tuning_curves.png,
and metrics.jsonl with the records of all trainings below that folder.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from softcft import AttributeClassifier, CausalGraph, DSCMPipeline, HVAEBackbone
from softcft.data.schema import ImageAttributeDataset
from softcft.data.sources import DataConfig, load_data
from softcft.evaluation.effectiveness import effectiveness_table, other_values, predict_counterfactuals
from softcft.evaluation.figures import attribute_captions, cft_comparison, counterfactual_grid, training_curves
from softcft.evaluation.report import write_table1
from softcft.training.config import parse_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"
TITLES = {"none": "No CFT", "hard": "Hard-CFT", "soft": "Soft-CFT"}


@dataclass(kw_only=True)
class EvaluateConfig:
    """What to evaluate, and how."""

    output_dir: str = field(metadata={"help": "Folder for tables and figures."})
    pipelines: list[str] = field(metadata={"help": "Pipeline folders, each named none, hard or soft."})
    judge_dir: str = field(metadata={"help": "Folder with the judge, from train_classifier.py --role judge."})
    interventions: list[str] | None = field(
        default=None, metadata={"help": "Variables to intervene on, one at a time. Left out: all of the graph."}
    )
    eval_batch_size: int = field(default=250, metadata={"help": "Images per forward pass and process."})
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no", metadata={"help": "Type of the forward pass of image models and classifiers."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of interventions and abduction; the table names it."})
    grid_images: int = field(default=4, metadata={"help": "Number of test images in the figures."})

    def __post_init__(self) -> None:
        if self.eval_batch_size < 2:
            raise ValueError(f"--eval_batch_size must be at least 2, got {self.eval_batch_size}.")
        if self.grid_images < 1:
            raise ValueError(f"--grid_images must be at least 1, got {self.grid_images}.")
        unknown = [folder for folder in self.pipelines if Path(folder).name not in TITLES]
        if unknown:
            raise ValueError(f"--pipelines: folders must be named {', '.join(TITLES)}, got {unknown}.")
        for folder, maker in [
            *(
                (Path(folder, "model_index.json"), f"soft_cft.py --cft {Path(folder).name} --output_dir {folder}")
                for folder in self.pipelines
            ),
            (Path(self.judge_dir, "config.json"), "train_classifier.py --role judge"),
        ]:
            if not folder.is_file():
                raise SystemExit(
                    f"There is no {folder}. Make it, with the same --config, by\n    accelerate launch recipes/{maker}"
                )


def evaluate_pipeline(
    pipeline: DSCMPipeline,
    judge: AttributeClassifier,
    images: ImageAttributeDataset,
    interventions: list[str],
    settings: EvaluateConfig,
    accelerator: Accelerator,
    name: str,
) -> dict[str, torch.Tensor]:
    """Predictions of guide and judge on all test images and their counterfactuals, gathered from all processes."""
    batches = accelerator.prepare(DataLoader(images, batch_size=settings.eval_batch_size))
    generator = torch.Generator(accelerator.device).manual_seed(settings.seed + accelerator.process_index)
    backbone = HVAEBackbone(pipeline.hvae).eval()
    predictors = {"guide": pipeline.classifier, "judge": judge}
    gathered = []
    for batch in tqdm(batches, desc=name, disable=not accelerator.is_main_process):
        with accelerator.autocast():
            predictions = predict_counterfactuals(
                backbone, pipeline.attribute_scm, predictors, batch, interventions, generator
            )
        gathered.append(accelerator.gather_for_metrics(predictions))
    return {key: torch.cat([part[key].cpu() for part in gathered]) for key in gathered[0]}


@torch.no_grad()
def draw_counterfactuals(
    pipeline: DSCMPipeline, images: ImageAttributeDataset, interventions: list[str], settings: EvaluateConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[str]]:
    """The first test images, their counterfactuals by heading, and captions."""
    graph = images.graph
    batch = [images[i] for i in range(min(settings.grid_images, len(images)))]
    image = torch.stack([example["image"] for example in batch])
    parents = torch.stack([example["parents"] for example in batch])
    backbone = HVAEBackbone(pipeline.hvae).eval()
    counterfactuals = {}
    for name in interventions:
        # The same noise and the same new values for every pipeline, so that they can be compared.
        generator = torch.Generator().manual_seed(settings.seed)
        intervention = other_values(graph, name, parents, generator)
        new_parents = pipeline.attribute_scm.counterfactual(parents, intervention, generator)
        counterfactuals[f"do({name})"] = backbone.counterfactual(image, parents, new_parents, generator).image
    return image, counterfactuals, attribute_captions(graph, parents)


def collect_training_records(output_dir: Path) -> dict[str, list[dict[str, float]]]:
    """The metrics.jsonl of every training below the folder, by the name of its own folder, and all in one file."""
    records = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(output_dir.glob("*/metrics.jsonl"))
    }
    lines = [json.dumps({"run": run, **record}) + "\n" for run in records for record in records[run]]
    (output_dir / "metrics.jsonl").write_text("".join(lines))
    return records


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=200, bbox_inches="tight")


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, settings = parse_config(
        "evaluate", DataConfig, EvaluateConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    graph = CausalGraph(config["graph"])
    interventions = settings.interventions or list(graph.names)
    for name in interventions:
        graph[name]
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():  # the others find the data in the cache
        images = ImageAttributeDataset(load_data(data, graph)["test"], graph, data.sample_size)
    judge = AttributeClassifier.from_pretrained(settings.judge_dir).to(accelerator.device)
    tables, drawn = [], {}
    for folder in settings.pipelines:
        cft = Path(folder).name
        pipeline = DSCMPipeline.from_pretrained(folder).to(accelerator.device)
        if pipeline.classifier is None:
            raise SystemExit(f"{folder} has no classifier, so there is no guide to test with.")
        predictions = evaluate_pipeline(pipeline, judge, images, interventions, settings, accelerator, TITLES[cft])
        if accelerator.is_main_process:
            table = effectiveness_table(graph, predictions, interventions)
            run = pd.DataFrame({"dataset": data.dataset, "seed": settings.seed, "cft": cft}, index=table.index)
            tables.append(run.join(table))
            drawn[cft] = draw_counterfactuals(pipeline.to("cpu"), images, interventions, settings)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    output_dir = Path(settings.output_dir)
    units = {variable.name: variable.unit for variable in graph.variables if variable.unit}
    write_table1(pd.concat(tables, ignore_index=True), output_dir, units)
    for cft, (image, counterfactuals, captions) in drawn.items():
        save(counterfactual_grid(image, counterfactuals, captions), output_dir / f"counterfactuals_{cft}.png")
    compared = {TITLES[cft]: {do: x[:2] for do, x in drawn[cft][1].items()} for cft in drawn}
    save(cft_comparison(image[:2], compared, captions[:2]), output_dir / "comparison.png")
    records = collect_training_records(output_dir)
    keys = {"guidance": "guidance loss (nats)", "fidelity": "NELBO (nats/dim)", "multiplier": "Lagrange multiplier"}
    curves = {TITLES[cft]: records[cft] for cft in TITLES if cft in records}
    if curves:
        save(training_curves(curves, keys), output_dir / "fine_tuning_curves.png")
    curves = {run: records[run] for run in ("scm", "guide", "judge", "hvae") if run in records}
    if curves:
        save(training_curves(curves, {"loss": "training loss (nats)"}), output_dir / "training_curves.png")
    print((output_dir / "table1.md").read_text())


if __name__ == "__main__":
    main()
