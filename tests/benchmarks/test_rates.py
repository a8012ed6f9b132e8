"""The table that rates are chosen by."""

from __future__ import annotations

import pytest

from benchmarks.rates import main, table
from results.records.searches import held_out_error as error
from results.records.store import Store
from tests.results.records.test_store import record


def run(lr, *held_out, iters=500, seed=0, quant="flexround", status="ok", **recon):
    """Return a finished run whose units have these errors on held-out samples."""
    blocks = [{"name": f"layers.{i}", "held_out_after": e} for i, e in enumerate(held_out)]
    settings = {
        "model": {"name": "net", "kind": "causal"}, "bits": 3, "seed": seed,
        "quant": {}, "recon": {"iters": iters, "lr": lr, "schedule": "cosine", **recon},
    }  # fmt: skip
    name = f"{quant}{lr}{held_out}{iters}{seed}{status}"
    facts = {"quant": quant, "bits": 3, "seed": seed, "settings": settings, "blocks": blocks}
    if status == "failed":
        facts |= {"status": "failed", "error": "it broke", "metrics": {}}
    return record(name, None if status == "failed" else 50.0, **facts)


def rows(records):
    """Return the table's cells by (iterations, rate): its ratios to the best and the longest."""
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(records)[2:]]
    return {(cells[2], cells[5]): cells[-2:] for cells in found}


def test_a_runs_error_is_the_geometric_mean_of_its_units():
    assert error(run(1e-3, 1.0, 4.0, 16.0)) == pytest.approx(4.0)
    assert error(run(1e-3)) is None
    assert error(run(1e-3, 1.0, None)) is None


def test_rates_are_set_against_the_best_of_their_iterations_and_the_longest():
    found = rows([
        run(1e-3, 8.0, 2.0), run(1e-2, 2.0, 2.0), run(1e-2, 6.0, 6.0, seed=1),
        run(1e-3, 24.0, 6.0, seed=1), run(1e-3, 1.0, 1.0, iters=5000),
        run(1e-1, 1e-9, 1e-9, status="failed"),
    ])  # fmt: skip
    # 1e-2: 2 and 6; 1e-3: 4 and 12, twice as much on both; the longest has run the first alone.
    assert found == {
        ("500", "0.01"): ["**1.000**", "**2.000**"],
        ("500", "0.001"): ["2.000", "4.000"],
        ("5000", "0.001"): ["**1.000**", "**1.000**"],
    }


def test_a_rate_that_has_not_run_everywhere_is_not_the_best():
    found = rows([run(1e-3, 1.0), run(1e-3, 9.0, seed=1), run(1e-2, 2.0), run(1e-2, 10.0, seed=1),
                  run(5e-2, 0.1)])  # fmt: skip
    assert found["500", "0.001"][0] == "**1.000**"
    assert found["500", "0.05"] == ["0.100", "0.100"]


def test_methods_and_step_sizes_have_tables_of_their_own():
    lines = table([run(1e-3, 1.0), run(1e-3, 2.0, quant="lrq"), run(1e-3, 3.0, act_steps="after")])
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" flexround ", " causal "], [" flexround ", " causal, after "], [" lrq ", " causal "],
    ]  # fmt: skip


def test_the_command_reads_a_folder(tmp_path, capsys):
    Store(tmp_path).write(run(1e-3, 1.0))
    main(["--results-dir", str(tmp_path)])
    assert "| flexround | causal | 500 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"give recon.held_out="):
        table([])
