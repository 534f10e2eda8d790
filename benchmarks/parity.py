"""softcft's HVAE against causal-gen's own code: the same weights and the same noise must give the same numbers.

    python benchmarks/parity.py --against ../causal-gen
    python benchmarks/parity.py --against ../causal-gen --golden tests/parity/golden

:mod:`peer` says how to get the peer. For each published configuration the peer builds its model with random weights
and saves a checkpoint as its trainer does; softcft converts it. Both then abduct, reconstruct, sample and predict
counterfactuals from the same images, parents and random state. The largest differences are printed, each relative to
the root mean square of the peer's tensor. Anything above 1e-4 ends the script with an error, but for the NLL:

The peer replaces the normal distribution function in its likelihood by a hyperbolic tangent, softcft does not. Its NLL
is therefore compared twice: with softcft's exact one, where the approximation's error shows, and with the peer's own
formula on softcft's means and scales, which must agree like everything else.

``--golden FOLDER`` writes tiny models' checkpoints and the peer's results, on which the tests check the same without
the peer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peer import Peer, counterfactual, expand_parents
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from softcft import HVAEBackbone, HVAEModel
from softcft.convert import convert_hvae, load_checkpoint

TOLERANCE = 1e-4
EFFECTS = ("direct", "indirect", "total")
CASES = {
    "morphomnist": {},
    "morphomnist, conditional prior": {"cond_prior": True},
    "mimic192": {},
    "mimic224": {},
    "ukbb192": {},
}
# As deep and as wide as it takes for every kind of block to occur.
TINY = {
    "morphomnist": {
        "input_res": 8,
        "enc_arch": "8b1d2,4b1d4,1b1",
        "dec_arch": "1b1,4b2,8b1",
        "widths": [8, 8, 16],
        "z_dim": 2,
    },
    "mimic192": {
        "input_res": 8,
        "enc_arch": "8b1d2,4b1d2,2b1d2,1b1",
        "dec_arch": "1b2,2b1,4b1,8b1",
        "widths": [8, 8, 12, 16],
        "z_dim": 2,
        "z_max_res": 4,
        "bias_max_res": 4,
    },
    "mimic224": {
        "input_res": 14,
        "enc_arch": "14b1d2,7b1d7,1b1",
        "dec_arch": "1b1,7b2,14b1",
        "widths": [8, 8, 16],
        "z_dim": 2,
        "z_max_res": 7,
    },
    "ukbb192": {
        "input_res": 8,
        "enc_arch": "8b1d2,4b1d4,1b1",
        "dec_arch": "1b1,4b2,8b1",
        "widths": [8, 8, 16],
        "z_dim": 2,
        "z_max_res": 4,
    },
}


def random_model(peer: Peer, hparams: Any) -> nn.Module:
    """The peer's HVAE with random weights, among them those that begin as zero and would hide an error."""
    torch.manual_seed(0)
    hvae = peer.hvae(hparams).eval()
    with torch.no_grad():
        for parameter in hvae.parameters():
            spread = parameter.std().item() if parameter.numel() > 1 else 0.0
            parameter.add_(max(0.3 * spread, 0.02) * torch.randn_like(parameter))
    return hvae


def random_batch(hparams: Any, batch_size: int) -> dict[str, Tensor]:
    """8-bit images in [-1, 1], factual parents, and other ones; the network does not ask what parents mean."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, hparams.input_channels, hparams.input_res, hparams.input_res)
    parents = torch.rand(2, batch_size, hparams.context_dim, generator=generator) * 2 - 1
    return {
        "image": torch.randint(256, shape, generator=generator) / 127.5 - 1,
        "parents": parents[0],
        "counterfactual_parents": parents[1],
    }


@torch.no_grad()
def peer_results(hvae: nn.Module, hparams: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the peer computes, each part from the same random state."""
    image = batch["image"]
    parents, others = (expand_parents(batch[k], hparams.input_res) for k in ("parents", "counterfactual_parents"))
    torch.manual_seed(2)
    bound = hvae(image, parents, beta=hparams.beta)
    results = {name: bound[theirs] for name, theirs in (("nelbo", "elbo"), ("nll", "nll"), ("kl", "kl"))}
    torch.manual_seed(2)
    abducted = hvae.abduct(image, parents)
    latents = [z["z"] if hparams.cond_prior else z for z in abducted]
    results |= {f"latents.{i}": z for i, z in enumerate(latents)}
    loc, scale = hvae.forward_latents(latents, parents)
    results |= {"reconstruction": loc, "scale": scale}
    torch.manual_seed(2)
    results["sample"] = hvae.sample(parents)[0]
    if not hparams.cond_prior:
        torch.manual_seed(2)
        results["direct"] = counterfactual(hvae, image, parents, others)
        return results
    torch.manual_seed(2)
    mediator = hvae.abduct(image, parents, cf_parents=others)
    results |= {f"mediator.{i}": z for i, z in enumerate(mediator)}
    residual = (image - loc) / scale
    # Its DSCM has no mediator; these are the compositions that its paper defines, of its own parts.
    for effect, (z, seen) in {
        "direct": (latents, others),
        "indirect": (mediator, parents),
        "total": (mediator, others),
    }.items():
        effect_loc, effect_scale = hvae.forward_latents(z, seen)
        results[effect] = (effect_loc + effect_scale * residual).clamp(-1, 1)
    return results


@torch.no_grad()
def our_results(model: HVAEModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same of softcft, under the same names."""
    image, parents, others = batch["image"], batch["parents"], batch["counterfactual_parents"]
    sides = [block.resolution for block in model.decoder if block.posterior is not None]
    shapes = [(model.config["z_dim"], side, side) for side in sides]
    # As the peer draws it, one block after the other.
    model.draw_noise = lambda batch_size, *_: [torch.randn(batch_size, *shape) for shape in shapes]
    torch.manual_seed(2)
    abducted = model(image, parents)
    results = {name: abducted[name].mean() for name in ("nelbo", "nll", "kl")}
    results |= {f"latents.{i}": z for i, z in enumerate(abducted.latents)}
    results |= {"reconstruction": abducted.loc.clamp(-1, 1), "scale": abducted.log_scale.exp()}
    # A decode of its own, not the state that the posterior pass ended with, is what counterfactuals rest on.
    results["decoded"] = model.decode(model.walk_prior(parents, abducted.latents).injections, parents)[0].clamp(-1, 1)
    torch.manual_seed(2)
    results["sample"] = model.decode(model.walk_prior(parents).injections, parents)[0].clamp(-1, 1)
    results["approximate nll"] = -_approximate_log_prob(image, abducted.loc, abducted.log_scale).mean()
    for effect in EFFECTS if model.config["conditional_prior"] else EFFECTS[:1]:
        torch.manual_seed(2)
        output = HVAEBackbone(model, effect).counterfactual(image, parents, others)
        results[effect] = output.image
        if effect == "total":
            results |= {f"mediator.{i}": z for i, z in enumerate(output.latents)}
    return results


def _approximate_log_prob(image: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """The discretised Gaussian with tanh for the normal distribution function and a floor under probabilities."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))

    upper = torch.where(image > 0.999, 1.0, cdf((image - loc + 1 / 255) / log_scale.exp()))
    lower = torch.where(image < -0.999, 0.0, cdf((image - loc - 1 / 255) / log_scale.exp()))
    return (upper - lower).clamp_min(1e-12).log()


def checkpoint(hvae: nn.Module, hparams: Any) -> dict[str, Any]:
    """What the peer's trainer saves, as far as a conversion reads it."""
    return {"ema_model_state_dict": hvae.state_dict(), "hparams": vars(hparams)}


def differences(theirs: dict[str, Tensor], ours: dict[str, Tensor], beta: float) -> dict[str, float]:
    """Largest difference of each result, relative to the peer's root mean square."""
    expected = dict(theirs)
    expected["decoded"] = theirs["reconstruction"]
    expected["approximate nll"] = theirs["nll"]
    # The bound with the peer's likelihood: the rest of it is compared at full precision.
    ours = ours | {"nelbo": ours["approximate nll"] + beta * ours["kl"]}
    relative = {}
    for name, tensor in expected.items():
        error = (ours[name] - tensor).abs().max() / tensor.square().mean().sqrt()
        group = name.split(".")[0]
        relative[group] = max(relative.get(group, 0.0), error.item())
    return relative


def write_golden(peer: Peer, folder: Path) -> None:
    """Tiny models with the peer's results, one file a case: weights, inputs and results, hparams as metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for case, overrides in CASES.items():
        config_name = case.split(",")[0]
        hparams = peer.hparams(config_name, **TINY[config_name], **overrides)
        hvae = random_model(peer, hparams)
        batch = random_batch(hparams, batch_size=2)
        tensors = {f"state/{name}": tensor for name, tensor in hvae.state_dict().items()}
        tensors |= {f"batch/{name}": tensor for name, tensor in batch.items()}
        tensors |= {f"result/{name}": tensor for name, tensor in peer_results(hvae, hparams, batch).items()}
        plain = {
            name: value for name, value in vars(hparams).items() if isinstance(value, str | int | float | list | None)
        }
        save_file(
            {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
            folder / f"{case.replace(', ', '_').replace(' ', '_')}.safetensors",
            metadata={"hparams": json.dumps(plain)},
        )


def main() -> None:
    """Run the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="PATH", help="A checkout of causal-gen.")
    parser.add_argument("--batch_size", type=int, default=2, help="Images; the default is 2.")
    parser.add_argument("--golden", metavar="FOLDER", help="Write what the tests compare with, and compare nothing.")
    arguments = parser.parse_args()
    peer = Peer(arguments.against)
    if arguments.golden:
        write_golden(peer, Path(arguments.golden))
        return
    worst = {}
    for case, overrides in tqdm(CASES.items(), desc="configurations"):
        hparams = peer.hparams(case.split(",")[0], **overrides)
        hvae = random_model(peer, hparams)
        batch = random_batch(hparams, arguments.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(checkpoint(hvae, hparams), Path(folder, "checkpoint.pt"))
            model = convert_hvae(load_checkpoint(Path(folder, "checkpoint.pt")))
        # The inputs here are in the network's own encoding.
        model.register_to_config(parents_scale=None, parents_shift=None)
        worst[case] = differences(peer_results(hvae, hparams, batch), our_results(model, batch), model.config["beta"])
        tqdm.write(f"{case} ({sum(p.numel() for p in model.parameters()):,} parameters)")
        for name, error in worst[case].items():
            tqdm.write(f"    {name:16s} {error:.1e}{'  (exact against approximate)' if name == 'nll' else ''}")
    failed = [
        f"{c}: {n}" for c, errors in worst.items() for n, e in errors.items() if n != "nll" and not e <= TOLERANCE
    ]
    if failed:
        sys.exit(f"More than {TOLERANCE:g} apart: {'; '.join(failed)}")
    print(f"All within {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
