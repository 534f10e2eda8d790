"""Test the counterfactuals of several pipelines on real test images: Table 1 and Figure 1 of the paper.

    accelerate launch recipes/evaluate.py --config recipes/configs/phantom.yaml

Each pipeline folder is named after its fine-tuning (none, hard, soft). The guide is the pipelines' own classifier; the
judge, which had no part in their training, has the last word. Reads the sections data, graph and evaluate. Writes into
--output_dir: table1.md, table1.csv, counterfactuals_*.png, comparison.png, training_curves.png, and
metrics.jsonl with the records of all trainings below that folder.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from softcft import AttributeClassifier, CausalGraph, DSCMPipeline, HVAEBackbone
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.data.sources import DataConfig, load_data
from softcft.evaluation.effectiveness import effectiveness_table, intervene_on, predict_counterfactuals
from softcft.evaluation.figures import (
    attribute_captions,
    cft_comparison,
    counterfactual_grid,
    training_curves,
    value_captions,
)
from softcft.evaluation.report import CFT_NAMES, write_table1
from softcft.training.parsing import begin_run, parse_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class EvaluateConfig:
    """What to evaluate, and how."""

    output_dir: str = field(metadata={"help": "Folder of the whole run, which also gets tables and figures."})
    pipelines: list[str] | None = field(
        default=None,
        metadata={"help": "Pipeline folders, each named none, hard or soft. Left out: all three in OUTPUT_DIR."},
    )
    judge_dir: str | None = field(
        default=None,
        metadata={"help": "Judge, from train_classifier.py --role judge; OUTPUT_DIR/judge if left out."},
    )
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
        if self.grid_images < 2:
            raise ValueError(f"--grid_images must be at least 2, got {self.grid_images}.")
        self.judge_dir = self.judge_dir or str(Path(self.output_dir, "judge"))
        self.pipelines = self.pipelines or [str(Path(self.output_dir, cft)) for cft in CFT_NAMES]
        unknown = [folder for folder in self.pipelines if Path(folder).name not in CFT_NAMES]
        if unknown:
            raise ValueError(f"--pipelines: folders must be named {', '.join(CFT_NAMES)}, got {unknown}.")
        for folder, maker in [
            *(
                (
                    Path(folder, "model_index.json"),
                    f"soft_cft.py --cft {Path(folder).name} --output_dir {Path(folder).parent}",
                )
                for folder in self.pipelines
            ),
            (Path(self.judge_dir, "config.json"), "train_classifier.py --role judge"),
        ]:
            if not folder.is_file():
                raise SystemExit(
                    f"There is no {folder}. Make it, with the same flags, by\n    accelerate launch recipes/{maker}"
                )


def evaluate_pipeline(
    pipeline: DSCMPipeline,
    judge: AttributeClassifier,
    images: Subset,
    interventions: list[str],
    settings: EvaluateConfig,
    accelerator: Accelerator,
    name: str,
) -> dict[str, torch.Tensor]:
    """Predictions of guide and judge on all test images and their counterfactuals, gathered from all processes."""
    # A last batch of one image could not take another's value: it is spread over the batches before.
    sizes = range(settings.eval_batch_size, settings.eval_batch_size + len(images))
    size = next((size for size in sizes if len(images) % size != 1), settings.eval_batch_size)
    batches = accelerator.prepare(DataLoader(images, batch_size=size))
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
    pipeline: DSCMPipeline, image: torch.Tensor, parents: torch.Tensor, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Counterfactuals of images under an intervention on each variable, and the new values, by heading."""
    graph = pipeline.hvae.causal_graph
    backbone = HVAEBackbone(pipeline.hvae).eval()
    counterfactuals, values = {}, {}
    for name in graph.names:
        # The same noise and the same new values for every pipeline, so that they can be compared.
        generator = torch.Generator().manual_seed(seed)
        intervention = intervene_on(graph, name, parents, generator)
        new_parents = pipeline.attribute_scm.counterfactual(parents, intervention, generator)
        counterfactuals[f"do({name})"] = backbone.counterfactual(image, parents, new_parents, generator).image
        values[f"do({name})"] = value_captions(graph, name, new_parents)
    return counterfactuals, values


def load_pipelines(
    settings: EvaluateConfig, graph: CausalGraph, sample_size: int
) -> tuple[dict[str, DSCMPipeline], AttributeClassifier]:
    """The pipelines by their fine-tuning, and the judge: all with the graph and size of the data."""
    judge = AttributeClassifier.from_pretrained(settings.judge_dir)
    if judge.causal_graph != graph:
        raise ValueError(f"--judge_dir {settings.judge_dir} was trained with another graph than that of --config.")
    pipelines = {Path(folder).name: DSCMPipeline.from_pretrained(folder) for folder in settings.pipelines}
    for folder, pipeline in zip(settings.pipelines, pipelines.values(), strict=True):
        if pipeline.hvae.causal_graph != graph:
            raise ValueError(f"--pipelines: {folder} was trained with another graph than that of --config.")
        if pipeline.hvae.config.sample_size != sample_size:
            raise ValueError(
                f"--sample_size is {sample_size}, but {folder} was trained with {pipeline.hvae.config.sample_size}."
            )
        if pipeline.classifier is None:
            raise ValueError(f"--pipelines: {folder} has no classifier, so there is no guide to test with.")
    return pipelines, judge


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
    pipelines, judge = load_pipelines(settings, graph, data.sample_size)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():  # the others find the data in the cache
        images = ImageAttributeDataset(load_data(data, graph, config["columns"])["test"], graph)
    judge.to(accelerator.device)
    shown = [images[i] for i in images.complete[: settings.grid_images]]
    image, parents = (torch.stack([example[key] for example in shown]) for key in ("image", "parents"))
    image = scale_pixels(image)
    images = images.subset(complete=True)

    tables, counterfactuals, values = [], {}, {}
    for cft, pipeline in pipelines.items():
        pipeline.to(accelerator.device)
        predictions = evaluate_pipeline(pipeline, judge, images, interventions, settings, accelerator, CFT_NAMES[cft])
        pipeline.to("cpu")
        if accelerator.is_main_process:
            table = effectiveness_table(graph, predictions, interventions)
            run = pd.DataFrame({"dataset": data.dataset_name, "seed": settings.seed, "cft": cft}, index=table.index)
            tables.append(run.join(table))
            counterfactuals[CFT_NAMES[cft]], values = draw_counterfactuals(pipeline, image, parents, settings.seed)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    output_dir = Path(settings.output_dir)
    begin_run(config, "evaluate", output_dir)
    units = {variable.name: variable.unit for variable in graph.variables if variable.unit}
    write_table1(pd.concat(tables, ignore_index=True), output_dir, units)
    captions = attribute_captions(graph, parents)
    for cft in pipelines:
        grid = counterfactual_grid(image, counterfactuals[CFT_NAMES[cft]], captions, values)
        save(grid, output_dir / f"counterfactuals_{cft}.png")
    two = {title: {do: x[:2] for do, x in grids.items()} for title, grids in counterfactuals.items()}
    save(
        cft_comparison(image[:2], two, captions[:2], {do: v[:2] for do, v in values.items()}),
        output_dir / "comparison.png",
    )
    records = collect_training_records(output_dir)
    curves = {run: records[run] for run in ("hvae", "hard", "soft") if run in records}
    panels = {
        "nll": "HVAE: -log likelihood (nats/dim)",
        "kl": "HVAE: KL (nats/dim)",
        "guidance": "CFT: guidance loss (nats)",
        "fidelity": "CFT: NELBO (nats/dim)",
        "multiplier": "CFT: Lagrange multiplier",
    }
    panels = {key: label for key, label in panels.items() if any(key in r for run in curves.values() for r in run)}
    if panels:
        save(training_curves(curves, panels), output_dir / "training_curves.png")
    print((output_dir / "table1.md").read_text())


if __name__ == "__main__":
    main()
