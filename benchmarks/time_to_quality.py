r"""How long softcft takes for the bound that causal-gen reaches in a given time, on Morpho-MNIST.

    python benchmarks/time_to_quality.py --side peer --against ../causal-gen --data_dir DATA --out peer.json
    python benchmarks/time_to_quality.py --side softcft --data_dir DATA --target peer.json --out softcft.json
    python benchmarks/time_to_quality.py --plot peer.json softcft.json --out time_to_quality.png

:mod:`peer` says how to get the peer. Both sides train on the same images in batches of 32: the peer for 20 minutes the
architecture that it publishes for Morpho-MNIST (exogenous prior), as its trainer does, in float32, with its own
optimizer settings; softcft in bfloat16 that of ``recipes/configs/morphomnist.yaml``, which works on patches of 2 x 2
pixels and has more channels and fewer layers. (At equal architecture ``hvae.py`` compares both.) Time is that of the
processor, spent in training steps alone. The bound of the raw weights is taken on the same validation images, with the
same noise, the exact likelihood and in float32: the peer's weights are converted for it. One process, one thread.

With ``--precision`` and ``--steps`` it compares softcft with itself, float32 against bfloat16 at equal steps::

    python benchmarks/time_to_quality.py --side softcft --data_dir DATA --precision no --steps 1200 --out fp32.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import Subset
from tqdm.auto import tqdm

from softcft import CausalGraph, HVAEModel
from softcft.convert import Checkpoint, convert_hvae
from softcft.data.config import DataConfig
from softcft.data.morphomnist import MORPHOMNIST_GRAPH
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.data.sources import load_data
from softcft.training.objectives import HVAEObjective

BATCH_SIZE = 32
VALIDATION_IMAGES = 1024
CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "morphomnist.yaml"


class Batches:
    """Shuffled training batches without end, the same for both sides, and the validation images."""

    def __init__(self, data_dir: str, seed: int) -> None:
        self.graph = MORPHOMNIST_GRAPH  # its columns are in the order of the peer's parents_x
        data = load_data(DataConfig(dataset_name="morphomnist", sample_size=32, data_dir=data_dir), self.graph)
        self.train = ImageAttributeDataset(data["train"], self.graph)
        validation = ImageAttributeDataset(data["validation"], self.graph)
        self.validation = self._stack(Subset(validation, range(VALIDATION_IMAGES)))
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> dict[str, torch.Tensor]:
        index = torch.randint(len(self.train), (BATCH_SIZE,), generator=self.generator).tolist()
        return self._stack(Subset(self.train, index))

    @staticmethod
    def _stack(subset: Any) -> dict[str, torch.Tensor]:
        examples = [subset[i] for i in range(len(subset))]
        stacked = {key: torch.stack([example[key] for example in examples]) for key in ("image", "parents")}
        return stacked | {"image": scale_pixels(stacked["image"])}


@torch.no_grad()
def validation_nelbo(model: HVAEModel, batch: dict[str, torch.Tensor]) -> float:
    """The bound on the validation images in nats per dimension, the same noise each time."""
    generator = torch.Generator().manual_seed(0)
    parts = zip(batch["image"].split(128), batch["parents"].split(128), strict=True)
    return torch.cat([model(*part, generator=generator).nelbo for part in parts]).mean().item()


class PeerSide:
    """causal-gen's model and the steps of its trainer."""

    def __init__(self, checkout: str, graph: CausalGraph) -> None:
        from peer import Peer, expand_parents

        peer = Peer(checkout)
        self.expand = expand_parents
        self.graph = graph
        self.hparams = peer.hparams("morphomnist")
        self.model = peer.hvae(self.hparams).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.wd, betas=self.hparams.betas
        )
        warmup = self.hparams.lr_warmup_steps
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self.ema = peer.modules.utils.EMA(self.model, beta=self.hparams.ema_rate)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Forward, backward, clip, AdamW unless the gradient is too long, moving average."""
        out = self.model(batch["image"], self.expand(batch["parents"], 32), beta=self.hparams.beta)
        out["elbo"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.hparams.grad_clip)
        if norm < self.hparams.grad_skip and out["elbo"].isfinite():
            self.optimizer.step()
            self.scheduler.step()
            self.ema.update()
        self.model.zero_grad(set_to_none=True)
        return float(out["elbo"].item())

    def converted(self) -> HVAEModel:
        """The raw weights as a model of softcft."""
        return convert_hvae(Checkpoint(self.model.state_dict(), vars(self.hparams), []), self.graph)


class OurSide:
    """softcft's model and the steps of its training loop."""

    def __init__(self, graph: CausalGraph, precision: str, learning_rate: float, total_steps: int) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        model = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["hvae"]["model"]
        # Weight 1 of the KL, as the peer's: the bound is what is compared.
        self.objective = HVAEObjective(HVAEModel(graph.to_list(), 32, **model | {"beta": 1}))
        self.parameters = list(self.objective.parameters())
        self.precision = precision
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.scheduler = get_scheduler("cosine", self.optimizer, num_warmup_steps=50, num_training_steps=total_steps)
        self.ema = EMAModel(self.parameters, decay=0.999, foreach=True)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Forward, backward, clip, AdamW unless the gradient is not finite, moving average."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.objective(batch)["loss"]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 350.0)
        if norm.isfinite():
            self.optimizer.step()
            self.scheduler.step()
            self.ema.step(self.parameters)
        self.optimizer.zero_grad()
        return loss.item()

    def converted(self) -> HVAEModel:
        """The raw weights."""
        return self.objective.hvae


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one side and take its bound at growing intervals; returns settings and curve."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    batches = Batches(arguments.data_dir, arguments.seed)
    if arguments.side == "peer":
        side: PeerSide | OurSide = PeerSide(arguments.against, batches.graph)
    else:
        side = OurSide(batches.graph, arguments.precision, arguments.learning_rate, arguments.steps)
    target = json.loads(Path(arguments.target).read_text())["best"] if arguments.target else None
    curve, spent, step, next_look = [], 0.0, 0, 0.0
    with tqdm(total=round(60 * arguments.minutes), unit="s", desc=arguments.side) as progress:
        while True:
            batch = next(batches)
            begun = time.process_time()
            loss = side.step(batch)
            spent += time.process_time() - begun
            step += 1
            progress.update(int(spent) - progress.n)
            progress.set_postfix(step=step, loss=f"{loss:.4f}")
            done = spent >= 60 * arguments.minutes or (arguments.side == "softcft" and step == arguments.steps)
            if spent >= next_look or done:
                nelbo = validation_nelbo(side.converted(), batches.validation)
                curve.append({"cpu_s": spent, "step": step, "nelbo": nelbo})
                next_look = max(1.1 * spent, spent + 10)
                done = done or (target is not None and nelbo <= target)
            if done:
                break
    return {"side": arguments.side, "precision": arguments.precision, "seed": arguments.seed} | {
        "best": min(point["nelbo"] for point in curve),
        "last": curve[-1],
        "curve": curve,
    }


def plot(paths: list[str], out: str) -> None:
    """Both curves in one picture, with the ratio of the times at the peer's best bound."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    runs = {run["side"]: run for run in (json.loads(Path(path).read_text()) for path in paths)}
    target = runs["peer"]["best"]
    times = {side: next((p["cpu_s"] for p in run["curve"] if p["nelbo"] <= target), None) for side, run in runs.items()}
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for side, label, color in (("peer", "causal-gen, float32", "#D55E00"), ("softcft", "softcft, bfloat16", "#0072B2")):
        curve = runs[side]["curve"]
        axes.plot([p["cpu_s"] / 60 for p in curve], [p["nelbo"] for p in curve], ".-", color=color, label=label)
    axes.axhline(target, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", yscale="log", yticks=[0.7, 1, 1.5, 2, 2.5])
    axes.set(xlabel="processor time (minutes)", ylabel="validation NELBO (nats/dim)")
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    title = "Morpho-MNIST, each with its own architecture, batch 32, one thread"
    if times["softcft"] is not None:
        title += f"\nsame bound {times['peer'] / times['softcft']:.1f} times sooner"
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=150)
    print({side: None if seconds is None else round(seconds, 1) for side, seconds in times.items()}, f"at {target:.4f}")


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=["peer", "softcft"], help="Whose code to train.")
    parser.add_argument("--against", metavar="PATH", help="peer: a checkout of causal-gen.")
    parser.add_argument("--data_dir", help="Folder with the files of Morpho-MNIST.")
    parser.add_argument("--minutes", type=float, default=20.0, help="Processor time at most; the default is 20.")
    parser.add_argument("--target", metavar="JSON", help="Stop at the best bound of this run.")
    parser.add_argument("--steps", type=int, default=2400, help="softcft: steps at most, the length of its schedule.")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="softcft: largest learning rate.")
    parser.add_argument("--precision", choices=["bf16", "no"], default="bf16", help="softcft: no is float32.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, batches and noise.")
    parser.add_argument("--plot", nargs=2, metavar="JSON", help="Draw two runs instead of training.")
    parser.add_argument("--out", required=True, help="File to write.")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot, arguments.out)
        return
    if arguments.side is None or arguments.data_dir is None:
        parser.error("--side and --data_dir are needed to train")
    if arguments.side == "peer" and arguments.against is None:
        parser.error("--side peer needs --against")
    result = train(arguments)
    Path(arguments.out).write_text(json.dumps(result))
    print({"steps": result["last"]["step"], "cpu_s": round(result["last"]["cpu_s"]), "best": round(result["best"], 4)})


if __name__ == "__main__":
    main()
