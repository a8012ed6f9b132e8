"""The notebook of docs/ is the one that its source makes, small, and runs."""

from __future__ import annotations

import json

import pytest

from experiment import ROOT
from scripts.notebook import NOTEBOOK, SOURCE, cells, executed, sources

NOTEBOOK_BYTES = 300_000


def test_it_is_made_of_its_source_and_small():
    assert sources(NOTEBOOK) == cells(SOURCE.read_text()), "stale: make notebook"
    assert NOTEBOOK.stat().st_size < NOTEBOOK_BYTES
    assert str(ROOT) not in NOTEBOOK.read_text()


def test_every_code_cell_was_run_in_order_and_pictures_are_shown():
    found = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    shown = [kind for cell in found for out in cell["outputs"] for kind in out.get("data", {})]
    assert "image/png" in shown
    assert "text/html" in shown
    assert not [out for cell in found for out in cell["outputs"] if out["output_type"] == "error"]


def test_a_cell_shows_what_it_prints_and_its_last_expression():
    text = (
        '# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nprint("a")\nx = 3\nx + 1\n\n# %%\nx = 2\n'
    )
    title, first, second = executed(text)["cells"]
    assert "".join(title["source"]) == "# Title\n\ntext"
    assert [out["output_type"] for out in first["outputs"]] == ["stream", "execute_result"]
    assert first["outputs"][1]["data"] == {"text/plain": ["4"]}
    assert second["outputs"] == []


@pytest.mark.slow
def test_it_runs_and_gives_the_same_kinds_of_output():
    made = executed(SOURCE.read_text())["cells"]
    kept = json.loads(NOTEBOOK.read_text())["cells"]
    assert [_kinds(cell) for cell in made] == [_kinds(cell) for cell in kept]


def _kinds(cell):
    return [(out["output_type"], sorted(out.get("data", ()))) for out in cell.get("outputs", ())]
