"""Ours: the configuration that `python run.py` has, on the tokens that the others get."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.child import Job
from experiment.build import build, build_grid, validate
from experiment.config import composed


def start(job: Job) -> Any:
    """Return (adapter, what quantizes it)."""
    cfg = composed(
        [*job.compose, f"bits={job.bits}", f"group_size={job.group_size}",
         *job.settings["overrides"]]
    )  # fmt: skip
    validate(cfg)
    grid = build_grid(cfg)
    quantizer, recon = build(cfg.quant), build(cfg.recon)
    recon.check_method(quantizer, grid)
    adapter = build(cfg.model).adapter(build(cfg.task), None, torch.device("cpu"), None)
    tokens = job.calibration()[: job.settings.get("samples")]
    quantize = partial(
        recon, adapter, [{"input_ids": part} for part in tokens.split(job.batch_size)],
        quantizer=quantizer, grid=grid, ranges=build(cfg.ranges),
        generator=torch.Generator().manual_seed(cfg.seed),
    )  # fmt: skip
    return adapter, quantize


def run(started: Any) -> object:
    """Quantize the network in place."""
    return started[1]()


def weights(started: Any) -> dict[str, Tensor]:
    """Return the frozen weights."""
    return {name: layer.module.weight for name, layer in started[0].layers().items()}
