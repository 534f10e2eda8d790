"""Settings of Sphinx for this site: ``make docs`` builds it, without network."""

import json
from typing import Any, ClassVar

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import softcft

project = "softcft"
author = "The softcft contributors"
version = release = softcft.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
exclude_patterns = ["_build"]

add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_default_options = {"members": True, "exclude-members": "__init__"}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings tell shapes and units, which types do not
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# Others' classes. Their sites would be asked for over the network.
nitpick_ignore_regex = [
    ("py:.*", r"(accelerate|collections|datasets|diffusers|numpy|pandas|pathlib|PIL|re|sklearn|torch)(\..*)?")
]

html_theme = "furo"
html_title = "softcft"
html_math_renderer = "mathml"  # of the browser: MathJax would be asked for over the network
html_static_path = ["_static"]
html_css_files = ["softcft.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


class NotebookParser(MystParser):
    """Reads an executed notebook as a page: its text, its code, and what this has shown."""

    supported: ClassVar[tuple[str, ...]] = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse the source of a notebook into a document of docutils."""
        cells = json.loads(inputstring)["cells"]
        super().parse("\n\n".join(part for cell in cells for part in _parts(cell)), document)


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        shown = output.get("data", {"text/plain": output.get("text")})
        if "image/png" in shown:  # notebooks show nothing else, then
            parts.append(f"![what the cell shows](data:image/png;base64,{''.join(shown['image/png'])})")
        else:
            parts.append(f"```text\n{''.join(shown['text/plain'])}\n```")
    return parts


def _inline_formula(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block_formula(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Let Sphinx read notebooks, and write formulas."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_block_formula, None))
