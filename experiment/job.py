"""Job of the command line: a checked configuration, its name, and its place in the store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiment.artifacts.provenance import check_free, is_of
from experiment.build import build, check_plugins, validate
from experiment.checks import check_choices
from experiment.conditions import changes, conditions
from experiment.config import check_keys
from experiment.environment import check_environment
from experiment.identity import identity, places, run_id
from experiment.idle import does_nothing, idle_options
from experiment.outcome import _in_sweep, write_outcome
from experiment.recorder import Draft, recording
from experiment.sweeps.jobs import as_typed, names_of, search_path, sweep_overrides
from flexround.utils.leaving import undoing
from results.records.given import OWN, below
from results.records.leftovers import is_stale, sweep
from results.records.record import Record
from results.records.selection import flatten
from results.records.store import Store

log = logging.getLogger("run")


@dataclass(frozen=True)
class Job:
    """A checked configuration with its name and its place in the store."""

    cfg: DictConfig
    settings: dict[str, Any]
    names: dict[str, str]
    store: Store

    @property
    def run_id(self) -> str:
        """The hash that names the record."""
        return run_id(self.settings)

    def recorded(self) -> Record | None:
        """Return the finished record of this very run; under rerun=true one of this sweep alone.

        Raises:
            ValueError: when the run has failed before, unless retry_failed=true; when its full
                precision is not what expected_fp= says.
        """
        record = self.store.get_or_quarantine(self.run_id)
        if record is None or (self.cfg.rerun and not _is_of_this_sweep(record)):
            return None
        if record.status == "ok":
            self._check_full_precision(record)
            log.info("already recorded as %s", record.run_id)
            self._sweep_finished()
            if self.cfg.save and not is_of(self.store.artifact(self.run_id), record):
                log.warning("it has no artifact of its own; rerun=true makes one, and a new record")
            if self.cfg.threads not in (None, record.threads):
                log.warning(
                    "it was computed with threads=%s; rerun=true takes threads=%d",
                    record.threads or "unknown",
                    self.cfg.threads,
                )
            return record
        if self.cfg.retry_failed:
            return None
        if changed := changes(record.conditions, self.conditions):
            log.info("failed before: %s; tried again with another %s", record.error, changed)
            return None
        raise ValueError(f"failed before: {record.error}; give retry_failed=true to try it again")

    def _check_full_precision(self, record: Record) -> None:
        """Refuse a record as its task would refuse its full-precision network now."""
        expected, found = self.cfg.task.get("expected"), record.fp_value
        if expected is None or found is None or abs(found - expected) <= self.cfg.task.tolerance:
            return
        validate(self.cfg)
        task = build(self.cfg.task, self.cfg.plugins)
        task.check_full_precision({**record.fp_metrics, str(record.metric): found})

    def _sweep_finished(self) -> None:
        """Remove what an attempt has left that was killed once its record was there."""
        claim = self.store.claim(self.run_id)
        stale = is_stale(self.store, self.run_id)
        if not (stale or claim.is_of_dead()) or claim.take() is not None:
            return
        sweep(self.store, self.run_id)
        if stale:
            shutil.rmtree(self.store.unfinished(self.run_id), ignore_errors=True)
        claim.release()

    @cached_property
    def conditions(self) -> dict[str, str]:
        """What the run may fail for besides its settings."""
        return conditions(self.cfg)

    def check_unchanged(self) -> None:
        """Check that the files and folders that the run was named by are still the same.

        Raises:
            ValueError: when one has changed since the run began; names it.
        """
        now = identity(self.cfg)
        if now != self.settings:
            before, after = flatten(self.settings), flatten(now)
            names = [n for n in after.keys() | before.keys() if after.get(n) != before.get(n)]
            raise ValueError(
                f"{', '.join(sorted(names))} changed while the run was at work; run the same "
                "command again"
            )

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Yield whether this process may compute the run; False while another one does."""
        claim = self.store.claim(self.run_id)
        with undoing(claim.release):
            owner = claim.take()
            if owner is not None:
                log.info("%s is at work on %s; left alone", owner, self.run_id)
                write_outcome(running=str(owner))
                yield False
                return
            try:
                sweep(self.store, self.run_id)
                yield True
            finally:
                claim.release()

    def recording(self) -> AbstractContextManager[Draft]:
        """Return a context that drafts the run's record and writes it whatever happens."""
        base = dict(
            run_id=self.run_id,
            bits=self.cfg.bits,
            seed=self.cfg.seed,
            settings=self.settings,
            overrides=_command(self.cfg),
            places=places(self.cfg),
            **self.names,
        )
        return recording(self.store, base, self.conditions)


def _is_of_this_sweep(record: Record) -> bool:
    """Return whether another job of this sweep, of the same configuration, has made record."""
    if record.status != "ok" or not _in_sweep():
        return False
    sweep = _sweep_file()
    return sweep.is_file() and record.began >= sweep.stat().st_mtime


def current_job(cfg: DictConfig) -> Job:
    """Return the job that Hydra has composed, checked as far as that needs no heavy import.

    Raises:
        ValueError: for settings that do not go together, a results folder that can't be written, or
            something else where the artifact is to lie.
    """
    check_keys(cfg)
    own = _typed()
    check_environment(cfg)
    check_plugins(cfg.plugins, own)
    choices = HydraConfig.get().runtime.choices
    check_choices(cfg, choices, own, overrides_of_sweep() or own)
    names = dict(zip(("model", "task", "quant"), names_of(cfg, choices), strict=True))
    settings = _identity(cfg)
    store = Store(cfg.results_dir)
    store.check_writable()
    store.check_schema()
    if cfg.save:
        name = run_id(settings)
        check_free(store.artifact(name), store.names(name))
    return Job(cfg, settings, names, store)


def _identity(cfg: DictConfig) -> dict[str, Any]:
    try:
        return identity(cfg)
    except (TypeError, AttributeError, KeyError):
        validate(cfg)  # tells a value of another type than its option takes
        raise


def portable_overrides(
    overrides: Sequence[str], idle: Callable[[str], bool] | None = None
) -> list[str]:
    """Return those of a job's overrides that remake its record elsewhere.

    idle tells the options that do nothing for the job: alone it would be refused for them, while in
    its sweep they serve other members.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        str(o.input_line) for o in parsed
        if not below(o.key_or_group, OWN) and not (idle and idle(o.key_or_group))
    ]  # fmt: skip


def _command(cfg: DictConfig) -> list[str]:
    """Return the overrides that remake this job's record, and where its own files of conf/ lie."""
    idle = [option for options in idle_options(cfg).values() for option in options]

    def is_idle(key: str) -> bool:
        return any(does_nothing(key, option, cfg) for option in idle)

    return [*portable_overrides(_typed(), is_idle), *search_path(HydraConfig.get().overrides.hydra)]


def _typed() -> list[str]:
    """Return this job's overrides."""
    return as_typed(HydraConfig.get().overrides.task)


def overrides_of_sweep() -> Sequence[str]:
    """Return the whole sweep's overrides, which Hydra keeps in the sweep's folder."""
    if not _in_sweep():
        return []
    return sweep_overrides(OmegaConf.load(_sweep_file()).hydra)


def _sweep_file() -> Path:
    """Return what Hydra writes as a sweep begins, its configuration."""
    return Path(HydraConfig.get().sweep.dir, "multirun.yaml")
