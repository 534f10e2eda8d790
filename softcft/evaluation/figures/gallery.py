"""Counterfactuals of a few test images by every model, as figures and animations (the paper's Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from softcft.cft import CFT_NAMES
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.evaluation.effectiveness import counterfactual_images, image_generators, plan_counterfactuals
from softcft.evaluation.figures.animation import write_interpolation
from softcft.evaluation.figures.grids import cft_comparison, counterfactual_grid
from softcft.evaluation.figures.style import save
from softcft.graph import Intervention
from softcft.models.attribute_scm import AttributeSCM

__all__ = ["Model", "draw_counterfactuals", "draw_interpolations"]

Model = tuple[AttributeSCM, CounterfactualBackbone]
"""What makes counterfactuals of attributes and of images."""

FRAMES = 12  # values of an interpolation
RANGE = (0.02, 0.98)  # quantiles of the real values that an interpolation runs between


@torch.no_grad()
def draw_counterfactuals(
    models: Mapping[str, Model],
    image: Tensor,
    parents: Tensor,
    examples: Sequence[int],
    rows: Sequence[int],
    seed: int,
    folder: Path,
) -> None:
    """Draw Figure 1: the same counterfactuals of a few images by each model, and by all of them side by side.

    Args:
        models: By fine-tuning (``none``, ``hard``, ``soft``, ``matched``); attribute mechanisms on the CPU.
        image: B of the test images, in [-1, 1], shape (B, C, H, W), on the device of the image models.
        parents: Encoded attributes of all N test images, shape (N, K).
        examples: Which of the N the B images are.
        rows: The N images' rows in the test split.
        seed: That of the evaluation, whose counterfactuals these are.
        folder: Gets ``counterfactuals_none`` and so on, and ``comparison``.
    """
    own, own_rows = parents[list(examples)], [rows[i] for i in examples]
    compared: dict[str, dict[str, Tensor]] = {}  # all models must fit on a page: those of the first image
    values, captions = {}, []
    for cft, (attribute_scm, backbone) in models.items():
        graph = attribute_scm.causal_graph
        factual = zip(*graph.decode(own).values(), strict=True)
        captions = [graph.in_words(dict(zip(graph.names, row, strict=True))) for row in factual]
        plan = plan_counterfactuals(attribute_scm, parents, graph.names, seed)[list(examples)]
        images = counterfactual_images(backbone, image, own, plan, own_rows, seed).cpu()
        grid = {f"do({name})": images[:, 1 + i] for i, name in enumerate(graph.names)}
        values = {
            f"do({v.name})": [v.in_words(value) for value in v.decode(plan[:, i, graph.slices[v.name]])]
            for i, v in enumerate(graph.variables)
        }
        save(counterfactual_grid(image, grid, captions, values), folder / f"counterfactuals_{cft}")
        compared[CFT_NAMES[cft]] = {do: x[0] for do, x in grid.items()}
    first = {do: texts[0] for do, texts in values.items()}
    save(cft_comparison(image[0], compared, captions[0], first), folder / "comparison")


@torch.no_grad()
def draw_interpolations(
    models: Mapping[str, Model],
    image: Tensor,
    parents: Tensor,
    examples: Sequence[int],
    rows: Sequence[int],
    seed: int,
    folder: Path,
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
        column = graph.slices[variable.name].start
        low, high = parents[:, column].quantile(torch.tensor(RANGE)).tolist()
        values = own.expand(FRAMES, -1, -1).clone()
        values[:, :, column] = torch.linspace(low, high, FRAMES)[:, None]
        mask = torch.zeros(len(own), len(graph), dtype=torch.bool)
        mask[:, graph.names.index(variable.name)] = True
        frames = {}
        for cft, (attribute_scm, backbone) in models.items():
            moved = [
                attribute_scm.counterfactual(own, Intervention(value, mask), image_generators(own_rows, seed))
                for value in values
            ]
            images = counterfactual_images(backbone, image, own, torch.stack(moved, dim=1), own_rows, seed)
            frames[CFT_NAMES[cft]] = images[:, 1:].transpose(0, 1)
        texts = [f"do({variable.name} = {variable.in_words(v)})" for v in variable.decode(values[:, 0, column, None])]
        write_interpolation(folder / f"interpolation_{variable.name}.gif", frames, texts)
