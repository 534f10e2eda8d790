"""Pipelines of toy size that nobody has trained, and recipes that run in this process."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, DSCMPipeline, HVAEModel
from softcft.data.phantom import PHANTOM_GRAPH

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = Path(__file__).with_name("tiny.yaml")


def load_recipe(name: str) -> ModuleType:
    """A recipe as a module. A new one each time, so that a test may change it."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_pipeline(folder: Path, seed: int = 0, causal_graph: CausalGraph = PHANTOM_GRAPH) -> Path:
    """A pipeline for tiny.yaml, or of another graph. All its weights are random, so that all attributes matter."""
    torch.manual_seed(seed)
    graph = causal_graph.to_list()
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "num_channels": 1}
    sizes = {"resolutions": [8, 4, 1], "channels": [8, 8, 16], "encoder_blocks": [1] * 3, "decoder_blocks": [1] * 3}
    hvae = HVAEModel(graph, 16, patch_size=2, z_dim=4, **sizes)
    scm = AttributeSCM(graph, num_bins=4, hidden_features=[8])
    with torch.no_grad():
        for parameter in [*hvae.parameters(), *scm.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    classifier = AttributeClassifier(graph, {**backbone, "layer_type": "basic"})
    DSCMPipeline(hvae=hvae, attribute_scm=scm, classifier=classifier).save_pretrained(folder)
    return folder
