"""The view of `python -m results search`: its options, and what it prints or writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from flexround.utils.arguments import ArgumentParser
from results.records.reading import with_units
from results.records.record import Record
from results.records.searches import load
from results.tables.search import Searched, report, searched, trials, write_winners


def add_options(parser: ArgumentParser) -> None:
    """Give parser the options of this view alone."""
    parser.add_argument("--trials", action="store_true", help="a row for every trial")
    parser.add_argument("--tuned", type=Path, help="write the winners as YAML into this folder")


def view(args: argparse.Namespace, chosen: Callable[[], Sequence[Record]]) -> str:
    """Return the searches that have trials among the chosen records, or the files written.

    Raises:
        ValueError: when there are none, or winners are to be written of searches that are unfair.
    """
    if args.by:
        raise ValueError(f"--by {args.by[0]} does nothing with searches; leave it out")
    searches = list(load(args.results_dir))
    if not searches:
        raise ValueError(
            f"no searches in {args.results_dir}; python run.py -m hydra/sweeper=optuna makes them"
        )
    found = searched(searches, {record.run_id: record for record in chosen()})
    if args.task or args.model or args.where:
        found = [one for one in found if any(record is not None for record in one.records)]
    if not found:
        raise ValueError("no search has a trial among these records; ask for fewer things")
    if args.tuned is not None:
        return "\n".join(str(path) for path in write_winners(found, args.tuned))
    return trials(found, args.format) if args.trials else report(found, args.format)


def searches_in(place: Path, rows: Sequence[Record]) -> list[Searched]:
    """Return the searches of place that have a trial among rows, which are its records.

    Units are read of their trials alone.

    Raises:
        ValueError: when a file of place's searches is none.
    """
    searches = list(load(place))
    named = {trial.run_id for search in searches for trial in search.trials}
    own = with_units(place, [row for row in rows if row.run_id in named])
    found = searched(searches, {record.run_id: record for record in own})
    return [one for one in found if any(record is not None for record in one.records)]
