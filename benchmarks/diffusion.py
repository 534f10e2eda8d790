"""What abduction by a diffusion model loses, and what a step of its fine-tuning costs.

    python benchmarks/diffusion.py --pipeline outputs/phantom_diffusion/none --data_dir outputs/phantom_diffusion/data

First: how far an image is from itself after a null intervention, for DDIM and for BDIA at several numbers of steps, on
real test images of the phantom. Second: time and memory of a step of fine-tuning against the number of denoising steps
that gradients flow through. One process, one thread; times are medians, and memory is the peak growth of the resident
set of a process of its own over two steps (Linux only).
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm.auto import tqdm

from softcft import DiffusionDSCMPipeline
from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.guides import Guides
from softcft.cft.objective import CFTObjective
from softcft.cft.targets import Soft
from softcft.data.phantom import load_phantom
from softcft.data.schema import ImageAttributeDataset, scale_pixels

LEVELS = (20, 50, 100, 250)
CFT_STEPS = 20
GRADIENT_STEPS = (1, 2, 5, 10, CFT_STEPS)


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of a trained DiffusionDSCMPipeline")
    parser.add_argument("--data_dir", required=True, help="folder with the phantom that it was trained on")
    parser.add_argument("--images", type=int, default=100, help="test images of the first table (default: 100)")
    parser.add_argument("--batch_size", type=int, default=16, help="of the second table (default: 16)")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median is told (default: 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    pipeline = DiffusionDSCMPipeline.from_pretrained(args.pipeline)
    image, parents = test_images(pipeline, args.data_dir, args.images)
    print("| abduction | steps | network calls | mean change (grey levels) | largest change |")
    print("|---|---|---|---|---|")
    for abduction in ("ddim", "bdia"):
        for steps in tqdm(LEVELS, desc=abduction):
            backbone = pipeline.make_backbone(num_inference_steps=steps, abduction=abduction).eval()
            with torch.no_grad():
                change = (backbone.counterfactual(image, parents, parents).image - image).abs() * 127.5
            calls = 2 * steps - (abduction == "bdia")
            tqdm.write(f"| {abduction} | {steps} | {calls} | {change.mean():.3g} | {change.max():.3g} |")

    print(f"\nA step of fine-tuning, {CFT_STEPS} levels, batch {args.batch_size}:")
    print("| K | checkpointing | seconds | peak memory (MiB) |")
    print("|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    for checkpointing in (False, True):
        for k in tqdm(GRADIENT_STEPS, desc="K"):
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                seconds, memory = pool.submit(
                    measure_step, args.pipeline, args.data_dir, k, checkpointing, args.batch_size, args.repeats
                ).result()
            tqdm.write(f"| {k} | {'yes' if checkpointing else 'no'} | {seconds:.2f} | {memory:.0f} |")


def test_images(pipeline: DiffusionDSCMPipeline, data_dir: str, number: int) -> tuple[Tensor, Tensor]:
    """The first test images in [-1, 1], and their attributes."""
    # As many images as the config has, or others would be made.
    splits = load_phantom(pipeline.image_format.size, num_train=40_000, num_test=1_000, cache_dir=data_dir)
    images = ImageAttributeDataset(splits["test"], pipeline.causal_graph)
    return scale_pixels(torch.stack([images[i]["image"] for i in range(number)])), images.parents[:number]


def measure_step(
    folder: str, data_dir: str, gradient_steps: int, checkpointing: bool, batch_size: int, repeats: int
) -> tuple[float, float]:
    """Median seconds of a step, and peak growth of this process in MiB; to be called in a fresh process."""
    torch.set_num_threads(1)
    pipeline = DiffusionDSCMPipeline.from_pretrained(folder)
    image, parents = test_images(pipeline, data_dir, batch_size)
    if checkpointing:
        pipeline.network.enable_gradient_checkpointing()
    backbone = pipeline.make_backbone(num_inference_steps=CFT_STEPS, gradient_steps=gradient_steps)
    constraint = LagrangianConstraint(slack=0.1, damping=10, learning_rate=0.1, inequality=True)
    guides = Guides([pipeline.classifier])
    objective = CFTObjective(backbone, pipeline.attribute_scm, guides, Soft(guides.graph), constraint)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-6)
    before = resident_mib("VmRSS")
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        optimizer.zero_grad()
        objective({"image": image, "parents": parents})["loss"].backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return median(times[1:]), resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """A field of this process's memory, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}.")


if __name__ == "__main__":
    main()
