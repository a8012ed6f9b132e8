"""Door of a run, with -m of a sweep: `python run.py model=resnet18 quant=flexround bits=4`."""

from __future__ import annotations

from flexround.utils import leaving

if __name__ == "__main__":
    leaving.listen()  # before the imports, which take seconds

import logging

import hydra
from omegaconf import DictConfig

from experiment.command_line import command_line
from experiment.config import register
from experiment.job import Job, current_job
from experiment.outcome import outcome, write_outcome
from experiment.progress import quiet_libraries
from results.records.record import Record

log = logging.getLogger("run")
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Return the run's main metric: recorded before, or computed now; None if elsewhere."""
    quiet_libraries(cfg.progress)
    with outcome():
        job = current_job(cfg)
        write_outcome(run_id=job.run_id)
        record = job.recorded()
        if record is None:
            with job.claimed() as mine:
                record = job.recorded() or _execute(job) if mine else None
        if record is not None:
            log.info("%s", record.summary())
            return record.value
    return None


def _execute(job: Job) -> Record:
    from experiment.execute import execute  # with it comes everything heavy

    return execute(job)


if __name__ == "__main__":
    command_line(main, "the same command again computes only what is left")
