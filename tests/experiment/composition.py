"""Composition of many jobs by Hydra's own steps, each file of conf/ read once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from experiment import ROOT
from experiment.config import register


class _Copies:
    """A repository's files as copies, into which Hydra merges; nothing of Hydra's own."""

    def __init__(self, kept: CachingConfigRepository) -> None:
        self._kept = kept

    def load_config(self, config_path: str) -> Any:
        """Return a file."""
        found = self._kept.load_config(config_path)
        if config_path.startswith("hydra/"):
            return replace(found, config=OmegaConf.create())
        return copy.deepcopy(found)

    def get_schema_source(self) -> Any:
        """Return where schemas are."""
        return self._kept.get_schema_source()


class Composer:
    """Composes configurations in half of Hydra's time; `composed` of one is what Hydra makes."""

    def __init__(self) -> None:
        register()
        self._loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
        self._repository = CachingConfigRepository(self._loader.repository)

    def composed(
        self, overrides: Sequence[str], config: str = "config"
    ) -> tuple[DictConfig, dict[str, str]]:
        """Return the configuration without Hydra's own, and by config group the chosen option."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        defaults = create_defaults_list(
            repo=self._repository, config_name=config, overrides_list=parsed,
            prepend_hydra=True, skip_missing=False,
        )  # fmt: skip
        cfg = self._loader._compose_config_from_defaults_list(
            defaults.defaults, _Copies(self._repository)
        )
        OmegaConf.set_struct(cfg, True)
        self._loader._apply_overrides_to_config(defaults.config_overrides, cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, dict(defaults.overrides.known_choices)
