"""How much of the edges of patches shows in what counterfactuals change.

    python benchmarks/lattice.py --pipelines FOLDER/none FOLDER/soft --dataset_name FOLDER --graph graph.yaml

The effect map of a counterfactual is its image less the factual one. A network that works on patches, or on coarse maps
whose cells are 16 pixels wide, may leave their edges in it: peaks of its power spectrum at multiples of 1 / patch size.
For each intervention on test images, the power along both axes at these frequencies is printed over the geometric mean
of that at the two frequencies beside them. 1 is no lattice. The first row has differences of real images.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from softcft import CausalGraph, Intervention
from softcft.cft.interventions import other_values
from softcft.data.config import DataConfig
from softcft.data.schema import ImageAttributeDataset, random_part, scale_pixels
from softcft.data.sources import load_data
from softcft.noise import seeded_generator
from softcft.pipelines.query import load_pipeline
from softcft.training.parsing import parse_config

DEFAULT_CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class LatticeConfig:
    """What to measure."""

    output_dir: str = field(metadata={"help": "Not used; the run's folder in the settings."})
    pipelines: list[str] = field(default_factory=list, metadata={"help": "Folders of pipelines."})
    period: int = field(default=4, metadata={"help": "Distance of the edges in pixels: of patches 4, of cells 16."})
    num_images: int = field(default=500, metadata={"help": "Test images, drawn at random."})


def lattice(difference: Tensor, period: int) -> float:
    """Power of images (B, C, H, W) at multiples of 1 / period, over that beside them."""
    power = torch.fft.fft2(difference.double()).abs().square().mean(dim=(0, 1))
    ratios = []
    for line in (power.mean(dim=0), power.mean(dim=1)):  # along either axis
        size = len(line)
        for k in range(size // period, size // 2, size // period):
            ratios.append(line[k] / (line[k - 1] * line[k + 1]).sqrt())
    return torch.stack(ratios).log().mean().exp().item()


@torch.no_grad()
def main() -> None:
    """See the module's docstring."""
    config, data, settings = parse_config(
        "data", DataConfig, LatticeConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    graph = CausalGraph(config["graph"])
    images = ImageAttributeDataset(load_data(data, graph, config["columns"])["test"], graph)
    rows = random_part(images.complete, settings.num_images, 0)
    batches = list(DataLoader(Subset(images, rows), batch_size=100))
    real = torch.cat([scale_pixels(batch["image"]) for batch in batches])
    print(f"{'real images':40s} {lattice(real - real.roll(1, 0), settings.period):.2f}")
    for folder in settings.pipelines:
        pipeline = load_pipeline(folder, graph, data.sample_size)
        backbone = pipeline.make_backbone()
        for name in graph.names:
            effects = []
            for i, batch in enumerate(batches):
                image, parents, generator = scale_pixels(batch["image"]), batch["parents"], seeded_generator(i)
                values = parents.clone()
                values[:, graph.slices[name]] = other_values(graph, name, parents, generator)
                mask = torch.tensor([name == each for each in graph.names]).expand(len(parents), -1)
                new = pipeline.attribute_scm.counterfactual(parents, Intervention(values, mask), generator)
                effects.append(backbone.counterfactual(image, parents, new, generator).image - image)
            print(f"{folder + ' do(' + name + ')':40s} {lattice(torch.cat(effects), settings.period):.2f}")


if __name__ == "__main__":
    main()
