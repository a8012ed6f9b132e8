"""Rehearsal of a run on a network without its weights, where those are to be made or fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from experiment.checks import bits_of_layers
from flexround.models.base import ModelAdapter, check_kind
from flexround.models.coverage import is_left
from flexround.models.layer_chain import chain_of
from flexround.structure import Layer, is_quantizable
from tasks.base import Task


@dataclass(frozen=True)
class Checks:
    """What a method checks: a whole run, or the layers of a network by their shapes alone."""

    run: Callable[[ModelAdapter, Sequence[Any]], object]
    layers: Callable[[Sequence[Layer]], object]


def rehearse(cfg: DictConfig, task: Task, model: Any, device: torch.device, checks: Checks) -> None:
    """Have checks look at the run's network before it is trained or fetched.

    Where the network is at hand nothing is done: the run itself checks it in its first second.

    Raises:
        ValueError: what check, the model or the task refuses.
    """
    check_kind(model.kind, task.kinds)
    if cfg.offload:  # a network that is made is small, and the run's own checks a block at a time
        return
    hollow = task.hollow(model, cfg.checkpoint)
    if hollow is not None:
        checks.layers(_layers(hollow, model.leave))
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        if task.describe(model, cfg.checkpoint, Path(folder)):
            adapter = model.bare_adapter(task, cfg.checkpoint, Path(folder), device)
            adapter.assign_bits(bits_of_layers(cfg))
            checks.run(adapter, task.calibration(cfg.num_samples, cfg.seed))


def _layers(network: nn.Module, leave: Sequence[str]) -> list[Layer]:
    """Return the layers of a transformer that would be quantized, those of fused experts aside.

    Raises:
        ValueError: when its transformer layers are no chain.
    """
    return [
        Layer(f"{block}.{name}", module)
        for block, inside in chain_of(network).items()
        for name, module in inside.named_modules()
        if is_quantizable(module) and not is_left(f"{block}.{name}", leave, block)
    ]
