"""How long ``import softcft`` takes, against what it extends: ``import diffusers, transformers``.

::

    python benchmarks/import_time.py --runs 15

Each run starts a fresh interpreter, and the two take turns, so that whatever else the machine does hits both. The first
of each warms the disk's cache and is not counted. Both are lazy: diffusers and transformers import most of what they
have when it is first used, and so does softcft. ``first use`` is what follows: ``from softcft import DSCMPipeline``
against ``from diffusers import DiffusionPipeline``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

PAIRS = {
    "import": ("import softcft", "import diffusers, transformers"),
    "first use": ("from softcft import DSCMPipeline", "import transformers; from diffusers import DiffusionPipeline"),
}


def seconds(code: str) -> float:
    """Wall-clock time of a fresh interpreter that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=int, default=15, help="number of pairs [%(default)s]")
    runs = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs must be at least 1, got {runs}.")
    for name, (ours, theirs) in PAIRS.items():
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs + 1)][1:]
        ratios = [own / other for own, other in pairs]
        own, other = (median(side) for side in zip(*pairs, strict=True))
        print(f"{name}: {own:.2f} s ({ours}), {other:.2f} s ({theirs}); median ratio of pairs {median(ratios):.2f}")


if __name__ == "__main__":
    main()
