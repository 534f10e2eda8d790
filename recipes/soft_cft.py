"""Fine-tune a trained image model so that its counterfactuals obey their parents and leave all else alone (Soft-CFT).

    accelerate launch recipes/soft_cft.py --config recipes/configs/phantom.yaml
    accelerate launch recipes/soft_cft.py --cft hard    # the published baseline
    accelerate launch recipes/soft_cft.py --cft matched # interventions as strong as reality, and no stronger
    accelerate launch recipes/soft_cft.py --cft none    # no fine-tuning at all

Needs what train_scm.py, train_classifier.py (guide and watcher), and train_hvae.py or train_diffusion.py made; which of
the two is there decides. The watcher looks at counterfactuals of validation images on the way: the model that it finds
best is saved, and if fine-tuning becomes an attack on the guide, that is said. Reads the sections data, graph and cft.
Writes a complete pipeline into --output_dir/none, hard, soft or matched, with what the watcher saw (watch.json):

    pipe = DSCMPipeline.from_pretrained("outputs/phantom/soft")
    result = pipe(image, parents={...}, do={...})
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from softcft.cft.verdict import WATCH
from softcft.data.config import AugmentationConfig, DataConfig, SubsetConfig
from softcft.hub.config import HubConfig
from softcft.training.cft_config import (
    CFTConfig,
    DiffusionTuningConfig,
    SolverConfig,
    WatchConfig,
    given_settings,
    refuse_for_hvae,
)
from softcft.training.config import AdapterConfig, MemoryConfig, TrainingConfig
from softcft.training.parsing import FURTHER_GUIDE, parse_config, run_main
from softcft.training.writing import replace_file

if TYPE_CHECKING:
    from softcft import AttributeClassifier, CausalGraph, DiffusionDSCMPipeline, DSCMPipeline
    from softcft.training.watch import Watch

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
    more_guides: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of further guides, from train_classifier.py --role guide_2 for instance: "
            "each counterfactual is shown to one guide, drawn at random."
        },
    )
    watcher_dir: str | None = field(
        default=None,
        metadata={"help": "Watcher, from train_classifier.py --role watcher; OUTPUT_DIR/watcher if left out."},
    )
    hvae_dir: str | None = field(
        default=None, metadata={"help": "Image mechanism, from train_hvae.py; OUTPUT_DIR/hvae if left out."}
    )
    diffusion_dir: str | None = field(
        default=None,
        metadata={
            "help": "In place of an HVAE, from train_diffusion.py; OUTPUT_DIR/diffusion if left out and "
            "there is no HVAE."
        },
    )

    def __post_init__(self) -> None:
        if self.hvae_dir is not None and self.diffusion_dir is not None:
            raise ValueError("--hvae_dir and --diffusion_dir are both image mechanisms; give one of them.")

    def folders(self, output_dir: str, watched: bool) -> dict[str, Path]:
        """Those of ``scm``, ``guide``, ``watcher`` if there is one, and ``hvae`` or ``diffusion``.

        Ends the program if one of them is not there.
        """
        makers = {
            "scm": "train_scm.py",
            "guide": "train_classifier.py --role guide",
            **({"watcher": "train_classifier.py --role watcher"} if watched else {}),
            "hvae": "train_hvae.py",
            "diffusion": "train_diffusion.py",
        }
        folders = {name: Path(getattr(self, f"{name}_dir") or Path(output_dir, name)) for name in makers}
        files = {name: Path("parent_encoder" if name == "diffusion" else "", "config.json") for name in makers}
        there = {name for name in makers if (folders[name] / files[name]).is_file()}
        is_diffusion = self.diffusion_dir is not None or (
            self.hvae_dir is None and "hvae" not in there and "diffusion" in there
        )
        del folders["hvae" if is_diffusion else "diffusion"]
        missing = [name for name in folders if name not in there]
        if missing:
            named = ", ".join(f"--{name}_dir {folders[name]}" for name in missing)
            without = "\nor do without a watcher, by --watch false." if "watcher" in missing else ""
            commands = "\n".join(f"    accelerate launch recipes/{makers[name]}" for name in missing)
            raise SystemExit(f"No trained model in {named}. Make it, with the same flags, by\n{commands}{without}")
        for folder in self.more_guides:
            if not Path(folder, "config.json").is_file():
                role = Path(folder).name if FURTHER_GUIDE.fullmatch(Path(folder).name) else "guide_2"
                raise SystemExit(
                    f"No trained model in --more_guides {folder}. Make it, with the same flags, by\n"
                    f"    accelerate launch recipes/train_classifier.py --role {role}"
                )
        if watched:
            for taken in (folders["guide"], *self.more_guides, Path(output_dir, "judge")):
                if folders["watcher"].resolve() == Path(taken).resolve():
                    raise ValueError(
                        f"--watcher_dir {folders['watcher']} must be neither a guide nor the judge: make another "
                        f"classifier by recipes/{makers['watcher']}."
                    )
        return folders


def load_pipeline(folders: dict[str, Path]) -> "DSCMPipeline | DiffusionDSCMPipeline":
    """The pipeline of trained parts; refuses parts with different graphs."""
    from diffusers import AutoencoderKL

    from softcft import (
        AttributeClassifier,
        AttributeSCM,
        DiffusionDSCMPipeline,
        DSCMPipeline,
        HVAEModel,
        ParentEncoder,
        PromptEmbedding,
    )
    from softcft.models.networks import load_network
    from softcft.models.noise_schedule import load_scheduler
    from softcft.models.weights import load_safetensors

    scm = AttributeSCM.from_pretrained(folders["scm"])
    guide = AttributeClassifier.from_pretrained(folders["guide"])
    if "hvae" in folders:
        return DSCMPipeline(HVAEModel.from_pretrained(folders["hvae"]), attribute_scm=scm, classifier=guide)
    folder = folders["diffusion"]
    found = {name: load_network(folder / name) for name in ("unet", "transformer") if (folder / name).is_dir()}
    return DiffusionDSCMPipeline(
        **{"unet": None, "transformer": None, **found},
        parent_encoder=ParentEncoder.from_pretrained(folder / "parent_encoder"),
        scheduler=load_scheduler(folder / "scheduler"),
        attribute_scm=scm,
        classifier=guide,
        vae=load_safetensors(AutoencoderKL, folder / "vae") if (folder / "vae").is_dir() else None,
        prompt=PromptEmbedding.from_pretrained(folder / "prompt") if (folder / "prompt").is_dir() else None,
    )


def check_sight(guides: Sequence["AttributeClassifier"], cft: CFTConfig) -> None:
    """Say what guides do not see; raises ValueError if that leaves nothing to fine-tune by."""
    from softcft.models.sight import seen_by_some, unseen_by_some
    from softcft.training.processes import this_process

    if this_process().is_main_process:
        for warning in unseen_by_some(guides).values():
            print(warning)
    if cft.cft != "none" and not cft.published:  # which asks for all
        seen_by_some(guides)


def load_classifier(flag: str, folder: str | Path, graph: "CausalGraph") -> "AttributeClassifier":
    """A guide or the watcher; refuses one with another graph."""
    from softcft import AttributeClassifier

    classifier = AttributeClassifier.from_pretrained(folder)
    if classifier.causal_graph != graph:
        raise ValueError(f"--{flag} {folder} was trained with another graph than that of --config; train it anew.")
    return classifier


def save_verdict(watch: "Watch", folder: Path) -> None:
    """Write what was seen of a fine-tuning beside its pipeline, and say what follows."""
    verdict = watch.verdict()
    replace_file(folder / WATCH, verdict.to_json(watch.looks))
    print(f"WARNING: {verdict.sentence}" if verdict.is_attack else verdict.sentence)


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, subset, training, hub, memory, cft, augmentation, watching, solver, tuning, lora, parts = (
        parse_config(
            "cft",
            DataConfig,
            SubsetConfig,
            TrainingConfig,
            HubConfig,
            MemoryConfig,
            CFTConfig,
            AugmentationConfig,
            WatchConfig,
            SolverConfig,
            DiffusionTuningConfig,
            AdapterConfig,
            PretrainedConfig,
            default_config=DEFAULT_CONFIG,
            description=__doc__,
        )
    )
    folders = parts.folders(training.output_dir, watching.watch and cft.cft != "none")
    if "hvae" in folders:
        refuse_for_hvae(solver, tuning, lora)
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft import CausalGraph
    from softcft.data.schema import ImageAttributeDataset
    from softcft.data.sources import load_data, training_images
    from softcft.evaluation.realism import frechet_distance
    from softcft.training.backbones import make_backbone
    from softcft.training.cft_trainer import CFTTrainer
    from softcft.training.checkpoints import save_whole
    from softcft.training.footprint import footprint
    from softcft.training.lora import adapters
    from softcft.training.preparation import begin_training, main_process_first
    from softcft.training.processes import this_process
    from softcft.training.watch import Watch

    # One folder for each kind of fine-tuning: they never overwrite each other.
    training = replace(training, output_dir=str(Path(training.output_dir, cft.cft)))
    graph = CausalGraph(config["graph"])
    pipeline = load_pipeline(folders)
    image_dir = folders.get("hvae", folders.get("diffusion"))
    if pipeline.causal_graph != graph:
        raise ValueError(f"{image_dir} was trained with another graph than the section 'graph' of --config.")
    if pipeline.image_format.size != data.sample_size:
        raise ValueError(
            f"--sample_size is {data.sample_size}, but {image_dir} was trained with {pipeline.image_format.size}."
        )
    more = [load_classifier("more_guides", folder, graph) for folder in parts.more_guides]
    guides = [pipeline.classifier, *more]
    watcher = load_classifier("watcher_dir", folders["watcher"], graph) if "watcher" in folders else None
    check_sight(guides, cft)
    backbone = make_backbone(pipeline, solver, tuning)
    with main_process_first():
        hub.reserve(config)
    begin_training(config, "cft", training.output_dir)

    watch = None
    if cft.cft != "none":
        with main_process_first():  # the others find the data in the cache
            splits = load_data(data, graph, config["columns"])
        images = training_images(splits["train"], data, graph, config["columns"])
        network = pipeline.hvae if "hvae" in folders else pipeline.network
        if memory.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        with adapters(network, lora.lora_rank):
            trainer = CFTTrainer(backbone, pipeline.attribute_scm, guides, training, cft, augmentation)
            this_process().print(footprint(trainer.objective, averaged=training.ema_decay > 0))
            if watcher is not None:
                validation = ImageAttributeDataset(splits["validation"], graph).subset(complete=True)
                watch = Watch(trainer.objective, watcher, validation, watching, training, frechet_distance)
            trainer.train(images.subset(subset.half, complete=True), watch)
    if this_process().is_main_process:
        Path(training.output_dir, WATCH).unlink(missing_ok=True)  # of another fine-tuning
        save_whole(training.output_dir, pipeline.to("cpu"))
        print(f"Saved a pipeline to {training.output_dir}. Use it by")
        settings = "".join(f", {name}={value!r}" for name, value in given_settings(solver).items())  # as it has learned
        call = f"(image, parents=..., do=...{settings})"
        print(f'    {type(pipeline).__name__}.from_pretrained("{training.output_dir}"){call}')
        if watch is not None:
            save_verdict(watch, Path(training.output_dir))
        if hub.push_to_hub:
            print(f"Published as {hub.publish(training.output_dir, config)}")
    this_process().destroy_process_group()  # else a process of several may abort at its exit


if __name__ == "__main__":
    run_main(main)
