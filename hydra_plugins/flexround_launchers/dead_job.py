"""Outcome of a run whose process died, written in its place so that the sweep goes on."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from experiment.sweeps.jobs import OUTCOME


def folder_of(config: DictConfig, number: int) -> Path:
    """Return the output folder of a sweep's job."""
    return Path(config.hydra.sweep.dir, str(number))


def record_dead_job(folder: Path, error: str) -> JobReturn:
    """Leave the error in the job's folder, as the job would have; return a job without value."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OUTCOME
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({"error": error} | before))
    return JobReturn(status=JobStatus.COMPLETED)
