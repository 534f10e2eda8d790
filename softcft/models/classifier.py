"""Predicts all attributes of a causal graph from an image: one trunk, one head per variable.

A classifier is either the *guide*, which is frozen and steers counterfactual fine-tuning, or the *judge*, which is
trained apart from it and evaluates. Its probabilities are calibrated (Guo et al., "On Calibration of Modern Neural
Networks", 2017): soft targets of an over-confident guide would be nearly hard labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from softcft.arguments import check_number, check_whole, is_finite, shown, takes_any_numbers
from softcft.graph import CausalGraph
from softcft.models.sight import Sight, read_sight
from softcft.models.trunk import make_trunk
from softcft.models.weights import SafetensorsOnly

__all__ = ["AttributeClassifier", "AttributeClassifierOutput", "attribute_losses"]


@dataclass
class AttributeClassifierOutput(BaseOutput):
    """Predictions for a batch of images.

    Attributes:
        logits: Shape (B, K) in the graph's column order: calibrated logits of binary and categorical variables,
            predicted means in encoded units of continuous ones.
        embedding: Features before the heads, shape (B, D).
    """

    logits: Tensor
    embedding: Tensor = None  # type: ignore[assignment]  # so that accelerate can make it from a dict


class AttributeClassifier(SafetensorsOnly, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers declares config_name twice
    """A transformers vision backbone with one linear head per variable of the graph.

    Args:
        graph: The causal graph as plain data (:meth:`~softcft.graph.CausalGraph.to_list`).
        backbone: Configuration of a transformers image model with a pooled output, ``model_type`` among its keys, for
            example ``{"model_type": "resnet", "num_channels": 1, "hidden_sizes": [32, 64], ...}``. With three channels
            it takes grey images, too.
        scales: For each variable the temperature that divides its logits (discrete) or the standard deviation of its
            error in encoded units (continuous). Measured by :meth:`calibrate`; 1 before.
        sees: For each variable how well it is seen in validation images, see :mod:`softcft.models.sight`. Measured by
            :func:`softcft.evaluation.sight.measure_sight`, stored by :meth:`store_sight`; None before, which counts as
            seen.
        image_size: Height and width to which images are resized for the trunk (bilinear, antialiased); none if None.
        image_mean: Normalises pixels in [0, 1] for the trunk: one value, or one for each of its channels. With None
            pixels stay in [-1, 1].
        image_std: With ``image_mean``: the standard deviations.

    Attributes:
        sight: The same as :class:`~softcft.models.sight.Sight` by variable; empty if it was not measured.

    Raises:
        ValueError: If the graph is invalid; the backbone has no known ``model_type``, no pooled output, or invalid
            settings; ``scales`` names other variables than the graph, or is not above 0; ``sees`` names other
            variables, or has an incomplete entry; or the settings of images do not suit the backbone.
    """

    column_scales: Tensor
    is_continuous: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    @takes_any_numbers
    @register_to_config
    def __init__(
        self,
        graph: list[dict[str, Any]],
        backbone: dict[str, Any],
        scales: dict[str, float] | None = None,
        sees: dict[str, dict[str, Any]] | None = None,
        image_size: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.causal_graph = CausalGraph(graph)
        columns = self._columns(scales)
        self.sight = read_sight(self.causal_graph.names, sees)
        if image_size is not None:
            check_whole("image_size", image_size)
        self.image_size, self.is_normalised = image_size, image_mean is not None
        self.trunk, width = make_trunk(backbone, image_size)
        self.in_channels = int(getattr(self.trunk.config, "num_channels", 3))
        self.heads = nn.Linear(width, self.causal_graph.width)
        mean, std = _read_statistics(image_mean, image_std, self.in_channels)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        self.register_buffer("column_scales", columns, persistent=False)
        is_continuous = [v.kind == "continuous" for v in self.causal_graph.variables for _ in range(v.width)]
        self.register_buffer("is_continuous", torch.tensor(is_continuous), persistent=False)

    def _columns(self, scales: dict[str, float] | None) -> Tensor:
        names = self.causal_graph.names
        if scales is not None:
            if not isinstance(scales, Mapping) or set(scales) != set(names):
                raise ValueError(f"scales must name the variables {list(names)}, got {shown(scales)}.")
            for name, scale in scales.items():
                check_number(f"scales[{name!r}]", scale, above=0)
        per_variable = torch.tensor([[1.0 if scales is None else scales[name] for name in names]])
        return self.causal_graph.expand(per_variable)[0]

    def forward(self, image: Tensor, return_dict: bool = True) -> AttributeClassifierOutput | tuple[Tensor, ...]:
        """Predict attributes of images (B, C, H, W) in [-1, 1], with the trunk's channels, or grey where it has three.

        Without ``return_dict`` the result is a plain tuple, logits first.
        """
        embedding = self.trunk(self._prepare(image)).pooler_output.flatten(1)
        raw = self.heads(embedding).float()
        logits = torch.where(self.is_continuous, raw, raw / self.column_scales)
        output = AttributeClassifierOutput(logits=logits, embedding=embedding)
        return output if return_dict else output.to_tuple()

    def check_channels(self, channels: int) -> None:
        """Raise ValueError unless images have the trunk's number of channels, or one where it has three."""
        if channels != self.in_channels and not (channels == 1 and self.in_channels == 3):
            raise ValueError(
                f"The backbone, a {self.trunk.config.model_type}, has num_channels = {self.in_channels}, but the "
                f"images have {channels}: use a backbone of {channels} or, for grey images, 3; or make them grey or "
                "coloured by image_channels."
            )

    def _prepare(self, image: Tensor) -> Tensor:
        """Images as the trunk takes them."""
        size = self.image_size
        if size is not None and image.shape[-2:] != (size, size):
            resized = F.interpolate(image.float(), (size, size), mode="bilinear", antialias=True)
            image = resized.to(image.dtype)
        if image.shape[1] == 1 and self.in_channels == 3:
            image = image.expand(-1, 3, -1, -1)
        if self.is_normalised:
            image = ((image + 1) / 2 - self.pixel_mean) / self.pixel_std
        return image

    @apply_forward_hook
    def predict(self, image: Tensor) -> Tensor:
        """Calibrated probabilities and means: shape (B, K), comparable column by column with ``graph.encode``."""
        return self.causal_graph.probabilities(self(image).logits)

    def calibrate(self, logits: Tensor, parents: Tensor) -> None:
        """Fit every variable's scale on held-out data and store it in the config.

        Args:
            logits: Outputs on validation images, made with the present scales, shape (N, K).
            parents: Encoded true attributes, shape (N, K), NaN where a value is missing.

        Raises:
            ValueError: If no image tells the value of a variable.
        """
        scales = {}
        for name, (predicted, labels) in self._known(logits, parents).items():
            if not len(labels):
                raise ValueError(f"'{name}' is missing in all {len(parents)} images, so there is no scale.")
            scales[name] = self._scale(name, predicted, labels)
        self.column_scales = self._columns(scales).to(self.column_scales)
        self.register_to_config(scales=scales)

    def calibrated_losses(self, logits: Tensor, parents: Tensor) -> dict[str, float]:
        """The losses on held-out data that :meth:`calibrate` would leave, which do not count over-confidence.

        Args:
            logits: Outputs on validation images, shape (N, K).
            parents: Encoded true attributes, shape (N, K), NaN where a value is missing.

        Returns:
            For each variable that is not missing in all images the mean negative log likelihood in nats, up to a
            constant: cross-entropy, or the log of the root mean squared error.
        """
        losses = {}
        for name, (predicted, labels) in self._known(logits, parents).items():
            if not len(labels):
                continue
            scale = self._scale(name, predicted, labels)
            if self.causal_graph[name].kind == "continuous":
                losses[name] = math.log(scale)
            else:
                losses[name] = _cross_entropy(predicted / scale, labels).mean().item()
        return losses

    def _known(self, logits: Tensor, parents: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """For each variable the outputs without scales, and the labels, of the images whose value is known."""
        raw = torch.where(self.is_continuous, logits, logits * self.column_scales)
        known = {}
        for name, columns in self.causal_graph.slices.items():
            rows = ~parents[:, columns].isnan().any(dim=1)
            known[name] = (raw[rows][:, columns], parents[rows][:, columns])
        return known

    def _scale(self, name: str, predicted: Tensor, labels: Tensor) -> float:
        if self.causal_graph[name].kind == "continuous":
            return (predicted - labels).square().mean().sqrt().clamp_min(1e-4).item()
        return _fit_temperature(predicted, labels)

    def store_sight(self, sight: Mapping[str, Sight]) -> None:
        """Store in the config how well each variable of the graph is seen; ValueError if others are named."""
        sees = {name: asdict(entry) for name, entry in sight.items()}
        self.sight = read_sight(self.causal_graph.names, sees)
        self.register_to_config(sees=sees)

    @property
    def seen(self) -> tuple[str, ...]:
        """The variables that it sees in images; those that were not measured count as seen."""
        return tuple(name for name in self.causal_graph.names if name not in self.sight or self.sight[name].is_seen)


def _read_statistics(mean: Any, std: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixels in [0, 1], shape (1, 1, 1) or (C, 1, 1); 0 and 1 if both are None."""
    if mean is None and std is None:
        mean, std = [0.0], [1.0]
    for name, values in (("image_mean", mean), ("image_std", std)):
        if (
            not isinstance(values, list | tuple)
            or len(values) not in (1, channels)
            or not all(is_finite(value) and (name == "image_mean" or value > 0) for value in values)
        ):
            above = " above 0" * (name == "image_std")
            raise ValueError(
                f"{name} must be a list of one finite number{above}, or of {channels}, one for each channel of the "
                f"backbone, and given together with the other of image_mean and image_std; got {shown(values)}."
            )
    return torch.tensor(mean).float().view(-1, 1, 1), torch.tensor(std).float().view(-1, 1, 1)


def _fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature that minimises cross-entropy: a convex problem in 1 / temperature."""
    logits, targets = logits.detach().double(), targets.double()
    inverse = torch.ones((), dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _cross_entropy(logits * inverse, targets).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # Below zero the classifier would do worse than chance, and no temperature would help.
    return 1 / inverse.detach().clamp(1e-2, 1e2).item()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary (one column) or categorical cross-entropy with probability targets, shape (B,)."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")[:, 0]
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


def attribute_losses(graph: CausalGraph, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Training loss of each variable: cross-entropy in nats, squared error in encoded units for continuous ones.

    Logits and targets (encoded labels) have the shape (B, K), the loss of each variable has the shape (B,).
    """
    predicted, labels = graph.split(logits), graph.split(targets)
    return {
        v.name: (predicted[v.name] - labels[v.name]).square()[:, 0]
        if v.kind == "continuous"
        else _cross_entropy(predicted[v.name], labels[v.name])
        for v in graph.variables
    }
