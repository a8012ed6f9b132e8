"""The search of a range in two dimensions against the one in one: errors on a real MobileNetV2.

`python -m benchmarks.ranges --checkpoint FILE --images DIR` prints, for torchvision's mobilenet_v2
with FILE's weights, the mean squared error under ranges=lp_2d over that under ranges=lp: of its
weights, and of what its ReLU6 and its linear bottlenecks give out on 16 of DIR's images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor, nn

from flexround.grid import Granularity, Grid, PerChannel, PerTensor
from flexround.ranges import LpSearch, LpSearch2D, Ranges

ONE, TWO = LpSearch(2.4, 80, 0.01), LpSearch2D(2.4, 80, 0.01)
IMAGES, ELEMENTS = 16, 1 << 15


def error(values: Tensor, grid: Grid, ranges: Ranges) -> float:
    """Return the mean squared error of values [groups, elements] on the grid of ranges."""
    scale, zero = ranges(values, grid)
    return ((grid.encode(values, scale, zero) - zero) * scale - values).square().mean().item()


def line(tensors: Sequence[Tensor], bits: int, granularity: Granularity) -> str:
    """Return the ratios' median, mean, smallest and largest."""
    grid = Grid(bits, False, granularity)
    ratios = [
        error(granularity.group(t), grid, TWO) / max(error(granularity.group(t), grid, ONE), 1e-30)
        for t in tensors
    ]
    return " | ".join(f"{f(ratios):.3f}" for f in (median, mean, min, max))


def outputs(model: nn.Module, images: Path) -> list[Tensor]:
    """Return a sample of what every ReLU6 and every bottleneck gives out, [1, elements]."""
    from PIL import Image
    from torchvision import transforms
    from torchvision.models.mobilenetv2 import InvertedResidual

    prepare = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
         transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )  # fmt: skip
    files = sorted(path for path in images.rglob("*") if path.is_file())
    files = files[:: max(1, len(files) // IMAGES)][:IMAGES]
    batch = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    found: list[Tensor] = []
    draws = torch.Generator().manual_seed(0)

    def keep(_: nn.Module, __: object, out: Tensor) -> None:
        drawn = torch.randint(out.numel(), (ELEMENTS,), generator=draws)
        found.append(out.detach().flatten()[drawn][None])

    for module in model.modules():
        if isinstance(module, nn.ReLU6 | InvertedResidual):
            module.register_forward_hook(keep)
    with torch.no_grad():
        model(batch)
    return found


def main() -> None:
    """Print the table."""
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = mobilenet_v2().eval()
    model.load_state_dict(load_file(options.checkpoint))
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    found = outputs(model, options.images)
    print("| lp_2d over lp | median | mean | smallest | largest |\n|---|---|---|---|---|")
    for name, granularity in (("a tensor", PerTensor()), ("a channel", PerChannel())):
        for bits in (4, 3, 2):
            print(f"| W{bits}, {name} | {line(weights, bits, granularity)} |", flush=True)
    for name, signed in (("ReLU6", False), ("bottlenecks", True)):
        chosen = [values for values in found if bool(values.min() < 0) == signed]
        for bits in (8, 4):
            print(f"| A{bits}, {name} ({len(chosen)}) | {line(chosen, bits, PerTensor())} |")


if __name__ == "__main__":
    main()
