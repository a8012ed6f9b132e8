"""Launcher of runs as jobs of one SLURM array, through submitit: hydra/launcher=slurm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from copy import copy
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiment.sweeps import slurm_queue
from flexround.utils.leaving import told
from flexround.utils.packages import missing_package
from hydra_plugins.flexround_launchers.dead_job import folder_of, record_dead_job
from hydra_plugins.flexround_launchers.options import check_options, parameters
from hydra_plugins.flexround_launchers.waiting import ended

if TYPE_CHECKING:
    from submitit.core.core import Job
    from submitit.core.utils import DelayedSubmission

log = logging.getLogger(__name__)

WAY_OUT = {
    "OUT_OF_MEMORY": "; hydra.launcher.memory= asks for more",
    "TIMEOUT": "; hydra.launcher.time= asks for more",
}


class SlurmLauncher(Launcher):
    """Submits the sweep, waits for its runs, and outlives those that die."""

    def __init__(
        self,
        partition: str | None,
        account: str | None,
        gpus: int | None,
        cpus: int,
        memory: float | None,
        time: int | str,
        restarts: int,
        warning: int,
        parallel: int,
        setup: Sequence[str],
        sbatch: Mapping[str, Any],
    ) -> None:
        self.options: dict[str, Any] = {
            "partition": partition,
            "account": account,
            "gpus": gpus,
            "cpus": cpus,
            "memory": memory,
            "time": time,
            "restarts": restarts,
            "warning": warning,
            "parallel": parallel,
            "setup": list(setup),
            "sbatch": dict(sbatch),
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Look whether everything is there before the sweep is composed.

        Raises:
            ValueError: says what is missing, or which option is wrong.
        """
        check_options(self.options)
        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import (
                SlurmLauncher as Plugin,
            )
        except ModuleNotFoundError:
            error = ModuleNotFoundError(name="hydra_submitit_launcher")
            raise ValueError(missing_package(error)) from None
        slurm_queue.require()
        self.config = config
        self.plugin = Plugin()
        # Callbacks of this process stay here; the job makes its own.
        context = HydraContext(config_loader=hydra_context.config_loader, callbacks=Callbacks())
        self.plugin.setup(hydra_context=context, task_function=task_function, config=config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the runs as one array and return what they returned; it outlives this process.

        Raises:
            ValueError: when sbatch refuses.
        """
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        logs = Path(self.config.hydra.sweep.dir, ".submitit").absolute()
        jobs = dict(zip(numbers, self._submit(numbers, job_overrides, logs), strict=True))
        array = jobs[initial_job_idx].job_id.partition("_")[0]
        log.info("SLURM job %s, runs: %d, logs in %s", array, len(jobs), logs)
        for number, overrides in zip(numbers, job_overrides, strict=True):
            log.info("#%d %s", number, " ".join(filter_overrides(overrides)))
        returns: dict[int, JobReturn] = {}
        way_on = (
            f"SLURM job {array} goes on without this process; `scancel {array}` ends it, and the "
            "same command again computes only what is left"
        )
        with told(way_on):
            for number, state in ended(jobs):
                returns[number] = self._result(number, jobs[number], state)
                log.info("#%d has ended: %d of %d", number, len(returns), len(jobs))
        return [returns[number] for number in numbers]

    def _submit(
        self, numbers: range, job_overrides: Sequence[Sequence[str]], logs: Path
    ) -> list[Job[Any]]:
        import submitit
        from submitit.core.utils import FailedJobError

        executor = submitit.AutoExecutor(
            logs / "%j", cluster="slurm", slurm_max_num_timeout=self.options["restarts"]
        )
        executor.update_parameters(**parameters(self.options))
        states = [Singleton.get_state()] * len(numbers)
        try:
            with redirect_stderr(StringIO()):  # where submitit repeats what sbatch says
                jobs: list[Job[Any]] = executor.map_array(
                    SlurmJob(self.plugin), job_overrides, numbers, states
                )
        except FailedJobError as error:
            message = slurm_queue.refusal(str(error), self.options["partition"])
            raise ValueError(message) from None
        return jobs

    def _result(self, number: int, job: Job[Any], state: str | None) -> JobReturn:
        from submitit.core.utils import UncompletedJobError

        if state is None:
            try:
                result: JobReturn = job.result()
                return result
            except UncompletedJobError:
                state = "failed outside of the run"
        text = f"SLURM job {job.job_id}: {state}; its log is {job.paths.stdout}"
        return record_dead_job(folder_of(self.config, number), text + WAY_OUT.get(state, ""))


class SlurmJob:
    """What is pickled for the node: one run, and how to queue it again."""

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def __call__(self, overrides: Sequence[str], number: int, state: Any) -> JobReturn:
        """Run on the node."""
        # It says "completed successfully" of failed runs too; not in the run's own log.
        logging.getLogger("submitit").propagate = False
        plugin = copy(self.plugin)
        plugin.hydra_context = HydraContext(
            config_loader=plugin.hydra_context.config_loader, callbacks=Callbacks(plugin.config)
        )
        result: JobReturn = plugin(list(overrides), "hydra.sweep.dir", number, "", state)
        return result

    def checkpoint(self, *_: Any) -> DelayedSubmission:
        """Return the very submission that this job was: the run goes on by itself."""
        import submitit
        from submitit.core.utils import DelayedSubmission

        # The arguments in memory have changed since: Hydra keeps its state in them.
        return DelayedSubmission.load(submitit.JobEnvironment().paths.submitted_pickle)
