"""The page of claims is what the ledger renders to, and its runs are today's."""

from __future__ import annotations

from experiment.sweeps.plan import plan
from results.ledger import kept
from results.ledger.claims import read
from results.ledger.evidence import cells_of
from results.ledger.gathering import verdicts_in
from scripts.claims_page import PAGE, unexplained, with_table

LOCAL = {"model=mobilenet_v2", "model=resnet18"}  # whose runs need no data that is not here


def test_the_page_is_what_the_ledger_says():
    text, told = PAGE.read_text(), verdicts_in()
    assert with_table(text, told) == text, "run `make claims ARGS=--no-runs`"
    assert unexplained(text, told) == []
    assert kept.LEDGER.stat().st_size < 1_000_000


def test_a_record_of_the_ledger_is_that_of_todays_run():
    """A changed default gives the runs other names.

    One cell is looked at of each claim whose runs need no data that is not here.
    """
    found = cells_of(record for record, _ in kept.read())
    cells = {next(iter(c.cells)) for c in read() if c.under} & found.keys()
    names = {cell: {r.run_id for r in found[cell].values()} for cell in cells if LOCAL & cell}
    assert len(names) >= 20
    for cell, runs in sorted(names.items(), key=lambda item: sorted(item[0])):
        (run,) = plan([*cell, "seed=0"])
        assert run.run_id in runs, f"{' '.join(sorted(cell))}: run `make claims`"
