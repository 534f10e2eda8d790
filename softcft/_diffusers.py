"""Makes diffusers load softcft's pipelines: the only file that touches its loader's internals.

Stock diffusers saves a component under the module that defines its class, refuses to download it from the Hub, and
knows only its own pipelines by name. Two registrations change that:

- ``LOADABLE_CLASSES["softcft"]``: components are saved as ``["softcft", "HVAEModel"]``, a name that survives moving
  files, and load from a folder and from the Hub without remote code;
- ``diffusers.DSCMPipeline``: ``DiffusionPipeline.from_pretrained`` finds the class that ``model_index.json`` names.

A user's own class, the backbone of a ``CounterfactualPipeline``, is saved as ``["softcft", "module:Class"]``. Stock
diffusers would save ``["module", "Class"]``. This does not load if the module does not import the name ``ModelMixin``,
has a parent that is named as a pipeline of diffusers, or is on the Hub; nor can a model be passed in its place where
the module is not imported. :mod:`softcft` finds such a class among the modules that were imported, and imports none: a
file from a stranger would decide what runs.

Importing softcft imports nothing of diffusers, which takes seconds. Each registration is made after the import of the
module that it changes. Plain imports of all public names would take 1.5 times as long as importing diffusers and
transformers, and ``softcft --help`` seconds (``benchmarks/import_time.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["PIPELINES", "SUPPORTED_DIFFUSERS", "class_of", "name_of", "register", "register_when_imported"]

SUPPORTED_DIFFUSERS = ">=0.42,<0.43"
PIPELINES = ("CounterfactualPipeline", "DSCMPipeline", "DiffusionDSCMPipeline")
LOADER = "diffusers.pipelines.pipeline_loading_utils"
SAVE_AND_LOAD = ["save_pretrained", "from_pretrained"]


def register_when_imported() -> None:
    """Make models of softcft loadable when the loader is imported, and :data:`PIPELINES` known when diffusers is."""
    for name, change in ("diffusers", _make_pipelines_known), (LOADER, register):
        if name in sys.modules:
            change()
        else:
            sys.meta_path.insert(0, _AfterImport(name, change))


def register(*pipelines: type[DiffusionPipeline]) -> None:
    """Make pipelines and models of softcft loadable.

    Args:
        pipelines: Pipeline classes that ``DiffusionPipeline.from_pretrained`` shall find by name.

    Raises:
        ImportError: If the loader of the installed diffusers does not work as expected.
    """
    import diffusers

    loader = import_module(LOADER)
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


def name_of(model: Any) -> tuple[str, str]:
    """What a saved pipeline calls the class of a user's model."""
    return "softcft", f"{type(model).__module__}:{type(model).__qualname__}"


def class_of(name: str) -> type:
    """The class that :func:`name_of` has named ``module:Class``, or else one that cannot be loaded, and says why."""
    from diffusers import ModelMixin

    module, _, path = name.partition(":")
    try:
        found = attrgetter(path)(sys.modules[module])
    except (KeyError, AttributeError):
        found = None
    if isinstance(found, type) and issubclass(found, ModelMixin):
        return found
    known = f"has no class {path} of diffusers' ModelMixin" if module in sys.modules else "was not imported"

    class Missing(ModelMixin):
        @classmethod
        def from_pretrained(cls, folder: Any, **_: Any) -> Any:
            raise ValueError(
                f"The model in {folder} is a {path} of the module {module}, which {known}; softcft imports no module "
                f"because a file names it. Import it first: import {module} (on the command line --modules {module}). "
                f"Or pass the model: from_pretrained(..., backbone={path}.from_pretrained({str(folder)!r}))."
            )

    return Missing


def _make_pipelines_known() -> None:
    """Let diffusers import our pipelines when they are asked for, as its own."""
    diffusers = sys.modules["diffusers"]

    class WithOurs(type(diffusers)):  # type: ignore[misc]  # a module's class is not known before
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("softcft"), name) if name in PIPELINES else super().__getattr__(name)

    diffusers.__class__ = WithOurs


class _AfterImport(MetaPathFinder):
    """Calls a function after the import of a module."""

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self.name, self.function = name, function

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.function()

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


def _unsupported(reason: str) -> ImportError:
    import diffusers

    return ImportError(
        f"softcft needs diffusers{SUPPORTED_DIFFUSERS}, but diffusers {diffusers.__version__} is installed and loads "
        f'pipelines in another way ({reason}). Run: pip install "diffusers{SUPPORTED_DIFFUSERS}"'
    )
