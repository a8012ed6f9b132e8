"""Table at the end of a sweep, and exit status 1 when one of its runs failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiment.errors import PLACES
from experiment.sweeps.jobs import (
    LAUNCHER,
    as_typed,
    check_numbered,
    facts_in,
    forget_jobs,
    jobs_of,
    sweep_overrides,
)
from experiment.sweeps.search_space import is_search, trials_of
from flexround.utils.file_errors import storage_errors
from flexround.utils.leaving import undoing
from results.records.claim import Claim
from results.records.record import Record
from results.records.selection import ABSENT, fact
from results.records.store import Store
from results.tables.differing_defaults import MethodRun, differing_defaults


class SweepTable(Callback):
    """Prints the leaderboard of the runs of this sweep once all its jobs have ended."""

    def __init__(self) -> None:
        self._claim: Claim | None = None
        self._held = ExitStack()
        self._count = 0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say in the sweep's folder that it is being launched.

        Raises:
            SystemExit: when it has no runs, which a launcher may not expect; when the folder can't
                be written, or another sweep is being launched there; when its jobs' folders would
                have other names than those that they are found by.
        """
        folder = Path(config.hydra.sweep.dir)
        try:
            check_numbered(config.hydra)
            loader = GlobalHydra.instance().config_loader()
            count = trials_of(config.hydra, loader)
            self._count = count or len(jobs_of(sweep_overrides(config.hydra), loader))
            self._claim = Claim(folder / LAUNCHER)
            self._held.enter_context(undoing(self._claim.release))
            with storage_errors(PLACES):
                owner = self._claim.take()
                if owner is not None and owner.pid != os.getpid():
                    raise ValueError(
                        f"hydra.sweep.dir={folder}: {owner} is launching another sweep there; give "
                        "another, or wait for it"
                    )
                forget_jobs(folder)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table.

        Raises:
            SystemExit: when a job failed or left nothing behind.
        """
        if self._claim is not None:
            self._claim.release()
        self._held.close()
        folder, store = Path(config.hydra.sweep.dir), Store(config.results_dir)
        outcomes = [_outcome(folder / str(number), store) for number in range(self._count)]
        trouble = None
        try:
            self._tell(config, outcomes)
        except Exception as error:  # Hydra would make a warning of it, and exit with 0
            trouble = str(error).strip().partition("\n")[0] or type(error).__name__
        errors = [o["error"] for o in outcomes if "error" in o]
        if errors:
            raise SystemExit(
                f"error: {len(errors)} of {len(outcomes)} runs failed, the first: {errors[0]}"
            )
        if trouble is not None:
            raise SystemExit(f"error: the runs are recorded, but not their table: {trouble}")

    def _tell(self, config: DictConfig, outcomes: Sequence[dict[str, str]]) -> None:
        """Print the table of the runs that left outcomes, and what a user may not expect."""
        run_ids = [o["run_id"] for o in outcomes if "run_id" in o]
        records = Store(config.results_dir).load(run_ids)
        if records and is_search(config.hydra):
            _print_searches(config, records)
        elif records:
            from results.tables.leaderboard import leaderboard, render

            # Of what is swept, a folder is in no record by its name, and not what does nothing.
            by = [
                name
                for name in _by(config)
                if any(fact(r, name, ABSENT) != ABSENT for r in records)
            ]
            print(render(leaderboard(records, by, apart=True), "markdown"))
        # In the sweep's order: the records' own ends with the second that they began in.
        records.sort(key=lambda record: run_ids.index(record.run_id))
        runs = (MethodRun(r.model, r.task, r.quant, r.settings) for r in records)
        for line in (*differing_defaults(runs), *_remarks(outcomes)):
            print(line, file=sys.stderr)


def _print_searches(config: DictConfig, records: Sequence[Record]) -> None:
    """Print the searches whose trials are all among records."""
    from results.records.searches import load
    from results.tables.search import report, searched

    known = {record.run_id: record for record in records}
    # Another search of the folder may have a trial in common, as the setting as it stands is one.
    own = [
        one for one in load(Path(config.results_dir))
        if {trial.run_id for trial in one.trials} - {None} <= known.keys()
    ]  # fmt: skip
    print(report([one for one in searched(own, known) if any(one.records)]))


def _remarks(outcomes: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield what a user may not expect: work that is done elsewhere, and equal configurations."""
    # Of equal jobs at once one has the run, and the others leave it alone.
    own = {o.get("run_id") for o in outcomes if "running" not in o}
    elsewhere = [o["running"] for o in outcomes if "running" in o and o.get("run_id") not in own]
    if elsewhere:
        yield f"{len(elsewhere)} runs are at work elsewhere, the first: {elsewhere[0]}"
    jobs: dict[str, list[int]] = {}
    for number, outcome in enumerate(outcomes):
        jobs.setdefault(outcome.get("run_id", f"job {number}"), []).append(number)
    for run_id, same in jobs.items():
        if len(same) > 1:
            numbers = ", ".join(f"#{number}" for number in same)
            yield f"jobs {numbers} are the same configuration, computed once: {run_id}"


def _by(config: DictConfig) -> list[str]:
    """Return the swept settings that the table has no axis for."""
    parsed = OverridesParser.create().parse_overrides(as_typed(config.hydra.overrides.task))
    swept = [o.key_or_group for o in parsed if o.is_sweep_override()]
    swept += list(config.hydra.sweeper.get("params") or {})
    groups = [key for key in swept if key in config.hydra.runtime.choices]
    return [key for key in swept if key not in (*groups, "bits", "seed")]


def _outcome(job: Path, store: Store) -> dict[str, str]:
    """Return the facts that a job has left; an error where it says nothing of its end.

    On a full disk a job may neither have its record nor its error written.
    """
    facts = facts_in(job)
    if not facts:
        return {"error": f"job {job.name} ended without a word; its log is in {job}"}
    if "run_id" not in facts or "error" in facts or "running" in facts:
        return facts
    record = store.peek(facts["run_id"])
    if record is None:
        return {"error": f"job {job.name} has left no record; its log is in {job}"}
    return facts | ({} if record.error is None else {"error": record.error})
