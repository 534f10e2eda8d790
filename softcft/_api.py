"""The public names of :mod:`softcft`, which imports this module when the first of them is asked for."""

# A saved pipeline names its components as ["softcft", "HVAEModel"]. The loader looks up in softcft's namespace both
# that class and the base class that it knows how to load, ModelMixin: so everything that can be a component is here,
# and so is ModelMixin.
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
from softcft.models.prompt import PromptEmbedding
from softcft.pipelines.counterfactual import CounterfactualPipeline
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline
from softcft.pipelines.dscm import DSCMPipeline, DSCMPipelineOutput

_diffusers.register(CounterfactualPipeline, DSCMPipeline, DiffusionDSCMPipeline)
