"""One program's run in a process of its own: `python -m benchmarks.peers.child JOB.json`.

It runs in the peers' environment, which has none of ours, or in this one. It quantizes the network
of the job once, writes the dequantized weights of the layers that it has quantized, and what the
quantization alone took.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers.measure import measured


@dataclass(frozen=True)
class Job:
    """What a program is told.

    Attributes:
        program: the module in benchmarks.peers.programs.
        network: folder of the full-precision network.
        tokens: file with calibration [samples, tokens] and windows [windows, tokens].
        bits: of a weight.
        group_size: weights that share a scale and a zero point.
        batch_size: sequences of an iteration.
        threads: of torch.
        settings: what else the program is told.
        compose: the overrides of our own configuration that describe network and text.
        weights: the file to write.
        found: the file for what it took.
    """

    program: str
    network: str
    tokens: str
    bits: int
    group_size: int
    batch_size: int
    threads: int
    settings: dict[str, Any]
    compose: list[str]
    weights: str
    found: str

    def calibration(self) -> Tensor:
        """Return the sequences to calibrate on, [samples, tokens]."""
        return load_file(self.tokens)["calibration"]

    def load(self) -> Any:
        """Return the full-precision network by the Hugging Face library."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.network, dtype=torch.float32).eval()


class Program(Protocol):
    """A module of benchmarks.peers.programs."""

    def start(self, job: Job) -> Any:
        """Return what is ready to quantize: everything imported and loaded."""
        ...

    def run(self, started: Any) -> object:
        """Quantize; this is what is measured."""
        ...

    def weights(self, started: Any) -> dict[str, Tensor]:
        """Return the dequantized weights of the layers that were quantized, by name."""
        ...


def layers_of(network: Any) -> dict[str, Any]:
    """Return the linear layers of network's blocks by name: all but the head."""
    head = network.get_output_embeddings()
    return {
        name: module for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }  # fmt: skip


def main(path: str) -> None:
    """Run the job in the file at path."""
    warnings.simplefilter("ignore")
    job = Job(**json.loads(Path(path).read_text()))
    torch.set_num_threads(job.threads)
    # A job without a program is the full-precision network by the Hugging Face library alone.
    if not job.program:
        Path(job.found).write_text(json.dumps({"perplexity": plain_perplexity(job)}))
        return
    program: Any = importlib.import_module(f"benchmarks.peers.programs.{job.program}")
    started = program.start(job)
    taken = measured(lambda: program.run(started))
    with torch.no_grad():
        found = {name: w.float().contiguous() for name, w in program.weights(started).items()}
    save_file(found, job.weights)
    Path(job.found).write_text(json.dumps(taken))


@torch.no_grad()
def plain_perplexity(job: Job) -> float:
    """Return the full-precision network's perplexity, with none of our code in it."""
    network, windows = job.load(), load_file(job.tokens)["windows"]
    total = 0.0
    for window in windows:
        logits = network(input_ids=window[None]).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return float(torch.tensor(total / windows[:, 1:].numel()).exp())


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what a program leaves running, such as compilers, is not waited for
