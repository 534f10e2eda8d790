"""The peer that softcft is measured against: a checkout of biomedia-mira/causal-gen (De Sousa Ribeiro et al., 2023).

Get it and what it needs beside softcft, which it does not pin to versions of today::

    git clone https://github.com/biomedia-mira/causal-gen
    pip install pyro-ppl==1.9.2

Nothing of it is copied or changed: its own HVAE, DSCM, graphs, predictors and moving average are imported from the
checkout and run. Three things are done from outside so that it runs here: modules that only its data loading and its
figures need are replaced by empty ones where they are not installed; ``.cuda()`` gives the tensor back, for the peer
calls it without asking whether there is a GPU; and the encoder of ``mimic224`` does not pad its 7x7 maps to 8x8, as
its authors had to change by hand. The conditional prior is off wherever its DSCM is run: with it on, the published
code raises a TypeError.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from softcft import CausalGraph
from softcft.convert import parents_graph

__all__ = ["CONFIGS", "GRAPHS", "Peer", "counterfactual", "expand_parents", "model_config", "split_parents"]

Step = Callable[[], float]
"""One step of a training; gives the loss."""

GRAPHS: dict[str, CausalGraph] = {
    dataset: parents_graph({"parents_x": names})
    for dataset, names in {
        "morphomnist": ["thickness", "intensity", "digit"],
        "mimic": ["age", "race", "sex", "finding"],
        "ukbb": ["mri_seq", "brain_volume", "ventricle_volume", "sex"],  # its mechanisms also have age
    }.items()
}
"""The graph of each data set, its columns in the order in which the peer concatenates the parents."""

CONFIGS: dict[str, dict[str, Any]] = {
    "morphomnist": {"dataset": "morphomnist", "cond_prior": False},
    "mimic192": {"dataset": "mimic", "z_max_res": 96, "beta": 9.0, "wd": 0.05},
    # Of biomedia-mira/attribute-amplification; not in the peer's registry.
    "mimic224": {
        "dataset": "mimic",
        "input_res": 224,
        "enc_arch": "224b2d2,112b4d2,56b9d2,28b14d2,14b14d2,7b9d7,1b5",
        "dec_arch": "1b5,7b10,14b15,28b15,56b10,112b5,224b3",
        "widths": [32, 64, 96, 128, 160, 192, 512],
        "z_max_res": 112,
        "beta": 9.0,
        "wd": 0.05,
    },
    "ukbb192": {"dataset": "ukbb", "z_max_res": 96, "beta": 5.0, "wd": 0.05},
}
"""What the scripts of each configuration set beyond the peer's registry and its defaults."""

_PGM_CLASSES = {"morphomnist": "MorphoMNISTPGM", "mimic": "ChestPGM", "ukbb": "FlowPGM"}
_MODULES = ("hps", "utils", "datasets", "vae", "layers", "resnet", "flow_pgm", "utils_pgm", "dscm")


class Peer:
    """The peer's code, imported from a checkout.

    Args:
        checkout: Folder of the repository, which holds ``src``.

    Attributes:
        modules: The peer's modules by name, for example ``modules.vae.HVAE``.

    Raises:
        FileNotFoundError: If the folder holds no ``src/vae.py``.
        ModuleNotFoundError: If Pyro, or another package that the peer's models need, is not installed.
    """

    def __init__(self, checkout: str | Path) -> None:
        source = Path(checkout) / "src"
        if not (source / "vae.py").is_file():
            raise FileNotFoundError(f"{checkout} is no checkout of causal-gen: there is no {source / 'vae.py'}.")
        with _import_path(source), _stand_ins():
            try:
                self.modules = SimpleNamespace(**{name: importlib.import_module(name) for name in _MODULES})
            except ModuleNotFoundError as error:
                if error.name in _MODULES:
                    raise
                package = "pyro-ppl==1.9.2" if error.name == "pyro" else error.name
                raise ModuleNotFoundError(f"causal-gen needs {error.name}: pip install {package}") from error
        sys.modules["resnet"] = self.modules.resnet  # imported again whenever a predictor of chest X-rays is built

    def hparams(self, config_name: str, **overrides: Any) -> Any:
        """The settings of one configuration, with the peer's names and defaults.

        Args:
            config_name: A key of :data:`CONFIGS`.
            overrides: Settings by the peer's names that replace those of the configuration.

        Returns:
            An ``Hparams`` object of the peer.

        Raises:
            ValueError: If the configuration or the name of an override is unknown.
        """
        if config_name not in CONFIGS:
            raise ValueError(f"config_name must be one of {', '.join(CONFIGS)}, got {config_name!r}.")
        defaults = vars(self.modules.hps.add_arguments(argparse.ArgumentParser()).parse_args([]))
        if unknown := sorted(set(overrides) - set(defaults)):
            raise ValueError(f"causal-gen has no settings {unknown}.")
        registry = self.modules.hps.HPARAMS_REGISTRY
        graph = GRAPHS[CONFIGS[config_name]["dataset"]]
        hparams = self.modules.hps.Hparams()
        hparams.update(
            defaults
            | (vars(registry[config_name]) if config_name in registry else {})
            | {"hps": config_name, "parents_x": list(graph.names), "context_dim": graph.width}
            | CONFIGS[config_name]
            | overrides
        )
        return hparams

    def hvae(self, hparams: Any) -> nn.Module:
        """The peer's HVAE, initialised as its ``main.py`` does."""
        model: nn.Module = self.modules.vae.HVAE(hparams)
        if any(resolution % 2 for resolution in _encoder_stages(hparams)[0] if resolution > 1):
            model.encoder = _unpadded(self.modules.vae.Encoder)(hparams)
        for module in model.modules():
            if type(module) is nn.Conv2d:
                nn.init.zeros_(module.bias)
        return model

    def dscm(self, hparams: Any, hvae: nn.Module) -> nn.Module:
        """The peer's structural causal model around an HVAE, with its own attribute mechanisms and predictors."""
        self.modules.flow_pgm.pyro.clear_param_store()  # it keeps parameters by name, also of models that are gone
        pgm_class = getattr(self.modules.flow_pgm, _PGM_CLASSES[hparams.dataset])

        def pgm(setup: str) -> nn.Module:
            settings = self.modules.hps.Hparams()
            settings.update(
                {
                    "setup": setup,
                    "widths": [32, 32],  # hidden layers of the mechanisms
                    "std_fixed": 0.0,
                    "input_channels": hparams.input_channels,
                    "input_res": hparams.input_res,
                }
            )
            return pgm_class(settings)  # type: ignore[no-any-return]

        args = self.modules.hps.Hparams()
        args.update(vars(hparams) | {"lmbda_init": 0.0, "elbo_constraint": 1.0, "damping": 100.0})
        model: nn.Module = self.modules.dscm.DSCM(args, pgm("sup_pgm"), pgm("sup_aux"), hvae)
        hvae.train()
        model.pgm.eval()
        model.predictor.eval()
        return model

    def train_step(self, hvae: nn.Module, hparams: Any, image: Tensor, parents: Tensor, learning_rate: float) -> Step:
        """One step of the peer's ``trainer.py`` on a batch: forward, backward, clip, AdamW, moving average.

        Args:
            hvae: From :meth:`hvae`.
            hparams: Its settings.
            image: Shape (B, C, H, W) in [-1, 1].
            parents: Encoded parents, shape (B, K).
            learning_rate: Of AdamW.
        """
        hvae.train()
        optimizer = torch.optim.AdamW(hvae.parameters(), lr=learning_rate, weight_decay=hparams.wd, betas=hparams.betas)
        ema = self._moving_average(hvae, hparams)

        def step() -> float:
            out = hvae(image, expand_parents(parents, hparams.input_res), beta=hparams.beta)
            out["elbo"].backward()
            nn.utils.clip_grad_norm_(hvae.parameters(), hparams.grad_clip)
            optimizer.step()
            ema.update()
            hvae.zero_grad(set_to_none=True)
            return out["elbo"].item()  # type: ignore[no-any-return]

        return step

    def cft_step(self, dscm: nn.Module, hparams: Any, image: Tensor, parents: Tensor, learning_rate: float) -> Step:
        """One step of the peer's ``train_cf.py`` on a batch; arguments as in :meth:`train_step`."""
        optimizer = torch.optim.AdamW(
            [parameter for name, parameter in dscm.named_parameters() if name != "lmbda"],
            lr=learning_rate,
            weight_decay=hparams.wd,
            betas=hparams.betas,
        )
        ascent = torch.optim.AdamW([dscm.lmbda], lr=1e-2, betas=hparams.betas, weight_decay=0, maximize=True)
        ema = self._moving_average(dscm, hparams)
        elbo = self.modules.layers.TraceStorage_ELBO(num_particles=1)
        observed = self.observed(hparams, image, parents)

        def step() -> float:
            variable = random.choice(list(dscm.pgm.variables))
            do = {variable: observed[variable][torch.randperm(len(image))]}
            with mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
                out = dscm(dict(observed), do, elbo)
            optimizer.zero_grad(set_to_none=True)
            ascent.zero_grad(set_to_none=True)
            out["loss"].backward()
            nn.utils.clip_grad_norm_(dscm.parameters(), hparams.grad_clip)
            optimizer.step()
            ascent.step()
            dscm.lmbda.data.clamp_(min=0)
            ema.update()
            return out["loss"].item()  # type: ignore[no-any-return]

        return step

    def observed(self, hparams: Any, image: Tensor, parents: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) and encoded parents (B, K) as the batch that the peer's DSCM and predictors want."""
        batch = {"x": image, **split_parents(GRAPHS[hparams.dataset], parents)}
        if hparams.dataset == "ukbb":
            batch["age"] = torch.zeros(len(image), 1)
        return batch

    def _moving_average(self, model: nn.Module, hparams: Any) -> Any:
        ema = self.modules.utils.EMA(model, beta=hparams.ema_rate)
        ema.step.fill_(ema.update_after_step + 1)  # the first 100 updates only copy; all later ones average
        return ema


def expand_parents(parents: Tensor, resolution: int) -> Tensor:
    """Parents (B, K) as the maps (B, K, resolution, resolution) that the peer's HVAE wants."""
    return parents[:, :, None, None].repeat(1, 1, resolution, resolution)


def split_parents(graph: CausalGraph, parents: Tensor) -> dict[str, Tensor]:
    """Encoded parents (B, K) by name, as the peer's graphs want them: (B, 1), or one-hot (B, categories)."""
    return {name: parents[:, columns] for name, columns in graph.slices.items()}


def counterfactual(hvae: nn.Module, image: Tensor, parents: Tensor, counterfactual_parents: Tensor) -> Tensor:
    """A counterfactual in the order of the peer's DSCM: abduct at temperature 1, decode twice, carry the residual over.

    Args:
        hvae: From :meth:`Peer.hvae`, without conditional prior.
        image: Shape (B, C, H, W) in [-1, 1].
        parents: Factual parents as maps, see :func:`expand_parents`.
        counterfactual_parents: Counterfactual parents as maps.

    Returns:
        Counterfactual images, shape (B, C, H, W) in [-1, 1].
    """
    latents = hvae.abduct(image, parents=parents, t=1.0)
    loc, scale = hvae.forward_latents(latents, parents=counterfactual_parents)
    factual_loc, factual_scale = hvae.forward_latents(latents, parents=parents)
    residual = (image - factual_loc) / factual_scale.clamp(min=1e-12)
    return torch.clamp(loc + scale * residual, min=-1, max=1)


def model_config(hparams: Any) -> dict[str, Any]:
    """The arguments of softcft's ``HVAEModel`` for the architecture that the peer's settings describe."""
    resolutions, encoder_blocks = _encoder_stages(hparams)
    decoder_blocks = [int(stage.split("b")[1]) for stage in hparams.dec_arch.split(",")][::-1]
    return {
        "graph": GRAPHS[hparams.dataset].to_list(),
        "sample_size": hparams.input_res,
        "in_channels": hparams.input_channels,
        "resolutions": resolutions,
        "channels": list(hparams.widths),
        "encoder_blocks": encoder_blocks,
        "decoder_blocks": decoder_blocks,
        "z_dim": hparams.z_dim,
        "z_max_resolution": hparams.z_max_res,
        "bias_max_resolution": hparams.bias_max_res,
        "block_type": "light" if "ukbb" in hparams.hps else "bottleneck",
        "beta": float(hparams.beta),
    }


def _encoder_stages(hparams: Any) -> tuple[list[int], list[int]]:
    """Resolutions and numbers of blocks of the stages in ``enc_arch``, which has the form ``32b3d2,16b3d2,...,1b4``."""
    stages = [stage.split("d")[0].split("b") for stage in hparams.enc_arch.split(",")]
    return [int(resolution) for resolution, _ in stages], [int(count) for _, count in stages]


def _unpadded(encoder_class: Any) -> Any:
    class UnpaddedEncoder(encoder_class):  # type: ignore[misc]
        """The peer's encoder, leaving maps of odd size as they are."""

        def forward(self, x: Tensor) -> dict[int, Tensor]:
            x = self.stem(x)
            activations = {}
            for block in self.blocks:
                x = block(x)
                activations[x.shape[-1]] = x
            return activations

    return UnpaddedEncoder


@contextmanager
def _import_path(source: Path) -> Iterator[None]:
    """Import from the peer's folders; afterwards names such as ``datasets`` mean again what they meant before."""
    displaced = {name: sys.modules.pop(name) for name in _MODULES if name in sys.modules}
    path = sys.path.copy()
    sys.path[:0] = [str(source), str(source / "pgm")]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in _MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(displaced)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Stand in, during the import, for packages that the peer imports for data and figures alone."""

    def conv(kernel_size: int) -> Callable[..., nn.Conv2d]:
        def build(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)

        return build

    class StandIn(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    names = ["imageio", "seaborn", "torchvision.transforms", "torchvision.models.resnet", "torchvision.models"]
    names = [name for name in [*names, "torchvision"] if importlib.util.find_spec(name.split(".")[0]) is None]
    modules = {name: StandIn(name) for name in names}
    if "torchvision" in modules:
        # Its predictors do use these: the plain convolutions of any ResNet, and a call that counts users.
        vars(modules["torchvision.models.resnet"]).update(
            conv1x1=conv(1), conv3x3=conv(3), _log_api_usage_once=lambda _: None
        )
        vars(modules["torchvision"]).update(transforms=modules["torchvision.transforms"])
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
