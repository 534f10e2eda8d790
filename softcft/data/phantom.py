"""A procedural chest X-ray whose every counterfactual is known.

Attributes (age, sex, race, disease = pleural effusion) and exogenous noise (anatomy, pose, expression, texture, pixels)
are explicit, so ``render(attributes, noise)`` gives an image and ``render(other_attributes, noise)`` its *true*
counterfactual. The causal graph is the paper's (Fig. A1): age -> disease; sex, race and disease otherwise
independent; all of them -> image.

Each attribute shows through a continuous *expression*: the class shifts the mean, the noise spreads around it, and the
classes overlap (a mild effusion looks like a healthy lung base). Without overlap a classifier would be perfect and
there would be no attribute amplification to see.

What an attribute looks like here is an arbitrary pattern. The variables have the paper's names, but the data set
supports no claim about people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, Features, Image
from datasets.packaged_modules.generator.generator import Generator
from torch import Tensor
from torch.nn import functional as F

from softcft.arguments import check_choice, check_whole
from softcft.data.columns import graph_features
from softcft.data.config import SPLITS
from softcft.data.integrity import read_cache
from softcft.data.pixels import encode_pixels
from softcft.data.schema import to_eight_bits
from softcft.graph import CausalGraph, Variable

__all__ = [
    "PHANTOM_GRAPH",
    "PhantomNoise",
    "disease_mechanism",
    "draw_block",
    "expression",
    "load_phantom",
    "render",
    "sample_attributes",
    "sample_noise",
]

PHANTOM_GRAPH = CausalGraph(
    [
        Variable(name="age", kind="continuous", low=18, high=92, unit="years"),
        Variable(name="sex", kind="binary", categories=("male", "female")),
        Variable(name="race", kind="categorical", categories=("White", "Asian", "Black")),
        Variable(name="disease", kind="binary", categories=("no finding", "pleural effusion"), parents=("age",)),
    ]
)
"""The paper's causal graph for MIMIC-CXR (Fig. A1)."""

RACE_PROBABILITIES = (0.55, 0.18, 0.27)
# Distance between class means in standard deviations of the expression: sets how far classes overlap, and with it the
# AUC of a good classifier (about race 94, sex 99.6, disease 94 %, the first row of the paper's Table 1).
SEX_SEPARATION = 3.9
RACE_SEPARATION = 2.5
DISEASE_SEPARATION = 2.25
AGE_SPREAD = 0.35
VERSION = 2  # of the images: raise it with any change of them, so that cached data sets are made anew
BLOCK = 256  # images drawn from one seed
CHUNK = 64  # images rendered at once; one float32 map of a chunk at 64x64 is 1 MiB and stays in the cache


@dataclass
class PhantomNoise:
    """Exogenous noise of a batch of images. Everything is standard normal, but for ``disease``.

    Attributes:
        disease: Noise of the mechanism age -> disease, logistic, shape (B,).
        anatomy: Body, lungs, heart, diaphragm, ribs, shape (B, 8).
        pose: Shift, lean, zoom, exposure, shape (B, 5).
        expression: How strongly age, sex, race (two numbers) and disease show, given their values, shape (B, 5).
        texture: Coarse random fields of soft tissue and vessels, shape (B, 2, 24, 24).
        pixels: Detector noise, shape (B, R, R); its size is the resolution of the image.
    """

    disease: Tensor
    anatomy: Tensor
    pose: Tensor
    expression: Tensor
    texture: Tensor
    pixels: Tensor

    def __getitem__(self, index: slice | Tensor) -> PhantomNoise:
        """The noise of some of the images."""
        return PhantomNoise(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.disease)


def sample_noise(n: int, resolution: int, generator: torch.Generator | None = None) -> PhantomNoise:
    """Draw the exogenous noise of ``n`` images of ``resolution`` x ``resolution`` pixels, at least 16."""
    check_whole("resolution", resolution, least=16)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator)

    uniform = torch.rand(n, generator=generator).clamp(1e-6, 1 - 1e-6)
    return PhantomNoise(
        disease=torch.logit(uniform),
        anatomy=normal(8),
        pose=normal(5),
        expression=normal(5),
        texture=normal(2, 24, 24),
        pixels=normal(resolution, resolution),
    )


def disease_mechanism(age: Tensor, noise: Tensor) -> Tensor:
    """The structural equation of disease: encoded age (B,) in [-1, 1] and logistic noise (B,) to 0 or 1, (B,)."""
    return (-0.9 + 2.0 * age + noise > 0).float()


def sample_attributes(noise: PhantomNoise, generator: torch.Generator | None = None) -> Tensor:
    """Draw encoded attributes, shape (B, K) in the order of :data:`PHANTOM_GRAPH`, by the structural equations."""
    n = len(noise)
    age = torch.tanh(0.55 * torch.randn(n, generator=generator) + 0.25)
    sex = torch.randint(0, 2, (n,), generator=generator).float()
    race = torch.multinomial(torch.tensor(RACE_PROBABILITIES), n, replacement=True, generator=generator)
    disease = disease_mechanism(age, noise.disease)
    return torch.cat([age[:, None], sex[:, None], F.one_hot(race, 3).float(), disease[:, None]], dim=1)


def expression(attributes: Tensor, noise: PhantomNoise) -> Tensor:
    """How strongly age, sex, race (two numbers) and disease show, shape (B, 5), each about in [-4, 4].

    Monotone in the noise given the encoded attributes (B, K).
    """
    age, sex, race, disease = attributes[:, 0], attributes[:, 1], attributes[:, 2:5], attributes[:, 5]
    # The three races sit at the corners of a triangle whose sides are RACE_SEPARATION long.
    corners = RACE_SEPARATION * torch.tensor([[0.0, 0.577], [-0.5, -0.289], [0.5, -0.289]])
    mean = torch.cat(
        [
            (age / AGE_SPREAD)[:, None],
            SEX_SEPARATION * (sex - 0.5)[:, None],
            race @ corners,
            DISEASE_SEPARATION * (disease - 0.5)[:, None],
        ],
        dim=1,
    )
    return mean + noise.expression


def render(attributes: Tensor, noise: PhantomNoise) -> Tensor:
    """Render chest X-rays.

    Args:
        attributes: Encoded attributes, shape (B, K) in the order of :data:`PHANTOM_GRAPH`.
        noise: Exogenous noise; ``noise.pixels`` sets the resolution R.

    Returns:
        Images of shape (B, 1, R, R) in [-1, 1], bright where X-rays are stopped.

    Raises:
        ValueError: If attributes and noise disagree in number or the attributes have the wrong width.
    """
    if attributes.shape != (len(noise), PHANTOM_GRAPH.width):
        raise ValueError(
            f"attributes must have shape ({len(noise)}, {PHANTOM_GRAPH.width}), got {tuple(attributes.shape)}."
        )
    chunks = [slice(start, start + CHUNK) for start in range(0, len(noise), CHUNK)]
    return torch.cat([_render_chunk(attributes[chunk], noise[chunk]) for chunk in chunks])


def _edge(distance: Tensor, width: float) -> Tensor:
    """A soft step: 0 far outside (distance < 0), 1 far inside, ``width`` wide."""
    return torch.sigmoid(distance / width)


def _render_chunk(attributes: Tensor, noise: PhantomNoise) -> Tensor:
    """Beer-Lambert: each tissue adds its attenuation; the detector sees the exponential of the sum.

    Lengths are in units of half the image. Left and right mirror each other wherever only ``|x|`` enters.
    """
    size = noise.pixels.shape[-1]
    age, sex, race_a, race_b, disease = (e[:, None, None] for e in expression(attributes, noise).unbind(1))
    girth, height, heart_size, heart_tilt, dome, rib_phase, rib_pitch, density = (
        a[:, None, None] for a in noise.anatomy.unbind(1)
    )
    shift_x, shift_y, lean, zoom, exposure = (p[:, None, None] for p in noise.pose.unbind(1))

    # Pose: y depends on the row only, so that whatever depends on y alone costs one column and not one map.
    ticks = (torch.arange(size) + 0.5) / size * 2 - 1
    scale = 1 + 0.03 * zoom
    y = (ticks[None, :, None] - 0.03 * shift_y) / scale
    x = (ticks[None, None, :] - 0.03 * shift_x - 0.02 * lean * y) / scale
    ax = x.abs()

    fields_ = F.interpolate(noise.texture, size=(size, size), mode="bilinear", align_corners=False)
    tissue, vessels = fields_[:, 0], fields_[:, 1]

    # Body and lungs.
    half_width = (0.86 + 0.03 * girth) * (0.32 + 0.68 * _edge(y + 0.80, 0.06))
    depth = (1 - (ax / half_width).square()).clamp_min(0).sqrt()
    apex = -0.74 + 0.03 * height
    outer = (0.68 + 0.025 * girth) * (1 - ((0.75 - y) / (0.75 - apex)).clamp(0, 1).pow(2.6)).clamp_min(1e-4).sqrt()
    inner = 0.13 + 0.05 * (y - 0.1).clamp_min(0)
    dome_height = 0.48 + 0.03 * dome - 0.05 * _edge(-x, 0.08) + 1.3 * (ax - 0.34).square()
    cavity = _edge(outer - ax, 0.022) * _edge(ax - inner, 0.03)
    lung = cavity * _edge(dome_height - y, 0.022)

    # Pleural effusion: fluid stands on the diaphragm of the right lung, at the left in the image, and climbs the outer
    # wall (meniscus).
    amount = 0.20 * F.softplus(1.6 * (disease + 0.35)) / 1.6
    surface = 0.60 - amount * (0.65 + 1.6 * (ax - 0.22).clamp_min(0).square() / 0.2)
    fluid = cavity * _edge(y - surface, 0.03) * _edge(-x, 0.02) * _edge(0.95 - y, 0.05)
    air = lung * (1 - 0.92 * fluid)

    # Mediastinum, heart, great vessels; the aortic knob and the heart grow with age.
    heart = ((x - 0.13 - 0.02 * heart_tilt) / (0.29 + 0.02 * heart_size + 0.014 * age)).square()
    heart = _edge(1 - heart - ((y - 0.26) / 0.27).square(), 0.16)
    knob = _edge(1 - ((x - 0.15) / (0.085 + 0.02 * age)).square() - ((y + 0.30) / 0.11).square(), 0.25)
    spine = torch.exp(-(x / 0.085).square()) * (1 + 0.18 * torch.cos(28 * y + rib_phase))

    # Ribs run down and outwards behind (posterior) and steeply inwards in front (anterior); clavicles above.
    pitch = 25 + 0.8 * rib_pitch
    posterior = _edge(torch.cos(pitch * (y - 0.30 * ax + 0.35 * ax.square()) + rib_phase) - 0.45, 0.15)
    thorax = _edge(outer + 0.05 - ax, 0.02) * _edge(0.62 - y, 0.06)
    clavicle = torch.exp(-((y + 0.60 + 0.03 * height + 0.16 * (ax - 0.15)) / 0.035).square())
    bones = (0.20 * posterior * thorax + 0.28 * clavicle * _edge(0.72 - ax, 0.03)) * (1 + 0.08 * density - 0.04 * age)

    # Breast tissue: a disc with a sharp lower edge over each lower lung.
    disc = (1 - ((ax - 0.40) / 0.30).square() - ((y - 0.22) / 0.30).square()).clamp_min(0)
    breast = 0.22 * F.softplus(1.3 * (sex + 0.8)) / 1.3 * disc * (1 - 0.5 * disc)

    # Race: an arbitrary pattern of two soft shadows, one along the outer chest wall, one over the upper outer lung.
    wall = torch.exp(-((ax - outer - 0.03) / 0.07).square()) * _edge(y + 0.45, 0.1) * _edge(0.75 - y, 0.1)
    scapula = torch.exp(-((ax - 0.50) / 0.13).square() - ((y + 0.28) / 0.20).square())
    pattern = 0.105 * (race_a + 2.2) * wall + 0.075 * (race_b + 2.4) * scapula

    soft = depth * (0.95 + 0.05 * tissue + 0.35 * _edge(y - dome_height, 0.05))
    markings = 0.10 * vessels.abs() * torch.exp(-(ax - 0.2) / 0.3).clamp_max(1.2)
    attenuation = (
        soft * (1 - 0.80 * air)
        + air * markings
        + 0.50 * heart * depth
        + 0.26 * knob
        + 0.40 * spine * depth
        + bones * depth
        + breast
        + pattern * depth
        + 0.30 * fluid
    )
    transmitted = torch.exp(-(1.05 + 0.05 * exposure) * attenuation)
    image = 1.12 - 2 * transmitted + 0.035 * noise.pixels
    return image.clamp(-1, 1)[:, None]


def draw_block(split: str, block: int, resolution: int, seed: int) -> tuple[Tensor, PhantomNoise]:
    """Attributes and noise of images ``256 * block`` to ``256 * block + 255`` of a split of :func:`load_phantom`.

    ``render(counterfactual_attributes, noise)`` then gives their true counterfactuals.

    Returns:
        Encoded attributes of shape (256, K) and the noise of the 256 images.

    Raises:
        ValueError: If there is no such split, or the resolution is below 16.
    """
    check_choice("split", split, SPLITS)
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), block]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0] >> np.uint64(1)))
    noise = sample_noise(BLOCK, resolution, generator)
    return sample_attributes(noise, generator), noise


def _rows(split: str, n: int, resolution: int, seed: int, version: int) -> Iterator[dict[str, Any]]:
    del version  # only there to be part of the cache's key
    for block in range(-(-n // BLOCK)):
        attributes, noise = draw_block(split, block, resolution, seed)
        values = PHANTOM_GRAPH.decode(attributes)
        images = to_eight_bits(render(attributes, noise)[:, 0]).numpy()
        for i in range(min(BLOCK, n - block * BLOCK)):
            yield {"image": encode_pixels(images[i]), **{name: values[name][i] for name in PHANTOM_GRAPH.names}}


def load_phantom(
    resolution: int = 64,
    num_train: int = 20_000,
    num_validation: int = 2_000,
    num_test: int = 10_000,
    seed: int = 0,
    cache_dir: str | None = None,
) -> DatasetDict:
    """Make the phantom data set, or read it from the cache if it was made before.

    Args:
        resolution: Image size in pixels, at least 16.
        num_train: Number of training images.
        num_validation: Number of validation images.
        num_test: Number of test images.
        seed: The same seed gives the same images; the first n images of a split do not depend on its size.
        cache_dir: Where the images are kept; the datasets cache if left out.

    Returns:
        Splits ``train``, ``validation``, ``test`` with columns ``image`` (grey, 8 bit), ``age`` (years), ``sex``,
        ``race``, ``disease`` (category names).

    Raises:
        ValueError: If an argument is out of range.
    """
    check_whole("resolution", resolution, least=16)
    numbers = dict(zip(SPLITS, (num_train, num_validation, num_test), strict=True))
    for split, n in numbers.items():
        check_whole(f"num_{split}", n)
    features = Features({"image": Image(), **graph_features(PHANTOM_GRAPH)})
    result = DatasetDict()
    for split, n in numbers.items():
        made_with = {"split": split, "n": n, "resolution": resolution, "seed": seed, "version": VERSION}
        builder = Generator(generator=_rows, features=features, cache_dir=cache_dir, gen_kwargs=made_with)
        result[split] = read_cache(builder)["train"]
    return result
