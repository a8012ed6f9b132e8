"""The view of `python -m results search`: its options, and what it prints or writes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from flexround.utils.arguments import ArgumentParser
from results.records.reading import chosen_of, rows_in, with_units
from results.records.record import Record
from results.records.searches import load
from results.tables.search import Searched, report, searched, trials
from results.tables.winners import write_winners


def add_options(parser: ArgumentParser) -> None:
    """Give parser the options of this view alone."""
    parser.add_argument("--trials", action="store_true", help="a row for every trial")
    parser.add_argument("--tuned", type=Path, help="write the winners as YAML into this folder")


def view(args: argparse.Namespace, where: Mapping[str, str]) -> str:
    """Return the searches that have trials among the records of where, or the files written.

    Raises:
        ValueError: when there are none, or winners are to be written of searches that are unfair.
    """
    if args.by:
        raise ValueError(f"--by {args.by[0]} does nothing with searches; leave it out")
    if not any(load(args.results_dir)):
        raise ValueError(
            f"no searches in {args.results_dir}; python run.py -m hydra/sweeper=optuna makes them"
        )
    rows = rows_in(args.results_dir)
    found = searches_in(args.results_dir, rows, chosen_of(rows, where) if where else None)
    if not found:
        raise ValueError("no search has a trial among these records; ask for fewer things")
    if args.tuned is not None:
        return "\n".join(str(path) for path in write_winners(found, args.tuned))
    return trials(found, args.format) if args.trials else report(found, args.format)


def searches_in(
    place: Path, rows: Sequence[Record], chosen: Sequence[Record] | None = None
) -> list[Searched]:
    """Return the searches of place, whose records are rows, that have a trial among the chosen.

    A search has all its trials, also where others of them are chosen: it is not fair or unfair by
    what is looked at. Units are read of trials alone; without chosen every search is returned.

    Raises:
        ValueError: when a file of place's searches is none.
    """
    searches = list(load(place))
    if chosen is not None:
        wanted = {record.run_id for record in chosen}
        searches = [s for s in searches if any(t.run_id in wanted for t in s.trials)]
    named = {trial.run_id for search in searches for trial in search.trials}
    own = with_units(place, [row for row in rows if row.run_id in named]) if named else []
    return searched(searches, {record.run_id: record for record in own})
