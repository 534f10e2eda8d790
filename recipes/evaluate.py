"""The paper's evaluation, and a stricter one, of several pipelines on real test images.

    accelerate launch recipes/evaluate.py --config recipes/configs/phantom.yaml

Each pipeline folder is named after its fine-tuning (none, hard, soft, matched). The guide is the pipelines' own
classifier; the judge, which had no part in their training, has the last word. Measured are

* effectiveness and amplification (Table 1) of all test images, with intervals, and how sure and calibrated guide and
  judge are; how strong interventions are, against real images with the same attributes;
* the distribution shift of the judge's embeddings (Fig. 2, A3), and their Frechet distance to real images of the same
  attributes, beside that between such real images;
* composition, reversibility and minimality;
* where true counterfactuals are known (phantom; Morpho-MNIST with --mnist_dir), the error against them.

Reads the sections data, graph and evaluate. Writes into --output_dir: report.html, report.md, report.tex, metrics.csv,
figures/ (PNG and PDF; GIF where a continuous variable is moved), and metrics.jsonl with the records of all trainings
below that folder. What it measures does not depend on the number of processes.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os.path import isfile  # unlike Path.is_file, False of what cannot be the name of a file
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from softcft import AttributeClassifier, CausalGraph, CounterfactualBackbone, HVAEBackbone
from softcft.cft.verdict import read_sentence
from softcft.data.schema import ImageAttributeDataset, random_part, scale_pixels, to_eight_bits
from softcft.data.sources import DataConfig, load_data, subjects_of
from softcft.data.truth import PhantomTruth, TrueCounterfactuals, true_counterfactuals
from softcft.evaluation.axioms import (
    axiom_rows,
    composition,
    counterfactual_latent_divergence,
    reconstruction,
    reversibility,
    value_groups,
)
from softcft.evaluation.bootstrap import bootstrap_weights
from softcft.evaluation.effectiveness import (
    counterfactual_images,
    effectiveness_rows,
    image_generators,
    plan_counterfactuals,
    predict_images,
)
from softcft.evaluation.embeddings import AttributeModes, attribute_modes, shift_rows
from softcft.evaluation.figures.curves import draw_training_curves
from softcft.evaluation.figures.gallery import draw_counterfactuals, draw_interpolations
from softcft.evaluation.figures.shift import draw_shifts
from softcft.evaluation.figures.strength import draw_strength
from softcft.evaluation.realism import frechet_rows
from softcft.evaluation.report import CFT_NAMES, COLUMNS, NOTES, PUBLISHED_CFT, write_report
from softcft.evaluation.sight import sight_rows
from softcft.evaluation.strength import check_lookalikes, strength_rows
from softcft.evaluation.truth import ExpressionProbe, probe_rows, truth_errors, truth_rows
from softcft.models.vae import image_posterior
from softcft.models.weights import load_safetensors
from softcft.pipelines.query import load_pipeline
from softcft.training.checkpoints import replace_file
from softcft.training.config import SolverConfig, make_backbone
from softcft.training.parsing import parse_config, write_config
from softcft.training.precision import PRECISION_HELP, Precision, start_accelerator
from softcft.training.preparation import main_process_first

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"
CYCLES = 10  # of null interventions, and of ways there and back
AXIOMS = ("composition", "reconstruction", "reversibility", "cld")
ERRORS = ("error", "error_outside", "error_factual")


@dataclass(kw_only=True)
class EvaluateConfig:
    """What to evaluate, and how."""

    output_dir: str = field(metadata={"help": "Folder of the whole run, which also gets tables and figures."})
    pipelines: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pipeline folders, each named none, hard, soft or matched. Left out: the first three in OUTPUT_DIR."
        },
    )
    judge_dir: str | None = field(
        default=None,
        metadata={"help": "Judge, from train_classifier.py --role judge; OUTPUT_DIR/judge if left out."},
    )
    vae_dir: str | None = field(
        default=None, metadata={"help": "VAE of minimality, from train_vae.py; OUTPUT_DIR/vae if left out."}
    )
    mnist_dir: str | None = field(
        default=None,
        metadata={"help": "morphomnist: folder of the original MNIST test images, of which the truth is made."},
    )
    interventions: list[str] | None = field(
        default=None, metadata={"help": "Variables to intervene on, one at a time. Left out: all of the graph."}
    )
    eval_batch_size: int = field(default=250, metadata={"help": "Images per forward pass and process."})
    num_resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples of the intervals; 0 for none."})
    shift_images: int = field(
        default=1000, metadata={"help": "Test images, drawn at random, that the distribution shift is shown of."}
    )
    axiom_images: int = field(
        default=500,
        metadata={
            "help": "Test images, drawn at random, for composition, reversibility and minimality, each of which takes "
            "some 20 abductions and predictions for each intervention."
        },
    )
    mixed_precision: Precision = field(default="no", metadata={"help": PRECISION_HELP})
    seed: int = field(default=0, metadata={"help": "Seed of interventions, abduction and resamples."})
    grid_images: int = field(
        default=3, metadata={"help": "Number of test images in the figures; three square ones fill a page."}
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("eval_batch_size", 1),
            ("num_resamples", 0),
            ("shift_images", 20),
            ("axiom_images", 2),
            ("grid_images", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        self.judge_dir = self.judge_dir or str(Path(self.output_dir, "judge"))
        self.vae_dir = self.vae_dir or str(Path(self.output_dir, "vae"))
        self.pipelines = self.pipelines or [str(Path(self.output_dir, cft)) for cft in PUBLISHED_CFT]
        unknown = [folder for folder in self.pipelines if Path(folder).name not in CFT_NAMES]
        if unknown:
            raise ValueError(f"--pipelines: folders must be named {', '.join(CFT_NAMES)}, got {unknown}.")
        needed = {
            folder / "model_index.json": f"soft_cft.py --cft {folder.name} --output_dir {folder.parent}"
            for folder in map(Path, self.pipelines)
        }
        needed[Path(self.judge_dir, "config.json")] = "train_classifier.py --role judge"
        needed[Path(self.vae_dir, "config.json")] = "train_vae.py"
        for file, maker in needed.items():
            if not isfile(file):
                raise SystemExit(
                    f"There is no {file}. Make it, with the same flags, by\n    accelerate launch recipes/{maker}"
                )


class NumberedImages(Dataset[dict[str, Any]]):
    """Images that miss no value, with their place in this table (``index``) and in their split (``row``)."""

    def __init__(self, images: ImageAttributeDataset) -> None:
        self.images, self.rows = images, images.complete
        self.parents = images.parents[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "row": self.rows[index], **self.images[self.rows[index]]}


@dataclass
class Evaluation:
    """What all pipelines are tested on and by."""

    settings: EvaluateConfig
    graph: CausalGraph
    interventions: list[str]
    images: NumberedImages
    subjects: list[str]
    weights: np.ndarray
    judge: AttributeClassifier
    vae: AutoencoderKL
    truth: TrueCounterfactuals | None
    accelerator: Accelerator

    def __post_init__(self) -> None:
        self.known = [name for name in self.interventions if self.truth and name in self.truth.interventions]
        self.true_images: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def part(self, number: int) -> list[int]:
        """Places of some of the images, by the row and not by the subject: so more subjects have a say."""
        return random_part(range(len(self.images)), number, self.settings.seed)

    def interventions_of(self, cft: str) -> list[str]:
        """The variables that a model, or the truth, has counterfactuals of."""
        return self.known if cft == "truth" else self.interventions

    def run(
        self, images: Dataset[dict[str, Any]], measure: Callable[[dict[str, Any]], dict[str, Tensor]], name: str
    ) -> dict[str, Tensor]:
        """Measure all images batch by batch, on all processes; per-image results in the order of the images."""
        # No more than each process's share: what is missing of a batch would be filled up with images measured before.
        share = -(-len(images) // self.accelerator.num_processes)
        batch_size = min(self.settings.eval_batch_size, share)
        batches = self.accelerator.prepare(DataLoader(images, batch_size=batch_size))
        parts = defaultdict(list)
        for batch in tqdm(batches, desc=name, disable=not self.accelerator.is_main_process):
            with torch.no_grad(), self.accelerator.autocast():
                results = measure(batch | {"image": scale_pixels(batch["image"])})
            for key, values in self.accelerator.gather_for_metrics(results).items():
                parts[key].append(values.float().cpu())
        return {key: torch.cat(values) for key, values in parts.items()}

    def make_truth(self, batch: dict[str, Any], plan: Tensor) -> tuple[Tensor, Tensor]:
        """The true images of a batch, (B, I', C, H, W), and their attributes; made once for all pipelines."""
        assert self.truth is not None
        key = tuple(batch["index"].tolist())
        if key not in self.true_images:
            # Images that fill up the last batch of a process may be there twice.
            index, places = torch.unique(batch["index"].cpu(), return_inverse=True)
            rows = [self.images.rows[i] for i in index.tolist()]
            pairs = [
                self.truth.counterfactual(rows, name, plan[index, self.interventions.index(name)])
                for name in self.known
            ]
            images, parents = (torch.stack(tensors, dim=1)[places] for tensors in zip(*pairs, strict=True))
            self.true_images[key] = to_eight_bits(images), parents
        images, parents = self.true_images[key]
        return scale_pixels(images.to(self.accelerator.device)), parents.to(self.accelerator.device)

    def of_truth(self, guide: AttributeClassifier, plan: Tensor) -> dict[str, Tensor]:
        """What guide and judge see in the true counterfactuals."""

        def measure(batch: dict[str, Any]) -> dict[str, Tensor]:
            images, labels = self.make_truth(batch, plan)
            images = torch.cat([batch["image"][:, None], images], dim=1)
            labels = torch.cat([batch["parents"][:, None], labels], dim=1)
            return {"labels": labels, **self.predict(guide, images)}

        return self.run(self.images, measure, "True counterfactuals")

    def of_model(
        self, backbone: CounterfactualBackbone, guide: AttributeClassifier, plan: Tensor, name: str
    ) -> dict[str, Tensor]:
        """What guide and judge see in the counterfactuals of a model, and how far these are from the truth."""

        def measure(batch: dict[str, Any]) -> dict[str, Tensor]:
            images = self.make_counterfactuals(backbone, batch, plan)
            labels = torch.cat([batch["parents"][:, None], self.planned(batch, plan)], dim=1)
            results = {"labels": labels, **self.predict(guide, images)}
            if self.known:
                true_images, _ = self.make_truth(batch, plan)
                for i, known in enumerate(self.known):
                    counterfactual = images[:, 1 + self.interventions.index(known)]
                    for key, errors in truth_errors(batch["image"], counterfactual, true_images[:, i]).items():
                        results[f"{key}/{known}"] = errors
            return results

        return self.run(self.images, measure, name)

    def of_axioms(self, backbone: CounterfactualBackbone, plan: Tensor, name: str) -> dict[str, Tensor]:
        """Composition, reversibility and the posteriors of minimality, of some of the images."""

        def measure(batch: dict[str, Any]) -> dict[str, Tensor]:
            image, parents, planned = batch["image"], batch["parents"], self.planned(batch, plan)
            rows, seed = batch["row"].tolist(), self.settings.seed
            results = {"composition/none": composition(backbone, image, parents, CYCLES, image_generators(rows, seed))}
            if isinstance(backbone, HVAEBackbone):  # it keeps a pixel residual, without which this measures it
                results["reconstruction/none"] = reconstruction(
                    backbone.model, image, parents, CYCLES, image_generators(rows, seed)
                )
            for i, intervention in enumerate(self.interventions):
                results[f"reversibility/{intervention}"] = reversibility(
                    backbone, image, parents, planned[:, i], CYCLES, image_generators(rows, seed)
                )
            images = self.make_counterfactuals(backbone, batch, plan)
            loc, log_scale = image_posterior(self.vae, images.flatten(0, 1))
            shape = images.shape[:2]
            return results | {"loc": loc.unflatten(0, shape), "log_scale": log_scale.unflatten(0, shape)}

        chosen = self.part(self.settings.axiom_images)
        results = self.run(Subset(self.images, chosen), measure, f"{name}, axioms")
        loc, log_scale = results.pop("loc"), results.pop("log_scale")
        parents = self.images.parents[chosen]
        for i, intervention in enumerate(self.interventions):
            groups, new_groups = (
                value_groups(self.graph, intervention, values, parents) for values in (parents, plan[chosen, i])
            )
            posteriors = [(loc[:, j], log_scale[:, j]) for j in (0, 1 + i)]
            results[f"cld/{intervention}"] = counterfactual_latent_divergence(*posteriors, groups, new_groups)
        return results

    def predict(self, guide: AttributeClassifier, images: Tensor) -> dict[str, Tensor]:
        """What guide and judge see in images (B, 1 + I, C, H, W), and the judge's embedding."""
        seen = predict_images({"guide": guide, "judge": self.judge}, images)
        del seen["guide/embedding"]  # needed by nobody, and large
        return seen

    def planned(self, batch: dict[str, Any], plan: Tensor) -> Tensor:
        """The counterfactual attributes of a batch, (B, I, K)."""
        return plan[batch["index"].cpu()].to(self.accelerator.device)

    def make_counterfactuals(self, backbone: CounterfactualBackbone, batch: dict[str, Any], plan: Tensor) -> Tensor:
        """The images of a batch and their counterfactuals, (B, 1 + I, C, H, W)."""
        planned = self.planned(batch, plan)
        return counterfactual_images(
            backbone, batch["image"], batch["parents"], planned, batch["row"], self.settings.seed
        )

    def embed(self, images: NumberedImages) -> Tensor:
        """The judge's embeddings of real images, shape (N, D)."""
        seen = self.run(images, lambda batch: predict_images({"judge": self.judge}, batch["image"][:, None]), "real")
        return seen["judge/embedding"][:, 0]


def result_rows(
    evaluation: Evaluation, results: dict[str, dict[str, Tensor]], modes: AttributeModes, probe: ExpressionProbe | None
) -> pd.DataFrame:
    """All numbers as tidy rows, with the columns of :mod:`softcft.evaluation.report` but for data set and seed."""
    graph, weights, settings = evaluation.graph, evaluation.weights, evaluation.settings
    tables = []

    def add(table: str, cft: str, rows: pd.DataFrame) -> None:
        real = (rows["intervention"] == "none") & (table != "axioms")
        tables.append(rows.assign(table=table, cft=np.where(real, "real", cft)))

    shown = evaluation.part(settings.shift_images)
    shown_subjects = [evaluation.subjects[i] for i in shown]
    real_embeddings = next(iter(results.values()))["judge/embedding"][:, 0]
    for cft, result in results.items():
        interventions = evaluation.interventions_of(cft)
        labels, embeddings = result["labels"], result["judge/embedding"]
        seen = {name: result[name] for name in ("guide", "judge")}
        add("effectiveness", cft, effectiveness_rows(graph, labels, seen, interventions, weights))
        add("effectiveness", cft, strength_rows(graph, labels, seen, interventions, weights, settings.seed))
        add(
            "shift",
            cft,
            shift_rows(graph, modes, embeddings[shown], labels[shown], interventions, shown_subjects, settings.seed),
        )
        realism = frechet_rows(graph, labels, embeddings, interventions, evaluation.subjects, settings.seed)
        add("axioms", cft, realism)
        if cft == "truth":
            continue
        measures: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key in result:
            metric, _, intervention = key.partition("/")
            if metric in AXIOMS:
                measures[metric][intervention] = result[key]
        add("axioms", cft, axiom_rows(measures, weights[:, evaluation.part(settings.axiom_images)]))
        if evaluation.known:
            errors = {name: {key: result[f"{key}/{name}"] for key in ERRORS} for name in evaluation.known}
            expression_errors = probe and {
                name: probe.errors(
                    embeddings[:, 1 + evaluation.interventions.index(name)],
                    results["truth"]["judge/embedding"][:, 1 + i],
                )
                for i, name in enumerate(evaluation.known)
            }
            add("truth", cft, truth_rows(errors, weights, expression_errors))
    if probe is not None and isinstance(evaluation.truth, PhantomTruth):
        expressions = evaluation.truth.expression(evaluation.images.rows, evaluation.images.parents)
        add("truth", "real", probe_rows(probe, real_embeddings, expressions, weights))

    metrics = pd.concat(tables, ignore_index=True)
    key = ["table", "cft", "intervention", "variable", "predictor", "metric"]
    # Every model was compared with the real images: with the same, if all pipelines have one guide.
    spread = metrics.groupby(key)["value"].agg(["min", "max"])
    if (differing := spread[spread["max"] - spread["min"] > 1e-3 * spread["max"].abs()]).size:
        where = dict(zip(key, differing.index[0], strict=True))
        raise ValueError(f"--pipelines must have been trained with one guide, but differ on real images in {where}.")
    return metrics.drop_duplicates(key)


def load_models(
    settings: EvaluateConfig, graph: CausalGraph, sample_size: int
) -> tuple[dict[str, DiffusionPipeline], AttributeClassifier, AutoencoderKL]:
    """The pipelines by their fine-tuning, the judge and the VAE: all with the graph and size of the data."""
    judge = AttributeClassifier.from_pretrained(settings.judge_dir)
    if judge.causal_graph != graph:
        raise ValueError(f"--judge_dir {settings.judge_dir} was trained with another graph than that of --config.")
    pipelines = {Path(folder).name: load_pipeline(folder, graph, sample_size) for folder in settings.pipelines}
    for folder, pipeline in zip(settings.pipelines, pipelines.values(), strict=True):
        if pipeline.classifier is None:
            raise ValueError(f"--pipelines: {folder} has no classifier, so there is no guide to test with.")
    return pipelines, judge, load_safetensors(AutoencoderKL, settings.vae_dir).eval()


def complete_images(rows: datasets.Dataset, graph: CausalGraph, split: str) -> NumberedImages:
    """The images of a split that miss no value.

    Raises:
        ValueError: If there are fewer than two.
    """
    images = NumberedImages(ImageAttributeDataset(rows, graph))
    if len(images) < 2:
        raise ValueError(
            f"The {split} split must have images that miss no value, at least 2, but has {len(images)} of {len(rows)}. "
            "Look at it with recipes/check_data.py."
        )
    return images


def make_plans(
    pipelines: Mapping[str, Any], images: NumberedImages, interventions: list[str], seed: int
) -> dict[str, Tensor]:
    """The attributes of the counterfactuals of each model, shapes (N, I, K).

    Raises:
        ValueError: If no image has a category that some of them are to have: there is nothing to compare them with.
    """
    plans = {}
    for cft, pipeline in pipelines.items():
        plans[cft] = plan_counterfactuals(pipeline.attribute_scm, images.parents, interventions, seed)
        check_lookalikes(pipeline.causal_graph, images.parents, plans[cft], interventions)
    return plans


def modes_of(embeddings: Tensor, graph: CausalGraph, validation: NumberedImages) -> AttributeModes:
    """The modes of validation images.

    Raises:
        ValueError: If they are all alike in something.
    """
    try:
        return attribute_modes(embeddings, graph, validation.parents)
    except ValueError as error:
        raise ValueError(f"The {len(validation)} images of the validation split: {error}") from error


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, settings, solver = parse_config(
        "evaluate", DataConfig, EvaluateConfig, SolverConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    graph = CausalGraph(config["graph"])
    interventions = settings.interventions or list(graph.names)
    for name in interventions:
        graph[name]
    pipelines, judge, vae = load_models(settings, graph, data.sample_size)
    watched = {CFT_NAMES[Path(folder).name]: read_sentence(folder) for folder in settings.pipelines}
    backbones = {cft: make_backbone(pipeline, solver).eval() for cft, pipeline in pipelines.items()}
    truth = true_counterfactuals(data, graph, mnist_dir=settings.mnist_dir)
    with main_process_first():  # the others find the data in the cache
        splits = load_data(data, graph, config["columns"])
        images, validation = (complete_images(splits[name], graph, name) for name in ("test", "validation"))
    accelerator = start_accelerator(settings.mixed_precision)
    plans = make_plans(pipelines, images, interventions, settings.seed)
    all_subjects = subjects_of(splits["test"], data)
    subjects = [all_subjects[row] for row in images.rows]
    weights = bootstrap_weights(subjects, settings.num_resamples, settings.seed)
    evaluation = Evaluation(
        settings,
        graph,
        interventions,
        images,
        subjects,
        weights,
        judge.eval().to(accelerator.device),
        vae.to(accelerator.device),
        truth,
        accelerator,
    )

    # Not of the test images: modes would then fit these better than their counterfactuals, and tests would notice.
    embeddings = evaluation.embed(validation)
    modes = modes_of(embeddings, graph, validation)
    results = {}
    for cft, pipeline in pipelines.items():
        pipeline.to(accelerator.device)
        results[cft] = evaluation.of_model(backbones[cft], pipeline.classifier, plans[cft], CFT_NAMES[cft])
        results[cft] |= evaluation.of_axioms(backbones[cft], plans[cft], CFT_NAMES[cft])
        pipeline.to("cpu")
    probe = None
    if evaluation.known:
        first = next(iter(pipelines))
        guide = pipelines[first].classifier.to(accelerator.device)
        results["truth"] = evaluation.of_truth(guide, plans[first])
    if isinstance(truth, PhantomTruth):
        of_validation = PhantomTruth("validation", data.sample_size, data.data_seed)
        expressions = of_validation.expression(validation.rows, validation.parents)
        probe = ExpressionProbe(embeddings, expressions, of_validation.expression_columns)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    output_dir = Path(settings.output_dir)
    write_config(config, output_dir)
    for folder in ("metrics", "figures"):
        (output_dir / folder).mkdir(exist_ok=True)
    metrics = result_rows(evaluation, results, modes, probe)
    guide = next(iter(pipelines.values())).classifier  # the same in all of them
    sight = sight_rows({"guide": guide.sight, "judge": judge.sight})
    if len(sight):
        metrics = pd.concat([metrics, sight.assign(table="sight", cft="real")], ignore_index=True)
    metrics.insert(0, "dataset", data.dataset_name)
    metrics.insert(1, "seed", settings.seed)
    metrics[list(COLUMNS)].to_csv(output_dir / "metrics" / "evaluation.csv", index=False)
    # From all over the table, which may be sorted.
    number = min(settings.grid_images, len(images))
    examples = [i * len(images) // number for i in range(number)]
    image = scale_pixels(torch.stack([images[i]["image"] for i in examples]))
    models = {
        cft: (pipeline.attribute_scm, backbones[cft].to(accelerator.device)) for cft, pipeline in pipelines.items()
    }
    with accelerator.autocast():
        for draw in (draw_counterfactuals, draw_interpolations):
            folder = output_dir / "figures"
            draw(models, image, images.parents, examples, images.rows, settings.seed, folder, accelerator.device)
    shown = evaluation.part(settings.shift_images)
    draw_shifts(
        graph,
        modes,
        {cft: results[cft]["judge/embedding"][shown] for cft in pipelines},
        {cft: results[cft]["labels"][shown] for cft in pipelines},
        interventions,
        [subjects[i] for i in shown],
        settings.seed,
        output_dir / "figures",
    )
    draw_strength(
        graph,
        {cft: result["labels"] for cft, result in results.items()},
        {cft: result["judge"] for cft, result in results.items()},
        {cft: evaluation.interventions_of(cft) for cft in results},
        settings.seed,
        output_dir / "figures",
    )
    replace_file(output_dir / "metrics" / NOTES, json.dumps({k: text for k, text in watched.items() if text}))
    draw_training_curves(output_dir)
    write_report([output_dir], output_dir, graph, f"softcft: {data.dataset_name}")
    print((output_dir / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
