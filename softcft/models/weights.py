"""Load weights from safetensors only: reading a pickle may run code that is in the file.

diffusers prefers safetensors, but reads pickles where there are none.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from softcft.models.hub_errors import explain_hub_errors

__all__ = ["SafetensorsOnly", "import_modules", "load_safetensors"]

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


class SafetensorsOnly:
    """Comes before diffusers' ``ModelMixin`` or ``DiffusionPipeline`` among the bases of a class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or the Hub, as any class of diffusers, but from safetensors only.

        Raises:
            ValueError: If there are pickled weights instead, or ``use_safetensors=False``.
            OSError: If there are no weights, or the Hub refuses them: a repository is private, gated or not there.
        """
        _refuse_pickles(pretrained_model_name_or_path, kwargs)
        with explain_hub_errors(pretrained_model_name_or_path):
            loaded: Self = super().from_pretrained(  # type: ignore[misc]  # the next base has it
                pretrained_model_name_or_path, **kwargs | {"use_safetensors": True}
            )
        return loaded


def load_safetensors(loading_class: type, folder: str | Path, **kwargs: Any) -> Any:
    """Load a model or a pipeline of a class that is diffusers' own, as :meth:`SafetensorsOnly.from_pretrained`."""
    _refuse_pickles(folder, kwargs)
    with explain_hub_errors(folder):
        return loading_class.from_pretrained(folder, **kwargs | {"use_safetensors": True})  # type: ignore[attr-defined]


def import_modules(names: Iterable[str]) -> None:
    """Import modules of the user's, in the current folder too, that define classes of saved models.

    Raises:
        ValueError: If one cannot be imported; the message names ``modules``.
    """
    for name in names:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # last, so that it hides nothing
        try:
            importlib.import_module(name)
        except Exception as error:  # of any kind: it is the user's code
            raise ValueError(
                f"modules {name} cannot be imported ({type(error).__name__}: {error}): give the name of a module "
                "that is installed or in this folder, my_model for my_model.py."
            ) from error


def _refuse_pickles(name: str | Path, kwargs: dict[str, Any]) -> None:
    """Raise ValueError if a folder, or a part of a pipeline that is not passed as a model, has only pickled weights."""
    if kwargs.get("use_safetensors") is False:
        raise ValueError("use_safetensors must not be False: softcft reads no pickles; leave it out.")
    folder = Path(name, kwargs.get("subfolder") or "")
    parts = [path.parent for path in folder.glob("*/config.json") if path.parent.name not in kwargs]
    for part in (folder, *sorted(parts if (folder / "model_index.json").is_file() else [])):
        files = list(part.iterdir()) if part.is_dir() else []
        pickles = sorted(file.name for file in files if file.suffix in PICKLES)
        if pickles and not any(file.suffix == ".safetensors" for file in files):
            raise ValueError(
                f"{part} has {' and '.join(pickles)}, and no .safetensors: softcft reads no pickles, for that may run "
                "code from the file. A checkpoint of causal-gen is converted by recipes/convert_causal_gen.py; for "
                "other weights that you trust, load them with diffusers and save them by save_pretrained."
            )
