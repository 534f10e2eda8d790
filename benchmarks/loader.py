"""Does the input outrun the model? Images per second of the data loader against those of a training step at 224x224.

    python benchmarks/loader.py

Random pictures are prepared as those of any data set are, and read in random order through the loader of the training
loop, down to floats in [-1, 1]. The model is that of ``recipes/configs/mimic_cxr_224.yaml`` in bfloat16. One process,
one thread. Medians of several passes and steps, and their ratio, are printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from softcft import CausalGraph, HVAEModel
from softcft.data.pixels import encode_pixels
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.training.objectives import HVAEObjective
from softcft.training.parsing import read_config

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "mimic_cxr_224.yaml"
SIZE = 224


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="pictures in the data set (default: 4000, 200 MB)")
    parser.add_argument("--batch_size", type=int, default=32, help="of the loader (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="passes and steps (default: 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(CONFIG)
    graph = CausalGraph(config["graph"])

    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        features = {v.name: Value("float64" if v.kind == "continuous" else "string") for v in graph.variables}
        values = {v.name: v.low if v.kind == "continuous" else v.categories[0] for v in graph.variables}
        Dataset.from_generator(
            lambda: (
                {"image": encode_pixels(random.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)), **values}
                for _ in range(args.images)
            ),
            features=Features({"image": Image(), **features}),
            cache_dir=folder,
        ).save_to_disk(f"{folder}/images")
        images = ImageAttributeDataset(Dataset.load_from_disk(f"{folder}/images"), graph)
        loader = DataLoader(images, batch_size=args.batch_size, shuffle=True)
        passes = []
        for _ in tqdm(range(args.repeats + 1), desc="loader"):
            start = time.perf_counter()
            for batch in loader:
                scale_pixels(batch["image"])
            passes.append(len(images) / (time.perf_counter() - start))

    objective = HVAEObjective(HVAEModel(config["graph"], SIZE, **config["hvae"]["model"]))
    batch = {key: value[:2] for key, value in batch.items()}
    steps = []
    for _ in tqdm(range(args.repeats + 1), desc="model"):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(batch)["loss"]
        loss.backward()
        steps.append(2 / (time.perf_counter() - start))

    loaded, trained = median(passes[1:]), median(steps[1:])  # the first ones warm up
    print(f"Loader: {loaded:,.0f} images/s. Training step: {trained:.2f} images/s. Ratio: {loaded / trained:,.0f}.")


if __name__ == "__main__":
    main()
