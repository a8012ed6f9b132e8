"""Outcome of a run whose process died, written in its place so that the sweep goes on."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from experiment.sweeps.jobs import facts_in, write_facts

log = logging.getLogger(__name__)


def folder_of(config: DictConfig, number: int) -> Path:
    """Return the output folder of a sweep's job."""
    return Path(config.hydra.sweep.dir, str(number))


def record_dead_job(folder: Path, error: str) -> JobReturn:
    """Leave the error in the job's folder, as the job would have; return a job without value."""
    try:
        write_facts(folder, {"error": error} | facts_in(folder))
    except OSError as problem:
        log.warning("job %s: %s (not written: %s)", folder.name, error, problem.strerror)
    return JobReturn(status=JobStatus.COMPLETED)
