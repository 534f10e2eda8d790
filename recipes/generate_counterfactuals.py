"""Generate all counterfactuals of the training images, once: what the predictors of the paper's Table 2 are trained on.

    accelerate launch recipes/generate_counterfactuals.py --config recipes/configs/phantom.yaml
    accelerate launch recipes/generate_counterfactuals.py --pipelines outputs/phantom/soft --attributes race

Every training image that misses no value is intervened on, one variable at a time: a discrete one takes each of its
other categories, a continuous one the values of other images. Reads the sections data, graph and generate. Each set is
a folder of Parquet files that datasets.load_dataset reads, OUTPUT_DIR/counterfactuals/soft/race for instance. Its
columns are image (8 bits, the model's grey levels are rounded), the counterfactual value of each variable, source_row
(the row of the training split) and intervention (the name of the variable).

A run that was stopped goes on where it was when it is started again. What an image becomes depends on the settings, its
row and the kind of device, and on nothing else: all processes share the work, and make the same files as one.
"""

import contextlib
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from os.path import isfile  # unlike Path.is_file, False of what cannot be the name of a file
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import Features, Image, Value
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from softcft import CausalGraph, CounterfactualBackbone
from softcft.arguments import Count, Natural, Range, check_fields
from softcft.data.pixels import encode_pixels
from softcft.data.schema import ImageAttributeDataset, random_part, to_eight_bits
from softcft.data.sources import DataConfig, load_data
from softcft.data.whole import check_whole
from softcft.evaluation.effectiveness import counterfactual_images
from softcft.evaluation.report import CFT_NAMES, PUBLISHED_CFT
from softcft.graph import Intervention
from softcft.pipelines.query import load_pipeline
from softcft.training.config import SolverConfig, given_settings, make_backbone
from softcft.training.parsing import parse_config, write_config
from softcft.training.precision import PRECISION_HELP, Precision, start_accelerator
from softcft.training.preparation import main_process_first

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"
SHARD = 1024  # training images whose counterfactuals are in one file: what an interruption may cost
METADATA = b"softcft"  # key of a file's metadata that holds the settings it was made with


@dataclass(kw_only=True)
class GenerateConfig:
    """What to generate, and how."""

    output_dir: str = field(metadata={"help": "Folder of the whole run; the images go to counterfactuals below it."})
    pipelines: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pipeline folders, each named none, hard, soft or matched. Left out: the first three in OUTPUT_DIR."
        },
    )
    attributes: list[str] | None = field(
        default=None, metadata={"help": "Variables to intervene on, one at a time. Left out: all discrete ones."}
    )
    values_per_image: Count = field(
        default=1, metadata={"help": "Number of counterfactuals of an image under a continuous variable."}
    )
    num_images: Annotated[int, Range(2)] | None = field(
        default=None,
        metadata={"help": "Only so many training images that miss no value, drawn by --data_seed. Left out: all."},
    )
    generate_batch_size: Count = field(default=256, metadata={"help": "Images per forward pass and process."})
    mixed_precision: Precision = field(default="no", metadata={"help": PRECISION_HELP})
    seed: Natural = field(default=0, metadata={"help": "Seed of abduction, and of the values of continuous variables."})

    def __post_init__(self) -> None:
        check_fields(self)
        self.pipelines = self.pipelines or [str(Path(self.output_dir, cft)) for cft in PUBLISHED_CFT]
        names = [Path(folder).name for folder in self.pipelines]
        if len(set(names)) < len(names) or not set(names) <= set(CFT_NAMES):
            raise ValueError(
                f"--pipelines: folders must have different names of {', '.join(CFT_NAMES)}, got {self.pipelines}."
            )
        for folder in map(Path, self.pipelines):
            if not isfile(folder / "model_index.json"):
                raise SystemExit(
                    f"There is no pipeline in {folder}. Make it, with the same flags, by\n    accelerate launch "
                    f"recipes/soft_cft.py --cft {folder.name} --output_dir {folder.parent}"
                )


@dataclass
class CounterfactualSet:
    """The counterfactuals of one pipeline under interventions on one variable.

    Attributes:
        pipeline: What makes them.
        backbone: Its image mechanism.
        attribute: The variable.
        folder: Where they are kept.
        rows: The rows of the training images that they are of.
        settings: All that they depend on, as plain data. It is in the metadata of every file.
    """

    pipeline: DiffusionPipeline
    backbone: CounterfactualBackbone
    attribute: str
    folder: Path
    rows: list[int]
    settings: dict[str, Any]

    def files(self) -> list[Path]:
        """The files of all shards; refuses files that were made with other settings, or cut short since."""
        for path in sorted(self.folder.glob("train-*.parquet")):
            check_whole(path)
            before = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"{}"))
            for key, value in self.settings.items():
                if before.get(key) != value:
                    raise ValueError(
                        f"{path} was made with {key} = {before.get(key)!r}, now it is {value!r}: restore the setting, "
                        "choose another --output_dir, or delete the folder."
                    )
        number = -(-len(self.rows) // SHARD)
        return [self.folder / f"train-{shard:05d}-of-{number:05d}.parquet" for shard in range(number)]


def plan(
    config: dict[str, Any],
    data: DataConfig,
    settings: GenerateConfig,
    solver: SolverConfig,
    pipelines: dict[str, DiffusionPipeline],
    backbones: dict[str, CounterfactualBackbone],
    rows: list[int],
) -> list[CounterfactualSet]:
    """The sets to be made of some rows of the training images."""
    graph = CausalGraph(config["graph"])
    attributes = dict.fromkeys(settings.attributes or [v.name for v in graph.variables if v.kind != "continuous"])
    common = {f"data.{key}": value for key, value in asdict(data).items() if key != "data_dir"}
    common |= {"graph": graph.to_list(), "columns": config["columns"], "num_images": len(rows)}
    common["rows"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]
    common |= {key: getattr(settings, key) for key in ("seed", "generate_batch_size", "mixed_precision")}
    common |= given_settings(solver)
    sets = []
    for folder, pipeline in pipelines.items():
        weights = hashlib.sha256()
        for path in sorted(Path(folder).glob("*/*.safetensors")):
            if path.parent.name != "classifier":
                weights.update(path.read_bytes())
        for name in attributes:
            variable = graph[name]
            count = settings.values_per_image if variable.kind == "continuous" else len(variable.categories) - 1
            own = {"intervention": name, "values_per_image": count, "weights": weights.hexdigest()[:32]}
            target = Path(settings.output_dir, "counterfactuals", Path(folder).name, name)
            # Through JSON, so that they compare with what is read from a file.
            settled = json.loads(json.dumps({**common, **own}))
            sets.append(CounterfactualSet(pipeline, backbones[folder], name, target, rows, settled))
    return sets


def plan_values(made: CounterfactualSet, graph: CausalGraph, parents: Tensor, positions: list[int]) -> Tensor:
    """What the counterfactuals of some images are to show, encoded, of shape (B, V, K).

    Args:
        made: The set; V is its number of values per image.
        graph: The causal graph.
        parents: Encoded attributes of all n images of the set, shape (n, K).
        positions: The B images among them.
    """
    scm, columns = made.pipeline.attribute_scm, graph.slices[made.attribute]
    mask = torch.tensor([name == made.attribute for name in graph.names]).expand(len(positions), -1)
    planned = []
    for value in range(made.settings["values_per_image"]):
        # One generator for each counterfactual: the same draws in every pipeline, so that they can be compared.
        generators = []
        for position in positions:
            entropy = np.random.SeedSequence([made.settings["seed"], made.rows[position], value])
            generators.append(torch.Generator().manual_seed(int(entropy.generate_state(1)[0])))
        new = parents[positions]
        new[:, columns] = intervened_values(graph, made.attribute, parents, positions, value, generators)
        intervention = Intervention(new.to(scm.device), mask.to(scm.device))
        planned.append(scm.counterfactual(parents[positions].to(scm.device), intervention, generators))
    return torch.stack(planned, dim=1)


def intervened_values(
    graph: CausalGraph, name: str, parents: Tensor, positions: list[int], value: int, generators: list[torch.Generator]
) -> Tensor:
    """New values of one variable, encoded, of shape (B, width).

    Args:
        graph: The causal graph.
        name: The variable.
        parents: Encoded attributes of all n images, shape (n, K).
        positions: The B images among them.
        value: Which new value: 0 to K - 2 for the categories after an image's own, in turn; of a continuous variable
            each is the value of another image, drawn by its generator.
        generators: One for each of the B.
    """
    variable, columns = graph[name], graph.slices[name]
    own = parents[positions, columns]
    if variable.kind != "continuous":
        return variable.other_category(own, 1 + value)
    steps = [int(torch.randint(1, len(parents), (), generator=generator)) for generator in generators]
    return parents[[(i + step) % len(parents) for i, step in zip(positions, steps, strict=True)], columns]


@torch.inference_mode()
def generate(
    sets: list[CounterfactualSet], shard: int, images: ImageAttributeDataset, accelerator: Accelerator
) -> Iterator[list[dict[str, list[Any]]]]:
    """Make one shard of several sets of one pipeline: of each the columns, a batch of training images at a time."""
    graph, rows, settings = images.graph, sets[0].rows, sets[0].settings
    parents = images.parents[rows]
    shard_positions = list(range(len(rows))[shard * SHARD :][:SHARD])
    for start in range(0, len(shard_positions), settings["generate_batch_size"]):
        positions = shard_positions[start : start + settings["generate_batch_size"]]
        sources = [rows[i] for i in positions]
        image = torch.stack([images[row]["image"] for row in sources]).to(accelerator.device)
        planned = [plan_values(made, graph, parents, positions) for made in sets]
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


def write(
    missing: dict[Path, CounterfactualSet],
    graph: CausalGraph,
    batches: Iterable[list[dict[str, list[Any]]]],
    progress: tqdm,
) -> None:
    """Write a shard's files. What has its name is whole; until then it is hidden, and no part of the data set."""
    types = {v.name: Value("float64" if v.kind == "continuous" else "string") for v in graph.variables}
    features = Features({"image": Image(), **types, "source_row": Value("int64"), "intervention": Value("string")})
    hidden = [path.with_name(f".{path.name}") for path in missing]
    with contextlib.ExitStack() as stack:
        files = []
        for path, made in zip(hidden, missing.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = features.arrow_schema.metadata | {METADATA: json.dumps(made.settings)}
            files.append(stack.enter_context(pq.ParquetWriter(path, features.arrow_schema.with_metadata(metadata))))
        for tables in batches:
            for file, columns in zip(files, tables, strict=True):
                file.write_table(pa.Table.from_pydict(columns, schema=file.schema))
                progress.update(len(columns["image"]))
    for path, whole in zip(hidden, missing, strict=True):
        path.rename(whole)


def make(
    sets: list[CounterfactualSet], config: dict[str, Any], images: ImageAttributeDataset, accelerator: Accelerator
) -> int:
    """Make what is missing of all sets; the number of images that all processes have made."""
    # An image is abducted once for all that it becomes: the files of one shard and pipeline are made together.
    missing: dict[tuple[Path, int], dict[Path, CounterfactualSet]] = defaultdict(dict)
    for made in sets:
        for shard, path in enumerate(made.files()):
            if not path.is_file():
                missing[made.folder.parent, shard][path] = made
    accelerator.wait_for_everyone()  # nobody writes before all have looked
    if accelerator.is_main_process:
        for made in sets:
            write_config(config, made.folder)
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
            write(files, images.graph, generate(made_now, shard, images, accelerator), progress)
    return int(accelerator.reduce(torch.tensor(total, device=accelerator.device), reduction="sum"))


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, settings, solver = parse_config(
        "generate", DataConfig, GenerateConfig, SolverConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    graph = CausalGraph(config["graph"])
    if data.streaming:
        raise ValueError("--streaming: counterfactuals belong to rows of the training images; leave it out.")
    for name in settings.attributes or []:
        graph[name]
    if not settings.attributes and all(variable.kind == "continuous" for variable in graph.variables):
        raise ValueError("--attributes: the graph has no discrete variable; name those to intervene on.")
    for name in {"source_row", "intervention"} & set(graph.names):
        raise ValueError(f"The graph has a variable {name!r}, which is a column of its own here; rename it.")
    pipelines = {folder: load_pipeline(folder, graph, data.sample_size) for folder in settings.pipelines}
    backbones = {folder: make_backbone(pipeline, solver).eval() for folder, pipeline in pipelines.items()}
    with main_process_first():  # the others find the data in the cache
        images = ImageAttributeDataset(load_data(data, graph, config["columns"])["train"], graph)
    accelerator = start_accelerator(settings.mixed_precision)
    rows = random_part(images.complete, settings.num_images, data.data_seed)
    if len(rows) < (wanted := settings.num_images or 2):
        raise ValueError(f"--num_images is {wanted}, but only {len(rows)} training images miss no value; lower it.")

    started = time.monotonic()
    sets = plan(config, data, settings, solver, pipelines, backbones, rows)
    number = make(sets, config, images, accelerator)
    speed = number / (time.monotonic() - started)
    accelerator.end_training()
    if accelerator.is_main_process:
        print(f"Generated {number} images, {speed:.1f} a second. They are in")
        for made in sets:
            print(f"    {made.folder}")


if __name__ == "__main__":
    main()
