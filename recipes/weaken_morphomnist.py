"""Make Morpho-MNIST hard to read: digits so blurred and noisy that even a good classifier confuses them.

    python recipes/weaken_morphomnist.py --data_dir FOLDER --output_dir weak
    python recipes/run_all.py --config recipes/configs/morphomnist.yaml --data_dir weak --output_dir outputs/weak

Clear digits hide attribute amplification: what is certain cannot become more so. The new folder has the files of the
old one, of which only the images differ, each with noise of its own. The true counterfactuals that evaluate.py makes
with --mnist_dir are of clear digits; leave that flag out.
"""

import argparse
import gzip
import math
import shutil
from pathlib import Path

import numpy as np


def weaken(images: np.ndarray, blur: float, noise: float, seed: int) -> np.ndarray:
    """Blur images and add noise.

    Args:
        images: uint8 of shape (N, H, W).
        blur: Standard deviation of the Gaussian blur in pixels.
        noise: Standard deviation of the normal noise in grey levels.
        seed: Of the noise.

    Returns:
        uint8 of shape (N, H, W).
    """
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    weak = gaussian_filter(images.astype(np.float32), (0, blur, blur))
    weak += noise * generator.standard_normal(weak.shape, np.float32)
    return np.clip(np.rint(weak), 0, 255).astype(np.uint8)


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="Folder of the Morpho-MNIST files.")
    parser.add_argument("--output_dir", required=True, help="Folder for the weak digits; must be new or empty.")
    parser.add_argument("--blur", type=float, default=4.0, help="Standard deviation in pixels (default: 4).")
    parser.add_argument("--noise", type=float, default=20.0, help="Standard deviation in grey levels (default: 20).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the noise (default: 0).")
    arguments = parser.parse_args()
    for name in ("blur", "noise", "seed"):
        if not 0 <= getattr(arguments, name) < math.inf:
            raise SystemExit(f"--{name} must be finite and >= 0, got {getattr(arguments, name)}.")
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise SystemExit(f"--output_dir {output_dir} is there already and not empty; give another one or delete it.")
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft.data.morphomnist import find_files, read_idx

    try:
        sets = [find_files(Path(arguments.data_dir), prefix) for prefix in ("train", "t10k")]
        pictures = [read_idx(paths[0], 3) for paths in sets]
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error

    output_dir.mkdir(parents=True, exist_ok=True)
    for i, ((path, *tables), images) in enumerate(zip(sets, pictures, strict=True)):
        header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">i4").tobytes()
        weak = weaken(images, arguments.blur, arguments.noise, seed=2 * arguments.seed + i)
        name = f"{path.name.removesuffix('.gz')}.gz"
        (output_dir / name).write_bytes(gzip.compress(header + weak.tobytes(), compresslevel=1, mtime=0))
        for table in tables:
            shutil.copy(table, output_dir)
    print(f"Saved to {output_dir}. Use it as --data_dir.")


if __name__ == "__main__":
    main()
