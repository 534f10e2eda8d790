"""The model card, after the template ``card.md``. What comes from users, such as names of variables, is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from softcft.arguments import is_hub_name
from softcft.cft.verdict import read_sentence
from softcft.escaping import as_markdown, as_mermaid
from softcft.graph import CausalGraph
from softcft.models.sight import not_seen, read_sight
from softcft.variable import Variable

__all__ = ["CardTable", "has_people", "make_card"]

TEMPLATE = Path(__file__).with_name("card.md")
INDEX = "model_index.json"
CONFIGS = ("config.json", "scheduler_config.json")


@dataclass(frozen=True)
class CardTable:
    """A table of results.

    Attributes:
        title: Heading.
        caption: What the numbers are, with their units.
        rows: Text, the names of the columns first.
    """

    title: str
    caption: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class _Source:
    """A data set that softcft knows: its description, and its licence as the Hub names it."""

    title: str
    description: str
    license: Mapping[str, Any]
    has_people: bool = False


SOURCES = {
    "phantom": _Source(
        "the phantom of softcft",
        "Procedural chest X-rays, drawn by code of softcft (Apache-2.0). Nobody's picture is in it. Its variables have "
        "the names of a paper's, but what race or sex looks like in it is an arbitrary pattern: it supports no claim "
        "about people.",
        {"license": "apache-2.0"},
    ),
    "morphomnist": _Source(
        "Morpho-MNIST",
        "Handwritten digits, redrawn at a sampled thickness and intensity (Pawlowski et al., 2020, after Castro et al. "
        "of 2019), of MNIST, which is under CC BY-SA 3.0.",
        {"license": "cc-by-sa-3.0"},
    ),
    "mimic_cxr": _Source(
        "MIMIC-CXR",
        "Chest X-rays of patients with their attributes, under the PhysioNet Credentialed Health Data License: they, "
        "and what gives them away, may be shared with credentialed users only.",
        {
            "license": "other",
            "license_name": "physionet-credentialed-health-data-license",
            "license_link": "https://physionet.org/content/mimic-cxr-jpg/",
        },
        has_people=True,
    ),
    "nih": _Source(
        "NIH ChestX-ray14",
        "Chest X-rays of patients with their attributes, provided by the NIH Clinical Center: "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC (Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database "
        "and Benchmarks, CVPR 2017). Their use is not restricted, with this link, this citation and this "
        "acknowledgement, which whoever shares the model has to keep.",
        {
            "license": "other",
            "license_name": "nih-clinical-center-unrestricted-with-acknowledgement",
            "license_link": "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        },
        has_people=True,
    ),
    "chexpert": _Source(
        "CheXpert",
        "Chest X-rays of patients of Stanford Hospital with their attributes (Irvin et al., AAAI 2019), under the "
        "Stanford University Dataset Research Use Agreement: for research that is not commercial; they, and copies of "
        "them or of parts, may not be passed on.",
        {
            "license": "other",
            "license_name": "stanford-university-dataset-research-use-agreement",
            "license_link": "https://stanfordmlgroup.github.io/competitions/chexpert/",
        },
        has_people=True,
    ),
    "padchest": _Source(
        "PadChest",
        "Chest X-rays of patients of San Juan Hospital, Spain, with their attributes (Bustos et al., Medical Image "
        "Analysis 2020), under the PadChest Dataset Research Use Agreement of BIMCV: for research that is not "
        "commercial; they, and copies of them or of parts, may not be passed on.",
        {
            "license": "other",
            "license_name": "padchest-dataset-research-use-agreement",
            "license_link": "https://bimcv.cipf.es/bimcv-projects/padchest/",
        },
        has_people=True,
    ),
}


def has_people(dataset_name: str) -> bool:
    """Whether a data set has, or may have, pictures of people."""
    return dataset_name not in SOURCES or SOURCES[dataset_name].has_people


def make_card(
    folder: str | Path,
    repo_id: str,
    settings: Mapping[str, Any],
    tables: Sequence[CardTable] = (),
    scores: Sequence[Mapping[str, Any]] = (),
) -> ModelCard:
    """Write the card of a saved pipeline or model.

    Args:
        folder: Where it is saved.
        repo_id: The repository that it is for.
        settings: Of its training, as in its ``config.yaml``.
        tables: Results.
        scores: Results for the card's metadata, each with ``intervention``, ``variable``, ``metric`` and ``value``.

    Raises:
        FileNotFoundError: If the folder has no model.
        ValueError: If the settings do not tell the data set, or ``watch.json`` is damaged.
    """
    folder = Path(folder)
    graph, name = CausalGraph(settings["graph"]), setting(settings, "dataset_name")
    source = SOURCES.get(name) or _unknown_source(name)
    is_diffusion = any(part.name == "parent_encoder" for part in parts_of(folder))
    metadata = ModelCardData(
        library_name="diffusers",
        tags=["softcft", "counterfactual", "causality", "image-generation", *["diffusion"] * is_diffusion],
        datasets=name if _is_on_hub(name) else None,
        model_name=repo_id.rpartition("/")[2] if scores else None,
        eval_results=[_eval_result(score, name, source) for score in scores] or None,
        **source.license,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        class_name=_class_name(folder),
        is_pipeline=(folder / INDEX).is_file(),
        usage=_usage(folder, repo_id, graph),
        mermaid=_mermaid(graph),
        variables=_table([["Variable", "Kind", "Values", "Caused by"], *map(_describe, graph.variables)]),
        source=source,
        size=setting(settings, "sample_size"),
        watched=as_markdown(read_sentence(folder) or ""),
        has_people=has_people(name),
        is_phantom=name == "phantom",
        not_seen=[as_markdown(sentence) for sentence in _not_seen(folder)],
        tables=[(as_markdown(t.title), as_markdown(t.caption), _table(t.rows)) for t in tables],
    )


def setting(settings: Mapping[str, Any], name: str) -> Any:
    """A setting of the data, from the section ``data`` or a recipe's; ValueError if it is missing or ambiguous."""
    sections = {key: value for key, value in settings.items() if key != "columns" and isinstance(value, Mapping)}
    made = {key: section[name] for key, section in sections.items() if name in section}
    if len(set(made.values())) != 1:
        raise ValueError(
            f"config.yaml must have one {name}, got {made or 'none'}: correct it to what the model has seen."
        )
    return next(iter(made.values()))


def parts_of(folder: Path) -> list[Path]:
    """The folders of the models of a saved pipeline or model; FileNotFoundError if there is none."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    else:  # what train_diffusion.py saves has no index
        every = (".", "unet", "transformer", "parent_encoder", "scheduler", "vae", "prompt")
        names = [name for name in every if _config(folder / name)]
    if missing := [name for name in names if not _config(folder / name)] or not names:
        of = f" of its parts {missing}" if names else ""
        raise FileNotFoundError(f"There is no model in {folder}: it has no config.json{of}. Train it first.")
    return [folder / name for name in names]


def _config(part: Path) -> dict[str, Any] | None:
    path = next((part / name for name in CONFIGS if (part / name).is_file()), None)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def _class_name(folder: Path) -> str:
    """Of the pipeline, of the model, or of the first of several."""
    if (folder / INDEX).is_file():
        return str(json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"])
    return str((_config(parts_of(folder)[0]) or {})["_class_name"])


def _not_seen(folder: Path) -> list[str]:
    """A warning for each variable that the classifier does not see."""
    sentences: list[str] = []
    for part in parts_of(folder):
        sees = (_config(part) or {}).get("sees")
        if sees is not None:
            sentences += not_seen(read_sight(list(sees), sees)).values()
    return sentences


def _usage(folder: Path, repo_id: str, graph: CausalGraph) -> str:
    """Python code that loads the model, and calls it if it is a pipeline."""
    if (folder / INDEX).is_file():
        parents = {variable.name: _example(variable, 0) for variable in graph.variables}
        do = {graph.names[0]: _example(graph.variables[0], 1)}
        return (
            "import softcft  # first: it makes diffusers know the pipeline\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{repo_id}")\n'
            f"result = pipe(image, parents={parents!r}, do={do!r})\n"
            "result.images, result.parents, result.effects"
        )
    lines = []
    for part in parts_of(folder):
        name = (_config(part) or {})["_class_name"]
        library = "diffusers" if hasattr(diffusers, name) else "softcft"
        subfolder = "" if part == folder else f', subfolder="{part.name}"'
        lines.append(f'from {library} import {name}\n{name}.from_pretrained("{repo_id}"{subfolder})')
    return "\n".join(lines)


def _example(variable: Variable, which: int) -> Any:
    """One of two example values of a variable, 0 or 1."""
    if variable.kind != "continuous":
        return variable.categories[which]
    low, high = variable.bounds
    return float(f"{low + (0.3 + 0.4 * which) * (high - low):.3g}")


def _mermaid(graph: CausalGraph) -> str:
    """The graph as a diagram; the image is caused by all variables."""
    ids = {name: f"v{i}" for i, name in enumerate(graph.names)}
    lines = [f'  {ids[name]}["{as_mermaid(name)}"]' for name in graph.names]
    lines += [f"  {ids[p]} --> {ids[v.name]}" for v in graph.variables for p in v.parents]
    lines += [f"  {ids[name]} --> image" for name in graph.names]
    return "\n".join(["flowchart LR", *lines, '  image(["image"])'])


def _describe(variable: Variable) -> list[str]:
    values = variable.values_in_words() + ", by its logarithm" * variable.log
    return [variable.name, variable.kind, values, ", ".join(variable.parents) or "nothing in the graph"]


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = [[as_markdown(str(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body))


def _unknown_source(name: str) -> _Source:
    # Without the path of a folder, which is private.
    shown = f"`{name}` of the Hub" if _is_on_hub(name) else "a folder of pictures with a table"
    return _Source(
        shown,
        "Its licence is not known to softcft: the authors of this model have to say whether it may be shared.",
        {"license": "unknown"},
    )


def _is_on_hub(name: str) -> bool:
    """Whether this is the name of a data set of the Hub and no folder."""
    return is_hub_name(name) and not Path(name).exists()


def _eval_result(score: Mapping[str, Any], dataset_name: str, source: _Source) -> EvalResult:
    do = "real images" if score["intervention"] == "none" else f"do({score['intervention']})"
    return EvalResult(
        task_type="image-to-image",
        task_name="Counterfactual images",
        dataset_type=dataset_name if _is_on_hub(dataset_name) or dataset_name in SOURCES else "own",
        dataset_name=source.title,
        metric_type=str(score["metric"]),
        metric_name=f"{score['variable']}, {score['metric']} of the judge, {do}",
        metric_value=round(float(score["value"]), 4),
    )
