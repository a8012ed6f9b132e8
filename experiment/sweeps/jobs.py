"""The jobs of a sweep: what each was asked, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from experiment.config import hydra_of_conf

# In each job's output folder: its run_id, and its error or who else is at work on it.
OUTCOME = "outcome.json"


# In the sweep's folder, while it is being launched: by whom.
LAUNCHER = "launcher.json"


def sweep_overrides(hydra: DictConfig) -> list[str]:
    """Return the overrides that a sweep was asked for, an experiment's own parameters first."""
    params = hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task]


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep as Hydra's sweeper numbers them.

    Raises:
        ValueError: when they are no sweep that it can run.
    """
    with hydra_of_conf() as hydra:  # glob() lists the members of a group of conf/
        parser = OverridesParser.create(hydra.config_loader)
        batches: Any = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
    jobs = [list(job) for batch in batches for job in batch]
    if not jobs:
        raise ValueError("the sweep has no runs: a glob() or range() in it is empty")
    return jobs


def job_folders(sweep: Path) -> list[Path]:
    """Return the output folders of a sweep's jobs, in order."""
    return sorted((p for p in sweep.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
