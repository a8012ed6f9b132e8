"""How unlike the channels of a network are, which is what one scale for all of them suffers by.

`python -m benchmarks.channel_ranges model=mobilenet_v2` takes run.py's arguments for a network. It
prints, for its depthwise convolutions and for the others, the median and the largest over layers of
max(r) / median(r), r being the largest |W| of each output channel, BatchNorm folded in.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from experiment.build import build
from experiment.config import composed


def spread(layer: nn.Conv2d) -> float:
    """Return the largest range of layer's output channels over their median, 1 or more.

    Channels that are zero are left out; nan where all are.
    """
    ranges = layer.weight.detach().flatten(1).abs().amax(1)
    ranges = ranges[ranges > 0]
    return (ranges.max() / ranges.median()).item() if len(ranges) else math.nan


def table(network: nn.Module) -> str:
    """Return a row for depthwise convolutions and one for the others, where there are any."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    rows = ["| convolutions | layers | median | largest |", "|---|---|---|---|"]
    for kind, own in (
        ("depthwise", [m for m in layers if m.groups == m.in_channels > 1]),
        ("others", [m for m in layers if not m.groups == m.in_channels > 1]),
    ):
        if found := [spread(layer) for layer in own]:
            rows.append(f"| {kind} | {len(found)} | {median(found):.1f} | {max(found):.1f} |")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> None:
    """Print the table of the network that argv chooses."""
    cfg = composed(argv)
    task, model = build(cfg.task), build(cfg.model)
    print(table(model.adapter(task, cfg.checkpoint, torch.device("cpu"), None).model))


if __name__ == "__main__":
    main(sys.argv[1:])
