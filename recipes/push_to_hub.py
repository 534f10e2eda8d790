"""Put a trained pipeline on the Hub, with a model card made from what was measured.

    python recipes/push_to_hub.py --output_dir outputs/phantom --cft soft --repo_id OWNER/NAME
    python recipes/push_to_hub.py --output_dir outputs/phantom --part hvae --repo_id OWNER/NAME    # one model of it

Reads the pipeline in --output_dir/soft, its settings (config.yaml) and the results of evaluate.py (metrics.csv). All is
checked before anything is sent. The repository is made if there is none: a private one, unless the data are the phantom
or morphomnist, for weights can give away pictures of people. The token is that of hf auth login, or HF_TOKEN.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from softcft.cft import CFT_NAMES
from softcft.hub.config import check_access
from softcft.training.parsing import read_config

if TYPE_CHECKING:
    from softcft import CausalGraph

ENTRIES = {
    "DSCMPipeline": Path(__file__).resolve().parents[1] / "pipelines" / "dscm.py",
    "DiffusionDSCMPipeline": Path(__file__).resolve().parents[1] / "pipelines" / "diffusion_dscm.py",
}


def results_of(run: Path, cft: str, graph: CausalGraph) -> dict[str, list]:
    """What was measured of one pipeline: its tables and scores by the judge, real images and the truth beside it."""
    from softcft.evaluation.tables import read_metrics, report_tables
    from softcft.hub.card import CardTable

    if not (run / "metrics.csv").is_file():
        return {}
    metrics = read_metrics(run / "metrics.csv")
    if cft not in set(metrics["cft"]):
        return {}
    judged = metrics["table"].isin(["effectiveness", "truth"]) & metrics["predictor"].isin(["judge", ""])
    shown = metrics[judged & metrics["cft"].isin([cft, "real", "truth"])]
    tables = [
        CardTable(table.title, table.caption, [table.frame.columns.tolist(), *table.frame.to_numpy().tolist()])
        for table in report_tables(shown, graph)
    ]
    own = shown[(shown["cft"] == cft) & shown["metric"].isin(["auc", "mae"])]
    scores = own.groupby(["intervention", "variable", "metric"], sort=False)["value"].mean().reset_index()
    return {"tables": tables, "scores": scores.to_dict("records")}


def check_pipeline(folder: Path, graph: CausalGraph) -> Path:
    """Make sure that a pipeline loads; its entry file."""
    from diffusers import DiffusionPipeline

    from softcft.models.weights import load_safetensors

    pipeline = load_safetensors(DiffusionPipeline, folder)
    name = type(pipeline).__name__
    if name not in ENTRIES:
        raise ValueError(f"{folder} holds a {name}, and no pipeline of softcft.")
    if pipeline.causal_graph != graph:
        raise ValueError(f"{folder} has another graph than its config.yaml: train it again.")
    return ENTRIES[name]


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="repository of the Hub")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cft", choices=list(CFT_NAMES), default="soft", help="which of its pipelines [%(default)s]")
    what.add_argument(
        "--part", metavar="FOLDER", help="in place of a pipeline, a folder of the run with one model of it"
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--private", action="store_true", help="only you, or your organisation, may see it")
    access.add_argument("--public", action="store_true", help="everybody may see it")
    parser.add_argument("--dry_run", action="store_true", help="only write the card, README.md, to be looked at first")
    arguments = parser.parse_args()
    run, repo_id = Path(arguments.output_dir), arguments.repo_id
    folder = run / (arguments.part or arguments.cft)
    if not arguments.dry_run:
        check_access("--repo_id", repo_id)
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft import CausalGraph
    from softcft.hub.card import has_people, make_card, setting
    from softcft.hub.publish import CARD, model_files, publish

    files = model_files(folder)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} has no config.yaml, which every recipe writes that trains: train the model again.")
    settings = read_config(folder / "config.yaml")
    graph = CausalGraph(settings["graph"])
    is_pipeline = files[0].name == "model_index.json"
    entry = check_pipeline(folder, graph) if is_pipeline else None
    results = results_of(run, folder.name, graph) if is_pipeline else {}
    if is_pipeline and not results:
        print(f"The card will have no results: {run}/metrics.csv has none of it. recipes/evaluate.py makes them.")
    if results and (run / "metrics.csv").stat().st_mtime < files[0].stat().st_mtime:
        print(f"{run}/metrics.csv is older than {folder}: if it is of another pipeline, run recipes/evaluate.py again.")
    if arguments.dry_run:
        make_card(folder, repo_id, settings, **results).save(folder / CARD)
        print(f"Wrote {folder / CARD}. Without --dry_run these files would be published with it:")
        print("\n".join(f"    {path}" for path in files))
        return
    is_private = arguments.private or (not arguments.public and has_people(setting(settings, "dataset_name")))
    print(f"Published as {publish(folder, repo_id, settings, is_private, entry, **results)}")


if __name__ == "__main__":
    main()
