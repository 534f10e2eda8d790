"""What interventions change on average, of images that must not be shown: no single image is in the figure.

    python benchmarks/mean_effects.py --config recipes/configs/nih_64.yaml --data_dir OUT \
        --pipelines outputs/nih_64/none outputs/nih_64/matched --figure mean_effects.png

Each map is the mean, over test images, of the counterfactual less the image. A category is given to all images that
have another one; a continuous variable is raised by a fifth of its range, where it stays within. Each row is a model.
Below each map is the mean absolute change of single images, in grey levels of 255.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from softcft import CausalGraph
from softcft.data.config import DataConfig
from softcft.data.schema import GREY_LEVELS, ImageAttributeDataset, random_part, scale_pixels
from softcft.data.sources import load_data
from softcft.noise import seeded_generator
from softcft.pipelines.query import load_pipeline
from softcft.training.parsing import parse_config

DEFAULT_CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class EffectsConfig:
    """What to draw."""

    output_dir: str = field(metadata={"help": "Not used; the run's folder in the settings."})
    pipelines: list[str] = field(default_factory=list, metadata={"help": "Folders of pipelines."})
    names: list[str] | None = field(default=None, metadata={"help": "What to call them; their folders' names."})
    figure: str = field(default="mean_effects.png", metadata={"help": "File to write."})
    num_images: int = field(default=500, metadata={"help": "Test images, drawn at random."})


def interventions(graph: CausalGraph, parents: Tensor) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
    """The title of each intervention, the images that it is made on, and their ``do``."""
    for variable in graph.variables:
        values = graph.decode(parents)[variable.name]
        if variable.kind == "continuous":
            step = (variable.high - variable.low) / 5
            chosen = [i for i, value in enumerate(values) if value + step <= variable.high]
            unit = f" {variable.unit}" if variable.unit else ""
            yield f"do({variable.name}):\n+{step:g}{unit}", chosen, {variable.name: [values[i] + step for i in chosen]}
            continue
        for category in variable.categories:
            chosen = [i for i, value in enumerate(values) if value != category]
            yield f"do({variable.name}):\n{category}", chosen, {variable.name: category}


@torch.no_grad()
def main() -> None:
    """See the module's docstring."""
    config, data, settings = parse_config(
        "data", DataConfig, EffectsConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    graph = CausalGraph(config["graph"])
    images = ImageAttributeDataset(load_data(data, graph, config["columns"])["test"], graph)
    rows = random_part(images.complete, settings.num_images, 0)
    (batch,) = DataLoader(Subset(images, rows), batch_size=len(rows))
    image, parents = scale_pixels(batch["image"]), batch["parents"]
    plans = list(interventions(graph, parents))
    shape = (len(settings.pipelines), len(plans))
    figure, axes = plt.subplots(
        *shape, figsize=(1.6 * shape[1] + 1, 1.9 * shape[0]), squeeze=False, layout="constrained"
    )
    for row, folder in enumerate(settings.pipelines):
        pipeline = load_pipeline(folder, graph, data.sample_size)
        for column, (title, chosen, do) in enumerate(plans):
            generator = seeded_generator(column)
            old, intervention = parents[chosen], graph.encode_do(do, len(chosen))
            new = pipeline.attribute_scm.counterfactual(old, intervention, generator)
            made = pipeline.make_backbone().counterfactual(image[chosen], old, new, generator).image
            effect = (made - image[chosen]) * GREY_LEVELS
            axis = axes[row, column]
            drawn = axis.imshow(effect.mean(dim=(0, 1)).numpy(), cmap="RdBu_r", vmin=-40, vmax=40)
            axis.set_xlabel(f"{effect.abs().mean():.1f} ({len(chosen)} images)", fontsize=8)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=8)
            if column == 0:
                axis.set_ylabel((settings.names or [Path(each).name for each in settings.pipelines])[row], fontsize=8)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="mean change in grey levels (of 255)")
    figure.savefig(settings.figure, dpi=110)
    print(f"Saved {settings.figure}.")


if __name__ == "__main__":
    main()
