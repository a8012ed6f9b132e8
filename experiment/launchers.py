"""Launchers and the searching sweeper: their typed options; the defaults stand in conf/hydra/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig

PLUGINS = "hydra_plugins.flexround_launchers"
SEARCHING = "optuna"  # the member of conf/hydra/sweeper


@dataclass
class JoblibConfig:
    """Several runs at a time on this machine."""

    _target_: str = f"{PLUGINS}.joblib.JoblibLauncher"
    n_jobs: int | None = MISSING


@dataclass
class SlurmConfig:
    """One job of a SLURM array for each run."""

    _target_: str = f"{PLUGINS}.slurm.SlurmLauncher"
    partition: str | None = MISSING
    account: str | None = MISSING
    gpus: int | None = MISSING
    cpus: int = MISSING
    memory: float | None = MISSING
    time: Any = MISSING
    restarts: int = MISSING
    warning: int = MISSING
    parallel: int = MISSING
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptunaConfig:
    """A search over each method's own settings."""

    _target_: str = "hydra_plugins.flexround_sweepers.optuna_sweeper.OptunaSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    trials: int = MISSING
    held_out: int = MISSING
    startup: int = MISSING
    at_a_time: int = MISSING
    seed: int = MISSING


class LaunchersSweep(Callback):
    """Refuses a launcher or a search without -m, where Hydra would ignore it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Look at the launcher and the sweeper of a single run.

        Raises:
            SystemExit: when one was chosen.
        """
        for group, does in (("hydra/launcher", "launches"), ("hydra/sweeper", "makes")):
            chosen = config.hydra.runtime.choices[group]
            if chosen != "basic":
                raise SystemExit(f"error: {group}={chosen} {does} sweeps; add -m")


def register() -> None:
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="joblib_schema", node=JoblibConfig)
    store.store(group="hydra/launcher", name="slurm_schema", node=SlurmConfig)
    store.store(group="hydra/sweeper", name="optuna_schema", node=OptunaConfig)
    # Hydra would check our joblib.yaml against what the plugin stores under the same name, and its
    # scan of the plugins, which happens once, would bring that back.
    Plugins.instance()
    store.repo["hydra"]["launcher"].pop("joblib.yaml", None)
    store.repo["hydra"]["sweeper"].pop("optuna.yaml", None)
