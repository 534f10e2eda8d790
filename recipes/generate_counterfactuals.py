"""Generate all counterfactuals of the training images, once: what the predictors of the paper's Table 2 are trained on.

    accelerate launch recipes/generate_counterfactuals.py --config recipes/configs/phantom.yaml
    accelerate launch recipes/generate_counterfactuals.py --pipelines outputs/phantom/soft --attributes race

Every training image that misses no value is intervened on, one variable at a time: a discrete one takes each of its
other categories, a continuous one the values of other images. Reads the sections data, graph and generate. Each set is
a folder of Parquet files that datasets.load_dataset reads, OUTPUT_DIR/counterfactuals/soft/race for instance; see
softcft.generate_counterfactuals, which does the same from Python.

A run that was stopped goes on where it was when it is started again. All processes share the work.
"""

import hashlib
import time
from dataclasses import asdict, dataclass, field
from os.path import isfile  # unlike Path.is_file, False of what cannot be the name of a file
from pathlib import Path

from softcft.cft import CFT_NAMES, PUBLISHED_CFT
from softcft.data.config import DataConfig
from softcft.evaluation.config import GenerationSettings
from softcft.models import MODULES_HELP
from softcft.training.cft_config import SolverConfig, given_settings
from softcft.training.config import PRECISION_HELP, Precision
from softcft.training.parsing import parse_config, run_main, write_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class GenerateConfig:
    """What to generate with."""

    output_dir: str = field(metadata={"help": "Folder of the whole run; the images go to counterfactuals below it."})
    pipelines: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pipeline folders, each named none, hard, soft or matched. Left out: the first three in OUTPUT_DIR."
        },
    )
    modules: list[str] = field(default_factory=list, metadata={"help": MODULES_HELP})
    mixed_precision: Precision = field(default="no", metadata={"help": PRECISION_HELP})

    def __post_init__(self) -> None:
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


def hash_weights(folder: str) -> str:
    """Of the files of all weights that counterfactuals depend on."""
    weights = hashlib.sha256()
    for path in sorted(Path(folder).glob("*/*.safetensors")):
        if path.parent.name != "classifier":
            weights.update(path.read_bytes())
    return weights.hexdigest()[:32]


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, parts, settings, solver = parse_config(
        "generate",
        DataConfig,
        GenerateConfig,
        GenerationSettings,
        SolverConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
    )
    if data.streaming:
        raise ValueError("--streaming: counterfactuals belong to rows of the training images; leave it out.")
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft import CausalGraph, generate_counterfactuals
    from softcft.data.sources import load_data
    from softcft.evaluation.generation import check_attributes
    from softcft.models.weights import import_modules
    from softcft.pipelines.query import load_pipeline
    from softcft.training.backbones import make_backbone
    from softcft.training.precision import start_accelerator
    from softcft.training.preparation import main_process_first

    graph = CausalGraph(config["graph"])
    check_attributes(graph, settings.attributes)
    import_modules(parts.modules)
    pipelines = {Path(folder).name: load_pipeline(folder, graph, data.sample_size) for folder in parts.pipelines}
    for pipeline in pipelines.values():
        make_backbone(pipeline, solver)  # refuses settings of diffusion for an HVAE
    common = {f"data.{key}": value for key, value in asdict(data).items() if key != "data_dir"}
    common |= {"columns": config["columns"], "mixed_precision": parts.mixed_precision}
    with main_process_first():  # the others find the data in the cache
        rows = load_data(data, graph, config["columns"])["train"]
    accelerator = start_accelerator(parts.mixed_precision)
    started = time.monotonic()
    sets = generate_counterfactuals(
        pipelines,
        rows,
        Path(parts.output_dir, "counterfactuals"),
        data_seed=data.data_seed,
        made_with={Path(folder).name: common | {"weights": hash_weights(folder)} for folder in parts.pipelines},
        backbone_settings=given_settings(solver),
        accelerator=accelerator,
        **asdict(settings),
    )
    speed = sets.num_images / (time.monotonic() - started)
    accelerator.end_training()
    if accelerator.is_main_process:
        print(f"Generated {sets.num_images} images, {speed:.1f} a second. They are in")
        for folder in sets.folders:
            write_config(config, folder)
            print(f"    {folder}")


if __name__ == "__main__":
    run_main(main)
