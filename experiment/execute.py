"""Execution of one run: build, quantize, evaluate, record.

Everything heavy is imported here, so that a command line that computes nothing stays quick.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
from omegaconf import DictConfig

from experiment.build import build, build_grid, build_loop, validate
from experiment.checks import bits_of_layers
from experiment.device import device_name, device_of, precision_told, processor
from experiment.finetuned import finetuning_of
from experiment.full_precision import FullPrecision
from experiment.identity import plain
from experiment.job import Job
from experiment.progress import ProgressBar
from experiment.rehearsal import Checks, rehearse
from experiment.resources import Resources, checkpoints_of
from experiment.source_code import code_of
from experiment.task_checks import check_drawn, check_places, check_said
from experiment.threads import number_for, running_on
from flexround.allocation import check_kind as check_allocated
from flexround.artifact.file_format import check_storable
from flexround.attach import check_weights
from flexround.quantizers.rtn import RTN
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.samples import first_samples
from flexround.transforms.base import Calibration, apply
from flexround.transforms.base import check_kind as check_transformed
from flexround.utils.memory import explained, forget_dead
from results.records.record import Record
from tasks.base import Task

# The settings that decide what a transform finds of a network, on the samples that it sees.
SEARCHED = ("transform", "grid", "bits", "symmetric", "granularity")


def execute(job: Job) -> Record:
    """Compute the run and return its record, which is written whatever happens.

    Raises:
        ValueError: what the user can mend.
    """
    threads = number_for(job.store.root, job.cfg.threads, processor())
    try:
        with running_on(threads):
            return _execute(job, threads)
    finally:
        forget_dead()


def check_whose_network(cfg: DictConfig, task: Task) -> None:
    """Check that the run is named by the network that task takes.

    Raises:
        ValueError: when it is not; says which file of conf/ to mend.
    """
    own = task.always_finetuned
    if cfg.checkpoint is not None or own == cfg.finetuned:
        return
    takes = "what finetune.py has made" if own else "networks as they are"
    mend = "needs finetuned: true" if own else "is to leave finetuned: true out"
    raise ValueError(
        f"the task {type(task).__name__} takes {takes}: the file of conf/ that chooses it {mend}"
    )


def _execute(job: Job, threads: int) -> Record:
    cfg = job.cfg
    validate(cfg)
    made = partial(build, plugins=cfg.plugins)
    task, model, recon = made(cfg.task), made(cfg.model), build_loop(cfg)
    check_said(task)
    check_whose_network(cfg, task)
    grid = build_grid(cfg)
    if cfg.save:
        check_storable(grid)
    quantizer, ranges, activation = made(cfg.quant), made(cfg.ranges), made(cfg.activation)
    transform, allocation = made(cfg.transform), made(cfg.allocation)
    if allocation is not None:
        check_allocated(model.kind or task.kinds[0], cfg.offload)
    if transform is not None:
        check_transformed(transform, model.kind, cfg.offload)
    recon.check_method(quantizer, grid)
    checks = Checks(
        partial(recon.check, grid=grid, quantizer=quantizer, activation=activation),
        # A solver takes any layer that round-to-nearest does.
        partial(check_weights, grid=grid, quantizer=quantizer if callable(quantizer) else RTN),
    )
    device = device_of(cfg.device)
    with job.recording() as draft:
        log, bar, logger = ReportLog(), ProgressBar(cfg.progress), made(cfg.logger)
        draft.watch(task, log, logger)
        draft.threads, draft.processor = threads, processor()
        settings = plain(cfg)
        check_places(settings)
        draft.finetuning = finetuning_of(settings)
        rehearse(cfg, task, model, device, checks)
        own = Resources.of(job, device)
        draft.device = device_name(own.device)
        draft.precision = precision_told(cfg, recon.precision_on(own.device))

        offload = own.activations if cfg.offload else None
        adapter = model.adapter(task, cfg.checkpoint, own.device, offload)
        adapter.assign_bits(bits_of_layers(cfg))
        draft.coverage = adapter.coverage()
        calibration = task.calibration(cfg.num_samples, cfg.seed)
        job.check_unchanged()
        check_drawn(task, sum(map(adapter.num_samples, calibration)), cfg.num_samples)
        checked = checks.run(adapter, calibration)
        logging.getLogger("run").info(draft.coverage.summary())
        # Samples that are held out have a part in nothing that is chosen.
        seen = first_samples(adapter, calibration, cfg.num_samples - recon.held_out)

        if allocation is not None:
            less = "lower recon.batch_size, or give bits_per_layer= by hand"
            with explained("allocation", own.device, less):
                chosen, draft.sensitivity = allocation(
                    adapter, seen, recon.batch_size, grid, ranges
                )
            adapter.assign_bits(chosen)
        draft.average_bits = adapter.average_bits(grid)
        bits = {name: layer.grid(grid).bits for name, layer in adapter.layers().items()}
        if allocation is not None or cfg.bits_per_layer:
            draft.bits_per_layer = bits
        network = partial(
            FullPrecision,
            own.shared,
            adapter,
            calibration,
            task,
            recon.batch_size,
            cfg.stream_dtype,
            code=code_of(cfg),
        )
        full_precision = network()
        draft.network = full_precision.network
        draft.evaluation_data = full_precision.evaluation_data
        task.reference = full_precision.reference(job.settings, own.activations)
        draft.fp_metrics = full_precision.metrics(job.settings)
        task.check_full_precision(draft.fp_metrics)
        checkpoints = checkpoints_of(job, full_precision, draft.precision, draft.bits_per_layer)
        draft.checkpoints = checkpoints
        start = full_precision  # what quantization starts from
        if transform is not None:
            draws = torch.Generator().manual_seed(cfg.seed)
            asked = {name: job.settings.get(name) for name in SEARCHED}
            searches = full_precision.searches(seen, asked, bits)
            sees = Calibration(seen, recon.batch_size, grid, own.activations, draws, searches)
            draft.transform = apply(transform, adapter, sees)
            if searches.reused:
                draft.transform["blocks_reused"] = searches.reused
            # What the blocks and the last norm give has moved with the weights.
            start = network()
            task.reference = start.reference(job.settings, own.activations)

        with bar:
            integers = recon(
                adapter,
                calibration,
                quantizer=quantizer,
                grid=grid,
                ranges=ranges,
                activation=activation,
                generator=torch.Generator().manual_seed(cfg.seed),
                callbacks=[c for c in (log, bar, logger) if c is not None],
                checkpoints=checkpoints,
                full_precision=start.outputs(),
                cache=own.activations,
                checked=checked,
            )
        draft.metrics, draft.outcomes = task.evaluate(adapter), task.outcomes
        job.check_unchanged()
        if cfg.save:
            from experiment.artifacts.save import save  # with it comes pandas

            folder = job.store.artifact(job.run_id)
            draft.save = partial(save, folder, task, adapter, integers, full_precision.network)
    checkpoints.clear()
    assert draft.record is not None, "a run that ends well has its record"
    return draft.record
