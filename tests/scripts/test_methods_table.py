"""The tables of all methods are what their records render to, and ask for runs that there are."""

from __future__ import annotations

from experiment.sweeps.plan import plan
from results.ledger import kept
from results.ledger.evidence import cells_of
from scripts.methods_table import KEPT, METHODS, PAGE, TABLES, cell, cells, render, slim, written
from tests.results.records.test_store import record


def test_the_page_is_what_the_records_say():
    found = cells_of(held for held, _ in kept.read(KEPT))
    (match,) = TABLES.finditer(PAGE.read_text())
    assert match[0] == f"{match[1]}\n{render(found)}\n\n{match[2]}", "run `make methods`"
    assert found.keys() <= set(cells())
    assert KEPT.stat().st_size < 1_000_000


def test_each_number_is_a_run_of_its_own_that_run_py_takes():
    assert len(set(cells())) == len(cells()) == len(METHODS) * 3 * 3 * 2
    runs = [plan([*cell(method, "awq", 3, "Groups of 64")])[0] for method in METHODS]
    assert [run.refused for run in runs] == [None] * len(METHODS)
    assert len({run.run_id for run in runs}) == len(METHODS)


def test_a_line_keeps_what_the_table_shows(tmp_path):
    """Costs of units add up, and what is kept of a kept record is the same again."""
    given = sorted(cell("lwc", "none", 2, "A scale a row"))
    units = [{"name": str(n), "error_after": 1.0, "cost": {"flops": 2e12}} for n in range(2)]
    made = record(
        "a", 30.0, started="1", bits=2, overrides=[*given, "seed=0", "data_dir=/somewhere"],
        metric="perplexity", metrics={"perplexity": 30.0, "kl": 0.25}, blocks=units,
    )  # fmt: skip
    path = tmp_path / "kept.jsonl"
    path.write_bytes(written([made]))
    ((held, _),) = kept.read(path)
    assert slim(held) == held
    parts = [line.split("|")[1:-1] for line in render(cells_of([held])).splitlines()]
    names, _, values = [[text.strip() for text in row] for row in parts if row]
    assert dict(zip(names, values, strict=True)) == {
        "method": "lwc", "W2": "30.00 (0.250)", "Tflops": "4.0",
    }  # fmt: skip
