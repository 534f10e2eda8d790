"""What softcft's steps take on a GPU: a table to paste, within about five minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --config recipes/configs/phantom_32.yaml \
        --diffusion_config recipes/configs/phantom_diffusion.yaml --device cpu       # on a laptop

For the settings of two files, an HVAE's and a diffusion model's, with untrained weights and noise for images: a
training step of the HVAE, a step of Soft-CFT, counterfactuals, and a training step of the denoiser. A step has its
backward pass, clipping, the fused optimizer and the moving average. Times are medians, in the precision that
``mixed_precision: auto`` would choose. *Compiled*: blocks of the HVAE and the network of the denoiser by
``torch.compile``; the first step's time, in which that happens, stands beside it. Memory is the device's peak of
allocated memory, on a CPU not measured. *Share of peak* is the FLOPs of matrix products and convolutions over the
median time, as a share of what a large matrix product reaches in the same type.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, HVAEBackbone, HVAEModel
from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.guides import Guides
from softcft.cft.objective import CFTObjective
from softcft.cft.targets import Soft
from softcft.models.denoiser import new_denoiser
from softcft.training.config import DiffusionConfig
from softcft.training.loop import AfterStep
from softcft.training.objectives import DiffusionObjective, HVAEObjective
from softcft.training.parsing import read_config
from softcft.training.precision import start_accelerator

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
HEAD = """
| work | batch | compiled | first step (s) | step (ms) | images/s | memory (GiB) | share of peak |
|---|---:|---|---:|---:|---:|---:|---:|"""


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "mimic_cxr_224.yaml", help="settings with an HVAE")
    parser.add_argument(
        "--diffusion_config",
        type=Path,
        default=CONFIGS / "mimic_cxr_224_diffusion.yaml",
        help="settings with a diffusion model",
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: cuda")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a step (default: 32)")
    parser.add_argument("--repeats", type=int, default=20, help="steps of which the median is told (default: 20)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; choose --device cpu.")
    if args.batch_size < 2 or args.repeats < 1:
        parser.error("--batch_size must be at least 2, for batch normalisation, and --repeats at least 1.")
    accelerator = start_accelerator("auto", cpu=args.device == "cpu")
    device = accelerator.device
    hvae_settings, diffusion_settings = read_config(args.config), read_config(args.diffusion_config)
    works: dict[str, Callable[[bool], Callable[[], Any]]] = {
        "HVAE, training": lambda compiled: training_step(hvae_objective(hvae_settings, compiled), batch(), accelerator),
        "HVAE, Soft-CFT": lambda compiled: training_step(soft_objective(hvae_settings, compiled), batch(), accelerator),
        "HVAE, counterfactuals": lambda compiled: inference(hvae_settings, compiled, batch(), accelerator),
        "denoiser, training": lambda compiled: training_step(
            denoiser_objective(diffusion_settings, compiled), batch(latents=True), accelerator
        ),
    }

    def batch(latents: bool = False) -> dict[str, Tensor]:
        """Noise for images or their latents, and attributes."""
        settings = diffusion_settings if latents else hvae_settings
        channels, size = shape_of(settings) if latents else (1, settings["data"]["sample_size"])
        image = torch.rand(args.batch_size, channels, size, size, device=device) * 2 - 1
        scm = AttributeSCM(CausalGraph(settings["graph"]).to_list())
        return {"image": image, "parents": scm.sample(args.batch_size).to(device)}

    peak = peak_flops(accelerator)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, PyTorch {torch.__version__}, {accelerator.mixed_precision}, peak {peak / 1e12:.3g} TFLOP/s", HEAD)
    for work, make in works.items():
        for compiled in (False, True):
            torch.compiler.reset()
            step = make(compiled)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            first = seconds(step, device)
            step()
            times = [seconds(step, device) for _ in tqdm(range(args.repeats), desc=work, leave=False)]
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if device.type == "cuda" else ""
            with FlopCounterMode(display=False) as counter:
                make(False)()
            share = counter.get_total_flops() / median(times) / peak
            tqdm.write(
                f"| {work} | {args.batch_size} | {'yes' if compiled else 'no'} | {first:.1f} | "
                f"{1000 * median(times):.1f} | {args.batch_size / median(times):.0f} | {memory} | {share:.0%} |"
            )


def hvae(settings: dict[str, Any], compiled: bool) -> HVAEModel:
    """The HVAE of the settings, untrained."""
    graph, size = CausalGraph(settings["graph"]).to_list(), settings["data"]["sample_size"]
    model = HVAEModel(graph, sample_size=size, in_channels=1, **settings["hvae"]["model"])
    if compiled:  # by block: as a whole it takes many minutes
        torch._dynamo.config.recompile_limit = 64  # widths, resolutions, with and without a gradient
        for block in [*model.encoder, *model.decoder]:
            block.compile()
        for decoder_block in model.decoder:
            for name in ("run_prior", "run_posterior", "inject"):
                setattr(decoder_block, name, torch.compile(getattr(decoder_block, name)))
    return model


def hvae_objective(settings: dict[str, Any], compiled: bool) -> nn.Module:
    """What trains the HVAE."""
    return HVAEObjective(hvae(settings, compiled))


def soft_objective(settings: dict[str, Any], compiled: bool) -> nn.Module:
    """Soft-CFT of the HVAE."""
    graph = CausalGraph(settings["graph"]).to_list()
    guide = settings["guides"][0] if "guides" in settings else settings["guide"]
    classifier = AttributeClassifier(graph, {"num_channels": 1, **guide["model"]["backbone"]})
    if compiled:
        classifier.compile()
    constraint = LagrangianConstraint(slack=1.0, damping=10.0, learning_rate=0.1)
    guides = Guides([classifier])
    backbone = HVAEBackbone(hvae(settings, compiled))
    return CFTObjective(backbone, AttributeSCM(graph), guides, Soft(guides.graph), constraint)


def shape_of(settings: dict[str, Any]) -> tuple[int, int]:
    """Channels and side of what the denoiser models: images or the latents of the VAE."""
    size, section = settings["data"]["sample_size"], settings["diffusion"]
    if not section.get("latents"):
        return 1, size
    vae = settings["vae"]
    return vae["model"]["latent_channels"], size // vae["patch_size"] // 2 ** (
        len(vae["model"]["block_out_channels"]) - 1
    )


def denoiser_objective(settings: dict[str, Any], compiled: bool) -> nn.Module:
    """What trains the denoiser of the settings."""
    section, default = settings["diffusion"], DiffusionConfig()
    kind = (section.get(name, getattr(default, name)) for name in ("network", "prediction_type"))
    patch = section.get("patch_size", default.patch_size)
    denoiser = new_denoiser(CausalGraph(settings["graph"]), *kind, *shape_of(settings), patch, section["model"])
    if compiled:
        denoiser.network.compile()
    return DiffusionObjective(denoiser)


def training_step(objective: nn.Module, batch: dict[str, Tensor], accelerator: Any) -> Callable[[], Any]:
    """A function that takes one step as the training loop does."""
    objective.to(accelerator.device)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ema = EMAModel(parameters, decay=0.999, foreach=True)
    images = range(len(batch["image"]))

    def step() -> float:
        with accelerator.autocast():
            scalars = objective({**batch, "seeds": list(images)})
        scalars["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, 100.0)
        values = torch.stack([*(v.detach().float() for v in scalars.values() if v.ndim == 0), norm]).tolist()
        optimizer.step()
        if isinstance(objective, AfterStep):
            objective.after_step(dict(zip([k for k, v in scalars.items() if v.ndim == 0], values, strict=False)))
        ema.step(parameters)
        optimizer.zero_grad()
        return values[0]

    return step


def inference(
    settings: dict[str, Any], compiled: bool, batch: dict[str, Tensor], accelerator: Any
) -> Callable[[], Any]:
    """A function that makes counterfactuals of a batch."""
    backbone = HVAEBackbone(hvae(settings, compiled).eval()).to(accelerator.device)

    def step() -> float:
        with torch.no_grad(), accelerator.autocast():
            parents = batch["parents"]
            return backbone.counterfactual(batch["image"], parents, parents.roll(1, 0)).image.mean().item()

    return step


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """How long a step takes, until the device is done."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(accelerator: Any) -> float:
    """FLOP/s of a large matrix product: the best of ten."""
    side = 8192 if accelerator.device.type == "cuda" else 1024
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
    matrix = torch.randn(side, side, device=accelerator.device, dtype=types[accelerator.mixed_precision])
    return 2 * side**3 / min(seconds(lambda: (matrix @ matrix)[0, 0].item(), accelerator.device) for _ in range(10))


if __name__ == "__main__":
    main()
