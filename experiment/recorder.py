"""Recorder of a run: its record is written when it ends, well or badly."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from experiment.conditions import versions
from experiment.source_code import commit
from experiment.task_checks import check_metric
from flexround.utils.file_errors import number_of
from flexround.utils.leaving import faults
from results.records.record import Record
from results.records.store import Store

if TYPE_CHECKING:
    from flexround.models.coverage import Coverage
    from flexround.reconstruction.checkpoints import FileCheckpoints
    from tasks.base import Task

log = logging.getLogger(__name__)


class Logger(Protocol):
    """Where a run is mirrored."""

    def start(self, run_id: str, name: str, settings: dict[str, Any]) -> None:
        """Open the mirror of a run, or go on with it."""
        ...

    def keep(self, record: Record, folder: Path) -> None:
        """Take the artifact in folder along."""
        ...

    def finish(self, record: Record) -> None:
        """Close it with the record."""
        ...


class NoMirror(ValueError):
    """A mirror that can't be opened, as without a login: the run itself has not failed."""


@dataclass
class Draft:
    """What is known of a run so far."""

    base: dict[str, Any]
    attempt: str = ""  # told apart from the run whose record this one is to replace
    task: Task | None = None
    reports: Any = None
    logger: Logger | None = None
    fp_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, Any] = field(default_factory=dict)  # of each evaluation sample
    device: str = ""
    precision: str = ""
    processor: str = ""
    threads: int | None = None
    network: str | None = None
    finetuning: dict[str, Any] = field(default_factory=dict)
    evaluation_data: str | None = None
    coverage: Coverage | None = None
    transform: dict[str, Any] = field(default_factory=dict)
    average_bits: float | None = None
    bits_per_layer: dict[str, int] = field(default_factory=dict)
    sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)
    save: Callable[[Record], Path] | None = None  # writes the artifact that goes with the record
    checkpoints: FileCheckpoints | None = None
    record: Record | None = None

    def watch(self, task: Task, reports: Any, logger: Logger | None) -> None:
        """Name the run's task, the keeper of its block reports and its logger."""
        self.task, self.reports = task, reports
        if logger is not None:
            name = "{model}-{task}-{quant}-w{bits}-s{seed}".format(**self.base)
            run_id = self.base["run_id"]
            try:
                logger.start(
                    run_id + self.attempt, name, self.base["settings"] | {"run_id": run_id}
                )
            except ValueError as error:
                raise NoMirror(str(error)) from error
            self.logger = logger


@contextmanager
def recording(
    store: Store, base: dict[str, Any], conditions: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Draft]:
    """Yield a draft; write it as an ok record at the end, or a failed one on any exception.

    conditions are what a failed run may have failed for besides its settings.

    A run that a signal ends (Ctrl-C) leaves no record: it has neither finished nor failed. Nor does
    one that met a full disk, or a file or folder that can't be read or written, or whose logger
    asks for a login.

    Raises:
        ValueError: when the metric is missing or not finite.
    """
    replaces = store.replaced(base["run_id"])
    draft = Draft(base, "" if replaces is None else f"-after-{_digits(replaces)}")
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    clock = time.perf_counter()

    def record(error: str | None) -> Record:
        task = draft.task
        metric = task.metric if task else None
        blocks = draft.reports.blocks if draft.reports else []
        before = 0.0 if draft.checkpoints is None else draft.checkpoints.seconds_before
        return Record(
            status="failed" if error else "ok",
            error=error,
            task_version=task.version if task else None,
            metric=metric,
            higher_is_better=task.higher_is_better if task else None,
            value=None if error or metric is None else draft.metrics[metric],
            fp_value=draft.fp_metrics.get(metric) if metric else None,
            metrics={} if error else draft.metrics,
            fp_metrics=draft.fp_metrics,
            blocks=[asdict(block) for block in blocks],
            quantized_share=None if draft.coverage is None else draft.coverage.share,
            left=[] if draft.coverage is None else list(draft.coverage.left),
            seconds=time.perf_counter() - clock + before,
            peak_memory_gib=max([b.peak_memory_gib for b in blocks], default=0.0),
            device=draft.device,
            precision=draft.precision,
            processor=draft.processor,
            threads=draft.threads,
            network=draft.network,
            finetuning=draft.finetuning,
            evaluation_data=draft.evaluation_data,
            evaluation={} if error or task is None else dict(task.facts),
            transform=draft.transform,
            average_bits=draft.average_bits,
            bits_per_layer=draft.bits_per_layer,
            sensitivity=draft.sensitivity,
            versions=versions(),
            commit=commit(),
            started=started,
            conditions=dict(conditions) if error else {},
            **base,
        )

    folder = None
    try:
        with faults():
            yield draft
            _check(draft)
            done = record(None)
            if draft.save is not None:  # first, so that no record is without what it promises
                folder = draft.save(done)
    except Exception as error:
        if number_of(error) is not None or isinstance(error, NoMirror):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        _close(store, draft, record(f"{kind}{text}"))
        raise
    _close(store, draft, done, folder)


def _digits(moment: str) -> str:
    return "".join(c for c in moment.partition("+")[0] if c.isdigit())


def _check(draft: Draft) -> None:
    assert draft.task is not None, "a run that ends well has named its task"
    check_metric(draft.task, draft.metrics)


def _close(store: Store, draft: Draft, record: Record, folder: Path | None = None) -> None:
    if record.status == "failed" and store.replaced(record.run_id) is not None:
        log.warning("the record %s of an earlier, finished run is kept", record.run_id)
    else:
        store.write(record, draft.outcomes)
    draft.record = record
    if draft.logger is not None:
        if folder is not None:
            draft.logger.keep(record, folder)
        draft.logger.finish(record)
