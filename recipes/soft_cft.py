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

from softcft import AttributeClassifier, AttributeSCM, CausalGraph, DSCMPipeline, HVAEBackbone, HVAEModel
from softcft.data.sources import DataConfig, SubsetConfig, load_data, training_images
from softcft.training.cft_trainer import CFTConfig, CFTTrainer
from softcft.training.config import MemoryConfig, TrainingConfig
from softcft.training.parsing import begin_run, parse_config

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class PretrainedConfig:
    """The trained parts of the structural causal model."""

    scm_dir: str | None = field(
        default=None, metadata={"help": "Attribute mechanisms, from train_scm.py; OUTPUT_DIR/scm if left out."}
    )
    guide_dir: str | None = field(
        default=None, metadata={"help": "Guide, from train_classifier.py; OUTPUT_DIR/guide if left out."}
    )
    hvae_dir: str | None = field(
        default=None, metadata={"help": "Image mechanism, from train_hvae.py; OUTPUT_DIR/hvae if left out."}
    )

    def folders(self, output_dir: str) -> tuple[Path, Path, Path]:
        """Attribute mechanisms, guide and image mechanism; ends the program if one of them is not there."""
        makers = {"scm": "train_scm.py", "guide": "train_classifier.py --role guide", "hvae": "train_hvae.py"}
        folders = {name: Path(getattr(self, f"{name}_dir") or Path(output_dir, name)) for name in makers}
        missing = [name for name, folder in folders.items() if not (folder / "config.json").is_file()]
        if missing:
            named = ", ".join(f"--{name}_dir {folders[name]}" for name in missing)
            commands = "\n".join(f"    accelerate launch recipes/{makers[name]}" for name in missing)
            raise SystemExit(f"No trained model in {named}. Make it, with the same flags, by\n{commands}")
        return folders["scm"], folders["guide"], folders["hvae"]


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
    scm_dir, guide_dir, hvae_dir = parts.folders(training.output_dir)
    # One folder for each kind of fine-tuning: they never overwrite each other.
    training = replace(training, output_dir=str(Path(training.output_dir, cft.cft)))
    graph = CausalGraph(config["graph"])
    hvae = HVAEModel.from_pretrained(hvae_dir)
    scm = AttributeSCM.from_pretrained(scm_dir)
    guide = AttributeClassifier.from_pretrained(guide_dir)
    pipeline = DSCMPipeline(hvae=hvae, attribute_scm=scm, classifier=guide)  # refuses parts with different graphs
    if hvae.causal_graph != graph:
        raise ValueError(f"{hvae_dir} was trained with another graph than the section 'graph' of --config.")
    if hvae.config.sample_size != data.sample_size:
        raise ValueError(
            f"--sample_size is {data.sample_size}, but {hvae_dir} was trained with {hvae.config.sample_size}."
        )
    if PartialState().is_main_process:
        begin_run(config, "cft", training.output_dir)

    if cft.cft != "none":
        with PartialState().main_process_first():  # the others find the data in the cache
            splits = load_data(data, graph, config["columns"])
        images = training_images(splits["train"], data, graph, config["columns"])
        if memory.gradient_checkpointing:
            hvae.enable_gradient_checkpointing()
        trainer = CFTTrainer(HVAEBackbone(hvae), scm, guide, training, cft)
        trainer.train(images.subset(subset.half, complete=True))
    if PartialState().is_main_process:
        hvae.eval()
        pipeline.to("cpu").save_pretrained(training.output_dir)
        print(f"Saved a pipeline to {training.output_dir}. Use it by")
        print(f'    DSCMPipeline.from_pretrained("{training.output_dir}")(image, parents=..., do=...)')


if __name__ == "__main__":
    main()
