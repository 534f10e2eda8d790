"""The paper's evaluation, and a stricter one, of several pipelines on real test images.

    accelerate launch recipes/evaluate.py --config recipes/configs/phantom.yaml

Each pipeline folder is named after its fine-tuning (none, hard, soft, matched). The guide is the pipelines' own
classifier; the judge had no part in their training. What is measured is told in softcft.evaluation.evaluate; from
Python, softcft.evaluate does the same. True counterfactuals are known of the phantom, and of Morpho-MNIST with
--mnist_dir.

Reads the sections data, graph and evaluate. Writes into --output_dir: report.html, report.md, report.tex, metrics.csv,
figures/ (PNG and PDF; GIF where a continuous variable is moved), and metrics.jsonl with the records of all trainings
below that folder. It ends with the verdict in short. What it measures does not depend on the number of processes.
"""

import json
from dataclasses import dataclass, field
from os.path import isfile  # unlike Path.is_file, False of what cannot be the name of a file
from pathlib import Path

from softcft.arguments import Natural, check_fields
from softcft.cft import CFT_NAMES, PUBLISHED_CFT
from softcft.cft.verdict import read_sentence
from softcft.data.config import DataConfig
from softcft.evaluation.config import EvaluationSettings
from softcft.models import MODULES_HELP
from softcft.training.cft_config import SolverConfig, given_settings
from softcft.training.config import PRECISION_HELP, Precision
from softcft.training.parsing import parse_config, run_main, write_config
from softcft.training.writing import replace_file

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class EvaluateConfig:
    """What to evaluate."""

    output_dir: str = field(metadata={"help": "Folder of the whole run, which also gets tables and figures."})
    pipelines: list[str] | None = field(
        default=None,
        metadata={
            "help": "Pipeline folders, each named none, hard, soft or matched. Left out: the first three in OUTPUT_DIR."
        },
    )
    judge_dir: str | None = field(
        default=None,
        metadata={"help": "Judge, from train_classifier.py --role judge; OUTPUT_DIR/judge if left out."},
    )
    vae_dir: str | None = field(
        default=None, metadata={"help": "VAE of minimality, from train_vae.py; OUTPUT_DIR/vae if left out."}
    )
    mnist_dir: str | None = field(
        default=None,
        metadata={"help": "morphomnist: folder of the original MNIST test images, of which the truth is made."},
    )
    modules: list[str] = field(default_factory=list, metadata={"help": MODULES_HELP})
    mixed_precision: Precision = field(default="no", metadata={"help": PRECISION_HELP})
    examples: Natural = field(
        default=0,
        metadata={
            "help": "Test images to save with their attributes beside each pipeline, in PIPELINE/examples: softcft-app "
            "shows them. Whoever gets the folder has them; push_to_hub.py sends none. 0 saves none."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self.judge_dir = self.judge_dir or str(Path(self.output_dir, "judge"))
        self.vae_dir = self.vae_dir or str(Path(self.output_dir, "vae"))
        self.pipelines = self.pipelines or [str(Path(self.output_dir, cft)) for cft in PUBLISHED_CFT]
        unknown = [folder for folder in self.pipelines if Path(folder).name not in CFT_NAMES]
        if unknown:
            raise ValueError(f"--pipelines: folders must be named {', '.join(CFT_NAMES)}, got {unknown}.")
        needed = {
            folder / "model_index.json": f"soft_cft.py --cft {folder.name} --output_dir {folder.parent}"
            for folder in map(Path, self.pipelines)
        }
        needed[Path(self.judge_dir, "config.json")] = "train_classifier.py --role judge"
        needed[Path(self.vae_dir, "config.json")] = "train_vae.py"
        for file, maker in needed.items():
            if not isfile(file):
                raise SystemExit(
                    f"There is no {file}. Make it, with the same flags, by\n    accelerate launch recipes/{maker}"
                )


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, parts, settings, solver = parse_config(
        "evaluate",
        DataConfig,
        EvaluateConfig,
        EvaluationSettings,
        SolverConfig,
        default_config=DEFAULT_CONFIG,
        description=__doc__,
    )
    # Here, once there is no mistake in the settings: it takes seconds.
    import pandas as pd
    from diffusers import AutoencoderKL

    from softcft import AttributeClassifier, CausalGraph
    from softcft.data.examples import save_examples
    from softcft.data.sources import load_data, subjects_of
    from softcft.data.truth import true_counterfactuals
    from softcft.evaluation.evaluate import Evaluation, check_pipelines
    from softcft.evaluation.figures.curves import draw_training_curves
    from softcft.evaluation.report import NOTES, SETTINGS, write_report
    from softcft.evaluation.tables import COLUMNS
    from softcft.evaluation.verdict import training_rows
    from softcft.models.weights import import_modules, load_safetensors
    from softcft.pipelines.query import load_pipeline
    from softcft.training.backbones import make_backbone
    from softcft.training.precision import start_accelerator
    from softcft.training.preparation import main_process_first

    graph = CausalGraph(config["graph"])
    for name in settings.interventions or []:
        graph[name]
    judge = AttributeClassifier.from_pretrained(parts.judge_dir)
    if judge.causal_graph != graph:
        raise ValueError(f"--judge_dir {parts.judge_dir} was trained with another graph than that of --config.")
    import_modules(parts.modules)
    pipelines = {Path(folder).name: load_pipeline(folder, graph, data.sample_size) for folder in parts.pipelines}
    check_pipelines(pipelines, graph)
    for pipeline in pipelines.values():
        make_backbone(pipeline, solver)  # refuses settings of diffusion for an HVAE
    vae = load_safetensors(AutoencoderKL, parts.vae_dir)
    truth = {"test": true_counterfactuals(data, graph, mnist_dir=parts.mnist_dir)}
    if truth["test"] is not None:
        truth["validation"] = true_counterfactuals(data, graph, "validation")
    with main_process_first():  # the others find the data in the cache
        splits = load_data(data, graph, config["columns"])
    accelerator = start_accelerator(parts.mixed_precision)
    evaluation = Evaluation(
        pipelines,
        splits,
        judge,
        settings,
        vae=vae,
        truth=truth,
        subjects=subjects_of(splits["test"], data),
        backbone_settings=given_settings(solver),
        accelerator=accelerator,
    )
    evaluation.measure()
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    output_dir = Path(parts.output_dir)
    write_config(config, output_dir)
    (output_dir / "metrics").mkdir(exist_ok=True)
    table = evaluation.table(data.dataset_name)
    training = training_rows(output_dir, config, len(splits["train"])).assign(table="training", cft="none")
    training = training.assign(dataset=data.dataset_name, seed=settings.seed, resampled=table["resampled"].iloc[0])
    pd.concat([table, training[list(COLUMNS)]]).to_csv(output_dir / "metrics" / "evaluation.csv", index=False)
    evaluation.draw(output_dir / "figures")
    notes = {SETTINGS: config.get("note")}
    notes |= {CFT_NAMES[Path(folder).name]: read_sentence(folder) for folder in parts.pipelines}
    replace_file(output_dir / "metrics" / NOTES, json.dumps({name: text for name, text in notes.items() if text}))
    draw_training_curves(output_dir)
    verdict = write_report([output_dir], output_dir, graph, f"softcft: {data.dataset_name}")
    print((output_dir / "report.md").read_text(encoding="utf-8"))
    for folder in parts.pipelines if parts.examples else []:
        print(f"Saved test images to {save_examples(folder, evaluation.images.images, parts.examples)}")
    print("== In short")
    print("\n".join(verdict))
    print(f"\nThe report: {output_dir}/report.html")


if __name__ == "__main__":
    run_main(main)
