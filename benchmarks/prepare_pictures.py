"""Pictures per second and core, and memory, of the preparation of large X-rays.

    python benchmarks/prepare_pictures.py
    python benchmarks/prepare_pictures.py --pictures 4000 --resolution 64

Made-up X-rays of 1024 x 1024 pixels, grey, 8 bit PNG of the size that those of NIH ChestX-ray14 have on the average
(0.39 MB), are prepared as ``recipes/prepare_chest_xrays.py`` does, in one thread. Seconds are those of the processor,
so that other programs disturb little. The parts, decoding and resizing, are also measured alone. Memory is the peak of
the process (ru_maxrss) for a quarter of the pictures and for all: it must not grow with their number.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from softcft.data.pictures import fit_picture
from softcft.data.pixels import prepare_images

SIDE, DIFFERENT = 1024, 24


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1200, help="how many (default: 1200)")
    parser.add_argument("--resolution", type=int, default=224, help="to which they are brought (default: 224)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = make_pictures(Path(folder), args.pictures)
        size = np.mean([os.path.getsize(path) for path in paths[:DIFFERENT]])
        print(f"{args.pictures} pictures of {SIDE} x {SIDE}, {size / 1e6:.2f} MB each, to {args.resolution}")
        for number in (args.pictures // 4, args.pictures):
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as child:  # a process of its own, whose peak is that of this number
                seconds, gib = child.submit(prepare, paths[:number], args.resolution, f"{folder}/{number}").result()
            print(f"{number:6} pictures: {number / seconds:4.0f} per second and core, peak of memory {gib:.2f} GiB")
        sample = paths[:DIFFERENT]
        decoded = [decode(path) for path in sample]
        report("decoding alone", lambda: [decode(path) for path in sample])
        report("resizing alone", lambda: [fit_picture(picture, args.resolution, 1) for picture in decoded])


def prepare(paths: list[str], resolution: int, cache_dir: str) -> tuple[float, float]:
    """Seconds of the processor that the preparation takes, and the peak of this process's memory in GiB."""
    start = time.process_time()
    prepare_images(Dataset.from_dict({"image": paths}), resolution, 1, num_workers=1, cache_dir=cache_dir)
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def decode(path: str) -> Image.Image:
    """Decode a file."""
    with Image.open(path) as picture:
        picture.load()
        return picture.copy()


def report(name: str, run: Callable[[], object], repeats: int = 3) -> None:
    """Print the best of some runs over the sample."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append((time.process_time() - start) / DIFFERENT)
    print(f"{name}: {1000 * min(seconds):.1f} ms a picture, {1 / min(seconds):.0f} per second")


def make_pictures(folder: Path, number: int) -> list[str]:
    """Write some pictures, and link the others to them: what matters is their content, not the disk."""
    paths = [str(folder / f"{i:06d}.png") for i in range(number)]
    for i, path in enumerate(paths):
        if i < DIFFERENT:
            draw(i).save(path)
        else:
            os.link(paths[i % DIFFERENT], path)
    return paths


def draw(seed: int) -> Image.Image:
    """Lungs, ribs, a spine and the grain of a detector."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    grey = 190 - 60 * np.abs(x - 0.5) + 10 * np.sin(3 * y + seed)
    for middle in (0.28, 0.72):
        grey -= 110 * np.exp(-((((x - middle) / rng.uniform(0.15, 0.18)) ** 2 + ((y - 0.5) / 0.33) ** 2) ** 2))
    for rib in range(9):
        grey += 14 * np.exp(-(((y - 0.12 - 0.09 * rib + 0.5 * (x - 0.5) ** 2) / 0.012) ** 2))
    grey += 30 * np.exp(-(((x - 0.5) / 0.05) ** 2)) + rng.normal(0, 1.0, (SIDE, SIDE))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
