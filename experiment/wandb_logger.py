"""Mirror of a run in wandb; the records stay the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexround.reconstruction.report import BlockReport
from flexround.utils.file_errors import told
from results.records.record import Record
from results.wandb_table import Mode, open_run

log = logging.getLogger(__name__)


class WandbLogger:
    """One wandb run for each run: reconstruction curves by block, then the final metrics.

    Steps are counted by the run itself: `iteration` is the axis of the loss curves, `unit` that of
    the units' errors.
    """

    def __init__(self, project: str, mode: Mode, dir: str, group: str) -> None:
        self._project, self._mode, self._dir, self._group = project, mode, dir, group
        self._run: Any = None
        self._units: list[str] = []
        self._done = 0
        self._gone = False  # wandb's own process, beside this one

    def start(self, run_id: str, name: str, settings: dict[str, Any]) -> None:
        """Open the wandb run called name, or continue it where an attempt was cut off.

        run_id is the record's, so that every attempt is the same wandb run. Where mode is online
        and the network does not answer, the run is logged offline.

        Raises:
            ValueError: when wandb asks for a login that is not there.
        """
        self._run = open_run(
            self._mode, self._dir,
            id=run_id, name=name, project=self._project, group=self._group, config=settings,
        )  # fmt: skip
        self._run.define_metric("loss/*", step_metric="iteration")
        self._run.define_metric("error/*", step_metric="unit")

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Remember the units."""
        self._units = list(units)

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Add a point to the unit's reconstruction curve."""
        self._log({f"loss/{unit}": error, "iteration": iteration})

    def end_block(self, report: BlockReport) -> None:
        """Add the unit's error before and after."""
        self._done += 1
        facts = {
            "error/before": report.error_before,
            "error/after": report.error_after,
            "error/held_out_before": report.held_out_before,
            "error/held_out_after": report.held_out_after,
            "error/seconds": report.seconds,
            "unit": self._done,
        }
        self._log({name: value for name, value in facts.items() if value is not None})

    def _log(self, facts: dict[str, Any]) -> None:
        if self._gone:
            return
        with self._mirrored():
            self._run.log(facts)

    def keep(self, record: Record, folder: Path) -> None:
        """Log the artifact in folder, named by the record, as a wandb artifact."""
        import wandb

        if self._gone:
            return
        facts = {"value": record.value, "metric": record.metric, "quant": record.quant}
        facts |= {"model": record.model, "task": record.task, "bits": record.bits}
        artifact = wandb.Artifact(f"quantized-{record.run_id}", "model", metadata=facts)
        with self._mirrored():
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)

    def finish(self, record: Record) -> None:
        """Write the final metrics and close the wandb run."""
        summary = {"status": record.status, "seconds": record.seconds, "error": record.error}
        summary |= {f"final/{name}": value for name, value in record.metrics.items()}
        summary |= {f"full_precision/{name}": value for name, value in record.fp_metrics.items()}
        with self._mirrored():
            self._run.summary.update({k: v for k, v in summary.items() if v is not None})
            self._run.finish(exit_code=0 if record.status == "ok" else 1)

    @contextmanager
    def _mirrored(self) -> Iterator[None]:
        """Tell the first fault of the mirror, and pass over it and what comes after it.

        The run and its record are worth more. wandb's own process may have ended before this one.
        """
        from wandb.errors import Error

        try:
            yield
        except (OSError, Error) as error:
            text = told(error) if isinstance(error, OSError) and error.errno else str(error)
            if not self._gone:
                log.warning("wandb's mirror of the run is not whole: %s", text or type(error))
            self._gone = True
