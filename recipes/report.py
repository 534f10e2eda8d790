"""One report of several runs, one for each seed: means, and intervals that hold those of all.

    python recipes/report.py --runs outputs/phantom outputs/phantom-seed1 --output_dir outputs/report

Reads what evaluate.py and evaluate_utility.py left in each run. Writes report.html, report.md, report.tex and
metrics.csv into --output_dir. Figures are those of the first run.
"""

import argparse
from pathlib import Path

from softcft.training.parsing import read_config


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, metavar="DIR", help="Folders of runs, one for each seed.")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="Folder of the report.")
    arguments = parser.parse_args()
    settings = {}
    for run in arguments.runs:
        path = Path(run, "config.yaml")
        if not path.is_file():
            parser.error(f"--runs: {run} has no config.yaml; run recipes/evaluate.py --output_dir {run}")
        settings[run] = read_config(path)
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft import CausalGraph
    from softcft.evaluation.report import write_report
    from softcft.hub.card import setting

    first = settings[arguments.runs[0]]
    for run, config in settings.items():
        if config["graph"] != first["graph"]:
            parser.error(f"--runs: {run} has another graph than {arguments.runs[0]}; make a report of each")
    verdict = write_report(
        arguments.runs, arguments.output_dir, CausalGraph(first["graph"]), f"softcft: {setting(first, 'dataset_name')}"
    )
    print("\n".join(verdict))
    print(f"Wrote {arguments.output_dir}/report.html, report.md, report.tex and metrics.csv")


if __name__ == "__main__":
    main()
