"""`make notebook`: docs/notebook/tour.ipynb, its cells run and their outputs kept.

The source is tour.py, whose cells begin with `# %%`. Nothing of Jupyter is needed to make it: a
cell's last expression is shown as a notebook would, frames as HTML and figures as PNG.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment import ROOT
from flexround.utils.atomic_files import write_whole

SOURCE = ROOT / "docs" / "notebook" / "tour.py"
NOTEBOOK = SOURCE.with_suffix(".ipynb")
MARK = re.compile(r"^# %%(.*)$", re.MULTILINE)
DPI = 90


def cells(text: str) -> list[tuple[str, str]]:
    """Return the cells of a source as (markdown or code, text)."""
    parts = MARK.split(text)
    found = []
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        kind = "markdown" if "[markdown]" in head else "code"
        lines = body.strip("\n").splitlines()
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        found.append((kind, "\n".join(lines)))
    return found


def executed(text: str) -> dict[str, Any]:
    """Return the notebook of a source, every cell run in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    made = []
    runs = 0
    for number, (kind, body) in enumerate(cells(text)):
        cell: dict[str, Any] = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}}
        cell["source"] = body.splitlines(keepends=True)
        if kind == "code":
            runs += 1
            cell |= {"execution_count": runs, "outputs": _run(body, runs, namespace)}
        made.append(cell)
    language = {"name": "python"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": language}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _run(body: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell's text and return its outputs: what it prints, and its last expression."""
    tree = ast.parse(body)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    return outputs + [_shown(data, number) for data in _data(value)]


def _shown(data: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        "output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data,
    }  # fmt: skip


def _data(value: Any) -> list[dict[str, Any]]:
    """Return what a notebook shows of value."""
    if value is None:
        return []
    if hasattr(value, "savefig"):
        file = io.BytesIO()
        value.savefig(file, format="png", dpi=DPI)
        picture = base64.b64encode(file.getvalue()).decode()
        return [{"image/png": picture, "text/plain": [repr(value)]}]
    if isinstance(value, Mapping):
        return [data for entry in value.values() for data in _data(entry)]
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return [data]


def main() -> None:
    """Run the source and write the notebook."""
    sys.path.insert(0, str(ROOT))
    notebook = executed(SOURCE.read_text())
    write_whole(NOTEBOOK, (json.dumps(notebook, indent=1) + "\n").encode())


def sources(path: Path) -> list[tuple[str, str]]:
    """Return the cells of a notebook's file, as `cells` returns those of its source."""
    found = json.loads(path.read_text())["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in found]


if __name__ == "__main__":
    main()
