"""The pipelines and the example pictures of the app."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from softcft.arguments import is_hub_name
from softcft.data.paths import check_files
from softcft.data.pictures import COLOURS, fit_file, open_file, read_picture, why_unread
from softcft.example import example_model
from softcft.graph import CausalGraph
from softcft.models.sight import not_seen
from softcft.models.weights import load_safetensors
from softcft.pipelines.diffusion_dscm import DiffusionDSCMPipeline
from softcft.pipelines.images import to_tensor
from softcft.pipelines.masks import to_mask
from softcft.pipelines.query import ImageFormat, Values
from softcft.pipelines.result import DSCMPipelineOutput

__all__ = [
    "Example",
    "Model",
    "fit_mask",
    "fit_upload",
    "is_example",
    "load_models",
    "propose",
    "read_examples",
    "steps_choices",
    "warn_of_unseen",
]

MOST_EXAMPLES = 24  # what a page can show
PICTURES = ("metadata.csv", "*.png", "*.jpg", "*.jpeg")
STEPS = (5, 10, 20, 25, 50, 100, 200)  # of a diffusion model, for people to choose from
USUAL_STEPS = 50


class Model(NamedTuple):
    """A pipeline and its name on the page.

    Attributes:
        name: Short and not that of another model.
        source: The folder or Hub id that it was loaded from.
        pipeline: Of any of softcft's classes.
    """

    name: str
    source: str
    pipeline: Any

    @property
    def graph(self) -> CausalGraph:
        """The pipeline's causal graph."""
        return self.pipeline.causal_graph

    @property
    def image_format(self) -> ImageFormat:
        """What images the pipeline takes."""
        return self.pipeline.image_format

    @property
    def is_diffusion(self) -> bool:
        """Whether it works in steps."""
        return isinstance(self.pipeline, DiffusionDSCMPipeline)

    def ask(
        self, picture: np.ndarray, parents: Values, do: Values, steps: int | None, mask: np.ndarray | None = None
    ) -> DSCMPipelineOutput:
        """Counterfactuals of one picture; see :meth:`softcft.DSCMPipeline.__call__`.

        ``steps`` are those of a diffusion model; None is its default.
        """
        settings: dict[str, Any] = {"num_inference_steps": steps} if self.is_diffusion and steps else {}
        output: DSCMPipelineOutput = self.pipeline(picture, parents, do, output_type="np", mask=mask, **settings)
        return output


class Example(NamedTuple):
    """A picture of the model's size, uint8 of shape (H, W) or (H, W, 3), and what is known of its attributes."""

    picture: np.ndarray
    parents: dict[str, Any]


def load_models(sources: Sequence[str]) -> list[Model]:
    """Load pipelines, each of whichever class.

    Args:
        sources: Folders or Hub ids; if there are none, that of the example model.

    Raises:
        ValueError: If one is named twice, is no pipeline of softcft, has pickled weights or more channels than people
            can look at, or if graphs or image formats differ.
        OSError: If one is not there.
    """
    sources = list(sources) or [str(example_model())]
    twice = sorted({source for source in sources if sources.count(source) > 1})
    if twice:
        raise ValueError(f"MODEL {twice[0]} is given twice; give each once.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = []
    for name, source in zip(_short_names(sources), sources, strict=True):
        if not os.path.isdir(source) and not is_hub_name(source):
            raise ValueError(f"MODEL {source} is no folder, and no name of the Hub, which looks like owner/model.")
        pipeline = load_safetensors(DiffusionPipeline, source)
        if not hasattr(pipeline, "causal_graph"):
            raise ValueError(f"MODEL {source} is a {type(pipeline).__name__}, and no pipeline of softcft.")
        pipeline.set_progress_bar_config(disable=True)
        models.append(Model(name, source, pipeline.to(device)))
    first = models[0]
    if first.image_format.channels not in COLOURS:
        raise ValueError(f"MODEL {first.source} has {first.image_format.channels} channels; the app shows 1 or 3.")
    for model in models[1:]:
        if model.graph != first.graph:
            raise ValueError(f"MODEL {model.source} has another graph than {first.source}; compare those of one graph.")
        if model.image_format != first.image_format:
            raise ValueError(f"MODEL {model.source} takes other images than {first.source}; compare those of one size.")
    return models


def _short_names(sources: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    parts = [Path(source).resolve().parts if os.path.isdir(source) else Path(source).parts for source in sources]
    for length in range(1, max(len(part) for part in parts)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def is_example(model: Model) -> bool:
    """Whether it is the model that comes with softcft."""
    return os.path.realpath(model.source) == os.path.realpath(example_model())


def read_examples(model: Model) -> list[Example]:
    """The folder ``examples`` of a pipeline: pictures, and ``metadata.csv`` with their attributes in natural units.

    Columns are named as the variables; a cell may be empty, and a column missing.

    Returns:
        The first 24 examples; none if there is no such folder.

    Raises:
        ValueError: If a row has no picture that can be read, one that is elsewhere, or a value that the graph has not.
    """
    folder = Path(model.source)
    if not folder.is_dir():
        allowed = [f"examples/{pattern}" for pattern in PICTURES]
        folder = Path(snapshot_download(model.source, allow_patterns=allowed))
    table = folder / "examples" / "metadata.csv"
    if not table.is_file():
        return []
    check_files(str(folder), [str(table)])  # it may name nothing outside of its folder
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(MOST_EXAMPLES), strict=False)]
    examples = []
    for number, row in enumerate(rows, start=2):
        try:
            picture, _ = fit_upload((table.parent / (row.get("file_name") or "")).read_bytes(), model.image_format)
            examples.append(Example(picture, _known(model.graph, row)))
        except (ValueError, OSError) as error:
            raise ValueError(f"examples/metadata.csv, line {number}: {error}") from error
    return examples


def _known(graph: CausalGraph, row: Mapping[str, str]) -> dict[str, Any]:
    parents: dict[str, Any] = {}
    for variable in graph.variables:
        text = row.get(variable.name)
        if text:
            parents[variable.name] = float(text) if variable.kind == "continuous" else text
            variable.encode(parents[variable.name])  # refuses what it has not
    return parents


def fit_upload(content: bytes, image_format: ImageFormat) -> tuple[np.ndarray, str]:
    """Fit a picture file to the model, see :func:`~softcft.data.pictures.fit_file`.

    Raises:
        ValueError: If it cannot be read.
    """
    channels, size = image_format
    try:
        return fit_file(content, channels, size)
    except Exception as error:  # of many kinds, which Pillow does not list
        raise ValueError(f"The picture cannot be used: {why_unread(error)}.") from error


def fit_mask(content: bytes, upload: bytes | None, size: int) -> np.ndarray:
    """Fit a mask's file to the model as the picture was that it lies on, see :func:`~softcft.pipelines.masks.to_mask`.

    Args:
        content: The file of a mask, of the size of the upload or that of the model.
        upload: The picture's file; None for an example.
        size: Height and width in pixels that the model takes.

    Returns:
        Float32 in [0, 1] of shape (H, W).

    Raises:
        ValueError: If it cannot be read, or is no mask of that picture.
    """
    try:
        mask = open_file(content)
    except Exception as error:  # of many kinds, which Pillow does not list
        raise ValueError(f"The mask cannot be used: {why_unread(error)}.") from error
    fits = upload is None or mask.size == (size, size)
    image = np.zeros((size, size)) if fits or upload is None else read_picture(upload)
    return to_mask(mask, image, size, True, 1)[0, 0].numpy()


def propose(models: Sequence[Model], picture: np.ndarray) -> dict[str, Any]:
    """The predictions of the first model's classifier, categories or means; ValueError if no model has one."""
    for model in models:
        classifier = model.pipeline.classifier
        if classifier is not None:
            channels, size = model.image_format
            image = to_tensor(picture, channels, size).to(classifier.device, classifier.dtype)
            with torch.no_grad():
                seen = classifier.predict(image).float().cpu().clamp(-1, 1)
            return {name: value for name, (value,) in model.graph.decode(seen).items()}
    raise ValueError("No model has a classifier; set the attributes by hand.")


def warn_of_unseen(models: Sequence[Model], name: str) -> str | None:
    """A warning if classifiers of the models do not see a variable, else None."""
    warnings: dict[str, list[str]] = {}
    for model in models:
        classifier = model.pipeline.classifier
        sentence = None if classifier is None else not_seen(classifier.sight).get(name)
        if sentence is not None:
            warnings.setdefault(sentence, []).append(model.name)
    of_all = [len(names) == len(models) for names in warnings.values()] == [True]
    return " ".join(warnings if of_all else [f"{', '.join(names)}: {what}" for what, names in warnings.items()]) or None


def steps_choices(models: Sequence[Model]) -> tuple[list[int], int] | None:
    """The numbers of steps that all diffusion models can take, and the default; None if there are no such models."""
    trained = [model.pipeline.scheduler.config["num_train_timesteps"] for model in models if model.is_diffusion]
    if not trained:
        return None
    common = math.gcd(*trained)
    choices = [steps for steps in STEPS if common % steps == 0] or [common]
    return choices, max([steps for steps in choices if steps <= USUAL_STEPS], default=choices[0])
