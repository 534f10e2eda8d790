"""Fine-tune a trained HVAE so that its counterfactuals obey their parents and leave all else alone (Soft-CFT).

    accelerate launch recipes/soft_cft.py --config recipes/configs/phantom.yaml
    accelerate launch recipes/soft_cft.py --cft hard    # the published baseline
    accelerate launch recipes/soft_cft.py --cft none    # no fine-tuning at all

Needs what train_scm.py, train_classifier.py and train_hvae.py made. Reads the sections data, graph and cft. Writes a
complete pipeline into --output_dir/none, hard or soft:

    pipe = DSCMPipeline.from_pretrained("outputs/phantom/soft")
    result = pipe(image, parents={...}, do={...})
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState
from torch.utils.data import Subset

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, DSCMPipeline, HVAEBackbone, HVAEModel
from softcft.data.schema import ImageAttributeDataset
from softcft.data.sources import DataConfig, SubsetConfig, load_data
from softcft.training.cft_trainer import CFTConfig, CFTTrainer
from softcft.training.config import MemoryConfig, TrainingConfig, begin_run, parse_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class PretrainedConfig:
    """The trained parts of the structural causal model."""

    scm_dir: str = field(metadata={"help": "Folder with the attribute mechanisms, from train_scm.py."})
    guide_dir: str = field(metadata={"help": "Folder with the guide, from train_classifier.py --role guide."})
    hvae_dir: str = field(metadata={"help": "Folder with the image mechanism, from train_hvae.py."})

    def __post_init__(self) -> None:
        makers = {
            "scm_dir": "train_scm.py",
            "guide_dir": "train_classifier.py --role guide",
            "hvae_dir": "train_hvae.py",
        }
        missing = {
            name: maker for name, maker in makers.items() if not Path(getattr(self, name), "config.json").is_file()
        }
        if missing:
            folders = ", ".join(f"--{name} {getattr(self, name)}" for name in missing)
            commands = "\n".join(f"    accelerate launch recipes/{maker}" for maker in missing.values())
            raise SystemExit(f"No trained model in {folders}. Make it, with the same --config, by\n{commands}")


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, subset, training, memory, cft, parts = parse_config(
        "cft",
        DataConfig,
        SubsetConfig,
        TrainingConfig,
        MemoryConfig,
        CFTConfig,
        PretrainedConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
    )
    # One folder for each kind of fine-tuning: they never overwrite each other.
    training = replace(training, output_dir=str(Path(training.output_dir, cft.cft)))
    graph = CausalGraph(config["graph"])
    hvae = HVAEModel.from_pretrained(parts.hvae_dir)
    scm = AttributeSCM.from_pretrained(parts.scm_dir)
    guide = AttributeClassifier.from_pretrained(parts.guide_dir)
    pipeline = DSCMPipeline(hvae=hvae, attribute_scm=scm, classifier=guide)  # refuses parts with different graphs
    if hvae.causal_graph != graph:
        raise ValueError(f"{parts.hvae_dir} was trained with another graph than the section 'graph' of --config.")
    if hvae.config.sample_size != data.sample_size:
        raise ValueError(
            f"--sample_size is {data.sample_size}, but {parts.hvae_dir} was trained with {hvae.config.sample_size}."
        )
    if PartialState().is_main_process:
        begin_run(config, "cft", training.output_dir)

    if cft.cft != "none":
        with PartialState().main_process_first():  # the others find the data in the cache
            splits = load_data(data, graph)
        images = ImageAttributeDataset(splits["train"], graph, data.sample_size)
        if memory.gradient_checkpointing:
            hvae.enable_gradient_checkpointing()
        trainer = CFTTrainer(HVAEBackbone(hvae), scm, guide, training, cft)
        trainer.train(Subset(images, subset.rows(len(images))))
    if PartialState().is_main_process:
        hvae.eval()
        pipeline.to("cpu").save_pretrained(training.output_dir)
        print(f"Saved a pipeline to {training.output_dir}. Use it by")
        print(f'    DSCMPipeline.from_pretrained("{training.output_dir}")(image, parents=..., do=...)')


if __name__ == "__main__":
    main()
