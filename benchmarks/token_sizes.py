"""How large each token is behind each block, which is what the squared error weighs it by.

`python -m benchmarks.token_sizes model=smollm2_135m data_dir=DIR num_samples=16` takes run.py's
arguments for a language model and its calibration set. It prints, for each block's outputs in full
precision, the root mean square over channels: of the median token, of the first token of a sample
(their median), and of the largest of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from experiment.build import build
from experiment.config import composed
from flexround.calibration.outputs import first_of
from flexround.models.base import ModelAdapter


def sizes(outputs: Tensor) -> tuple[float, float, float]:
    """Return the three sizes of a block's outputs [samples, tokens, hidden]."""
    size = outputs.float().square().mean(dim=-1).sqrt()
    first, others = size[:, 0], size[:, 1:]
    return size.median().item(), first.median().item(), others.max().item()


@torch.no_grad()
def table(adapter: ModelAdapter, batches: Sequence[Mapping[str, Tensor]]) -> str:
    """Return a row for each block."""
    seen: dict[str, list[Tensor]] = {block.name: [] for block in adapter.blocks()}

    def keep(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(lambda _, __, out: seen[name].append(first_of(out)))

    handles = [keep(block.name, block.module) for block in adapter.blocks()]
    for batch in batches:
        adapter.forward(batch)
    for handle in handles:
        handle.remove()
    rows = ["| block | median token | first token | largest other |", "|---|---|---|---|"]
    for name, outputs in seen.items():
        rows.append(
            f"| {name} | " + " | ".join(f"{s:.1f}" for s in sizes(torch.cat(outputs))) + " |"
        )
    return "\n".join(rows)


def main(argv: Sequence[str]) -> None:
    """Print the table of the network and the calibration set that argv chooses."""
    cfg = composed(argv)
    task, model = build(cfg.task), build(cfg.model)
    adapter = model.adapter(task, cfg.checkpoint, torch.device("cpu"), None)
    print(table(adapter, task.calibration(cfg.num_samples, cfg.seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
