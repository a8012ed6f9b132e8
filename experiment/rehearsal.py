"""Rehearsal of a run on a network without its weights, where those are still to be made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from flexround.models.base import ModelAdapter, check_kind
from tasks.base import Task

Check = Callable[[ModelAdapter, Sequence[Any]], object]


def rehearse(cfg: DictConfig, task: Task, model: Any, device: torch.device, check: Check) -> None:
    """Have check look at the run's network and calibration data before a network is trained.

    Where the network is at hand nothing is done: the run itself checks it in its first second.

    Raises:
        ValueError: what check, the model or the task refuses.
    """
    check_kind(model.kind, task.kinds)
    if cfg.offload:  # a network that is made is small, and the run's own checks a block at a time
        return
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        if task.describe(model, cfg.checkpoint, Path(folder)):
            adapter = model.bare_adapter(task, cfg.checkpoint, Path(folder), device)
            check(adapter, task.calibration(cfg.num_samples, cfg.seed))
