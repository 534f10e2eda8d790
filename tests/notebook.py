"""Runs a notebook in this process, where everything is imported already, and keeps what its cells show.

python -m tests.notebook    # runs docs/tour.ipynb and writes what its cells show into it
"""

import ast
import base64
import io
import json
import os
import pprint
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with new outputs; its code runs in the working directory."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = _run_cell("".join(cell["source"]), f"cell {count}", namespace)
            for output in outputs:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = count
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def _run_cell(source: str, name: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """What Jupyter would show: what is printed, and the value of the last line, if that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    value, printed = None, io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        data: dict[str, Any] = {"text/plain": _lines(pprint.pformat(value, width=100, sort_dicts=False))}
        if isinstance(value, Image.Image):
            data["text/plain"] = [f"<PIL image mode={value.mode} size={value.width}x{value.height}>"]  # no address
        if hasattr(value, "_repr_png_"):
            data = {"image/png": base64.b64encode(_small(value._repr_png_())).decode(), **data}
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _small(png: bytes) -> bytes:
    """The picture in 128 colours, as different as its own, which is a fraction of the bytes."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            file, "PNG", optimize=True
        )
    return file.getvalue()


def main() -> None:
    """Run the tour and write its outputs into it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        notebook = run(notebook)
    TOUR.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
