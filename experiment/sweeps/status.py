"""Status of a sweep: what has become of its runs, and the command that finishes it."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiment.sweeps import slurm_queue
from experiment.sweeps.jobs import (
    LAUNCHER,
    as_typed,
    facts_in,
    job_folders,
    jobs_of,
    sweep_overrides,
)
from experiment.sweeps.search_space import trials_of
from results.records.claim import Claim, Owner
from results.records.store import Store

log = logging.getLogger(__name__)

State = Literal["done", "failed", "running", "lost", "waiting"]
STATES: tuple[State, ...] = ("done", "failed", "running", "lost", "waiting")


@dataclass(frozen=True)
class JobState:
    """One run of a sweep: its number, what it was asked, and what has become of it."""

    number: int
    overrides: Sequence[str]
    state: State
    word: str


class Sweep:
    """A folder that a sweep has left."""

    def __init__(self, folder: Path) -> None:
        """Read the sweep's own configuration.

        Raises:
            ValueError: when folder is no sweep's.
        """
        self.folder = folder
        path = folder / "multirun.yaml"
        if not path.is_file():
            raise ValueError(f"{folder} is not the folder of a sweep: it holds no multirun.yaml")
        self._config = config = _configuration(path)
        # Where the sweep was begun, not where its state is asked for.
        self.store = Store(Path(config.hydra.runtime.cwd, config.results_dir))
        self._began = path.stat().st_mtime

    def states(self) -> list[JobState]:
        """Return what has become of each run, in the order of the sweep."""
        folders = {int(path.name): path for path in job_folders(self.folder)}
        jobs = self._jobs(folders)
        submitted = self._submitted()
        queue = queued(submitted)
        launching = Claim(self.folder / LAUNCHER).seems_alive() or bool(queue)
        return [
            JobState(
                number, overrides, *self._state(folders.get(number), launching, submitted, queue)
            )
            for number, overrides in enumerate(jobs)
        ]

    def _jobs(self, folders: Mapping[int, Path]) -> list[Sequence[str]]:
        """Return the overrides of each job.

        What a job has started with is in its folder. Expanded again, a sweep may have another
        order, shuffle(), or other members, glob(): what has not started is what is left of it.
        """
        started = {number: own for number, path in folders.items() if (own := _started(path))}
        if (count := trials_of(self._config.hydra)) is not None:  # it proposes them as it goes
            return [started.get(number, []) for number in range(count)]
        expanded = jobs_of(sweep_overrides(self._config.hydra))
        asked: list[Sequence[str]] = [filter_overrides(job) for job in expanded]
        if all(number < len(asked) and asked[number] == own for number, own in started.items()):
            return asked
        for own in started.values():
            if own in asked:
                asked.remove(own)
        left, total = iter(asked), max([len(started) + len(asked), *(n + 1 for n in started)])
        return [started.get(number) or next(left, []) for number in range(total)]

    def command(self, failed: bool) -> str:
        """Return the command that does what is not done yet, and what has failed."""
        door = "finetune.py" if self._config.hydra.job.config_name == "finetune" else "run.py"
        hydra = self._config.hydra.overrides
        own = [
            o
            for o in as_typed(hydra.hydra)
            if not o.startswith(("hydra.mode=", "hydra.sweep.dir="))
        ]
        typed = as_typed(hydra.task)
        task = [o for o in typed if o.partition("=")[0] not in ("retry_failed", "rerun")]
        again = ["retry_failed=true"] if failed and door == "run.py" else []
        if self._config.rerun:  # or the records from before would stand for what is left
            again = ["rerun=true"]
        return shlex.join(["python", door, "-m", *task, *again, *own])

    def _submitted(self) -> list[str]:
        """Return the ids of the SLURM jobs that the sweep was submitted as."""
        folder = self.folder / ".submitit"
        return sorted({path.name.partition("_")[0] for path in folder.glob("*") if path.is_dir()})

    def _state(
        self,
        folder: Path | None,
        launching: bool,
        submitted: Sequence[str],
        queue: set[str] | None,
    ) -> tuple[State, str]:
        facts = {} if folder is None else facts_in(folder)
        if not facts and folder is not None and _started(folder):  # it says no more at first
            return ("running", "") if launching else ("lost", "no word of its end")
        if not facts:
            return ("waiting", "") if launching else ("lost", "it was never started")
        if "checkpoint" in facts:  # of finetune.py, which leaves no record
            return "done", ""
        run_id = facts.get("run_id")
        if run_id is None:
            return "failed", facts.get("error", "")
        if not self.store.path(run_id).exists():
            run_id = self.store.renamed.get(run_id, run_id)
        claim = self.store.claim(run_id)
        owner = claim.owner()
        if owner is not None and claim.seems_alive() and not _ended(owner, submitted, queue):
            return "running", str(owner)
        record = self.store.peek(run_id)
        # A record from before is no success of a job that failed, or that was to compute it anew.
        fresh = self._config.rerun or "error" in facts
        if record is not None and (not fresh or record.began >= self._began):
            return ("done", "") if record.status == "ok" else ("failed", record.error or "")
        if owner is not None:  # it was at work, and has neither finished nor failed
            return "lost", facts.get("error", f"{owner} is gone")
        return ("failed", facts["error"]) if "error" in facts else ("lost", "no word of its end")


def _ended(owner: Owner, submitted: Sequence[str], queue: set[str] | None) -> bool:
    """Return whether SLURM knows that owner's job is over, whose last beat is believed longer.

    queue holds the jobs that were submitted for this sweep; nothing is known of another's, which
    may have the same run.
    """
    if owner.job is None or queue is None or owner.job in queue:
        return False
    return owner.job.partition("_")[0] in submitted


def _started(folder: Path) -> list[str]:
    """Return the overrides that Hydra has started a job with; nothing where it has not."""
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return []
    try:
        found = OmegaConf.load(path)
    except (YAMLError, ValueError, OmegaConfBaseException) as error:
        log.warning("%s is damaged and passed over: %s", path, _first_line(error))
        return []
    return [str(text) for text in found] if isinstance(found, ListConfig) else []


def _configuration(path: Path) -> DictConfig:
    """Return what Hydra has written of a sweep when it began.

    Raises:
        ValueError: when it is not that.
    """
    try:
        found = OmegaConf.load(path)
        if not isinstance(found, DictConfig):
            raise TypeError("it is no mapping")
        wanted = (
            (found.results_dir, str),
            (found.rerun, bool),
            (found.hydra.runtime.cwd, str),
            (found.hydra.job.config_name, str),
            (found.hydra.sweeper, DictConfig),
            (found.hydra.overrides.task, ListConfig),
            (found.hydra.overrides.hydra, ListConfig),
        )
        if not all(isinstance(value, kind) for value, kind in wanted):
            raise TypeError("a part of it is of another kind")
    except (YAMLError, ValueError, TypeError, AttributeError, OmegaConfBaseException) as error:
        raise ValueError(
            f"{path} is damaged, or no sweep's ({_first_line(error)}); give another folder"
        ) from error
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def queued(jobs: Sequence[str]) -> set[str] | None:
    """Return the array tasks of SLURM's jobs that are not over; None where SLURM does not answer.

    The sweep may be another user's.
    """
    entries = slurm_queue.queue(everyone=True) if jobs else None
    if entries is None:
        return None
    return {
        task for task, entry in entries.items()
        if not entry.ended and task.partition("_")[0] in jobs
    }  # fmt: skip


def newest(root: Path) -> Path:
    """Return the folder of the newest sweep below root.

    Raises:
        ValueError: when there is none.
    """
    found = sorted(root.glob("*/*/multirun.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"no sweep in {root}; give the folder of one")
    return found[-1].parent


def report(sweep: Sweep) -> str:
    """Return the sweep's state in words."""
    states = sweep.states()
    counts = Counter(job.state for job in states)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    lines = [f"{sweep.folder}: {len(states)} runs, {summary}"]
    common = set.intersection(*(set(job.overrides) for job in states)) if len(states) > 1 else set()
    for job in states:
        if job.state != "done":
            own = shlex.join(o for o in job.overrides if o not in common)
            lines.append(
                f"  #{job.number} {job.state:8}{own}" + (f": {job.word}" if job.word else "")
            )
    if counts["failed"] or counts["lost"]:
        lines += ["finish it with", f"  {sweep.command(bool(counts['failed']))}"]
    return "\n".join(lines)
