"""The jobs of a sweep: what each was asked, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

# In each job's output folder: its run_id, and its error or who else is at work on it.
OUTCOME = "outcome.json"


# In the sweep's folder, while it is being launched: by whom.
LAUNCHER = "launcher.json"


def sweep_overrides(hydra: DictConfig) -> list[str]:
    """Return the overrides that a sweep was asked for, an experiment's own parameters first."""
    params = hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task]


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep as Hydra's sweeper numbers them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    batches: Any = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for batch in batches for job in batch]


def job_folders(sweep: Path) -> list[Path]:
    """Return the output folders of a sweep's jobs, in order."""
    return sorted((p for p in sweep.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
