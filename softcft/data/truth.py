"""True counterfactual images: what an image of the test set would be, by the equations that made it.

A counterfactual keeps an image's exogenous noise, sets one variable, and lets its descendants follow. Noise and
equations are known for all variables of the phantom, and for thickness and intensity of Morpho-MNIST, where the
original digit is the image's noise. Nothing learned is used: under do(age) the phantom's disease follows from the
patient's own noise. Under a null intervention the truth is the image of the data set, bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from softcft.data.config import DataConfig
from softcft.data.morpho_transform import measure_thickness, redraw_digit, stroke_mask
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, PADDING, find_files, read_files, read_idx
from softcft.data.phantom import (
    BLOCK,
    CHUNK,
    PHANTOM_GRAPH,
    PhantomNoise,
    disease_mechanism,
    draw_block,
    expression,
    render,
)
from softcft.data.schema import scale_pixels, to_eight_bits
from softcft.data.sources import GRAPHS
from softcft.graph import CausalGraph, Variable

__all__ = ["MorphoMNISTTruth", "PhantomTruth", "TrueCounterfactuals", "true_counterfactuals"]

logger = logging.getLogger(__name__)

ROUNDING = 1e-6  # an encoded value nearer than this to the image's own counts as its own, rounded in the table
DRAWN_BLOCKS = 4  # that are kept: enough for a batch of 769 images under one intervention after the other


class TrueCounterfactuals(Protocol):
    """True counterfactuals of the images of one split.

    Attributes:
        graph: The data set's own graph, by which parents are encoded.
        interventions: The variables for which the truth is known.
    """

    graph: CausalGraph
    interventions: tuple[str, ...]

    def counterfactual(self, rows: Sequence[int], name: str, counterfactual_parents: Tensor) -> tuple[Tensor, Tensor]:
        """What the images of some rows would be under an intervention on one variable.

        Args:
            rows: Which B images of the split.
            name: The variable.
            counterfactual_parents: Encoded, shape (B, K). Only the columns of ``name`` are read, its new values.

        Returns:
            Images of shape (B, C, H, W) in [-1, 1], of 8 bits as those of the data set, and their encoded attributes
            (B, K), both on the device of ``counterfactual_parents``. Descendants of ``name`` have their true values;
            continuous ones may lie outside [-1, 1]. All other attributes are the factual ones.

        Raises:
            ValueError: If the truth is not known for ``name``, a row is not in the split, or the shape of
                ``counterfactual_parents`` is wrong.
        """
        ...


class PhantomTruth:
    """True counterfactuals of the phantom: the same noise, rendered with other attributes.

    Arguments and errors are those of :func:`~softcft.data.phantom.draw_block`.

    Attributes:
        expression_columns: For each variable its columns in what :meth:`expression` returns.
    """

    graph = PHANTOM_GRAPH
    interventions: tuple[str, ...] = PHANTOM_GRAPH.names
    expression_columns: ClassVar[Mapping[str, slice]] = {
        "age": slice(0, 1),
        "sex": slice(1, 2),
        "race": slice(2, 4),
        "disease": slice(4, 5),
    }

    def __init__(self, split: str, resolution: int, seed: int) -> None:
        self._resolution = resolution
        self._block = lru_cache(DRAWN_BLOCKS)(lambda block: draw_block(split, block, resolution, seed))
        self._block(0)  # bad arguments raise now

    def counterfactual(self, rows: Sequence[int], name: str, counterfactual_parents: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TrueCounterfactuals.counterfactual`. C is 1; H and W are the resolution."""
        index = torch.tensor(_check(self, rows, name, counterfactual_parents))
        values = counterfactual_parents[:, self.graph.slices[name]].cpu()
        image = torch.empty(len(index), 1, self._resolution, self._resolution)
        parents = torch.empty(len(index), self.graph.width)
        for here, places, attributes, noise in self._draw(index):
            parents[here] = _act(attributes[places], noise.disease[places], name, values[here])
            # In whole chunks, as the data set is rendered: else rounding differs by an ulp, at times by a grey level.
            padded = torch.arange(len(here) + -len(here) % CHUNK) % len(here)
            image[here] = render(parents[here[padded]], noise[places[padded]])[: len(here)]
        device = counterfactual_parents.device
        return scale_pixels(to_eight_bits(image)).to(device), parents.to(device)

    def expression(self, rows: Sequence[int], parents: Tensor) -> Tensor:
        """How strongly attributes show in B images, see :func:`softcft.data.phantom.expression`, shape (B, 5).

        Args:
            rows: Which images of the split.
            parents: Their encoded attributes, factual or counterfactual, shape (B, K).

        Raises:
            ValueError: If a row is not in the split, or the shape of ``parents`` is wrong.
        """
        index = torch.tensor(_check(self, rows, self.interventions[0], parents))
        result = torch.empty(len(index), 5)
        for here, places, _, noise in self._draw(index):
            result[here] = expression(parents.cpu()[here], noise[places])
        return result.to(parents.device)

    def _draw(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, PhantomNoise]]:
        """For each block of rows their positions in ``index``, their places in the block, its attributes and noise."""
        blocks = index // BLOCK
        for block in blocks.unique().tolist():
            here = (blocks == block).nonzero()[:, 0]
            yield here, index[here] % BLOCK, *self._block(block)


def _act(attributes: Tensor, disease_noise: Tensor, name: str, values: Tensor) -> Tensor:
    """The phantom's attributes (B, K) after an intervention with the values (B, width)."""
    own = attributes[:, PHANTOM_GRAPH.slices[name]]
    is_own = ((values - own).abs() < ROUNDING).all(dim=1, keepdim=True)
    result = attributes.clone()
    result[:, PHANTOM_GRAPH.slices[name]] = torch.where(is_own, own, values)
    if "disease" in PHANTOM_GRAPH.descendants(name):
        age = result[:, PHANTOM_GRAPH.slices["age"]][:, 0]
        result[:, PHANTOM_GRAPH.slices["disease"]] = disease_mechanism(age, disease_noise)[:, None]
    return result


class MorphoMNISTTruth:
    """True counterfactuals of the test images of Morpho-MNIST: the same digit of MNIST, drawn in another way.

    The structural equation of intensity is ``64 + 191 sigmoid(0.5 e + 2 thickness - 5)`` with the image's own ``e``. A
    thickness is measured once for each image, in about 30 ms; a counterfactual then takes about 15 ms.

    Args:
        mnist_dir: Folder with the original ``t10k-images-idx3-ubyte`` of MNIST, with or without ``.gz``.
        data_dir: See :func:`~softcft.data.morphomnist.load_morphomnist`.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
        ValueError: If a file is damaged, or the first image of Morpho-MNIST is not the first digit of MNIST redrawn.
        ImportError: If scikit-image is missing.
    """

    graph = MORPHOMNIST_GRAPH
    interventions: tuple[str, ...] = ("thickness", "intensity")

    def __init__(self, mnist_dir: str | Path, data_dir: str | Path) -> None:
        choices = [Path(mnist_dir, f"t10k-images-idx3-ubyte{suffix}") for suffix in (".gz", "")]
        path = next((choice for choice in choices if choice.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"mnist_dir {mnist_dir} has no t10k-images-idx3-ubyte (or .gz); give the folder of the original MNIST."
            )
        images, columns = read_files(*find_files(Path(data_dir), "t10k"))
        digits = read_idx(path, 3)
        self._digits = digits
        self._thickness, self._intensity = np.array(columns["thickness"]), np.array(columns["intensity"])
        self._parents = self.graph.encode(columns)
        self._measured = cache(lambda row: measure_thickness(stroke_mask(digits[row])))
        redrawn = self._redraw(0, self._thickness[0], self._intensity[0])
        if digits.shape != images.shape or not np.array_equal(redrawn, images[0]):
            raise ValueError(
                f"{path} must hold the digits that {data_dir} was made from, but its first digit, redrawn, is not the "
                "first image there; give the folder of the original MNIST, its test images in their own order."
            )

    def counterfactual(self, rows: Sequence[int], name: str, counterfactual_parents: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`TrueCounterfactuals.counterfactual`. C is 1; H and W are 32."""
        rows = _check(self, rows, name, counterfactual_parents, len(self._digits))
        parents = self._parents[rows]
        drawn = {"thickness": self._thickness[rows], "intensity": self._intensity[rows]}
        columns = self.graph.slices[name]
        values = counterfactual_parents[:, columns].cpu()
        moved = (values - parents[:, columns]).abs().ge(ROUNDING)[:, 0].numpy()
        old_thickness = drawn["thickness"]
        parents[moved, columns] = values[moved]
        drawn[name] = np.where(moved, self.graph[name].decode(values), drawn[name])
        if name == "thickness":
            noise = logit((drawn["intensity"] - 64) / 191) - 2 * old_thickness  # 0.5 e - 5
            intensity = 64 + 191 * expit(noise + 2 * drawn["thickness"])
            drawn["intensity"] = np.where(moved, intensity, drawn["intensity"])
            parents[moved, self.graph.slices["intensity"]] = _encode(self.graph["intensity"], intensity[moved])
        pixels = np.stack([self._redraw(row, *pair) for row, *pair in zip(rows, *drawn.values(), strict=True)])
        pixels = np.pad(pixels, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))[:, None]
        device = counterfactual_parents.device
        return scale_pixels(torch.from_numpy(pixels)).to(device), parents.to(device)

    def _redraw(self, row: int, thickness: float, intensity: float) -> np.ndarray:
        return redraw_digit(self._digits[row], thickness, intensity, self._measured(row))


def _encode(variable: Variable, values: np.ndarray) -> Tensor:
    """Encode numbers that may lie outside the variable's range, which is that of the factual images."""
    low, high = variable.bounds
    encoded = 2 * (values - low) / (high - low) - 1
    return torch.from_numpy(encoded).float()[:, None]


def true_counterfactuals(
    data: DataConfig, graph: CausalGraph, split: str = "test", mnist_dir: str | Path | None = None
) -> TrueCounterfactuals | None:
    """The true counterfactuals of a data set as :func:`~softcft.data.sources.load_data` gives it, if they are known.

    Args:
        data: Which data set.
        graph: The run's graph. Its parents are ignored: the data have their own equations.
        split: Which of its splits; of Morpho-MNIST only ``"test"`` is known.
        mnist_dir: Folder of the original MNIST, without which there is no truth for Morpho-MNIST.

    Returns:
        None if the truth is not known, or, with a warning, if ``graph`` encodes other variables than the data set's
        own graph, or in another order.

    Raises:
        FileNotFoundError, ValueError, ImportError: As :class:`PhantomTruth` and :class:`MorphoMNISTTruth`.
    """
    made_with = GRAPHS.get(data.dataset_name)
    if made_with is None or (data.dataset_name == "morphomnist" and (split != "test" or mnist_dir is None)):
        return None
    if _encoding(graph) != _encoding(made_with) or data.image_channels == 3:
        logger.warning(
            "No true counterfactuals of %s: the data were made with the variables %s and are grey, the run has %s and "
            "image_channels=%s. Names, order, categories and ranges must be the same.",
            data.dataset_name,
            list(made_with.names),
            list(graph.names),
            data.image_channels,
        )
        return None
    if data.dataset_name == "phantom":
        return PhantomTruth(split, data.sample_size, data.data_seed)
    return MorphoMNISTTruth(str(mnist_dir), str(data.data_dir))


def _encoding(graph: CausalGraph) -> list[tuple[object, ...]]:
    """All that decides what encoded attributes mean."""
    return [(v.name, v.kind, v.categories, v.low, v.high, v.log) for v in graph.variables]


def _check(
    truth: TrueCounterfactuals, rows: Sequence[int], name: str, parents: Tensor, number: int | None = None
) -> list[int]:
    """The rows as plain numbers; raises if an argument is wrong. ``number`` is the size of the split, if it has one."""
    if name not in truth.interventions:
        raise ValueError(f"The true counterfactual of {name!r} is not known; name one of {list(truth.interventions)}.")
    plain = [int(row) for row in rows]
    if min(plain, default=-1) < 0 or max(plain) >= (number or max(plain) + 1):
        end = f" to {number - 1}" if number else ""
        raise ValueError(f"rows must name images of the split from 0{end}, got {plain}.")
    if parents.shape != (len(plain), truth.graph.width):
        raise ValueError(
            f"parents must have shape ({len(plain)}, {truth.graph.width}), one row for each of rows, got "
            f"{tuple(parents.shape)}."
        )
    return plain
