"""Image counterfactuals from deep structural causal models, as an extension of diffusers.

Importing softcft is what lets ``DiffusionPipeline.from_pretrained`` load its pipelines.
"""

import importlib
from typing import TYPE_CHECKING, Any

from softcft import _diffusers

if TYPE_CHECKING:
    from softcft._api import *
    from softcft.evaluation.evaluate import evaluate
    from softcft.evaluation.generation import generate_counterfactuals
    from softcft.models.adoption import adopt
    from softcft.training.fine_tune import fine_tune

__version__ = "0.1.0"

__all__ = [
    "AttributeClassifier",
    "AttributeSCM",
    "BackboneOutput",
    "CausalGraph",
    "ConditionalDenoiser",
    "CounterfactualBackbone",
    "CounterfactualPipeline",
    "DSCMPipeline",
    "DSCMPipelineOutput",
    "DiffusionBackbone",
    "DiffusionDSCMPipeline",
    "HVAEBackbone",
    "HVAEModel",
    "Intervention",
    "ModelMixin",
    "ParentEncoder",
    "PromptEmbedding",
    "Variable",
    "__version__",
    "adopt",
    "evaluate",
    "example_model",
    "fine_tune",
    "generate_counterfactuals",
]

ELSEWHERE = {
    "adopt": "softcft.models.adoption",
    "evaluate": "softcft.evaluation.evaluate",
    "fine_tune": "softcft.training.fine_tune",
    "generate_counterfactuals": "softcft.evaluation.generation",
}
"""Names that _api.py does not import: they need pandas and matplotlib, or accelerate,
or are needed by few."""


def __getattr__(name: str) -> Any:
    """A public name, when it is first asked for: pipelines and models of diffusers take seconds to import."""
    if ":" in name:  # as the loader of pipelines asks for a user's own class
        return _diffusers.class_of(name)
    if name not in __all__:
        raise AttributeError(f"module 'softcft' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(ELSEWHERE.get(name, "softcft._api")), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_diffusers.register_when_imported()
