"""`make leaderboard`: README's tables, made again from records by the commands beside them.

A table lies between `<!-- leaderboard: ARGUMENTS OF run.py -m -->` and `<!-- end -->`. Its records
are kept in readme.jsonl, without their blocks, so that a clone can tell whether README is stale:
where a default has changed, the runs of the command have other names.

    python -m scripts.readme_tables [OPTION=VALUE ...]

gives the options to the runs that have no record yet.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from experiment import ROOT
from experiment.sweeps.plan import plan
from flexround.utils.arguments import ArgumentParser
from flexround.utils.atomic_files import write_whole
from results.ledger.kept import read as records_in
from results.records.lines import to_lines
from results.records.record import Record
from results.tables.leaderboard import leaderboard, render
from scripts.door import enter

README, KEPT = ROOT / "README.md", ROOT / "results" / "readme.jsonl"
TABLE = re.compile(r"(<!-- leaderboard: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
COMMAND = "make leaderboard"


def commands(text: str) -> list[str]:
    """Return the arguments of each table's command in the README's text."""
    return [match[2] for match in TABLE.finditer(text)]


def with_tables(text: str, kept: dict[str, Record]) -> str:
    """Return the README's text with each table as kept, records by their run's name, renders.

    Raises:
        ValueError: when a run of a table's command has no record.
    """

    def table(match: re.Match[str]) -> str:
        rendered = render(leaderboard(records_of(match[2], kept)), "markdown")
        return f"{match[1]}\n{rendered}\n\n{match[3]}"

    return TABLE.sub(table, text)


def records_of(command: str, kept: dict[str, Record]) -> list[Record]:
    """Return the records of a command's runs, oldest first.

    Raises:
        ValueError: when a run has none.
    """
    names = [run.run_id for run in plan(shlex.split(command))]
    if missing := [name for name in names if name not in kept]:
        raise ValueError(
            f"{len(missing)} of the {len(names)} runs of {command} have no record in "
            f"{KEPT.name}; {COMMAND} computes what is not recorded"
        )
    return sorted((kept[name] for name in names), key=lambda record: record.started)


def read(path: Path) -> dict[str, Record]:
    """Return the records of a file by their run's name; none where there is no file."""
    return {record.run_id: record for record, _ in records_in(path)}


def slim(record: Record) -> Record:
    """Return record without what no table shows."""
    return replace(record, blocks=[], versions={}, peak_memory_gib=0.0)


def written(records: Iterable[Record]) -> bytes:
    """Return records as the bytes of a file."""
    return to_lines((record, {}) for record in records)


def main(argv: Sequence[str]) -> int:
    """Write README's tables and the records behind them; return the exit status.

    Runs that have no record are computed; where one fails, nothing is written.
    """
    parser = ArgumentParser(prog="python -m scripts.readme_tables", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help="run.py's")
    also = parser.parse_args(argv).overrides
    text = README.read_text()
    kept, used = read(KEPT), {}
    for command in commands(text):
        overrides = [*shlex.split(command), *also]
        runs = plan(overrides)
        if not all(run.run_id in kept or _done(run.record) for run in runs):
            done = subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", *overrides])
            if done.returncode:
                return done.returncode
            runs = plan(overrides)
        for run in runs:
            found = [r for r in (kept.get(run.run_id), run.record) if r is not None and _done(r)]
            used[run.run_id] = slim(max(found, key=lambda record: record.started))
    text = with_tables(text, used)
    write_whole(KEPT, written(used.values()))
    write_whole(README, text.encode())
    return 0


def _done(record: Record | None) -> bool:
    return record is not None and record.status == "ok"


if __name__ == "__main__":
    enter(main)
