"""torchao: round-to-nearest of the weights alone; its GPTQ packs for GPUs only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.child import Job, layers_of


def start(job: Job) -> Any:
    """Return (network, configuration)."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup
    from torchao.quantization.quant_primitives import MappingType

    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{job.bits}"), granularity=PerGroup(job.group_size),
        mapping_type=MappingType.ASYMMETRIC, **job.settings,
    )  # fmt: skip
    return job.load(), config


def run(started: Any) -> object:
    """Quantize the network in place."""
    from torchao.quantization import quantize_

    network, config = started
    own = {id(layer) for layer in layers_of(network).values()}
    return quantize_(network, config, filter_fn=lambda module, _: id(module) in own)


def weights(started: Any) -> dict[str, Tensor]:
    """Return what its integers stand for."""
    return {n: layer.weight.dequantize() for n, layer in layers_of(started[0]).items()}
