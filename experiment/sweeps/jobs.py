"""The jobs of a sweep: what each was asked, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from experiment.config import hydra_of_conf
from experiment.errors import value_errors

# The member of conf/model that is any network.
ANY_MODEL = "hf"
# In each job's output folder: its run_id, and its error or who else is at work on it.
OUTCOME = "outcome.json"


# In the sweep's folder, while it is being launched: by whom.
LAUNCHER = "launcher.json"


def sweep_overrides(hydra: DictConfig) -> list[str]:
    """Return the overrides that a sweep was asked for, an experiment's own parameters first."""
    params = hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task]


def jobs_of(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[list[str]]:
    """Return the overrides of each job of a sweep as Hydra's sweeper numbers them.

    loader is that of the Hydra at work, which lists the members of a group for glob(); without one
    they are conf/'s.

    Raises:
        ValueError: when they are no sweep that it can run.
    """
    if loader is None:
        with hydra_of_conf() as hydra:
            return jobs_of(overrides, hydra.config_loader)
    with value_errors():
        parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
        batches: Any = BasicSweeper.split_arguments(parsed, None)
    jobs = [list(job) for batch in batches for job in batch]
    if not jobs:
        raise ValueError("the sweep has no runs: a glob() or range() in it is empty")
    return jobs


def names_of(cfg: DictConfig, choices: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what records call a job's model, task and method, by what was chosen of the groups.

    Any network that has no member of its own is called by its source.
    """
    model, task, quant = (str(choices[group]) for group in ("model", "task", "quant"))
    return (cfg.model.name if model == ANY_MODEL else model), task, quant


def job_folders(sweep: Path) -> list[Path]:
    """Return the output folders of a sweep's jobs, in order."""
    return sorted((p for p in sweep.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
