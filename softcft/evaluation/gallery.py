"""All figures of a run as files: PNG and PDF, and GIF where a continuous variable is moved."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.evaluation.animation import write_interpolation
from softcft.evaluation.effectiveness import counterfactual_images, image_generators, plan_counterfactuals
from softcft.evaluation.embeddings import AttributeModes, subgroup_comparisons, subgroups
from softcft.evaluation.figures import (
    attribute_captions,
    cft_comparison,
    counterfactual_grid,
    training_curves,
    value_captions,
)
from softcft.evaluation.report import CFT_NAMES, ROW_NAMES
from softcft.evaluation.shift_figure import shift_figure
from softcft.evaluation.strength_figure import strength_figure
from softcft.graph import CausalGraph, Intervention
from softcft.models.attribute_scm import AttributeSCM

__all__ = [
    "Model",
    "draw_counterfactuals",
    "draw_interpolations",
    "draw_shifts",
    "draw_strength",
    "draw_training_curves",
]

Model = tuple[AttributeSCM, CounterfactualBackbone]
"""What makes counterfactuals of attributes and of images."""

FRAMES = 12  # values of an interpolation
ROWS = 3  # subgroups of a figure of shifts: what fits on a page
COMPARED = 1  # images in the comparison of all models: what fits on a page
RANGE = (0.02, 0.98)  # quantiles of the real values that an interpolation runs between
TRAININGS = ("hvae", "diffusion", "hard", "soft", "matched")
PANELS = {
    "nll": "HVAE: NLL (nats/dim)",
    "kl": "HVAE: KL (nats/dim)",
    "denoising": "diffusion: denoising loss",
    "guidance": "CFT: guidance loss (nats)",
    "fidelity": "CFT: fidelity (nats/dim)",
    "multiplier": "CFT: Lagrange multiplier",
    "watch/guide": "CFT, validation: guide's loss (nats)",
    "watch/watcher": "CFT, validation: watcher's loss (nats)",
    "watch/change": "CFT, validation: change (grey levels)",
    "watch/frechet": "CFT, validation: Fréchet distance",
}


@torch.no_grad()
def draw_counterfactuals(
    models: Mapping[str, Model],
    image: Tensor,
    parents: Tensor,
    examples: Sequence[int],
    rows: Sequence[int],
    seed: int,
    folder: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Draw Figure 1: the same counterfactuals of a few images by each model, and by all of them side by side.

    Args:
        models: By fine-tuning (``none``, ``hard``, ``soft``, ``matched``); attribute mechanisms on the CPU.
        image: B of the test images, in [-1, 1], shape (B, C, H, W).
        parents: Encoded attributes of all N test images, shape (N, K).
        examples: Which of the N the B images are.
        rows: The N images' rows in the test split.
        seed: That of the evaluation, whose counterfactuals these are.
        folder: Gets ``counterfactuals_none`` and so on, and ``comparison``.
        device: Where the image models are.
    """
    own, own_rows = parents[list(examples)], [rows[i] for i in examples]
    grids, values, captions = {}, {}, []
    for cft, (attribute_scm, backbone) in models.items():
        graph = attribute_scm.causal_graph
        captions = attribute_captions(graph, own)
        plan = plan_counterfactuals(attribute_scm, parents, graph.names, seed)[list(examples)]
        images = _images(backbone, image, own, plan, own_rows, seed, device)
        grid = {f"do({name})": images[:, 1 + i] for i, name in enumerate(graph.names)}
        values = {f"do({name})": value_captions(graph, name, plan[:, i]) for i, name in enumerate(graph.names)}
        _save(counterfactual_grid(image, grid, captions, values), folder / f"counterfactuals_{cft}")
        grids[CFT_NAMES[cft]] = {do: x[:COMPARED] for do, x in grid.items()}
    values = {do: texts[:COMPARED] for do, texts in values.items()}
    _save(cft_comparison(image[:COMPARED], grids, captions[:COMPARED], values), folder / "comparison")


@torch.no_grad()
def draw_interpolations(
    models: Mapping[str, Model],
    image: Tensor,
    parents: Tensor,
    examples: Sequence[int],
    rows: Sequence[int],
    seed: int,
    folder: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Animate a few images while a continuous variable moves, and its descendants with it.

    The arguments are those of :func:`draw_counterfactuals`. ``folder`` gets ``interpolation_age.gif`` and so on, one
    for each continuous variable.
    """
    own, own_rows = parents[list(examples)], [rows[i] for i in examples]
    graph = next(iter(models.values()))[0].causal_graph
    for variable in graph.variables:
        if variable.kind != "continuous":
            continue
        frames, texts = {}, []
        for cft, (attribute_scm, backbone) in models.items():
            column = graph.slices[variable.name].start
            low, high = parents[:, column].quantile(torch.tensor(RANGE)).tolist()
            values = own.expand(FRAMES, -1, -1).clone()
            values[:, :, column] = torch.linspace(low, high, FRAMES)[:, None]
            mask = torch.zeros(len(own), len(graph), dtype=torch.bool)
            mask[:, graph.names.index(variable.name)] = True
            moved = [
                attribute_scm.counterfactual(own, Intervention(value, mask), image_generators(own_rows, seed))
                for value in values
            ]
            images = _images(backbone, image, own, torch.stack(moved, dim=1), own_rows, seed, device)
            frames[CFT_NAMES[cft]] = images[:, 1:].transpose(0, 1)
            texts = [f"do({variable.name} = {text})" for text in value_captions(graph, variable.name, values[:, 0])]
        write_interpolation(folder / f"interpolation_{variable.name}.gif", frames, texts)


def draw_shifts(
    graph: CausalGraph,
    modes: AttributeModes,
    embeddings: Mapping[str, Tensor],
    parents: Mapping[str, Tensor],
    interventions: Sequence[str],
    subjects: Sequence[Hashable],
    seed: int,
    folder: Path,
) -> None:
    """Draw Figures 2 and A3: where counterfactuals lie along the mode of each variable.

    Args:
        graph: The causal graph.
        modes: The modes of the real images.
        embeddings: By fine-tuning, see :func:`~softcft.evaluation.shift_figure.shift_figure`.
        parents: By fine-tuning, see there.
        interventions: The I variables intervened on.
        subjects: Who each of the real images is of.
        seed: Of the permutation tests.
        folder: Gets ``shift_age`` and so on, one for each variable that has a subgroup of at least 20 images; with more
            subgroups than fit on a page, ``shift_age_1`` and so on.
    """
    named, labels = ({CFT_NAMES[cft]: x for cft, x in y.items()} for y in (embeddings, parents))
    for name in graph.names:
        large = {
            comparison.subgroup
            for model in named
            for comparison in subgroup_comparisons(
                graph, modes, named[model], labels[model], interventions, subjects, name
            )
        }
        rows = [label for label in subgroups(graph, name, next(iter(labels.values()))) if label in large]
        pages = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        for number, shown in enumerate(pages, start=1):
            figure = shift_figure(graph, name, modes, named, labels, interventions, subjects, seed, shown)
            _save(figure, folder / (f"shift_{name}" if len(pages) == 1 else f"shift_{name}_{number}"))


def draw_strength(
    graph: CausalGraph,
    labels: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    interventions: Mapping[str, Sequence[str]],
    seed: int,
    folder: Path,
) -> None:
    """Draw how strong each intervention is, beside real images with the same attributes.

    Args:
        graph: The causal graph.
        labels: By fine-tuning, and ``truth`` if known, see :func:`~softcft.evaluation.strength_figure.strength_figure`.
        logits: The judge's, by the same.
        interventions: The variables intervened on, by the same.
        seed: Of the lookalikes.
        folder: Gets ``strength``.
    """
    shown, seen = ({ROW_NAMES[cft]: x for cft, x in y.items()} for y in (labels, logits))
    moved = {ROW_NAMES[cft]: x for cft, x in interventions.items()}
    _save(strength_figure(graph, shown, seen, moved, seed), folder / "strength")


def draw_training_curves(output_dir: Path) -> None:
    """Draw what all trainings of a run have written into their ``metrics.jsonl``, and collect these in one.

    Args:
        output_dir: The folder of the run; gets ``metrics.jsonl`` and ``figures/training_curves``.
    """
    records: dict[str, list[dict[str, Any]]] = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(output_dir.glob("*/metrics.jsonl"))
    }
    lines = [json.dumps({"run": run, **record}) + "\n" for run in records for record in records[run]]
    (output_dir / "metrics.jsonl").write_text("".join(lines))
    curves = {run: records[run] for run in TRAININGS if run in records}
    panels = {key: label for key, label in PANELS.items() if any(key in r for run in curves.values() for r in run)}
    if panels:
        _save(training_curves(curves, panels), output_dir / "figures" / "training_curves")


def _images(
    backbone: CounterfactualBackbone,
    image: Tensor,
    parents: Tensor,
    plan: Tensor,
    rows: Sequence[int],
    seed: int,
    device: torch.device | str,
) -> Tensor:
    made = counterfactual_images(backbone, image.to(device), parents.to(device), plan.to(device), rows, seed)
    return made.float().cpu()


def _save(figure: Figure, path: Path) -> None:
    for kind in (".png", ".pdf"):
        figure.savefig(path.with_suffix(kind), dpi=200, bbox_inches="tight")
