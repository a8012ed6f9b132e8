"""auto-round: SignRound by its authors, and round-to-nearest with 0 iterations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.child import Job, layers_of


class _NoTokenizer:
    """The tokenizer that auto-round asks for and, given tokens, does not use."""


def start(job: Job) -> Any:
    """Return (network, arguments of AutoRound); its constructor is part of what is measured."""
    import auto_round  # noqa: F401 - so that it is not measured

    tokens = job.calibration()
    ones = torch.ones(1, tokens.shape[1], dtype=torch.long)
    arguments = {
        "tokenizer": _NoTokenizer(), "bits": job.bits, "group_size": job.group_size, "sym": False,
        "nsamples": len(tokens), "seqlen": tokens.shape[1], "batch_size": job.batch_size,
        "dataset": [{"input_ids": row[None], "attention_mask": ones} for row in tokens],
        "device_map": "cpu", **job.settings,
    }  # fmt: skip
    return job.load(), arguments


def run(started: Any) -> object:
    """Quantize the network in place."""
    from auto_round import AutoRound

    network, arguments = started
    return AutoRound(network, **arguments).quantize()


def weights(started: Any) -> dict[str, Tensor]:
    """Return the weights, which it leaves dequantized."""
    return {name: layer.weight for name, layer in layers_of(started[0]).items()}
