"""Effectiveness on Morpho-MNIST as the literature states it, beside the published HVAE.

    python benchmarks/morphomnist.py --data_dir DATA --runs outputs/morphomnist outputs/morphomnist-seed1

Each run is a folder that ``recipes/run_all.py --config recipes/configs/morphomnist.yaml`` made. For each of its
pipelines the judge, which was trained on real digits and had no part in fine-tuning, predicts thickness, intensity and
digit of counterfactuals of the test images under interventions on each variable. Shown are mean absolute errors against
the values that the counterfactuals should have, and accuracy; of several runs the mean, with the smallest and largest.
The bound is that of the evidence (weight 1 of the KL) on real test images, in nats per dimension.

The published row is the HVAE of Melistas et al., "Benchmarking Counterfactual Image Generation" (2024), without
fine-tuning, by predictors of their own: near to, but not the same measurement.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from softcft import AttributeClassifier, DSCMPipeline, HVAEBackbone
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, load_morphomnist
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.evaluation.effectiveness import counterfactual_images, plan_counterfactuals, predict_images
from softcft.evaluation.metrics import variable_metrics

PIPELINES = {"none": "No CFT", "hard": "Hard-CFT", "soft": "Soft-CFT"}
INTERVENTIONS = MORPHOMNIST_GRAPH.names
PUBLISHED = {"thickness": (0.086, 0.224, 0.117), "intensity": (1.99, 3.52, 2.10), "digit": (98.5, 93.5, 97.2)}
"""Under do(thickness), do(intensity), do(digit); accuracy in %."""


def measure(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Errors in pixels and grey levels and the accuracy in %, of predictions (N, K) against labels (N, K)."""
    results = {}
    for variable in MORPHOMNIST_GRAPH.variables:
        columns = MORPHOMNIST_GRAPH.slices[variable.name]
        metrics = variable_metrics(variable, predicted[:, columns], labels[:, columns], np.ones((1, len(labels))))
        results[variable.name] = metrics["mae" if variable.kind == "continuous" else "accuracy"].item()
    return results


@torch.no_grad()
def evaluate(
    pipeline: DSCMPipeline, judge: AttributeClassifier, images: Subset, name: str
) -> tuple[list[dict[str, float]], float]:
    """Results on the real images and under each intervention, and the bound."""
    generator = torch.Generator().manual_seed(0)
    backbone = HVAEBackbone(pipeline.hvae).eval()
    factual = images.dataset.parents[images.indices]
    planned = plan_counterfactuals(pipeline.attribute_scm, factual, INTERVENTIONS, seed=0)
    labels = torch.cat([factual[:, None], planned], dim=1)
    predicted, bound = [], 0.0
    rows = torch.arange(len(images)).split(250)
    for batch, part in zip(tqdm(DataLoader(images, batch_size=250), desc=name), rows, strict=True):
        image, parents = batch["image"], batch["parents"]
        with torch.autocast("cpu", torch.bfloat16):
            shown = counterfactual_images(backbone, image, parents, planned[part], part, seed=0)
            predicted.append(predict_images({"judge": judge}, shown)["judge"])
        output = pipeline.hvae(scale_pixels(image), parents, generator=generator)
        bound += (output.nll + output.kl).sum().item() / len(images)
    return [measure(torch.cat(predicted)[:, i], labels[:, i]) for i in range(labels.shape[1])], bound


def cell(values: list[float], digits: int) -> str:
    """The mean of several runs with the smallest and largest."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of the files of Morpho-MNIST")
    parser.add_argument("--runs", required=True, nargs="+", type=Path, help="folders of runs, one for each seed")
    parser.add_argument("--num_test", type=int, default=10_000, help="test images (default: 10000, all)")
    args = parser.parse_args()
    rows = ImageAttributeDataset(load_morphomnist(args.data_dir)["test"], MORPHOMNIST_GRAPH)
    images = Subset(rows, range(args.num_test))
    results = {
        (run, folder): evaluate(
            DSCMPipeline.from_pretrained(run / folder),
            AttributeClassifier.from_pretrained(run / "judge"),
            images,
            f"{run}/{folder}",
        )
        for run in args.runs
        for folder in PIPELINES
    }
    print("| | | thickness MAE (pixels) | intensity MAE (grey levels) | digit accuracy (%) | bound (nats/dim) |")
    print("|---|---|---|---|---|---|")
    digits = {"thickness": 3, "intensity": 2, "digit": 1}
    real = [results[run, "none"][0][0] for run in args.runs]
    print("| Real images | |", *(f"{cell([r[n] for r in real], digits[n])} |" for n in INTERVENTIONS), "|")
    for i, name in enumerate(INTERVENTIONS):
        print(f"| do({name}) | published |", *(f"{PUBLISHED[n][i]} |" for n in INTERVENTIONS), "|")
        for folder, title in PIPELINES.items():
            measured = [results[run, folder][0][i + 1] for run in args.runs]
            cells = [cell([m[n] for m in measured], digits[n]) for n in INTERVENTIONS]
            bound = cell([results[run, folder][1] for run in args.runs], 4)
            print(f"| | {title} | {' | '.join(cells)} | {bound} |")


if __name__ == "__main__":
    main()
