"""Mirror a run to wandb; the records stay the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from flexround.observers import BlockReport
from results.record import Record


class WandbLogger:
    """One wandb run for each run: reconstruction curves by block, then the final metrics.

    Steps are counted by the run itself: `block/iteration` is the axis of the loss curves,
    `block/index` that of the per-block errors.
    """

    def __init__(
        self, project: str, mode: Literal["offline", "online", "disabled"], dir: str, group: str
    ) -> None:
        self._project, self._mode, self._dir, self._group = project, mode, dir, group
        self._run: Any = None
        self._units: list[str] = []
        self._done = 0

    def start(self, name: str, settings: dict[str, Any]) -> None:
        """Open the wandb run called name with settings as its config.

        Raises:
            ValueError: when wandb asks for a login that is not there.
        """
        import wandb

        Path(self._dir).mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self._project,
                name=name,
                group=self._group,
                config=settings,
                dir=self._dir,
                mode=self._mode,
                reinit="finish_previous",
                settings=wandb.Settings(
                    console="off",
                    x_disable_stats=True,
                    disable_git=True,
                    save_code=False,
                    silent=True,
                ),
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"logger.mode={self._mode}: {str(error).splitlines()[0]}; "
                "log in with `wandb login`, or keep logger.mode=offline"
            ) from error
        self._run.define_metric("loss/*", step_metric="iteration")
        self._run.define_metric("error/*", step_metric="unit")

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Remember the units."""
        self._units = list(units)

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Add a point to the unit's reconstruction curve."""
        self._run.log({f"loss/{unit}": error, "iteration": iteration})

    def end_block(self, report: BlockReport) -> None:
        """Add the unit's error before and after."""
        self._done += 1
        self._run.log(
            {
                "error/before": report.error_before,
                "error/after": report.error_after,
                "error/seconds": report.seconds,
                "unit": self._done,
            }
        )

    def finish(self, record: Record) -> None:
        """Write the final metrics and close the wandb run."""
        summary = {"status": record.status, "seconds": record.seconds, "error": record.error}
        summary |= {f"final/{name}": value for name, value in record.metrics.items()}
        summary |= {f"full_precision/{name}": value for name, value in record.fp_metrics.items()}
        self._run.summary.update({k: v for k, v in summary.items() if v is not None})
        self._run.finish(exit_code=0 if record.status == "ok" else 1)
