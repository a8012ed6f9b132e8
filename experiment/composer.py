"""Composition of many jobs by Hydra's own steps, at a fraction of its cost.

Hydra reads every file of conf/ anew for each job of a sweep. Here a file is read once, what a job
chooses of config groups is merged once for all jobs that choose the same, and values (`bits=4`) are
set in it, as Hydra sets them after merging. What is not of this plain kind is left to Hydra, and so
is every message about what it refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import omegaconf.base
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from experiment import ROOT
from experiment.config import check_keys, composed, parsed, register

Choices = dict[str, Any]  # the chosen member by config group


@dataclass
class _Choice:
    """What is merged for the jobs that choose the same of the config groups.

    Attributes:
        cfg: the configuration, without values.
        job: a copy with values of keys in it.
    """

    cfg: DictConfig
    choices: Choices
    keys: tuple[str, ...] | None = None
    job: DictConfig | None = None


class _Copies:
    """A repository's files as copies, into which Hydra merges; nothing of Hydra's own."""

    def __init__(self, kept: CachingConfigRepository) -> None:
        self._kept = kept

    def load_config(self, config_path: str) -> Any:
        """Return a file."""
        found = self._kept.load_config(config_path)
        if found is not None and config_path.startswith("hydra/"):
            return replace(found, config=OmegaConf.create())
        return copy.deepcopy(found)

    def get_schema_source(self) -> Any:
        """Return where schemas are."""
        return self._kept.get_schema_source()


class Composer:
    """Composes jobs; what it returns of each is what Hydra makes, without Hydra's own node."""

    def __init__(self, config: str = "config") -> None:
        register()
        setup_globals()  # ${now:} and ${hydra:}
        self._config = config
        self._loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
        self._repository = CachingConfigRepository(self._loader.repository)
        self._made: dict[tuple[str, ...], _Choice] = {}
        self._is_group = cache(self._repository.group_exists)

    def each(self, jobs: Iterable[Sequence[str]]) -> Iterator[tuple[DictConfig, Choices]]:
        """Yield each job's configuration, good until the next is asked for, and what it chooses.

        Raises:
            ValueError: when one does not compose, as `composed` says it.
        """
        for job in jobs:
            try:
                found = self._job([parsed(text) for text in job])
            except (HydraException, OmegaConfBaseException, ValueError):
                found = None
            yield found or self._by_hydra(job)

    def composed(self, overrides: Sequence[str]) -> tuple[DictConfig, Choices]:
        """Return the configuration of one job, the caller's own, and what it chooses.

        Raises:
            ValueError: as each does.
        """
        cfg, choices = next(self.each([overrides]))
        return copy.deepcopy(cfg), dict(choices)

    def _by_hydra(self, job: Sequence[str]) -> tuple[DictConfig, Choices]:
        cfg = composed(job, config=self._config)
        choices = dict(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, choices

    def _job(self, overrides: Sequence[Override]) -> tuple[DictConfig, Choices] | None:
        """Return the job of overrides; None where only Hydra can compose it."""
        if any(o.is_sweep_override() or o.is_hydra_override() for o in overrides):
            return None
        values = [o for o in overrides if self._is_value(o)]
        choice = self._chosen([o for o in overrides if not self._is_value(o)])
        keys = tuple(o.key_or_group for o in values)
        if choice.job is None or choice.keys != keys or not _is_replaced(values):
            choice.keys, choice.job = None, copy.deepcopy(choice.cfg)
        ConfigLoaderImpl._apply_overrides_to_config(values, choice.job)
        if not all(o.type == OverrideType.CHANGE for o in values):
            check_keys(choice.job)
        if _is_replaced(values):
            choice.keys = keys
        return choice.job, choice.choices

    def _is_value(self, override: Override) -> bool:
        """Return whether Hydra sets what override says after merging, as its `Overrides` has it."""
        return isinstance(override.value(), dict) or not self._is_group(override.key_or_group)

    def _chosen(self, overrides: Sequence[Override]) -> _Choice:
        """Return what is merged for overrides of config groups."""
        key = tuple(str(o.input_line) for o in overrides)
        if key not in self._made:
            defaults = create_defaults_list(
                repo=self._repository, config_name=self._config, overrides_list=list(overrides),
                prepend_hydra=True, skip_missing=False,
            )  # fmt: skip
            cfg = self._loader._compose_config_from_defaults_list(
                defaults.defaults,
                _Copies(self._repository),  # type: ignore[arg-type]
            )
            OmegaConf.set_struct(cfg, True)
            with open_dict(cfg):
                del cfg["hydra"]
            check_keys(cfg)
            self._made[key] = _Choice(cfg, dict(defaults.overrides.known_choices))
        return self._made[key]


@contextmanager
def parsed_once() -> Iterator[None]:
    """Have OmegaConf parse a text with interpolations once, and not for each job that has it.

    What it makes of the text, a tree, is only read.
    """
    base: Any = omegaconf.base
    parse = base.parse
    base.parse = cache(parse)
    try:
        yield
    finally:
        base.parse = parse


def _is_replaced(values: Sequence[Override]) -> bool:
    """Return whether other values of the same keys replace these and leave nothing of them."""
    keys = [o.key_or_group for o in values]
    below = any(other.startswith(f"{key}.") for key in keys for other in keys)
    return not below and all(
        o.type == OverrideType.CHANGE and not isinstance(o.value(), dict | list) for o in values
    )
