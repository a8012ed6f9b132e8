"""Evaluator of all contenders: `python -m benchmarks.peers.evaluate JOB.json`.

It puts a contender's dequantized weights into the full-precision network and takes the perplexity
as `python run.py` does. Before that it looks whether they are what was to be compared: the same
layers, each group of weights on no more values than its bits allow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from experiment.build import build
from experiment.config import composed


def most_values(weight: Tensor, group_size: int) -> int:
    """Return how many different values the group of weight [out, in] with the most of them has."""
    ordered = weight.reshape(-1, group_size).sort(dim=1).values
    return int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1


def evaluated(
    compose: list[str], tokens: str, weights: str | None, group_size: int, threads: int
) -> dict[str, float]:
    """Return perplexity and, of quantized weights, the most different values of a group.

    Raises:
        ValueError: when the windows are not those of the file, the groups do not divide a layer's
            inputs, or the layers are not ours.
    """
    torch.set_num_threads(threads)
    cfg = composed(compose)
    task = build(cfg.task)
    adapter = build(cfg.model).adapter(task, None, torch.device("cpu"), None)
    if not torch.equal(task.texts()[0], load_file(tokens)["windows"]):
        raise ValueError("the evaluation's windows are not those of the file")
    layers = adapter.layers()
    for name, layer in layers.items():
        if layer.module.weight.shape[1] % group_size:  # some programs would fill the last one up
            raise ValueError(
                f"--group-size {group_size}: {name} has {layer.module.weight.shape[1]} inputs; "
                "give a divisor"
            )
    if weights is None:
        return {"perplexity": task.evaluate(adapter)["perplexity"]}
    found = load_file(weights)
    if found.keys() != layers.keys():
        odd = sorted(found.keys() ^ layers.keys())
        raise ValueError(f"it has not quantized the same layers: {', '.join(odd[:3])}")
    for name, layer in layers.items():
        layer.module.weight.copy_(found[name])
    values = max(most_values(weight, group_size) for weight in found.values())
    return {"perplexity": task.evaluate(adapter)["perplexity"], "values": values}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job.pop("found"))
    out.write_text(json.dumps(evaluated(**job)))
