"""Makes diffusers load softcft's pipelines: the only file that touches its loader's internals.

Stock diffusers saves a component under the module that defines its class, refuses to download it from the Hub, and
knows only its own pipelines by name. Two registrations change that:

- ``LOADABLE_CLASSES["softcft"]``: components are saved as ``["softcft", "HVAEModel"]``, a name that survives moving
  files, and load from a folder and from the Hub without remote code;
- ``diffusers.DSCMPipeline``: ``DiffusionPipeline.from_pretrained`` finds the class that ``model_index.json`` names.
"""

from __future__ import annotations

import diffusers
from diffusers.pipelines import pipeline_loading_utils as loader
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["SUPPORTED_DIFFUSERS", "register"]

SUPPORTED_DIFFUSERS = ">=0.42,<0.43"
SAVE_AND_LOAD = ["save_pretrained", "from_pretrained"]


def register(*pipelines: type[DiffusionPipeline]) -> None:
    """Make pipelines and models of softcft loadable.

    Args:
        pipelines: Pipeline classes that ``DiffusionPipeline.from_pretrained`` shall find by name.

    Raises:
        ImportError: If the loader of the installed diffusers does not work as expected.
    """
    loadable = getattr(loader, "LOADABLE_CLASSES", None)
    if not isinstance(loadable, dict) or loadable.get("diffusers", {}).get("ModelMixin") != SAVE_AND_LOAD:
        raise _unsupported("pipeline_loading_utils.LOADABLE_CLASSES has changed")
    if not hasattr(loader, "_fetch_class_library_tuple"):
        raise _unsupported("pipeline_loading_utils._fetch_class_library_tuple is gone")
    loadable["softcft"] = {"ModelMixin": SAVE_AND_LOAD}
    for pipeline in pipelines:
        # Asks the loader itself, as it will be asked when a pipeline is saved.
        saved_as = loader._fetch_class_library_tuple(pipeline)
        if saved_as != ("softcft", pipeline.__name__):
            raise _unsupported(f"{pipeline.__name__} would be saved as {saved_as}")
        setattr(diffusers, pipeline.__name__, pipeline)


def _unsupported(reason: str) -> ImportError:
    return ImportError(
        f"softcft needs diffusers{SUPPORTED_DIFFUSERS}, but diffusers {diffusers.__version__} is installed and loads "
        f'pipelines in another way ({reason}). Run: pip install "diffusers{SUPPORTED_DIFFUSERS}"'
    )
