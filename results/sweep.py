"""The end of a sweep: the table of its runs, and exit status 1 when one of them failed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from results.store import Store

# In each job's output folder: {"run_id": ...} of a finished job, {"error": ...} of another.
OUTCOME = "outcome.json"


class SweepTable(Callback):
    """Prints the leaderboard of the runs of this sweep once all its jobs have ended."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table.

        Raises:
            SystemExit: when a job failed or left nothing behind.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted(
            (p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name)
        )
        outcomes = [_outcome(job) for job in jobs]
        run_ids = [o["run_id"] for o in outcomes if "run_id" in o]
        records = Store(config.results_dir).load(run_ids)
        if records:
            from results.leaderboard import leaderboard, render

            try:
                print(render(leaderboard(records, _by(config)), "markdown"))
            except ValueError as error:
                print(f"no table: {error}", file=sys.stderr)
        errors = [o["error"] for o in outcomes if "error" in o]
        if errors:
            raise SystemExit(
                f"error: {len(errors)} of {len(jobs)} runs failed, the first: {errors[0]}"
            )


def _by(config: DictConfig) -> list[str]:
    """Return the swept settings that the table has no axis for."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    swept = [o.key_or_group for o in parsed if o.is_sweep_override()]
    swept += list(config.hydra.sweeper.get("params") or {})
    groups = [key for key in swept if key in config.hydra.runtime.choices]
    return [key for key in swept if key not in (*groups, "bits", "seed")]


def _outcome(job: Path) -> dict[str, str]:
    try:
        outcome: dict[str, str] = json.loads((job / OUTCOME).read_text())
        return outcome
    except (OSError, ValueError):
        return {"error": f"job {job.name} ended without a word; its log is in {job}"}
