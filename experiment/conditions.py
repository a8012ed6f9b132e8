"""Conditions that a run may have failed for besides its settings: a change has it tried again."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress

from omegaconf import DictConfig

from experiment.source_code import code_of

# Options that name no run, and that one can fail for.
OPTIONS = (
    "device",
    "expected_fp",
    "offload",
    "stream_device",
    "stream_gib",
    "spill_dir",
    "compile",
    "save",
    "logger",
)


def conditions(cfg: DictConfig) -> dict[str, str]:
    """Return the conditions of a run on this machine by name."""
    found = {name: str(cfg[name]) for name in OPTIONS}
    for name in ("tolerance", "expected", "num_workers"):
        if name in cfg.task:
            found[f"task.{name}"] = str(cfg.task[name])
    return found | {"code": code_of(cfg), "packages": _packages()}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return what differs, by name; nothing where the conditions before are not known."""
    names = [name for name in now if before and before.get(name) != now[name]]
    return ", ".join(sorted(names))


def versions() -> dict[str, str]:
    """Return which versions are installed of the packages that compute."""
    found = {}
    for name in ("torch", "torchvision", "timm", "transformers", "hydra-core"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def _packages() -> str:
    """Return a digest of what is installed."""
    there = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name}
    return hashlib.sha256("\n".join(sorted(there)).encode()).hexdigest()[:16]
