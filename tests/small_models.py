"""Models of toy size, with the same weights each time."""

from typing import Any

import torch

from softcft import AttributeClassifier, AttributeSCM, HVAEModel

TRUNK = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
HVAE = {
    "sample_size": 16,
    "resolutions": [16, 4, 1],
    "channels": [8, 8, 16],
    "encoder_blocks": [1, 1, 1],
    "decoder_blocks": [1, 1, 1],
    "z_dim": 4,
}


def make_hvae(graph: list[dict[str, Any]], **config: Any) -> HVAEModel:
    torch.manual_seed(0)
    return HVAEModel(graph, **{**HVAE, **config})


def make_classifier(graph: list[dict[str, Any]]) -> AttributeClassifier:
    torch.manual_seed(0)
    return AttributeClassifier(graph, TRUNK)


def make_scm(graph: list[dict[str, Any]]) -> AttributeSCM:
    torch.manual_seed(0)
    return AttributeSCM(graph, num_bins=4, hidden_features=[8])


def perturb(model: torch.nn.Module, scale: float, generator: torch.Generator | None = None) -> Any:
    """The model, in which nothing is zero any more, so that everything has an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model
