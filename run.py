"""One run, or with -m a sweep: compose, build, quantize, evaluate, record."""

from __future__ import annotations

import logging

import hydra
from omegaconf import DictConfig

from experiment.build import build, validate
from experiment.config import register
from experiment.device import device_name
from experiment.errors import one_line_errors
from experiment.job import Job, current_job
from experiment.outcome import outcome, write_outcome
from results.records.record import Record

log = logging.getLogger("run")
register()


def execute(cfg: DictConfig, job: Job) -> Record:
    """Compute the run from its configuration; everything heavy is imported from here on."""
    import torch

    from experiment.full_precision import FullPrecision
    from experiment.progress import ProgressBar
    from flexround.grid import Grid
    from flexround.reconstruction.callbacks import Reports

    validate(cfg)
    task, model, recon = build(cfg.task), build(cfg.model), build(cfg.recon)
    grid = Grid(cfg.bits, cfg.symmetric, build(cfg.granularity))
    quantizer, ranges, device = build(cfg.quant), build(cfg.ranges), job.device()
    activation = build(cfg.activation)
    recon.check_method(quantizer, grid)
    with job.recording() as draft:
        reports, bar, logger = Reports(), ProgressBar(cfg.progress), build(cfg.logger)
        checkpoints = job.checkpoints(device)
        draft.watch(task, reports, logger)

        draft.device = device_name(device)
        streams = job.streams()
        adapter = model.adapter(task, cfg.checkpoint, device, streams if cfg.offload else None)
        calibration = task.calibration(cfg.num_samples, cfg.seed)
        job.check_unchanged()
        recon.check(adapter, calibration, grid, quantizer, activation)

        shared = FullPrecision(
            job.cache(), adapter, calibration, recon.batch_size, cfg.stream_dtype
        )
        draft.fp_metrics = shared.full_precision(task, job.settings)
        task.check_full_precision(draft.fp_metrics)

        with bar:
            integers = recon(
                adapter,
                calibration,
                quantizer=quantizer,
                grid=grid,
                ranges=ranges,
                activation=activation,
                generator=torch.Generator().manual_seed(cfg.seed),
                observers=[o for o in (reports, bar, logger) if o is not None],
                checkpoints=checkpoints,
                targets=shared.targets(),
                streams=streams,
            )
        draft.metrics, draft.outcomes = task.evaluate(adapter), task.outcomes
        job.check_unchanged()
        draft.save = job.saving(task, adapter, integers, shared.model)
    checkpoints.clear()
    return draft.record


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Return the run's main metric: recorded before, or computed now; None if elsewhere."""
    with outcome():
        job = current_job(cfg)
        write_outcome(run_id=job.run_id)
        record = job.recorded()
        if record is None:
            with job.claimed() as mine:
                record = job.recorded() or execute(cfg, job) if mine else None
        if record is not None:
            log.info("%s", record.summary())
            return record.value
    return None


if __name__ == "__main__":
    with one_line_errors():
        main()
