"""Resources of a run, made once: device, held activations, shared cache; and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from experiment.conditions import versions
from experiment.device import kind_of
from experiment.full_precision import FullPrecision
from experiment.identity import FULL_STREAMS
from experiment.job import Job
from experiment.shared_cache import Cache
from experiment.source_code import code_of
from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.disk_tensors import DiskTensors
from flexround.reconstruction.checkpoints import FileCheckpoints


@dataclass(frozen=True)
class Resources:
    """The resources of one run.

    Attributes:
        activations: how the activations of the calibration set are held.
        shared: full-precision values and outputs that runs share.
    """

    device: torch.device
    activations: ActivationCache
    shared: Cache

    @classmethod
    def of(cls, job: Job, device: torch.device) -> Resources:
        """Return the resources of job on device.

        Raises:
            ValueError: when activations are to be spilled to a folder that can't be written, or to
                lie on a GPU that the run has not.
        """
        activations = activations_of(job.cfg)
        activations.check_device(device)
        shared = Cache(Path(job.cfg.cache_dir, "shared"), job.cfg.cache_gib)
        return cls(device, activations, shared)


def activations_of(cfg: DictConfig) -> ActivationCache:
    """Return how the activations of the calibration set are held.

    Raises:
        ValueError: when they are to be spilled to a folder that can't be written.
    """
    name, limit = cfg.stream_dtype, cfg.stream_gib
    dtype = None if name == FULL_STREAMS else getattr(torch, name)
    disk = DiskTensors(cfg.spill_dir)
    if limit is not None or cfg.offload:
        disk.check_writable()
    where = cfg.stream_device
    return ActivationCache(dtype, math.inf if limit is None else limit, disk, where)


def checkpoints_of(
    job: Job, full_precision: FullPrecision, precision: str, bits: Mapping[str, int] | None
) -> FileCheckpoints:
    """Return what keeps the finished units of job, which serve a later attempt at it.

    That is one at the same computation: of the same record that rerun=true is to replace, by the
    same code and packages, on the same kind of device, with as many threads, in the same precision;
    of the same weights and calibration samples; with the same bits of layers, where some were
    chosen, which on a GPU may come out otherwise. A network that is trained on first use, or one
    that its library fetches, is named by words alone, and may be another one in another cache.
    """
    key = {
        "replaces": job.store.replaced(job.run_id),
        "code": code_of(job.cfg),
        "versions": versions(),
        "device": kind_of(full_precision.device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "network": full_precision.network,
        "samples": full_precision.samples,
        "bits": bits,
    }
    return FileCheckpoints(job.store.unfinished(job.run_id), key)
