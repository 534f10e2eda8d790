"""Effectiveness on Morpho-MNIST as the literature states it, beside the published HVAE.

    python benchmarks/morphomnist.py --data_dir DATA --runs outputs/morphomnist outputs/morphomnist-seed1
    python benchmarks/morphomnist.py --data_dir DATA --judge_dir JUDGES --mnist_dir MNIST --runs outputs/morphomnist

Each run is a folder that ``recipes/run_all.py --config recipes/configs/morphomnist.yaml`` made. Of each of its
pipelines that all runs have, a judge predicts thickness, intensity and digit of counterfactuals of the test images
under interventions on each variable. Shown are mean absolute errors against the values that the counterfactuals should
have, and accuracy; of several runs the mean, with the smallest and largest. The bound is that of the evidence (weight 1
of the KL) on real test images, in nats per dimension. The published rows are the HVAE of Melistas et al., "Benchmarking
Counterfactual Image Generation" (2024), without fine-tuning.

The judge is the run's own, which was trained on real digits and had no part in fine-tuning: near to, but not the same
measurement as that of the published row.

With ``--judge_dir`` the judges are the three published networks, and values are drawn as published: see
``benchmarks/published_benchmark.py``. One table is as published, one is by the same networks with batch normalisation
in evaluation mode, and one has what is measured from the pixels of the first 1,000 images, without a network.
``--mnist_dir`` adds true counterfactuals of these 1,000, redrawn from the original digits: what the judges say of them
is the best that they can be expected to say. Without ``--runs`` there are only these and real images.

The last table has, of each pipeline,

* the Frechet distance of one counterfactual of each test image, of a random intervention, to all training images, in
  the 192 features of the published networks in evaluation mode. It is no FID, whose features are Inception's, and
  depends on the number of images: compare within the table;
* minimality, the CLD of Sanchez and Tsaftaris with the weights of Melistas et al., the mean over interventions, by the
  run's VAE where it has one. The published value is by another VAE;
* composition, the same without the pixel residual (reconstruction), and reversibility, the mean over interventions:
  mean absolute differences in grey levels after 1 and 10 cycles, of the first 1,000 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from published_benchmark import (
    BATCH,
    FEW,
    Predictions,
    Predictor,
    Shown,
    batch_weights,
    cycles,
    divergence,
    features,
    load_predictors,
    measure_pixels,
    predict,
    published_interventions,
    published_plan,
)
from torch import Tensor
from tqdm.auto import tqdm

from softcft import AttributeClassifier, DSCMPipeline, HVAEBackbone
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, load_morphomnist
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.data.truth import MorphoMNISTTruth
from softcft.evaluation.effectiveness import counterfactual_images, plan_counterfactuals, predict_images
from softcft.evaluation.metrics import variable_metrics
from softcft.evaluation.realism import frechet_distance
from softcft.models.weights import load_safetensors

PIPELINES = {"none": "No CFT", "hard": "Hard-CFT", "soft": "Soft-CFT", "matched": "Matched CFT"}
INTERVENTIONS = MORPHOMNIST_GRAPH.names
DECIMALS = {"thickness": 3, "intensity": 2, "digit": 1}
PUBLISHED = {"thickness": (0.086, 0.224, 0.117), "intensity": (1.99, 3.52, 2.10), "digit": (98.5, 93.5, 97.2)}
"""Under do(thickness), do(intensity), do(digit); accuracy in %."""
PUBLISHED_IMAGES = {"cld": 0.272, "composition 1": 0.438, "composition 10": 1.550}
"""Composition is that of the preprint."""
IMAGE_COLUMNS = (
    "frechet",
    "cld",
    *(f"{name} {n}" for name in ("composition", "reconstruction", "reversibility") for n in (1, 10)),
)

Measured = dict[str, float]
"""By variable its error in pixels or grey levels, or the accuracy in %; or by column."""


class Judge(NamedTuple):
    """Who looks at images."""

    predict: Callable[[Tensor, Tensor], Predictions]  # of images (N, 1, 32, 32) that should show labels (N, K)
    weigh: Callable[[int], np.ndarray] = lambda number: np.ones((1, number))  # of the mean over images
    most: int | None = None  # it looks at the first so many images only


def run_judge(folder: Path) -> Judge:
    """The judge that a run trained."""
    judge = AttributeClassifier.from_pretrained(folder)

    def look(images: Tensor, labels: Tensor) -> Predictions:
        with torch.autocast("cpu", torch.bfloat16):
            parts = [predict_images({"judge": judge}, part[:, None])["judge"][:, 0] for part in images.split(BATCH)]
        return {name: torch.cat(parts)[:, columns] for name, columns in MORPHOMNIST_GRAPH.slices.items()}

    return Judge(look)


def outside_judges(predictors: dict[str, Predictor]) -> dict[str, Judge]:
    """The published networks in both modes, and the pixels; by the title of their table."""
    return {
        "Published judges, as published": Judge(lambda x, labels: predict(predictors, x, labels, True), batch_weights),
        "Published judges, evaluation mode": Judge(lambda x, labels: predict(predictors, x, labels, False)),
        f"Pixels, first {FEW} images": Judge(lambda x, labels: measure_pixels(x), most=FEW),
    }


def measure(judge: Judge, shown: Shown) -> list[Measured]:
    """For each of J images what the judge makes of it."""
    results = []
    for images, labels in zip(shown.images.unbind(dim=1), shown.labels.unbind(dim=1), strict=True):
        labels = labels[: judge.most]
        weights = judge.weigh(len(labels))
        found = {}
        for name, predicted in judge.predict(images[: judge.most], labels).items():
            variable = MORPHOMNIST_GRAPH[name]
            metrics = variable_metrics(variable, predicted, labels[:, MORPHOMNIST_GRAPH.slices[name]], weights)
            found[name] = metrics["mae" if variable.kind == "continuous" else "accuracy"].item()
        results.append(found)
    return results


@torch.no_grad()
def make_counterfactuals(pipeline: DSCMPipeline, images: Tensor, parents: Tensor, plan: Tensor, name: str) -> Shown:
    """The real images, and their counterfactuals as planned."""
    backbone = HVAEBackbone(pipeline.hvae).eval()
    shown = []
    for rows in tqdm(torch.arange(len(images)).split(BATCH), desc=name):
        with torch.autocast("cpu", torch.bfloat16):
            shown.append(counterfactual_images(backbone, images[rows], parents[rows], plan[rows], rows, seed=0))
    return Shown(torch.cat(shown), torch.cat([parents[:, None], plan], dim=1))


@torch.no_grad()
def evidence_bound(pipeline: DSCMPipeline, images: Tensor, parents: Tensor) -> float:
    """The bound on real images."""
    generator, hvae, total = torch.Generator().manual_seed(0), pipeline.hvae.eval(), 0.0
    for image, values in zip(images.split(BATCH), parents.split(BATCH), strict=True):
        output = hvae(image, values, generator=generator)
        total += (output.nll + output.kl).sum().item()
    return total / len(images)


def make_truth(mnist_dir: str, data_dir: str, parents: Tensor) -> dict[str, Shown]:
    """The true counterfactuals of the first images, by the interventions for which they are known."""
    truth, shown = MorphoMNISTTruth(mnist_dir, data_dir), {}
    for name in truth.interventions:
        values = published_interventions(parents, seed=0)[name].values
        parts = [
            truth.counterfactual(rows.tolist(), name, values[rows])
            for rows in tqdm(torch.arange(min(FEW, len(parents))).split(BATCH), desc=f"true do({name})")
        ]
        images, labels = (torch.cat(tensors)[:, None] for tensors in zip(*parts, strict=True))
        shown[name] = Shown(images, labels)
    return shown


def measure_images(
    pipeline: DSCMPipeline, shown: Shown, vae_dir: Path, distance: Callable[[Tensor], float], name: str
) -> Measured:
    """The columns of the last table that there are, given the distance of images (N, 1, 32, 32) to training images."""
    rows = torch.arange(len(shown.images))
    chosen = torch.randint(1, 1 + len(INTERVENTIONS), (len(rows),), generator=torch.Generator().manual_seed(0))
    results = {"frechet": distance(shown.images[rows, chosen])}
    if vae_dir.is_dir():
        results["cld"] = divergence(load_safetensors(AutoencoderKL, vae_dir), shown)
    for key, drift in cycles(pipeline.hvae, shown, name).items():
        results |= {f"{key} 1": drift[0].item(), f"{key} 10": drift[9].item()}
    return results


def cell(values: list[float], decimals: int) -> str:
    """The mean of several runs with the smallest and largest; empty for none."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{decimals}f} to {max(values):.{decimals}f})"


def print_effectiveness(
    real: list[Measured],
    true: dict[str, Measured],
    ours: dict[str, list[list[Measured]]],
    bounds: dict[str, list[float]],
) -> None:
    """One judge's table: of real images, by intervention of true counterfactuals, and by pipeline of all runs."""

    def cells(measured: list[Measured]) -> str:
        return " | ".join(cell([m[n] for m in measured if n in m], DECIMALS[n]) for n in INTERVENTIONS)

    print("| | | thickness MAE (pixels) | intensity MAE (grey levels) | digit accuracy (%) | bound (nats/dim) |")
    print("|---|---|---|---|---|---|")
    print(f"| Real images | | {cells(real)} | |")
    for i, name in enumerate(INTERVENTIONS):
        print(f"| do({name}) | published |", *(f"{PUBLISHED[n][i]} |" for n in INTERVENTIONS), "|")
        if name in true:
            print(f"| | True, first {FEW} images | {cells([true[name]])} | |")
        for folder, runs in ours.items():
            print(f"| | {PIPELINES[folder]} | {cells([run[i + 1] for run in runs])} | {cell(bounds[folder], 4)} |")


def print_images(rows: dict[str, list[Measured]]) -> None:
    """The last table, by the title of the row."""
    print("| |", " | ".join(IMAGE_COLUMNS), "|")
    print("|---" * (1 + len(IMAGE_COLUMNS)) + "|")
    for title, runs in rows.items():
        columns = (cell([m[k] for m in runs if k in m], 5 if k == "frechet" else 3) for k in IMAGE_COLUMNS)
        print(f"| {title} |", " | ".join(columns), "|")


def read_images(rows: ImageAttributeDataset) -> Tensor:
    """All images of a split, (N, 1, 32, 32) in [-1, 1]."""
    parts = torch.arange(len(rows)).split(BATCH)
    return torch.cat([scale_pixels(torch.stack([x["image"] for x in rows.__getitems__(p.tolist())])) for p in parts])


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and the pipelines that all runs have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of the files of Morpho-MNIST")
    parser.add_argument("--runs", default=[], nargs="+", type=Path, help="folders of runs, one for each seed")
    parser.add_argument("--judge_dir", help="folder of the published judges; left out, each run's own")
    parser.add_argument("--mnist_dir", help="with --judge_dir: folder of the original MNIST, for true counterfactuals")
    parser.add_argument("--num_test", type=int, default=10_000, help="test images (default: 10000, all)")
    args = parser.parse_args()
    if not (args.runs or args.judge_dir):
        parser.error("give --runs, or --judge_dir for real images alone")
    if args.mnist_dir and not args.judge_dir:
        parser.error("--mnist_dir needs --judge_dir")
    folders = [name for name in PIPELINES if args.runs and all((run / name).is_dir() for run in args.runs)]
    if args.runs and not folders:
        parser.error(f"--runs {' '.join(map(str, args.runs))}: no pipeline of {list(PIPELINES)} is in all of them")
    return args, folders


def by_own_judges(runs: list[Path], folders: list[str], images: Tensor, parents: Tensor) -> None:
    """Print the table of the runs' own judges."""
    ours: dict[str, list[list[Measured]]] = {folder: [] for folder in folders}
    bounds: dict[str, list[float]] = {folder: [] for folder in folders}
    for folder, run in product(folders, runs):
        pipeline = DSCMPipeline.from_pretrained(run / folder)
        plan = plan_counterfactuals(pipeline.attribute_scm, parents, INTERVENTIONS, seed=0)
        shown = make_counterfactuals(pipeline, images, parents, plan, f"{run}/{folder}")
        ours[folder].append(measure(run_judge(run / "judge"), shown))
        bounds[folder].append(evidence_bound(pipeline, images, parents))
    print_effectiveness([measured[0] for measured in ours[folders[0]]], {}, ours, bounds)


def by_outside_judges(
    runs: list[Path],
    folders: list[str],
    images: Tensor,
    parents: Tensor,
    predictors: dict[str, Predictor],
    training_images: Tensor,
    truth: dict[str, Shown],
) -> None:
    """Print the tables of the published judges and the pixels, and the one that needs no labels."""
    judges, training_features = outside_judges(predictors), features(predictors, training_images)

    def distance(some: Tensor) -> float:
        return frechet_distance(features(predictors, some), training_features)

    ours: dict[str, dict[str, list[list[Measured]]]] = {title: {folder: [] for folder in folders} for title in judges}
    bounds: dict[str, list[float]] = {folder: [] for folder in folders}
    of_images = {"Real test images": [{"frechet": distance(images)}], "published": [PUBLISHED_IMAGES]}
    of_images |= {PIPELINES[folder]: [] for folder in folders}
    for folder, run in product(folders, runs):
        pipeline, name = DSCMPipeline.from_pretrained(run / folder), f"{run}/{folder}"
        plan = published_plan(pipeline.attribute_scm, parents, seed=0)
        shown = make_counterfactuals(pipeline, images, parents, plan, name)
        for title, judge in judges.items():
            ours[title][folder].append(measure(judge, shown))
        bounds[folder].append(evidence_bound(pipeline, images, parents))
        of_images[PIPELINES[folder]].append(measure_images(pipeline, shown, run / "vae", distance, name))
    for title, judge in judges.items():
        print(f"\n{title}\n")
        real = measure(judge, Shown(images[:, None], parents[:, None]))
        true = {name: measure(judge, shown)[0] for name, shown in truth.items()}
        print_effectiveness(real, true, ours[title], bounds)
    print("\nWithout labels\n")
    print_images(of_images)


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    args, folders = parse_arguments()
    predictors = load_predictors(args.judge_dir) if args.judge_dir else {}
    splits = {
        name: ImageAttributeDataset(rows, MORPHOMNIST_GRAPH) for name, rows in load_morphomnist(args.data_dir).items()
    }
    images, parents = read_images(splits["test"])[: args.num_test], splits["test"].parents[: args.num_test]
    if not predictors:
        by_own_judges(args.runs, folders, images, parents)
        return
    training_images = torch.cat([read_images(splits[name]) for name in ("train", "validation")])
    truth = make_truth(args.mnist_dir, args.data_dir, parents) if args.mnist_dir else {}
    by_outside_judges(args.runs, folders, images, parents, predictors, training_images, truth)


if __name__ == "__main__":
    main()
