"""The jobs of a sweep: what each was asked, and the folder that it leaves."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from pydantic_core import from_json

from experiment.config import hydra_of_conf
from experiment.errors import value_errors
from experiment.overrides import check_size
from flexround.utils.atomic_files import write_whole
from flexround.utils.file_errors import read_bytes

# The member of conf/model that is any network.
ANY_MODEL = "hf"
# In each job's output folder: its run_id, and its error or who else is at work on it.
OUTCOME = "outcome.json"

SEARCH_PATH = "hydra.searchpath="
NUMBER = "${hydra.job.num}"
RUN_ID = re.compile(r"[0-9a-zA-Z_-]+")

# In the sweep's folder, while it is being launched: by whom.
LAUNCHER = "launcher.json"


def as_typed(overrides: Sequence[str]) -> list[str]:
    """Return overrides that Hydra keeps as they were typed, which are resolved where they are read.

    A value of the environment stays where it is.
    """
    return cast(list[str], OmegaConf.to_container(overrides, resolve=False))


def sweep_overrides(hydra: DictConfig) -> list[str]:
    """Return the overrides that a sweep was asked for, an experiment's own parameters first."""
    params = hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *as_typed(hydra.overrides.task)]


def search_path(overrides: Sequence[str]) -> list[str]:
    """Return Hydra's own override that says where further files of conf/ lie, if there is one."""
    return [o for o in as_typed(overrides) if o.lstrip("+").startswith(SEARCH_PATH)]


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
        check_size(parsed)
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


def check_numbered(hydra: DictConfig) -> None:
    """Check that jobs have their numbers for the names of their folders.

    Raises:
        ValueError: when hydra.sweep.subdir says another.
    """
    given: Any = OmegaConf.to_container(hydra.sweep, resolve=False)
    if given["subdir"] != NUMBER:
        raise ValueError(
            f"hydra.sweep.subdir={given['subdir']}: the end of a sweep and status find its jobs by "
            "number; leave it out"
        )


def job_folders(sweep: Path) -> list[Path]:
    """Return the output folders of a sweep's jobs, in order."""
    return sorted((p for p in sweep.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))


def facts_in(job: Path) -> dict[str, str]:
    """Return what a job has left in its output folder: nothing where it can't be read."""
    try:
        facts = from_json(read_bytes(job / OUTCOME))
    except (OSError, ValueError):
        return {}
    whole = isinstance(facts, dict) and all(isinstance(v, str) for v in facts.values())
    # Another hand may have changed it.
    return facts if whole and RUN_ID.fullmatch(facts.get("run_id", "0")) else {}


def write_facts(job: Path, facts: Mapping[str, str]) -> None:
    """Leave facts in a job's output folder, all of them or those that were there.

    Raises:
        OSError: when they can't be written.
    """
    job.mkdir(parents=True, exist_ok=True)
    write_whole(job / OUTCOME, json.dumps(facts).encode())


def forget_jobs(sweep: Path) -> None:
    """Remove what the jobs of an earlier sweep have left in its folder, where a new one begins.

    Their logs stay, and so do their records.
    """
    for job in job_folders(sweep) if sweep.is_dir() else ():
        (job / OUTCOME).unlink(missing_ok=True)
        shutil.rmtree(job / ".hydra", ignore_errors=True)
