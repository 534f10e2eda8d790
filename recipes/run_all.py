"""Everything from images to the report: counterfactuals without, with hard and with soft fine-tuning.

    python recipes/run_all.py                                                         # the phantom: ten minutes
    python recipes/run_all.py --cft none hard soft matched                            # and the matched targets
    python recipes/run_all.py --dataset_name FOLDER --graph graph.yaml --output_dir outputs/mine    # your own images
    python recipes/run_all.py --dataset_name FOLDER --graph graph.yaml --preset quick               # in a short while
    python recipes/run_all.py --config recipes/configs/morphomnist.yaml --data_dir FOLDER --seed 1

Chains train_scm.py, train_classifier.py (guide, judge and watcher), train_vae.py, train_hvae.py (or train_diffusion.py,
if the settings have a section diffusion and none named hvae), soft_cft.py and evaluate.py, two at a time (--jobs); with
--utility also generate_counterfactuals.py, train_classifier.py for each set of them, and evaluate_utility.py (Table 2).
If the settings have a list guides, all of them steer matched fine-tuning. A diffusion model is evaluated again under
each guidance of the section guidance.

At first it measures how long all that will take on this machine. A run that was stopped goes on when it is started
again, and leaves out what is done; to start anew, delete its folder, or to do one step again, logs/STEP.done in it.
Check your own images with check_data.py first, and have a first look with --preset quick. The flags are those of the
data; all other settings come from the YAML file.
"""

import signal
import sys
import time
from pathlib import Path

from transformers import HfArgumentParser

from softcft.cft import CFT_NAMES
from softcft.cft.verdict import read_sentence
from softcft.data.config import DataConfig
from softcft.run.plan import Plan, RunConfig, make_plan
from softcft.run.records import Records
from softcft.run.steps import run_plan, steps_to_do
from softcft.training.parsing import parse_config, run_main

RECIPES = Path(__file__).resolve().parent
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


def read_plan() -> Plan:
    """What is to be done, once all settings are read and no mistake is found in them."""
    sections, _, settings = parse_config(
        "data", DataConfig, RunConfig, default_config=DEFAULT_CONFIG, description=__doc__
    )
    parser = HfArgumentParser(RunConfig, add_help=False, allow_abbrev=False)
    given, flags = parser.parse_args_into_dataclasses(
        ["--output_dir", "", *sys.argv[1:]], return_remaining_strings=True, look_for_args_file=False
    )
    seed = f"-seed{settings.seed}" if settings.seed and not given.output_dir else ""
    settings.output_dir = f"{Path(settings.output_dir)}{seed}"
    return make_plan(sections, settings, flags, DEFAULT_CONFIG)


def write_table1(folder: Path, guidances: list[str]) -> None:
    """Table 1 under each guidance, as tidy as metrics.csv, with the column guidance."""
    import pandas as pd

    folders = {"none": folder} | {name: folder / name for name in guidances}
    tables = [
        pd.read_csv(path / "metrics.csv").query("table == 'effectiveness'").assign(guidance=name)
        for name, path in folders.items()
    ]
    pd.concat(tables).to_csv(folder / "table1.csv", index=False)


def main() -> None:
    """Run the recipe; see the module's docstring."""
    started = time.monotonic()
    plan = read_plan()
    records = Records(plan)
    to_do = steps_to_do(plan, records)
    for end in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(end) != signal.SIG_IGN:  # as under nohup
            signal.signal(end, lambda number, _: sys.exit(128 + number))
    try:
        seconds: dict[str, float] = {}
        if any(to_do):
            from softcft.run.estimate import forecast  # what is done needs no torch

            print("Measuring how long it will take ...", flush=True)
            words, seconds = forecast(plan, to_do)
            print(f"{words}\n", flush=True)
        run_plan(plan, to_do, records, seconds, RECIPES)
        if plan.guidances:
            write_table1(plan.folder, plan.guidances)
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")
    except ExceptionGroup as failed:
        sys.exit(str(failed.exceptions[0]))
    print_end(plan, started)


def print_end(plan: Plan, started: float) -> None:
    """Say what there is to see."""
    out = plan.folder
    print(f"\n== 5/5 Done after {round((time.monotonic() - started) / 60)} minutes.")
    for cft in plan.run.cft:
        if sentence := read_sentence(Path(out, cft)):
            print(f"{CFT_NAMES[cft]}: {sentence}")
    print("Look at")
    print(f"    {out}/report.html             all tables and figures; also report.md, report.tex")
    print(f"    {out}/metrics.csv             all numbers, tidy")
    for name in plan.guidances:
        print(f"    {out}/{name}/report.html    the same under guidance; Table 1 of all in {out}/table1.csv")
    print(f"    {out}/figures/comparison.png  the same counterfactuals after each fine-tuning")
    print("and ask for your own:")
    pipeline = "DSCMPipeline" if plan.image_model == "hvae" else "DiffusionDSCMPipeline"
    print(f"    from softcft import {pipeline}")
    print(f'    pipe = {pipeline}.from_pretrained("{out}/{plan.run.cft[-1]}")')
    print("    result = pipe(image, parents={...}, do={...})   # the variables: pipe.causal_graph")


if __name__ == "__main__":
    run_main(main)
