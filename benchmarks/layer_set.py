"""Three layers of a real network with what reaches them: the layer set that solvers compare on.

The layers are k_proj, o_proj and down_proj of one block of SmolLM2-135M; inputs are those of the
full-precision network on WikiText2's training text, a part of the sequences held out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiment.build import build
from experiment.config import composed

NAMES = ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class RealLayer:
    """A weight [out, in] and inputs [sequences, tokens, in], the last quarter of them held out."""

    name: str
    weight: Tensor
    inputs: Tensor

    def seen(self) -> Tensor:
        """Return the inputs to solve on, [vectors, in]."""
        return self.inputs[: len(self.inputs) * 3 // 4].flatten(0, 1)

    def held_out(self) -> Tensor:
        """Return the inputs to judge on, [vectors, in]."""
        return self.inputs[len(self.inputs) * 3 // 4 :].flatten(0, 1)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that choose a layer set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    return parser


def layer_set(data_dir: str, block: int, sequences: int, tokens: int) -> list[RealLayer]:
    """Return the layers of a block of SmolLM2-135M; data_dir holds WikiText2's files."""
    cfg = composed(
        [
            "model=smollm2_135m", f"data_dir={data_dir}", "protocol=file",
            f"num_samples={sequences}", f"task.seq_len={tokens}",
        ]
    )  # fmt: skip
    task, model = build(cfg.task), build(cfg.model)
    adapter = model.adapter(task, None, torch.device("cpu"), None)
    layers = {f"{block}.{name}": name for name in NAMES}
    found = {
        name: module
        for name, module in adapter.model.named_modules()
        if any(name.endswith(f"layers.{end}") for end in layers)
    }
    kept: dict[str, list[Tensor]] = {name: [] for name in found}
    with _keeping(found, kept), torch.no_grad():
        for batch in task.calibration(cfg.num_samples, cfg.seed):
            adapter.model(**batch)
    return [
        RealLayer(name, module.weight.detach(), torch.cat(kept[name]))
        for name, module in found.items()
    ]


@contextmanager
def _keeping(modules: dict[str, nn.Module], kept: dict[str, list[Tensor]]) -> Iterator[None]:
    """Add what reaches modules to kept until the context ends."""

    def hook(name: str) -> Any:
        return lambda _, args: kept[name].append(args[0].detach().clone())

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
