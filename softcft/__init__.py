"""Image counterfactuals from deep structural causal models, as an extension of diffusers.

Importing softcft is what lets ``DiffusionPipeline.from_pretrained`` load its pipelines.
"""

# A saved pipeline names its components as ["softcft", "HVAEModel"]. The loader looks up in this namespace both that
# class and the base class that it knows how to load, ModelMixin: so everything that can be a component is imported
# here, eagerly, and so is ModelMixin.
from diffusers import ModelMixin

from softcft import _diffusers
from softcft.counterfactuals.backbone import BackboneOutput, CounterfactualBackbone
from softcft.counterfactuals.diffusion_backbone import DiffusionBackbone
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.example import example_model
from softcft.graph import CausalGraph, Intervention, Variable
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.hvae import HVAEModel
from softcft.models.parent_encoder import ParentEncoder
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline
from softcft.pipelines.dscm import DSCMPipeline, DSCMPipelineOutput

__version__ = "0.1.0"

__all__ = [
    "AttributeClassifier",
    "AttributeSCM",
    "BackboneOutput",
    "CausalGraph",
    "ConditionalDenoiser",
    "CounterfactualBackbone",
    "DSCMPipeline",
    "DSCMPipelineOutput",
    "DiffusionBackbone",
    "DiffusionDSCMPipeline",
    "HVAEBackbone",
    "HVAEModel",
    "Intervention",
    "ModelMixin",
    "ParentEncoder",
    "Variable",
    "__version__",
    "example_model",
]

_diffusers.register(DSCMPipeline, DiffusionDSCMPipeline)
