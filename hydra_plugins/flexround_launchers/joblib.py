"""Launcher of several runs at a time on this machine: hydra/launcher=joblib."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from experiment.config import register
from hydra_plugins.flexround_launchers import gpus
from hydra_plugins.flexround_launchers.dead_job import folder_of, record_dead_job
from hydra_plugins.flexround_launchers.workers import (
    Site,
    Workers,
    at_work,
    hidden_from_interrupts,
)

log = logging.getLogger(__name__)

NO_GPU = 2  # runs at a time where no GPU is


class JoblibLauncher(Launcher):
    """Runs the sweep in n_jobs processes, and outlives those that die."""

    def __init__(self, n_jobs: int | None) -> None:
        """Take the number of processes; None is one for each GPU, or two where there is none."""
        self._asked, self.gpus = n_jobs, list[str]()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a job needs; the callbacks of this process stay here.

        Raises:
            ValueError: for a number of processes that is none.
        """
        asked = self._asked
        if asked is not None and (asked == 0 or asked < -1):
            raise ValueError(f"hydra.launcher.n_jobs={asked}: give 1 or more, or -1 for all cores")
        self.gpus = [] if config.get("device") == "cpu" else gpus.visible()
        self.n_jobs = (len(self.gpus) or NO_GPU) if asked is None else asked
        self.start = (hydra_context.config_loader, config, task_function)
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the runs and return what they returned; a signal that ends this ends them first."""
        from joblib import effective_n_jobs

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        todo = dict(enumerate(job_overrides, initial_job_idx))
        self._check_devices(todo)
        at_a_time = min(effective_n_jobs(self.n_jobs), len(todo))
        log.info("runs: %d, %d at a time, in %s", len(todo), at_a_time, self.config.hydra.sweep.dir)
        if self.gpus and at_a_time > 1:
            log.info("%s", gpus.shares(self.gpus, at_a_time))
        for number, overrides in todo.items():
            log.info("#%d %s", number, " ".join(filter_overrides(overrides)))
        returns: dict[int, JobReturn] = {}
        self._run_all(todo, returns)
        return [returns[number] for number in todo]

    def _check_devices(self, todo: dict[int, Sequence[str]]) -> None:
        """Refuse a GPU by its number, which a run that has its own does not see."""
        given = {text for overrides in todo.values() for text in overrides}
        given.add(f"device={self.config.get('device')}")
        for text in sorted(given):
            if self.gpus and self.n_jobs != 1 and re.fullmatch(r"device=cuda:0*[1-9]\d*", text):
                raise ValueError(
                    f"{text}: hydra/launcher=joblib gives each run a GPU of its own, which it sees "
                    f"as cuda:0; leave device= out ({gpus.VISIBLE} says which GPUs are used)"
                )

    def _run_all(self, todo: dict[int, Sequence[str]], returns: dict[int, JobReturn]) -> None:
        """Add the returns of all jobs."""
        while len(returns) < len(todo):
            left = [number for number in todo if number not in returns]
            if self._run(left, todo, returns):
                continue
            # One process was killed and took the others with it. Who was it?
            left = [number for number in left if number not in returns]
            started = [number for number in left if folder_of(self.config, number).exists()]
            for number in started or left[:1]:
                log.warning("a process was killed; #%d runs again, alone", number)
                if not self._run([number], todo, returns):
                    text = "its process was killed, maybe for want of memory"
                    returns[number] = record_dead_job(folder_of(self.config, number), text)

    def _run(
        self, numbers: list[int], todo: dict[int, Sequence[str]], returns: dict[int, JobReturn]
    ) -> bool:
        """Add the returns of these jobs; return False when a process was killed meanwhile."""
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            for number, result in self._results(numbers, todo):
                returns[number] = result
                log.info("#%d has ended: %d of %d", number, len(returns), len(todo))
        except TerminatedWorkerError:
            return False
        return True

    def _results(
        self, numbers: list[int], todo: dict[int, Sequence[str]]
    ) -> Iterator[tuple[int, JobReturn]]:
        from joblib import Parallel, delayed

        # loky gives each process cores / n_jobs threads, unless OMP_NUM_THREADS says otherwise; a
        # run takes them unless threads= or the folder of results has another number.
        pool = Parallel(
            self.n_jobs,
            backend="loky",
            batch_size=1,
            pre_dispatch="n_jobs",
            return_as="generator_unordered",
        )
        state = Singleton.get_state()
        with Workers(pool, self.config.hydra.sweep.dir) as workers:
            jobs = (
                delayed(_job)(
                    workers.site, self.gpus, *self.start, list(todo[number]), number, state
                )
                for number in numbers
            )
            with hidden_from_interrupts():
                results = pool(jobs)
            yield from results


def _job(site: Site, own: Sequence[str], *job: Any) -> tuple[int, JobReturn]:
    """Run one job in a process of the pool, on one of the GPUs called own."""
    with at_work(site):
        if os.getpid() != site.launcher:
            gpus.take(own)
        return _run_job(*job)


def _run_job(
    loader: ConfigLoader,
    config: DictConfig,
    task_function: TaskFunction,
    overrides: list[str],
    number: int,
    state: Any,
) -> tuple[int, JobReturn]:
    os.environ["TTY_COMPATIBLE"] = "0"  # for rich: several bars would write over each other
    Singleton.set_state(state)
    setup_globals()
    register()
    # The lines of several runs mix on the screen.
    numbered = f"hydra.job_logging.formatters.plain.format='%(asctime)s #{number} %(message)s'"
    sweep_config = loader.load_sweep_config(config, [*overrides, numbered])
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = f"{sweep_config.hydra.job.name}_{number}"
        sweep_config.hydra.job.num = number
    result = run_job(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks(config)),
        config=sweep_config,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return number, result
