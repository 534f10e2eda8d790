"""Pipelines of toy size that nobody has trained, and recipes that run in this process."""

import importlib.util
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, DSCMPipeline, HVAEModel
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.run.plan import Plan

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


def forget_accelerate() -> None:
    """Forget the state that Accelerate keeps: each process has one precision, and here many recipes share one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def no_estimate(plan: Plan, sizes: Mapping[str, int]) -> dict[str, float]:
    """In place of an estimate, which takes a while."""
    raise ValueError("tests do not wait for it")


def run_recipe(cwd: Path, name: str, *flags: str, config: Path = TINY) -> str:
    """Run a recipe in this process, in a folder, on the CPU; returns what it printed."""
    printed = StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    forget_accelerate()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cwd / "cache")
        monkeypatch.setattr("softcft.run.estimate.estimate", no_estimate)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(config), *flags])
        try:
            load_recipe(name).main()
        finally:
            for number, handler in handlers.items():  # run_all.py ends by these in its own way
                signal.signal(number, handler)
    forget_accelerate()
    return printed.getvalue()


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
