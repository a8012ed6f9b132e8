"""Sweeper of a search: hydra/sweeper=optuna gives every method the same number of trials.

Optuna's sampler proposes settings; a trial is a run like any other, and what it is told of one is
the error on calibration samples that the run held out, read from its record. The metric of the test
set, which the run returns, is not looked at. The sampler is seeded and runs are not computed twice,
so the same command again proposes the same trials and goes on where it stopped.

hydra-optuna-sweeper 1.3.0 needs Optuna below 3, of 2022, and can be told of nothing but what a run
returns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from experiment.checks import check_samples
from experiment.job import portable_overrides
from experiment.progress import quiet_libraries
from experiment.sweeps.jobs import OUTCOME, facts_in, names_of
from experiment.sweeps.search_space import Interval, Planned, is_interval, space_of
from flexround.utils.leaving import undoing
from flexround.utils.packages import missing_package
from results.records.claim import Claim
from results.records.searches import Search, Trial, held_out_error, write
from results.records.store import Store

log = logging.getLogger(__name__)

HELD_OUT = "recon.held_out"
POLL = 2.0  # seconds between two looks at whether another process is still at work


class OptunaSweeper(Sweeper):
    """Searches over each method's own settings, setting by setting."""

    def __init__(
        self, params: dict[str, Any] | None, trials: int, held_out: int, startup: int,
        at_a_time: int, seed: int,
    ) -> None:  # fmt: skip
        """Take conf/hydra/sweeper/optuna.yaml's options; params are an experiment's own."""
        self._params, self._seed = dict(params or {}), seed
        self._trials, self._held_out = trials, held_out
        self._startup, self._at_a_time = startup, at_a_time
        counts = {
            "trials": trials,
            "held_out": held_out,
            "startup": startup,
            "at_a_time": at_a_time,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"hydra.sweeper.{name}={value}: give 1 or more")
        if seed < 0:
            raise ValueError(f"hydra.sweeper.seed={seed}: give 0 or more")

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a job needs.

        Raises:
            ValueError: when Optuna is not installed.
        """
        if "quant" not in config.hydra.runtime.choices:
            raise ValueError("hydra/sweeper=optuna searches over the settings of run.py's methods")
        quiet_libraries(config.progress)  # tqdm comes with it
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ValueError(missing_package(error)) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Search]:
        """Run the trials of every method and setting that arguments sweep over; return them.

        Raises:
            ValueError: when a method has nothing to search, before any trial is run.
        """
        given = [f"{key}={value}" for key, value in self._params.items()]
        loader = self.hydra_context.config_loader if self.hydra_context else None
        parsed = OverridesParser.create(loader).parse_overrides([*given, *arguments])
        intervals = [o for o in parsed if is_interval(o)]
        batches: Any = BasicSweeper.split_arguments([o for o in parsed if not is_interval(o)], None)
        assert self.config is not None, "setup has given it"
        planned = [self._planned(list(job), intervals) for batch in batches for job in batch]
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")  # jobs read it, as Hydra's own do
        done = []
        for number, one in enumerate(planned):
            log.info("search %d of %d: %s", number + 1, len(planned), " ".join(one.search.setting))
            done.append(self._run(one, number * self._trials))
        return done

    def _planned(self, job: list[str], intervals: Sequence[Override]) -> Planned:
        """Return the search of one job of the sweep, without trials."""
        assert self.hydra_context is not None, "setup has given it"
        assert self.config is not None, "setup has given it"
        if not any(text.startswith(f"{HELD_OUT}=") for text in job):
            job = [*job, f"{HELD_OUT}={self._held_out}"]
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        model, task, method = names_of(cfg, cfg.hydra.runtime.choices)
        space = space_of(method, intervals)
        if not cfg.recon.held_out:
            raise ValueError(f"{HELD_OUT}=0: a search chooses by the error on them; give 1 or more")
        check_samples(cfg)
        for name, interval in space.items():
            if isinstance(OmegaConf.select(cfg, name), int):
                raise ValueError(
                    f"{name}={interval.text}: numbers with a fraction are drawn, and {name} is "
                    "whole; give its values by commas without hydra/sweeper=optuna"
                )
        texts = {name: interval.text for name, interval in space.items()}
        setting = portable_overrides(job)
        how = [sorted(setting), texts, self._trials, self._startup, self._at_a_time, self._seed]
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{task}-{model}-{method}-w{cfg.bits}-{digest}".replace("/", "-")
        return Planned(Search(name, method, setting, texts, self._trials), job, space, cfg)

    def _run(self, planned: Planned, first: int) -> Search:
        """Run a search, whose jobs have the numbers from first on, once no other process does."""
        name = planned.search.name
        claim = Store(planned.cfg.results_dir).claim(f"search-{name.rpartition('-')[2]}")
        with _once_free(claim, f"the search {name}"):
            return self._run_trials(planned, first)

    def _run_trials(self, planned: Planned, first: int) -> Search:
        import optuna

        sampler = optuna.samplers.TPESampler(seed=self._seed, n_startup_trials=self._startup)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        search, space, cfg = planned.search, planned.space, planned.cfg
        study.enqueue_trial(_as_it_stands(space, cfg))
        store, errors = Store(cfg.results_dir), dict[int, float]()
        while len(search.trials) < search.budget:
            at = len(search.trials)
            asked = [study.ask() for _ in range(min(self._at_a_time, search.budget - at))]
            values = [{name: _drawn(trial, name, space[name]) for name in space} for trial in asked]
            jobs = [
                [*planned.job, *(f"{name}={value:g}" for name, value in drawn.items())]
                for drawn in values
            ]
            folders = self._launch(jobs, first + at, cfg)
            for number, (trial, drawn) in enumerate(zip(asked, values, strict=True), at):
                run_id = facts_in(folders[number - at]).get("run_id")
                record = None if run_id is None else store.get_or_quarantine(run_id)
                error = None if record is None else held_out_error(record)
                search.trials.append(Trial(drawn, run_id))
                if error is None:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                else:
                    errors[number] = error
                    study.tell(trial, error)
            chosen = min(errors, key=errors.__getitem__) if errors else None
            search = replace(search, chosen=chosen)
            write(Path(cfg.results_dir), search)
        return search

    def _launch(self, jobs: Sequence[list[str]], first: int, cfg: DictConfig) -> list[Path]:
        """Run jobs, numbered from first on; return their output folders.

        One that another process is at work on is no failure: it is run again when that has ended.
        """
        assert self.launcher is not None, "setup has made it"
        folders = [Path(cfg.hydra.sweep.dir, str(first + at)) for at in range(len(jobs))]
        self.launcher.launch(jobs, initial_job_idx=first)
        for number, (job, folder) in enumerate(zip(jobs, folders, strict=True), first):
            while "running" in (facts := facts_in(folder)):
                with _once_free(Store(cfg.results_dir).claim(facts["run_id"]), f"trial {number}"):
                    pass
                (folder / OUTCOME).unlink()
                self.launcher.launch([job], initial_job_idx=number)
        return folders


@contextmanager
def _once_free(claim: Claim, what: str) -> Iterator[None]:
    """Wait until no other process is at work on what claim is of, and hold it in the context."""
    with undoing(claim.release):
        while (owner := claim.take()) is not None:
            log.info("%s is at work on %s; waiting for it", owner, what)
            time.sleep(POLL)
        try:
            yield
        finally:
            claim.release()


def _drawn(trial: Any, name: str, interval: Interval) -> float:
    """Return the trial's value of a setting, to four digits, as its run is told."""
    value = trial.suggest_float(name, interval.low, interval.high, log=interval.log)
    return float(f"{value:.4g}")


def _as_it_stands(space: dict[str, Interval], cfg: DictConfig) -> dict[str, float]:
    """Return the settings that the method has without a search, where they are in their intervals.

    They are the first trial: no method is searched without the setting that it has today.
    """
    values = {name: OmegaConf.select(cfg, name) for name in space}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and space[name].low <= value <= space[name].high
    }
