"""Sets of counterfactuals of the training images: what the predictors of the paper's Table 2 learn from."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.data.parquet_sets import check_made_with, write_parquet
from softcft.data.pixels import encode_pixels
from softcft.data.schema import ImageAttributeDataset, random_part, to_eight_bits
from softcft.evaluation.config import GenerationSettings
from softcft.evaluation.effectiveness import counterfactual_images
from softcft.graph import CausalGraph, Intervention
from softcft.pipelines.query import CausalPipeline

__all__ = ["GeneratedSets", "generate_counterfactuals"]

SHARD = 1024  # training images whose counterfactuals are in one file: at most so many are lost by an interruption
Columns = dict[str, list[Any]]


class GeneratedSets(NamedTuple):
    """What was made."""

    folders: list[Path]  #: one for each pipeline and variable
    num_images: int  #: the number of images that were made now, by all processes


def generate_counterfactuals(
    pipelines: Mapping[str, CausalPipeline],
    rows: Any,
    output_dir: str | Path,
    *,
    data_seed: int = 0,
    made_with: Mapping[str, Mapping[str, Any]] | None = None,
    backbone_settings: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    **settings: Any,
) -> GeneratedSets:
    """Make counterfactuals of all training images, and keep them as data sets.

    Every image that misses no value is intervened on, one variable at a time: a discrete one takes each of its other
    categories, a continuous one the values of other images. Each set is a folder of Parquet files that
    :func:`datasets.load_dataset` reads, ``output_dir/soft/race`` for instance. Its columns are ``image`` (8 bits), the
    counterfactual value of each variable, ``source_row`` (the row of the training split) and ``intervention`` (the name
    of the variable).

    A run that was stopped goes on where it was when it is started again. An image depends on the settings, its row and
    the kind of device only: all processes share the work, and make the same files as one.

    Args:
        pipelines: By name, which is the name of their folder. All have one causal graph.
        rows: The training split, a :class:`datasets.Dataset` as
            :class:`~softcft.data.schema.ImageAttributeDataset` takes it.
        output_dir: Where the sets are written.
        data_seed: Seed of the draw of ``num_images``.
        made_with: By pipeline, what else its images depend on, as plain data. It is kept in each file, and a set is
            gone on with only if it is the same. Left out, it is a hash of the pipeline's weights.
        backbone_settings: Arguments of the pipelines' ``make_backbone``, such as ``{"guidance_scale": 2.0}``.
        accelerator: Device, precision and processes; by default a new :class:`accelerate.Accelerator`.
        settings: Fields of :class:`~softcft.evaluation.config.GenerationSettings`.

    Raises:
        ValueError: If there is no pipeline, their causal graphs differ, a variable is unknown or has the name of
            another column, there is none to intervene on, too few images miss no value, a setting is out of range, or a
            set in ``output_dir`` was made with other settings.

    Example:
        >>> generate_counterfactuals({"soft": pipe}, load_phantom(64)["train"], "sets")  # doctest: +SKIP
    """
    options = GenerationSettings(**settings)
    if not pipelines:
        raise ValueError("pipelines is empty: there is nothing to generate with.")
    graph = next(iter(pipelines.values())).causal_graph
    for name, pipeline in pipelines.items():
        if pipeline.causal_graph != graph:
            raise ValueError(f"pipelines[{name!r}] was trained with another graph than the first of pipelines.")
    check_attributes(graph, options.attributes)
    backbones = {name: x.make_backbone(**backbone_settings or {}).eval() for name, x in pipelines.items()}
    images = ImageAttributeDataset(rows, graph)
    accelerator = accelerator or Accelerator()
    chosen = random_part(images.complete, options.num_images, data_seed)
    if len(chosen) < (wanted := options.num_images or 2):
        raise ValueError(f"num_images is {wanted}, but only {len(chosen)} training images miss no value; lower it.")
    common = {
        "graph": graph.to_list(),
        "num_images": len(chosen),
        "rows": hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:32],
        "seed": options.seed,
        "generate_batch_size": options.generate_batch_size,
        **(backbone_settings or {}),
    }
    sets = []
    for name, pipeline in pipelines.items():
        of_pipeline = made_with[name] if made_with is not None else {"weights": _hash_weights(pipeline)}
        of_pipeline = {"mixed_precision": accelerator.mixed_precision, **of_pipeline}
        for variable in (graph[attribute] for attribute in _attributes(graph, options.attributes)):
            is_continuous = variable.kind == "continuous"
            count = options.values_per_image if is_continuous else len(variable.categories) - 1
            own = {"intervention": variable.name, "values_per_image": count}
            # Through JSON, so that they compare with what is read from a file.
            complete = json.loads(json.dumps({**of_pipeline, **common, **own}))
            folder = Path(output_dir, name, variable.name)
            sets.append(_Set(pipeline, backbones[name], variable.name, folder, chosen, complete))
    return GeneratedSets([each.folder for each in sets], _make(sets, images, accelerator))


def check_attributes(graph: CausalGraph, attributes: list[str] | None) -> None:
    """Refuse variables that no set can be made of.

    Raises:
        ValueError: If one is unknown, there is none, or one has the name of another column.
    """
    for name in attributes or []:
        graph[name]
    if not _attributes(graph, attributes):
        raise ValueError("attributes: the graph has no discrete variable; name those to intervene on.")
    for name in {"source_row", "intervention"} & set(graph.names):
        raise ValueError(f"The graph has a variable {name!r}, which is a column of its own here; rename it.")


def _attributes(graph: CausalGraph, attributes: list[str] | None) -> list[str]:
    return list(dict.fromkeys(attributes or [v.name for v in graph.variables if v.kind != "continuous"]))


def _hash_weights(pipeline: CausalPipeline) -> str:
    """Of all weights that counterfactuals depend on."""
    weights = hashlib.sha256()
    for name, part in sorted(pipeline.components.items()):
        if name == "backbone" and not part.state_dict():
            raise ValueError("made_with must say what the images depend on: the backbone has no weights to tell by.")
        if isinstance(part, torch.nn.Module) and name != "classifier":
            for tensor in part.state_dict().values():
                weights.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()[:32]


@dataclass
class _Set:
    """The counterfactuals of one pipeline under interventions on one variable."""

    pipeline: CausalPipeline
    backbone: CounterfactualBackbone
    attribute: str
    folder: Path
    rows: list[int]  # of the training images that they are of
    settings: dict[str, Any]  # all that they depend on, as plain data; in the metadata of every file

    def files(self) -> list[Path]:
        """The files of all shards."""
        number = -(-len(self.rows) // SHARD)
        return [self.folder / f"train-{shard:05d}-of-{number:05d}.parquet" for shard in range(number)]


def _plan_values(made: _Set, graph: CausalGraph, parents: Tensor, positions: list[int]) -> Tensor:
    """What the counterfactuals of some images are to show, encoded, of shape (B, V, K).

    A discrete variable takes the categories after an image's own, in turn. A continuous one takes the values of other
    images, drawn at random.

    Args:
        made: The set; V is its number of values per image.
        graph: The causal graph.
        parents: Encoded attributes of all n images of the set, shape (n, K).
        positions: The B images among them.
    """
    scm, variable, columns = made.pipeline.attribute_scm, graph[made.attribute], graph.slices[made.attribute]
    mask = torch.tensor([name == made.attribute for name in graph.names]).expand(len(positions), -1)
    planned = []
    for value in range(made.settings["values_per_image"]):
        # One generator for each counterfactual: the same draws in every pipeline, so that they can be compared.
        generators = []
        for position in positions:
            entropy = np.random.SeedSequence([made.settings["seed"], made.rows[position], value])
            generators.append(torch.Generator().manual_seed(int(entropy.generate_state(1)[0])))
        new = parents[positions]
        if variable.kind == "continuous":
            steps = [int(torch.randint(1, len(parents), (), generator=generator)) for generator in generators]
            others = [(i + step) % len(parents) for i, step in zip(positions, steps, strict=True)]
            new[:, columns] = parents[others, columns]
        else:
            new[:, columns] = variable.other_category(new[:, columns], 1 + value)
        intervention = Intervention(new.to(scm.device), mask.to(scm.device))
        planned.append(scm.counterfactual(parents[positions].to(scm.device), intervention, generators))
    return torch.stack(planned, dim=1)


@torch.inference_mode()
def _generate(
    sets: list[_Set], shard: int, images: ImageAttributeDataset, accelerator: Accelerator, progress: tqdm
) -> Iterator[list[Columns]]:
    """Make one shard of several sets of one pipeline: of each the columns, a batch of training images at a time."""
    graph, rows, settings = images.graph, sets[0].rows, sets[0].settings
    parents = images.parents[rows]
    shard_positions = list(range(len(rows))[shard * SHARD :][:SHARD])
    for start in range(0, len(shard_positions), settings["generate_batch_size"]):
        positions = shard_positions[start : start + settings["generate_batch_size"]]
        sources = [rows[i] for i in positions]
        image = torch.stack([images[row]["image"] for row in sources]).to(accelerator.device)
        planned = [_plan_values(made, graph, parents, positions) for made in sets]
        with accelerator.autocast():
            made_images = counterfactual_images(
                sets[0].backbone, image, parents[positions], torch.cat(planned, dim=1), sources, settings["seed"]
            )
        pixels = to_eight_bits(made_images[:, 1:]).permute(0, 1, 3, 4, 2).cpu().numpy()
        ends = np.cumsum([values.shape[1] for values in planned])
        yield [
            {
                "image": [
                    encode_pixels(p[..., 0] if p.shape[-1] == 1 else p)
                    for p in own_pixels.reshape(-1, *pixels.shape[2:])
                ],
                **graph.decode(values.flatten(0, 1).cpu()),
                "source_row": [row for row in sources for _ in range(values.shape[1])],
                "intervention": [made.attribute] * values.shape[0] * values.shape[1],
            }
            for made, values, own_pixels in zip(sets, planned, np.split(pixels, ends[:-1], axis=1), strict=True)
        ]
        progress.update(int(ends[-1]) * len(positions))


def _make(sets: list[_Set], images: ImageAttributeDataset, accelerator: Accelerator) -> int:
    """Make what is missing of all sets; the number of images that all processes have made."""
    # An image is abducted once for all its counterfactuals: the files of one shard and pipeline are made together.
    missing: dict[tuple[Path, int], dict[Path, _Set]] = defaultdict(dict)
    for made in sets:
        check_made_with(made.folder, made.settings)
        for shard, path in enumerate(made.files()):
            if not path.is_file():
                missing[made.folder.parent, shard][path] = made
    accelerator.wait_for_everyone()  # all see the same files before the first writes
    jobs = list(missing.items())[accelerator.process_index :: accelerator.num_processes]
    total = sum(
        made.settings["values_per_image"] * len(made.rows[shard * SHARD :][:SHARD])
        for (_, shard), files in jobs
        for made in files.values()
    )
    before = None
    with tqdm(total=total, desc="counterfactuals", unit="image", disable=not accelerator.is_main_process) as progress:
        for (folder, shard), files in jobs:
            made_now = list(files.values())
            if made_now[0].pipeline is not before:  # one pipeline at a time is on the device
                if before is not None:
                    before.to("cpu")
                before = made_now[0].pipeline.to(accelerator.device)
            progress.set_postfix_str(folder.name)
            batches = _generate(made_now, shard, images, accelerator, progress)
            write_parquet({path: made.settings for path, made in files.items()}, images.graph, batches)
    return int(accelerator.reduce(torch.tensor(total, device=accelerator.device), reduction="sum"))
