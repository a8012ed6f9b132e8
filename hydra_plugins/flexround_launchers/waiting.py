"""Wait for the jobs of a sweep, also for those that die without a word."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from experiment.sweeps import slurm_queue

if TYPE_CHECKING:
    from submitit.core.core import Job

log = logging.getLogger(__name__)

# Seconds: between two looks at the queue, and for a dead job's result to appear on a slow disk.
LOOK, GRACE = 5.0, 20.0


def ended(jobs: Mapping[int, Job[Any]]) -> Iterator[tuple[int, str | None]]:
    """Yield each job as it ends: its number, and where it left no result the state it died in.

    submitit's own wait asks sacct, and without an accounting database waits for ever.
    """
    waiting, since, looked = dict(jobs), dict[int, float](), 0.0
    held: set[str] = set()
    while waiting:
        now = time.monotonic()
        for number in [n for n, job in waiting.items() if _has_result(job)]:
            del waiting[number]
            yield number, None
        if now - looked >= LOOK and (queue := slurm_queue.queue()) is not None:
            looked = now
            found = {n: queue.get(job.job_id, slurm_queue.UNKNOWN) for n, job in waiting.items()}
            since = {n: since.get(n, now) for n, entry in found.items() if entry.ended}
            for number in [n for n, first in since.items() if now - first >= GRACE]:
                del waiting[number]
                yield number, found[number].state
            for reason in {entry.held for entry in found.values() if entry.held} - held:
                log.warning("SLURM holds runs back (%s); `squeue --me` shows them", reason)
                held.add(reason)
        time.sleep(1)


def _has_result(job: Job[Any]) -> bool:
    folder = job.paths.folder
    with suppress(OSError):
        folder.chmod(folder.stat().st_mode)  # makes NFS look again
    return bool(job.paths.result_pickle.exists())
