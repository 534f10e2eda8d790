"""Look at a data set before hours of training: what is in it, what a model will see, and what would go wrong.

    python recipes/check_data.py --dataset_name FOLDER                       # drafts a graph
    python recipes/check_data.py --dataset_name FOLDER --graph graph.yaml    # checks the data set against a graph
    python recipes/check_data.py --config recipes/configs/phantom.yaml       # or against a whole YAML file

Reads all attributes and a sample of 1,000 pictures, and compares the pictures in the folder with the rows. Prints what
they hold, what is wrong and how to repair it. Draws examples of each category and quantity, as a model will see them,
into --output_dir/check_data.png. If nothing is wrong, it measures how long run_all.py would take on this machine. The
exit status is 1 if something would stop a training. Reads the section data.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import HfArgumentParser

from softcft.arguments import in_terms_of_flags
from softcft.data.config import BUILT_IN, DataConfig
from softcft.run.plan import RunConfig, make_plan
from softcft.training.parsing import FLAGS, parse_config, run_main

if TYPE_CHECKING:
    from softcft.data.report import DataReport

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "phantom.yaml"


@dataclass(kw_only=True)
class CheckConfig:
    """What to read, and where to write."""

    output_dir: str = field(metadata={"help": "Folder for check_data.png and, without a graph, graph_draft.yaml."})
    all_images: bool = field(default=False, metadata={"help": "Read all pictures, not a sample of 1,000."})


def parse() -> tuple[dict[str, Any], DataConfig, CheckConfig]:
    """The settings; without a graph if one is to be drafted."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--config", "--graph", "--dataset_name"):
        files.add_argument(flag)
    given = files.parse_known_args()[0]
    argv = sys.argv[1:]
    drafting = given.graph is None and given.config is None and given.dataset_name not in (None, *BUILT_IN)
    with tempfile.TemporaryDirectory() as folder:
        if drafting:  # parse_config asks for a graph, so it gets an empty one
            empty = Path(folder, "graph.yaml")
            empty.write_text("[]")
            argv += ["--graph", str(empty)]
        config, data, settings = parse_config(
            "data", DataConfig, CheckConfig, default_config=DEFAULT_CONFIG, description=__doc__, argv=argv
        )
    if data.streaming:
        raise ValueError(
            "--streaming: the table is read as a whole here; pass a folder with a few files of the data set."
        )
    return config, data, settings


def how_long(settings: CheckConfig, graph: Path | None) -> str:
    """How long run_all.py will take on these data."""
    from softcft.run.estimate import forecast

    parser = HfArgumentParser(CheckConfig, add_help=False, allow_abbrev=False)
    argv = ["--output_dir", settings.output_dir, *sys.argv[1:]]
    _, flags = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if graph is not None:
        flags += ["--graph", str(graph)]
    try:
        sections, _, run = parse_config("data", DataConfig, RunConfig, default_config=DEFAULT_CONFIG, argv=flags)
        words, _ = forecast(make_plan(sections, run, flags, DEFAULT_CONFIG))
    except ValueError as error:  # such as a size that the settings are not made for
        return f"run_all.py would stop: {error}"
    return f"run_all.py: {words}"


def draw(report: "DataReport", path: Path) -> None:
    """Write the examples as PNG."""
    import numpy as np
    import torch

    from softcft.data.schema import scale_pixels
    from softcft.evaluation.figures.grids import example_grid

    image, captions = {}, {}
    for heading, examples in report.examples.items():
        if examples:
            pixels = torch.from_numpy(np.stack([example.pixels for example in examples]))
            pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
            image[heading], captions[heading] = scale_pixels(pixels), [example.caption for example in examples]
    if image:
        example_grid(image, captions).savefig(path, dpi=150, bbox_inches="tight")
        print(f"\nPictures as a model will see them: {path}. Do they show what their captions say?")


def main() -> None:
    """Run the recipe; see the module's docstring."""
    config, data, settings = parse()
    # Here, once there is no mistake in the settings: it takes seconds.
    from datasets import DatasetDict

    from softcft import CausalGraph
    from softcft.data.draft import draft_graph
    from softcft.data.own import read_own
    from softcft.data.report import check_data
    from softcft.data.sources import load_data
    from softcft.data.unused_files import left_out, unread_tables

    output_dir = Path(settings.output_dir)
    drafted = output_dir / "graph_draft.yaml"
    drafting = not config["graph"]
    try:
        if data.dataset_name in BUILT_IN:
            table = DatasetDict(load_data(data, CausalGraph(config["graph"]), config["columns"]))
            config["columns"] = {}  # it has the graph's names already
        else:
            table, config["columns"] = read_own(data.dataset_name, data, config["columns"])
        if drafting:
            try:
                text = draft_graph(table, unread_tables(data.dataset_name, table))
            except ValueError as error:  # the table may be in a file that is not read
                notes = left_out(data.dataset_name, table, data.table_file or ())
                raise ValueError("\n".join([str(error), *notes])) from error
            config |= {"columns": {}, **yaml.safe_load(text)}
        graph = CausalGraph(config["graph"])
        output_dir.mkdir(parents=True, exist_ok=True)
        report = check_data(table, data, graph, config["columns"], all_images=settings.all_images)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(in_terms_of_flags(str(error), FLAGS)) from error
    if drafting:
        print(f"\nWithout --graph, this is about a draft, which is saved as {drafted}:\n\n{text}", end="")
        drafted.write_text(text, encoding="utf-8")
    print("\n".join(["", data.dataset_name, *report.lines]))
    draw(report, output_dir / "check_data.png")
    errors = [in_terms_of_flags(error, FLAGS) for error in report.errors]
    for kind, found in (("problems that would stop a training", errors), ("warnings", report.warnings)):
        print("\n".join(["", f"{len(found)} {kind}", *(f"  {i}. {text}" for i, text in enumerate(found, start=1))]))
    if not report.errors:
        print("\nMeasuring how long a run would take ...", flush=True)
        print(how_long(settings, drafted if drafting else None))
    if drafting:
        print(f"\nNext: copy {drafted}, say in the copy what causes what, and check again with --graph COPY.")
    sys.exit(bool(report.errors))


if __name__ == "__main__":
    run_main(main)
