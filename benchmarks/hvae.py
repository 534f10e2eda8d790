r"""Time and memory of softcft's HVAE against causal-gen's, on this machine's processor.

::

    python benchmarks/hvae.py --against ../causal-gen
    python benchmarks/hvae.py --against ../causal-gen --config mimic192 --batch_size 4 --json hvae.json

:mod:`peer` says how to get the peer. Both sides have the same architecture (their numbers of parameters are compared),
batch, number of threads and step size, and take turns step by step, so that whatever else the machine does hits both.
What is measured, each side with its own code and in its own way:

* ``train_step``: HVAEObjective, clip, fused AdamW, foreach moving average; against the peer's ``trainer.py``: clip,
  AdamW, its moving average.
* ``cft_step``: CFTObjective with soft targets, clip, fused AdamW, moving average, ascent of the multiplier; against
  the peer's ``train_cf.py``: DSCM, clip, two AdamW, its moving average over mechanisms, predictors and HVAE.
* ``counterfactual``: HVAEBackbone.counterfactual; against the peer's abduction and two decodes. No gradient.

The peer knows float32 only; under ``--dtype bf16`` softcft runs under bf16 autocast, the peer as it is. No step is
skipped for its gradient's norm on either side. Nothing is compiled. Images are noise, parents random, weights as
initialised: the time depends on none of them.

The guide of softcft is one network with all heads. On chest X-rays it is a ResNet-18, as is the trunk that the peer's
four predictors share, but run anew each. On the other data sets the peer has one small network per attribute (three
of width 8 on Morpho-MNIST, four of width 16 on UK Biobank); the guide is a small ResNet that takes about as many FLOPs
as all of them together. Sizes are printed.

Memory is what a fresh process takes for the work beyond what it held before it built any model: weights, gradients,
optimizer, moving average and activations, at the peak of two steps (the first one makes the optimizer's state). It is
the kernel's peak of the resident set (VmHWM, so Linux only; ru_maxrss would count the parent's memory too), less what
was resident after both sides' imports and a step of a toy model, which loads what PyTorch loads late.

``share_of_peak``: the matrix and convolution FLOPs of softcft's step, over its median time, as a share of what a
2048 x 2048 matrix product reaches with the same type and threads.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import random
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from peer import CONFIGS, GRAPHS, Peer, counterfactual, expand_parents, model_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, HVAEBackbone
from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.guides import Guides
from softcft.cft.objective import CFTObjective
from softcft.cft.targets import Soft
from softcft.models.hvae import HVAEModel
from softcft.training.loop import AfterStep
from softcft.training.objectives import HVAEObjective

WORK = ("train_step", "cft_step", "counterfactual")
BATCH_SIZES = {"morphomnist": 32, "mimic192": 2, "mimic224": 2, "ukbb192": 2}
LEARNING_RATE = 1e-4
GUIDES: dict[str, dict[str, Any]] = {
    "morphomnist": {"embedding_size": 48, "hidden_sizes": [48, 96, 192], "depths": [1, 1, 1]},
    "mimic": {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "ukbb": {"embedding_size": 32, "hidden_sizes": [32, 64, 96], "depths": [1, 1, 1]},
}


def main() -> None:
    """Measure, print a table and write the rows."""
    args = parse_args()
    peer = Peer(args.against)
    batch_sizes = dict(zip(args.config, args.batch_size, strict=True))
    if max(args.threads) > 1:
        warnings.warn(
            "--threads above 1: every operation waits for its slowest thread, so that whatever else the machine does "
            "counts many times over. Trust such figures on an idle machine only.",
            stacklevel=1,
        )
    settings = [(c, t, d, w) for c in args.config for t in args.threads for d in args.dtype for w in WORK]
    memory_of = {(c, "ours", w, d) for c, _, d, w in settings} | {(c, "peer", w, "fp32") for c, _, _, w in settings}
    peaks = {(t, d): peak_flops(t, d) for t in args.threads for d in args.dtype}
    rows = []
    with tqdm(total=len(memory_of) + len(settings) * (args.repeats + 1), desc="memory", unit="step") as progress:
        memory = {}
        for config, side, work, dtype in sorted(memory_of):
            memory[config, side, work, dtype] = measure_memory(
                args.against, config, side, work, dtype, batch_sizes[config]
            )
            progress.update()
        for config in args.config:
            tqdm.write(describe(peer, config, batch_sizes[config]))
        tqdm.write(TABLE_HEAD)
        for config, threads, dtype, work in settings:
            progress.set_description(f"{config} {work} {threads} thread(s) {dtype}")
            torch.set_num_threads(threads)
            ours, theirs = (make_step(peer, config, side, work, dtype, batch_sizes[config]) for side in SIDES)
            times = [(seconds(ours), seconds(theirs), progress.update()) for _ in range(args.repeats + 1)]
            ours_times, peer_times, _ = zip(*times[1:], strict=True)  # the first one warms up
            flops = count_flops(peer, config, work, batch_sizes[config])
            rows.append(
                {
                    "config": config,
                    "batch_size": batch_sizes[config],
                    "work": work,
                    "threads": threads,
                    "dtype": dtype,
                    "ours_median_s": median(ours_times),
                    "peer_median_s": median(peer_times),
                    "speedup": median(p / o for o, p in zip(ours_times, peer_times, strict=True)),
                    "ours_peak_mib": memory[config, "ours", work, dtype],
                    "peer_peak_mib": memory[config, "peer", work, "fp32"],
                    "share_of_peak": flops / median(ours_times) / peaks[threads, dtype],
                }
            )
            tqdm.write(table_line(rows[-1]))  # at once: an interrupted run has shown what it measured
    for (threads, dtype), peak in peaks.items():
        tqdm.write(f"Peak of this machine, {threads} thread(s), {dtype}: {peak / 1e9:.0f} GFLOP/s.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="folder with a checkout of causal-gen")
    parser.add_argument("--json", type=Path, help="file for the rows, as a list of objects")
    parser.add_argument(
        "--config",
        nargs="+",
        choices=CONFIGS,
        default=["morphomnist", "mimic192"],
        help="architectures to measure (default: morphomnist mimic192)",
    )
    parser.add_argument(
        "--batch_size",
        nargs="+",
        type=int,
        help="images per step: one number for each --config, at least 2 "
        f"(default: {', '.join(f'{name} {size}' for name, size in BATCH_SIZES.items())})",
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1], help="numbers of threads of PyTorch to measure with (default: 1)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=["fp32", "bf16"],
        default=["fp32", "bf16"],
        help="types of softcft's computations; the peer's is always fp32 (default: fp32 bf16)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="steps of each side, after one to warm up; medians count (default: 5)"
    )
    args = parser.parse_args()
    args.batch_size = args.batch_size or [BATCH_SIZES[config] for config in args.config]
    cores = os.cpu_count() or 1
    if len(args.batch_size) != len(args.config):
        parser.error(f"--batch_size needs one number for each of --config {' '.join(args.config)}.")
    if min(args.batch_size) < 2:
        parser.error("--batch_size must be at least 2: an intervention takes the value of another image.")
    if not all(1 <= threads <= cores for threads in args.threads):
        parser.error(f"--threads must be from 1 to {cores}, this machine's cores, got {args.threads}.")
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}.")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}.")
    if not Path("/proc/self/status").is_file():
        parser.error("memory is read from /proc/self/status, which only Linux has.")
    try:
        Peer(args.against)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(f"--against: {error}")
    return args


# ---- the work -------------------------------------------------------------------------------------------------------

SIDES = ("ours", "peer")


def make_batch(graph: CausalGraph, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Random 8-bit images in [-1, 1], shape (B, 1, H, W), and random valid parents, shape (B, K)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch_size, 1, resolution, resolution), generator=generator) / 127.5 - 1
    columns = []
    for variable in graph.variables:
        if variable.kind == "continuous":
            columns.append(1.8 * torch.rand(batch_size, 1, generator=generator) - 0.9)
        elif variable.kind == "binary":
            columns.append(torch.randint(0, 2, (batch_size, 1), generator=generator).float())
        else:
            index = torch.randint(0, variable.width, (batch_size,), generator=generator)
            columns.append(F.one_hot(index, variable.width).float())
    return image, torch.cat(columns, dim=1)


def make_guide(dataset: str) -> AttributeClassifier:
    """The guide for a data set, see the module docstring."""
    backbone = {"model_type": "resnet", "num_channels": 1, "layer_type": "basic", **GUIDES[dataset]}
    return AttributeClassifier(GRAPHS[dataset].to_list(), backbone)


def make_step(peer: Peer, config: str, side: str, work: str, dtype: str, batch_size: int) -> Any:
    """A function that does one step of the work and returns a number that must be finite."""
    random.seed(0)
    torch.manual_seed(0)
    hparams = peer.hparams(config)
    image, parents = make_batch(GRAPHS[hparams.dataset], hparams.input_res, batch_size)
    if side == "peer":
        hvae = peer.hvae(hparams)
        if work == "train_step":
            return peer.train_step(hvae, hparams, image, parents, LEARNING_RATE)
        if work == "cft_step":
            return peer.cft_step(peer.dscm(hparams, hvae), hparams, image, parents, LEARNING_RATE)
        hvae.eval()
        maps = (expand_parents(p, hparams.input_res) for p in (parents, parents.roll(1, dims=0)))
        factual_maps, counterfactual_maps = maps
        return torch.no_grad()(lambda: counterfactual(hvae, image, factual_maps, counterfactual_maps).mean().item())

    model = HVAEModel(**model_config(hparams))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16")
    if work == "counterfactual":
        backbone = HVAEBackbone(model.eval())

        @torch.no_grad()
        def infer() -> float:
            with autocast:
                return backbone.counterfactual(image, parents, parents.roll(1, dims=0)).image.mean().item()

        return infer
    objective: nn.Module = HVAEObjective(model)
    if work == "cft_step":
        constraint = LagrangianConstraint(slack=1.0, damping=100.0, learning_rate=0.1)
        scm = AttributeSCM(GRAPHS[hparams.dataset].to_list())
        guides = Guides([make_guide(hparams.dataset)])
        objective = CFTObjective(HVAEBackbone(model), scm, guides, Soft(guides.graph), constraint)
    return our_training_step(objective, hparams, {"image": image, "parents": parents}, autocast)


def our_training_step(objective: nn.Module, hparams: Any, batch: dict[str, Tensor], autocast: torch.autocast) -> Any:
    """One step as in :func:`softcft.training.loop.train`, with the peer's settings."""
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=hparams.betas, weight_decay=hparams.wd, fused=True
    )
    ema = EMAModel(parameters, decay=hparams.ema_rate, foreach=True)

    def step() -> float:
        with autocast:
            scalars = objective(batch)
        scalars["loss"].backward()
        grad_norm = nn.utils.clip_grad_norm_(parameters, hparams.grad_clip)
        values = torch.stack([*(value.detach().float() for value in scalars.values()), grad_norm]).tolist()
        metrics = dict(zip([*scalars, "grad_norm"], values, strict=True))
        optimizer.step()
        if isinstance(objective, AfterStep):
            objective.after_step(metrics)
        ema.step(parameters)
        optimizer.zero_grad()
        return metrics["loss"]

    return step


# ---- the measures ---------------------------------------------------------------------------------------------------


def seconds(step: Any) -> float:
    """How long a step takes."""
    start = time.perf_counter()
    result = step()
    elapsed = time.perf_counter() - start
    if not math.isfinite(result):
        raise RuntimeError(f"The step gave {result}; a step that breaks off early must not be timed.")
    return elapsed


def count_flops(peer: Peer, config: str, work: str, batch_size: int) -> int:
    """FLOPs of matrix products and convolutions in a step of softcft: two per multiplication and addition."""
    step = make_step(peer, config, "ours", work, "fp32", batch_size)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_flops(threads: int, dtype: str) -> float:
    """FLOP/s of a 2048 x 2048 matrix product: the best of ten."""
    torch.set_num_threads(threads)
    matrix = torch.randn(2048, 2048, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    return 2 * 2048**3 / min(seconds(lambda: (matrix @ matrix)[0, 0].item()) for _ in range(10))


def measure_memory(against: Path, config: str, side: str, work: str, dtype: str, batch_size: int) -> float:
    """Peak memory of a work in MiB, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(peak_growth, against, config, side, work, dtype, batch_size).result()


def peak_growth(against: Path, config: str, side: str, work: str, dtype: str, batch_size: int) -> float:
    """Peak growth of this process in MiB over two steps of a work; to be called in a fresh process."""
    torch.set_num_threads(1)
    peer = Peer(against)
    toy = nn.Linear(1, 1)
    toy(torch.ones(1, 1)).backward()
    torch.optim.AdamW(toy.parameters()).step()
    make_guide("morphomnist")
    gc.collect()
    before = _resident_mib("VmRSS")
    step = make_step(peer, config, side, work, dtype, batch_size)
    step()
    step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}.")


def describe(peer: Peer, config: str, batch_size: int) -> str:
    """Sizes of the models; raises RuntimeError if the architectures differ."""
    hparams = peer.hparams(config)
    theirs, ours = peer.hvae(hparams), HVAEModel(**model_config(hparams))
    unused = _size(theirs.decoder.blocks[-1].z_feat_proj)  # its result would be the state of a block that is not there
    if _size(theirs) - unused != _size(ours):
        raise RuntimeError(
            f"{config}: {_size(ours)} parameters of softcft against {_size(theirs)} - {unused} of the peer."
        )
    guide = make_guide(hparams.dataset).eval()
    dscm = peer.dscm(hparams, theirs)
    image, parents = make_batch(GRAPHS[hparams.dataset], hparams.input_res, batch_size)
    observed = peer.observed(hparams, image, parents)
    with torch.no_grad(), FlopCounterMode(display=False) as guide_counter:
        guide(image)
    with torch.no_grad(), FlopCounterMode(display=False) as predictor_counter:
        dscm.predictor.predict(**observed)
    return (
        f"{config}, batches of {batch_size}: HVAE {_size(ours):,} parameters (the peer has {unused:,} more, "
        f"never used); guide {_size(guide):,} parameters, {guide_counter.get_total_flops() / 1e6:,.0f} MFLOP a pass, "
        f"the peer's predictors {_size(dscm.predictor):,} and {predictor_counter.get_total_flops() / 1e6:,.0f}."
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


TABLE_HEAD = """
| config | work | threads | dtype | ours s | peer s | speedup | ours MiB | peer MiB | memory | of peak |
|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"""


def table_line(row: dict[str, Any]) -> str:
    """A row as a line of the Markdown table."""
    memory = row["ours_peak_mib"] / row["peer_peak_mib"]
    return (
        f"| {row['config']} | {row['work']} | {row['threads']} | {row['dtype']} | {row['ours_median_s']:.3f} "
        f"| {row['peer_median_s']:.3f} | {row['speedup']:.2f}x | {row['ours_peak_mib']:.0f} "
        f"| {row['peer_peak_mib']:.0f} | {memory:.2f}x | {row['share_of_peak']:.0%} |"
    )


if __name__ == "__main__":
    main()
