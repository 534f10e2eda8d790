"""A page in the browser that shows counterfactuals of saved pipelines: ``softcft-app``.

``answers.py`` asks the models, ``changes.py`` describes what changed, ``markup.py`` writes it as HTML, ``page.py`` is
the page (gradio).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

DESCRIPTION = """\
A page in the browser: choose an image, set do(...), and see its counterfactual, what changed, and what the classifier
thinks of both, by one model or by several side by side.

  softcft-app                                                    the small model that comes with softcft
  softcft-app outputs/mine/soft                                  a pipeline that you have trained
  softcft-app outputs/mine/none outputs/mine/hard outputs/mine/soft   three of them, compared
  softcft-app someone/their-model                                a repository of the Hub

The page is for this machine alone (127.0.0.1). From elsewhere, open a tunnel: ssh -L 7860:127.0.0.1:7860 MACHINE.
A folder examples/ in that of the first model (metadata.csv with file_name and a column for each variable, beside it the
pictures) gives the page its examples."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; see ``softcft-app --help``."""
    parser = argparse.ArgumentParser(
        "softcft-app",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="folder or Hub id of a saved pipeline; several of the same graph and image size are compared [the "
        "example model]",
    )
    parser.add_argument(
        "--modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module to import first, which defines a class of a MODEL's own; in this folder, too",
    )
    parser.add_argument("--port", type=int, help="port of the page [the first free one from 7860]")
    arguments = parser.parse_args(argv)
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        parser.error(f"--port must be from 1 to 65535, got {arguments.port}.")
    if importlib.util.find_spec("gradio") is None:
        parser.error('the app needs gradio, which is not installed; run: pip install "softcft[app]"')
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported; the page needs no network

    from softcft.app.models import load_models, read_examples
    from softcft.app.page import build, launch
    from softcft.arguments import in_terms_of_flags
    from softcft.models.weights import import_modules

    try:
        import_modules(arguments.modules)
        models = load_models(arguments.models)
        page = build(models, read_examples(models[0]))
    except (ValueError, OSError) as error:
        parser.error(in_terms_of_flags(str(error), ["modules"]))
    try:
        address = launch(page, arguments.port)
    except OSError as error:
        parser.error(f"--port: {error}")
    sys.stdout.write(f"softcft-app: {address} (Ctrl+C ends it)\n")
    sys.stdout.flush()
    page.block_thread()
