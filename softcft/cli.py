"""The command ``softcft``: a counterfactual of one picture, and a description of a saved pipeline.

Bad input ends in one line on standard error and exit status 2, and nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# softcft is imported where it is used: it takes seconds, which --help and most mistakes need not wait for.
if TYPE_CHECKING:
    from PIL import Image

    from softcft.graph import CausalGraph
    from softcft.pipelines.result import DSCMPipelineOutput

__all__ = ["main"]

DESCRIPTION = """\
What would this picture look like, had its subject been different?

  softcft info                     the example model that comes with softcft, and its pictures
  softcft info MODEL               another one: its attributes, images and parts
  softcft counterfactual --help    how to ask it
"""
COUNTERFACTUAL = """\
What would this picture look like under an intervention, everything else as it was?

The first picture of the example model that comes with softcft, which knows its attributes:

  softcft counterfactual example:0 --do sex=female -o female.png

With your own, and an attribute that nobody knows:

  softcft counterfactual scan.png --model outputs/mine/soft --parents age=63 "disease=no finding" \\
      --infer_missing_parents --do age=80 "disease=pleural effusion" -o ill.png

Several pictures, and several interventions, each with a --do of its own. A row of the grid is a picture, followed by
its counterfactuals:

  softcft counterfactual example:0 example:3 --do age=30 --do age=70 --do sex=female -o grid.png
"""
EXAMPLE = "example:"
MODULES_HELP = "a Python module to import first, which defines a class of MODEL's own; in this folder, too"
SOLVER_FLAGS = "num_inference_steps", "strength"
MODEL_HELP = "folder of a saved pipeline, or its name on the Hub; left out: the example model that comes with softcft"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Its arguments; left out, those that the process was started with.

    Raises:
        SystemExit: With status 2, and one line on standard error, if an argument is wrong.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except ValueError as error:
        parser.error(str(error))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"softcft: error: {_plain(' '.join(message.split()))}\n")


def _parser() -> argparse.ArgumentParser:
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="softcft", description=DESCRIPTION, **style)
    parser.add_argument("--version", action="version", version=f"softcft {version('softcft')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    ask = commands.add_parser(
        "counterfactual", help="a counterfactual of a picture", description=COUNTERFACTUAL, **style
    )
    ask.set_defaults(run=_counterfactual)
    ask.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="a picture, of any kind and size (DICOM too), or example:0, example:1 and so on of the example model",
    )
    ask.add_argument("--model", help=MODEL_HELP)
    ask.add_argument("--modules", action="append", default=[], metavar="MODULE", help=MODULES_HELP)
    pairs: dict[str, Any] = {"nargs": "+", "metavar": "NAME=VALUE"}
    ask.add_argument(
        "--do",
        required=True,
        action="append",
        help="the intervention, in natural units; give --do again for another one",
        **pairs,
    )
    ask.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="where the counterfactual goes")
    ask.add_argument(
        "--effect", type=Path, metavar="FILE", help="where a picture of what changed goes: red is brighter"
    )
    ask.add_argument(
        "--parents",
        default=[],
        action="extend",
        help="what is known of the pictures, in natural units; the example model knows that of its own",
        **pairs,
    )
    ask.add_argument("--infer_missing_parents", action="store_true", help="let the classifier fill in other attributes")
    ask.add_argument(
        "--fit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="bring a picture of another size or colour to the model's as training does; --no-fit refuses it [--fit]",
    )
    ask.add_argument("--mask", type=Path, metavar="FILE", help="a picture of the same size, white where it may change")
    ask.add_argument("--seed", type=_whole(0), help="another draw of the noise [that which a picture always has]")
    ask.add_argument(
        "--num_inference_steps", type=_whole(1), metavar="N", help="levels of noise of a diffusion model [50]"
    )
    ask.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="share of these levels that abduction goes up; less than 1 keeps more of the picture [1]",
    )

    info = commands.add_parser(
        "info", help="what a saved pipeline is", description="What a saved pipeline is.", **style
    )
    info.set_defaults(run=_info)
    info.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    info.add_argument("--modules", action="append", default=[], metavar="MODULE", help=MODULES_HELP)
    return parser


def _whole(least: int) -> Any:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**31):
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}.")
        return int(text)

    return parse


# ---- softcft counterfactual -----------------------------------------------------------------------------------------


def _counterfactual(arguments: argparse.Namespace) -> None:
    known, interventions = _pairs("--parents", arguments.parents), [_pairs("--do", do) for do in arguments.do]
    files = _outputs(arguments)
    pictures = {name: _find(name) for name in arguments.images}
    for path, _ in pictures.values():
        _check_picture("IMAGE", path)
    if arguments.mask is not None:
        _check_picture("--mask", arguments.mask)
    pipeline = _load(arguments.model, arguments.modules)
    solver = {name: value for name in SOLVER_FLAGS if (value := getattr(arguments, name)) is not None}
    if solver and "parent_encoder" not in pipeline.components:
        name, value = next(iter(solver.items()))
        raise ValueError(f"--{name} {value} is for diffusion models, which this is not; leave it out.")
    settings: dict[str, Any] = {"infer_missing_parents": arguments.infer_missing_parents, **solver}

    from softcft.noise import seeded_generator

    rows: list[tuple[Image.Image, DSCMPipelineOutput]] = []
    for name, (path, attributes) in pictures.items():
        # The example's attributes are none of another model's.
        parents = _typed(pipeline.causal_graph, known if arguments.model else attributes | known)
        factual = _read(path, pipeline, arguments.fit)
        try:
            output: Any = pipeline(
                path if arguments.fit else factual,
                parents=parents,
                do=[_typed(pipeline.causal_graph, do) for do in interventions],
                fit=arguments.fit,
                mask=arguments.mask,
                generator=None if arguments.seed is None else seeded_generator(arguments.seed),
                **settings,
            )
        except ValueError as error:
            raise ValueError(_in_terms_of_flags(str(error), path)) from error
        for number, do in enumerate(interventions):
            if len(pictures) * len(interventions) > 1:
                print(_plain(f"{name}, do({', '.join(f'{key} = {value}' for key, value in do.items())})"))
            print(_comparison(pipeline.causal_graph, output, number) + "\n")
        rows.append((factual, output))
    for flag, path in files.items():
        _save(flag, path, rows)


def _find(name: str) -> tuple[Path, dict[str, str]]:
    """The file of a picture; of an example of the example model also its attributes."""
    if not name.startswith(EXAMPLE):
        return Path(name), {}
    from softcft.example import example_model

    folder = example_model() / "examples"
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = {f"{EXAMPLE}{number}": row for number, row in enumerate(csv.DictReader(file))}
    if name not in rows:
        raise ValueError(f"IMAGE {name} is none of the examples, which are {', '.join(rows)}.")
    return folder / rows[name].pop("file_name"), rows[name]


def _save(flag: str, path: Path, rows: Sequence[tuple[Image.Image, DSCMPipelineOutput]]) -> None:
    """Counterfactuals or their effects: a single one, or a grid whose rows begin with the picture itself."""
    from diffusers.utils import make_image_grid
    from PIL import Image

    from softcft.pipelines.effects import EFFECT_LIMIT, effect_colours

    said, cells = f"Saved to {path}", []
    for factual, output in rows:
        effects: Any = output.effects
        row = output.images if flag == "--output" else [Image.fromarray(effect_colours(effect)) for effect in effects]
        cells += [factual, *row]
    if flag == "--effect":
        said += f": red is brighter, blue darker, darkest from {EFFECT_LIMIT:g} of the grey range on"
    if len(cells) > 2:
        said += f"; {len(rows)} x {len(cells) // len(rows)}, in each row a picture and its counterfactuals"
    try:
        (cells[1] if len(cells) == 2 else make_image_grid(cells, len(rows), len(cells) // len(rows))).save(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag} {path} cannot be written: {error}.") from error
    print(said)


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f'{flag} takes NAME=VALUE, got {pair!r}; put one with spaces in quotes: "name=two words".')
        if name in pairs:
            raise ValueError(f"{flag} has {name!r} twice, as {pairs[name]!r} and {value!r}; leave one out.")
        pairs[name] = value
    return pairs


def _typed(graph: CausalGraph, pairs: dict[str, str]) -> dict[str, str | float]:
    """Numbers where the graph has numbers; the pipeline refuses text that is none."""
    typed: dict[str, str | float] = {**pairs}
    for name, value in pairs.items():
        if name in graph.names and graph[name].kind == "continuous":
            with suppress(ValueError):
                typed[name] = float(value)
    return typed


def _check_picture(flag: str, path: Path) -> None:
    """Refuse a picture that cannot be read, before the model is loaded."""
    from softcft.data.pictures import read_picture, why_unread

    try:
        read_picture(path)
    except Exception as error:  # of many kinds, which Pillow does not list
        raise ValueError(
            f"{flag} {path} cannot be read: {why_unread(error)}. Give a picture that is whole, such as a PNG."
        ) from error


def _read(path: Path, pipeline: Any, fit: bool) -> Image.Image:
    """The picture; with ``fit`` as the model takes it, as in training. What was done to it is printed."""
    from PIL import Image

    from softcft.data.pictures import COLOURS, fit_file, read_picture

    channels, size = pipeline.image_format
    if channels not in COLOURS:
        raise ValueError(f"--model takes images of {channels} channels, and a picture has 1 or 3; call it from Python.")
    if not fit:
        return read_picture(path)
    pixels, done = fit_file(path, channels, size)
    if done:
        print(f"{_plain(str(path))}: {done}\n")
    return Image.fromarray(pixels)


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files to be written, by their flags, if that can be."""
    from PIL import Image

    files = {"--output": arguments.output, "--effect": arguments.effect}
    files = {flag: path for flag, path in files.items() if path is not None}
    endings = Image.registered_extensions()
    for flag, path in files.items():
        if endings.get(path.suffix.lower()) not in Image.SAVE:
            raise ValueError(f"{flag} {path} must end as a picture does, for example in .png.")
        if path.is_dir():
            raise ValueError(f"{flag} {path} is a folder; name a file in it, such as {path / 'counterfactual.png'}.")
        if not path.parent.is_dir():
            raise ValueError(f"{flag} {path} cannot be written: there is no folder {path.parent}; make it first.")
    if len({path.resolve() for path in files.values()}) < len(files):
        raise ValueError(f"--effect {arguments.effect} is the file of --output, too; give it another name.")
    return files


def _in_terms_of_flags(message: str, image: Path) -> str:
    """A message of the pipeline with flags in place of its arguments."""
    from softcft.arguments import in_terms_of_flags

    message = re.sub(r"^do\[\d+\]", "do", message)
    names = "do", "fit", "infer_missing_parents", "mask", "parents", *SOLVER_FLAGS
    message = in_terms_of_flags(message, names)
    return re.sub(r"^image\b", lambda _: f"IMAGE {image}", message)


def _comparison(graph: CausalGraph, output: DSCMPipelineOutput, number: int) -> str:
    """The attributes before and after, of the counterfactual of that number."""
    head, *rows = output.table(number)
    units = {variable.name: f" ({variable.unit})" for variable in graph.variables if variable.unit}
    return _table([head, *([name + units.get(name, ""), *cells] for name, *cells in rows)])


# ---- softcft info ---------------------------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> None:
    from softcft.models.sight import not_seen

    pipeline = _load(arguments.model, arguments.modules)
    channels, size = pipeline.image_format
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    print(f"{type(pipeline).__name__} of {kind} images of {size} x {size} pixels\n")
    rows = [["attribute", "kind", "values", "caused by"]]
    for variable in pipeline.causal_graph.variables:
        values = variable.values_in_words() + " (by its logarithm)" * variable.log
        rows.append([variable.name, variable.kind, values, ", ".join(variable.parents)])
    print(_table(rows) + "\n")
    rows = [["part", "class", "parameters"]]
    for name, part in sorted(pipeline.components.items()):
        weights = f"{sum(p.numel() for p in part.parameters()):,}" if hasattr(part, "parameters") else ""
        rows.append([name, "none" if part is None else type(part).__name__, weights])
    print(_table(rows))
    classifier: Any = pipeline.components["classifier"]
    if classifier is not None:
        for warning in not_seen(classifier.sight).values():
            print(f"\n{_plain(warning)}")
    else:
        print("\nWithout a classifier there are no predictions, and no attribute of an image can be inferred.")


# ---- both -----------------------------------------------------------------------------------------------------------


def _load(model: str | None, modules: Sequence[str]) -> Any:
    """The saved pipeline of that name, or the example."""
    import diffusers

    from softcft.arguments import in_terms_of_flags, is_hub_name
    from softcft.example import example_model
    from softcft.models.weights import import_modules, load_safetensors

    diffusers.utils.logging.disable_progress_bar()  # of loading, which takes a moment
    if model is None:
        print(
            f"The example model that comes with softcft; example:0 and so on are pictures to try, from "
            f"{example_model() / 'examples'}\n"
        )
    folder = str(example_model()) if model is None else model
    if not Path(folder).is_dir() and not is_hub_name(folder):
        raise ValueError(f"--model {folder} is neither a folder nor the name of a repository of the Hub (owner/name).")
    try:
        import_modules(modules)
    except ValueError as error:
        raise ValueError(in_terms_of_flags(str(error), ["modules"])) from error
    try:
        pipeline = load_safetensors(diffusers.DiffusionPipeline, folder)
    except Exception as error:  # of any kind
        raise ValueError(f"--model {folder} cannot be loaded: {error}") from error
    if not hasattr(pipeline, "causal_graph"):
        raise ValueError(f"--model {folder} is a {type(pipeline).__name__}, and no pipeline of softcft.")
    pipeline.set_progress_bar_config(disable=None)  # shown in terminals only
    return pipeline


def _table(rows: list[list[str]]) -> str:
    """Columns of equal width, a line below their heads."""
    rows = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _plain(text: str) -> str:
    """Text without control characters for a terminal: names in a model may come from a stranger."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
