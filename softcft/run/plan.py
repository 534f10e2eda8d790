"""What a run consists of: every recipe with its flags, in the order in which they need each other.

A plan needs no torch: settings are read, and mistakes in them refused, at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from softcft.arguments import Count, Natural, check_fields
from softcft.cft import CFT_NAMES, PUBLISHED_CFT
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
from softcft.training.config import (
    AdapterConfig,
    DiffusionConfig,
    MemoryConfig,
    PatchConfig,
    TrainingConfig,
    TrunkConfig,
    UtilityConfig,
    ValidationConfig,
)
from softcft.training.parsing import FURTHER_GUIDE, further_guides, parse_config

__all__ = ["Plan", "RunConfig", "Settings", "Step", "Training", "make_plan"]


@dataclass(frozen=True)
class Training:
    """What trains a section of the settings.

    Attributes:
        recipe: The script.
        model: The name of the class that ``model`` in the section has the arguments of.
        settings: What its flags are, besides those that all trainings have.
        role: Whether the section is a role of the recipe.
        seed: What is added to the run's seed: no two classifiers start alike.
    """

    recipe: str
    model: str | None
    settings: tuple[type, ...] = ()
    role: bool = False
    seed: int = 0


def classifier(seed: int = 0) -> Training:
    """The training of a guide, the judge or the watcher."""
    settings = (SubsetConfig, ValidationConfig, AugmentationConfig, TrunkConfig)
    return Training("train_classifier", "AttributeClassifier", settings, role=True, seed=seed)


DIFFUSION_TUNING = SolverConfig, DiffusionTuningConfig, AdapterConfig
TUNING = SubsetConfig, MemoryConfig, CFTConfig, AugmentationConfig, WatchConfig, *DIFFUSION_TUNING
TRAININGS = {  # in the order of the steps
    "scm": Training("train_scm", "AttributeSCM"),
    "hvae": Training("train_hvae", "HVAEModel", (MemoryConfig,)),
    "diffusion": Training("train_diffusion", None, (MemoryConfig, DiffusionConfig, AdapterConfig)),
    "guide": classifier(),
    "watcher": classifier(seed=3000),
    "judge": classifier(seed=1000),
    "vae": Training("train_vae", "AutoencoderKL", (PatchConfig,)),
    "cft": Training("soft_cft", None, TUNING),
    "utility": Training(
        "train_classifier",
        "AttributeClassifier",
        (UtilityConfig, AugmentationConfig, TrunkConfig),
        role=True,
        seed=2000,
    ),
}
TAKEN = (*TRAININGS, *CFT_NAMES, "data", "figures", "metrics", "logs", "counterfactuals")
TRIAL = 100  # steps; a run of so few shows that all works, and learns nothing
OWN_CFT = ("none", "soft", "matched")


@dataclass(kw_only=True)
class RunConfig:
    """What all steps have in common."""

    output_dir: str = field(
        metadata={"help": "Folder of the whole run. Left out, -seedN is added to the default for a seed other than 0."}
    )
    seed: Natural = field(default=0, metadata={"help": "Seed of all steps; the judge's is this plus 1000."})
    max_train_steps: Count | None = field(
        default=None,
        metadata={
            "help": f"At most so many optimizer steps in each training. With up to {TRIAL} it is a trial of the chain: "
            "fine-tuning has its published settings then, which ask a guide also for what it does not see."
        },
    )
    cft: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Kinds of fine-tuning to compare, of {', '.join(CFT_NAMES)}. Left out: {' '.join(PUBLISHED_CFT)}; "
            f"where the settings have matched targets, as those for your own data, {' '.join(OWN_CFT)}."
        },
    )
    utility: bool = field(
        default=False,
        metadata={"help": "Also train predictors on the counterfactuals, and test them on real images: Table 2."},
    )
    pipeline_dir: str | None = field(
        default=None,
        metadata={
            "help": "Start from a pipeline that diffusers has saved, see train_diffusion.py; with --preset pretrained."
        },
    )
    prompt: str = field(default="", metadata={"help": "With --pipeline_dir: a text for all images."})
    jobs: Literal[1, 2] = field(
        default=2, metadata={"help": "Steps that run side by side: 1 takes longer, and half of the memory."}
    )

    def __post_init__(self) -> None:
        if len(set(self.cft)) < len(self.cft) or not set(self.cft) <= set(CFT_NAMES):
            raise ValueError(f"cft must be different ones of {', '.join(CFT_NAMES)}, got {self.cft}.")
        check_fields(self)


@dataclass(frozen=True)
class Settings:
    """The settings of a training."""

    section: str
    kind: Training
    config: dict[str, Any]
    data: DataConfig
    training: TrainingConfig
    others: dict[type, Any]
    """By its class, each of the dataclasses of ``kind.settings``."""


@dataclass(frozen=True)
class Step:
    """A recipe with its flags.

    Attributes:
        name: Names its logs.
        recipe: The script, without its folder.
        flags: Its flags.
        makes: A file or folder below that of the run, which is there when it is done.
        section: The section of the settings that it trains, if it is a training.
        shares: Whether several processes share the work.
    """

    name: str
    recipe: str
    flags: list[str]
    makes: str
    section: str | None = None
    shares: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        folder: That of the run.
        run: What all steps have in common.
        image_model: ``hvae`` or ``diffusion``.
        sections: All settings, as they were read.
        trainings: The settings of each training, by section.
        stages: By heading, groups of steps, of which each begins when the one before it has ended.
        guidances: The names of the evaluations under guidance.
    """

    folder: Path
    run: RunConfig
    image_model: str
    sections: dict[str, Any]
    trainings: dict[str, Settings]
    stages: dict[str, list[list[Step]]]
    guidances: list[str]

    @property
    def groups(self) -> list[list[Step]]:
        """The groups of all stages."""
        return [group for groups in self.stages.values() for group in groups]

    @property
    def is_trial(self) -> bool:
        """Whether the trainings are so short that they only show that all works."""
        return self.run.max_train_steps is not None and self.run.max_train_steps <= TRIAL


def make_plan(sections: dict[str, Any], run: RunConfig, flags: list[str], default_config: Path) -> Plan:
    """Plan a run.

    Args:
        sections: The settings of all sections.
        run: What all steps have in common.
        flags: The flags of the data, which all recipes get.
        default_config: As for :func:`~softcft.training.parsing.parse_config`.

    Raises:
        ValueError: If there is a mistake in any of the settings.
    """
    is_matched = (sections.get("cft") or {}).get("cft") == "matched"
    run = replace(run, cft=run.cft or list(OWN_CFT if is_matched else PUBLISHED_CFT))
    folder = Path(run.output_dir)
    flags = [*flags, "--output_dir", run.output_dir]
    image_model = "diffusion" if "diffusion" in sections and "hvae" not in sections else "hvae"
    left_out = {"hvae", "diffusion"} - {image_model} | (set() if run.utility else {"utility"})
    more = further_guides(sections) if "matched" in run.cft else []
    kinds = TRAININGS | {name: classifier(seed=100 * number) for number, name in enumerate(more, start=1)}
    if not is_watched(run.cft, sections, read_settings("cft", TRAININGS["cft"], flags, default_config)):
        left_out.add("watcher")
    pretrained = [] if run.pipeline_dir is None else ["--pipeline_dir", run.pipeline_dir, "--prompt", run.prompt]
    if pretrained and image_model == "hvae":
        raise ValueError(
            f"pipeline_dir {run.pipeline_dir} is for a diffusion model, but the settings have an HVAE; for your own "
            "data choose the preset 'pretrained'."
        )
    flags_of = {section: flags + pretrained * (section == "diffusion") for section in kinds}
    trainings = {
        section: read_settings(section, kind, flags_of[section], default_config)
        for section, kind in kinds.items()
        if section not in left_out
    }
    if image_model == "diffusion":
        others = trainings["diffusion"].others
        others[AdapterConfig].check_start(others[DiffusionConfig])
    else:
        refuse_for_hvae(*(trainings["cft"].others[kind] for kind in DIFFUSION_TUNING))
    guidances = read_guidances(sections.get("guidance", {}), folder)
    if guidances and image_model == "hvae":
        raise ValueError("The section guidance is for diffusion models, but the image model is an HVAE.")
    plan = Plan(folder, run, image_model, sections, trainings, {}, list(guidances))

    steps = {section: plan_training(plan, settings, flags_of[section]) for section, settings in trainings.items()}
    scm, cft, image = (steps.pop(name) for name in ("scm", "cft", image_model))
    utility = steps.pop("utility", None)
    tunings = []
    for kind in reversed(run.cft):
        # The folder may have another kind of image model, too.
        own = [f"--{image_model}_dir", str(folder / image_model), "--cft", kind]
        if more and kind == "matched":
            own += ["--more_guides", *(str(folder / role) for role in more)]
        tunings.append(replace(cft, name=kind, flags=[*cft.flags, *own], makes=f"{kind}/model_index.json"))
    pretraining = [[image, *steps.values()]]
    if image_model == "diffusion" and trainings["diffusion"].others[DiffusionConfig].latents:
        pretraining = [[steps.pop("vae"), *steps.values()], [image]]
    plan.stages.update(
        {
            "Data and attribute mechanisms": [[scm]],
            f"Image model; beside it classifiers and the VAE of the metrics (logs: {folder}/logs)": pretraining,
            f"Fine-tuning: {', '.join(step.name for step in tunings)}": [tunings],
            "Counterfactuals of all test images, seen by guide and judge": plan_evaluation(
                plan, [*flags, "--seed", str(run.seed)], utility, guidances
            ),
        }
    )
    return plan


def plan_training(plan: Plan, settings: Settings, flags: list[str]) -> Step:
    """The step of a training; it goes on from its newest checkpoint."""
    section, kind, run = settings.section, settings.kind, plan.run
    most = min(settings.training.max_train_steps, run.max_train_steps or settings.training.max_train_steps)
    own = ["--role", section] if kind.role else []
    seed = ["--seed", str(run.seed + kind.seed)]
    own += [*flags, *seed, "--max_train_steps", str(most), "--resume_from_checkpoint", "latest"]
    if section == "cft" and plan.is_trial:
        own += ["--published", "true"]  # for all variables: guides of a trial have not learned to see
    makes = "diffusion/parent_encoder/config.json" if section == "diffusion" else f"{section}/config.json"
    return Step(section, kind.recipe, own, makes, section)


def plan_evaluation(
    plan: Plan, flags: list[str], utility: Step | None, guidances: dict[str, list[str]]
) -> list[list[Step]]:
    """The steps after fine-tuning, in groups."""
    pipelines = ["--pipelines", *(str(plan.folder / kind) for kind in plan.run.cft)]
    flags = [*flags, *pipelines]
    evaluate = Step("evaluate", "evaluate", flags, "report.html", shares=True)
    guided = [
        [replace(evaluate, name=f"evaluate_{name}", flags=[*flags, *scales], makes=f"{name}/report.html")]
        for name, scales in guidances.items()
    ]
    if utility is None:
        return [[evaluate], *guided]
    variables = [v["name"] for v in plan.sections["graph"] if v["kind"] != "continuous"]
    sets = ["real", *(f"{kind}/{name}" for kind in plan.run.cft for name in variables)]
    predictors = [
        replace(
            utility,
            name=f"utility_{name.replace('/', '_')}",
            flags=[*utility.flags, "--train_on", name],
            makes=f"utility/{name}/config.json",
        )
        for name in sets
    ]
    generate = Step("generate", "generate_counterfactuals", flags, "counterfactuals", shares=True)
    table2 = Step("evaluate_utility", "evaluate_utility", flags[: -len(pipelines)], "metrics/utility.csv", shares=True)
    return [[generate], predictors, [table2], [evaluate], *guided]


def read_settings(section: str, kind: Training, flags: list[str], default_config: Path) -> Settings:
    """The settings of a training."""
    types = DataConfig, TrainingConfig, HubConfig, *kind.settings
    config, data, training, _, *others = parse_config(section, *types, default_config=default_config, argv=flags)
    return Settings(section, kind, config, data, training, dict(zip(kind.settings, others, strict=True)))


def is_watched(cft: list[str], sections: dict[str, Any], tuning: Settings) -> bool:
    """Whether there is a watcher in fine-tuning, for which there must be settings."""
    if cft == ["none"] or not tuning.others[WatchConfig].watch:
        return False
    if "watcher" not in sections:
        raise ValueError(
            "The settings have no section watcher, the classifier that looks on while fine-tuning runs: copy that of "
            "recipes/configs/own_data.yaml, or say watch: false in the section cft."
        )
    return True


def read_guidances(section: dict[str, dict[str, Any]], folder: Path) -> dict[str, list[str]]:
    """The flags of each evaluation under guidance: the same models, but tables and figures in a folder of its own."""
    parts = ["--judge_dir", str(folder / "judge"), "--vae_dir", str(folder / "vae")]
    guidances, known = {}, [field.name for field in fields(SolverConfig)]
    for name, settings in section.items():
        if name in TAKEN or FURTHER_GUIDE.fullmatch(name):
            raise ValueError(f"guidance.{name}: the name is taken by another folder of the run; choose another.")
        if unknown := [key for key in settings if key not in known]:
            raise ValueError(f"guidance.{name}: unknown key {unknown[0]!r}; it may have {', '.join(known)}.")
        given = given_settings(SolverConfig(**settings))
        texts = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in given.items()}
        scales = [flag for key, text in texts.items() for flag in (f"--{key}", text)]
        guidances[name] = [*parts, *scales, "--output_dir", str(folder / name)]
    return guidances
