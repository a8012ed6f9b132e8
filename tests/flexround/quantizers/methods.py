"""The methods, layers and grids that the invariants are checked on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.quantizers.adaquant import AdaQuant
from flexround.quantizers.adaquant_flexround import AdaQuantFlexRound
from flexround.quantizers.adaround import AdaRound
from flexround.quantizers.clipping import LWC, FlexRoundLWC
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.lrq import LRQ
from flexround.quantizers.rtn import RTN
from flexround.quantizers.signround import SignRound, SignRoundV2
from flexround.ranges import LpSearch, MinMax

ADAROUND = partial(
    AdaRound, reg_weight=0.01, beta_start=20.0, beta_end=2.0, warmup=0.2, anneal="linear"
)
METHODS = {
    "rtn": RTN,
    "adaround": ADAROUND,
    "adaquant": partial(AdaQuant, lr_v=1e-3, lr_range=1e-3),
    "flexround": partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True),
    "adaquant_flexround": partial(
        AdaQuantFlexRound, learn_s1=True, use_s3=True, use_s4=True, lr_v=1e-3
    ),
    "lrq": partial(LRQ, rank=3, rank_rule="fixed", seed=0),
    "signround": SignRound,
    "signround_v2": SignRoundV2,
    "lwc": partial(LWC, first_logit=4.0),
    "flexround_lwc": partial(FlexRoundLWC, use_s3=True, use_s4=True, first_logit=4.0, lr_ends=1e-2),
}
# Their steps are signed, and after each the factors of the range's ends are put back into bounds.
SIGNED = ("signround", "signround_v2")
LAYERS = {
    "linear": lambda: nn.Linear(24, 10),
    "conv": lambda: nn.Conv2d(8, 6, 3),
    "grouped": lambda: nn.Conv2d(8, 6, (1, 6), groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, (2, 3), groups=8),
}
GRANULARITIES = {"tensor": PerTensor(), "channel": PerChannel(), "group": PerGroup(6)}

# Every method on every layer that it is for.
PAIRS = {
    f"{name}-{layer}": (method, make)
    for name, method in METHODS.items()
    for layer, make in LAYERS.items()
    if name != "lrq" or layer == "linear"
}
methods_on_layers = pytest.mark.parametrize(("method", "make"), PAIRS.values(), ids=PAIRS)
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
granularities = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES)
symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
all_bits = pytest.mark.parametrize("bits", [2, 3, 4, 8])
all_ranges = pytest.mark.parametrize(
    "ranges", [MinMax(), LpSearch(2.4, 80, 0.01)], ids=["minmax", "lp"]
)


def weight_of(make, seed=0, dtype=torch.float32):
    """Return a layer with a seeded, slightly skewed Gaussian weight."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = make().to(dtype)
        layer.weight.data = torch.randn_like(layer.weight) * 0.1 + 0.02
    return layer


def shaken(quantizer, size, seed=1):
    """Move every parameter at random, as training might."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in quantizer.named_parameters():
            if name in ("range_change", "low_change"):  # of a range that stays a positive one
                part = torch.empty_like(p).uniform_(-0.3, 0.3, generator=generator)
                p.add_(part * quantizer.scale * quantizer.grid.width)
            else:
                p.add_(torch.empty_like(p).uniform_(-size, size, generator=generator))
    return quantizer


def activations(samples, features, seed=0):
    """Return [samples, features] in which a few directions carry most, as real ones do."""
    draws = torch.Generator().manual_seed(seed)
    few = torch.randn(samples, 8, generator=draws) @ torch.randn(8, features, generator=draws)
    return few + 0.3 * torch.randn(samples, features, generator=draws)


def grid_of(bits, symmetric, granularity):
    """Return the grid of one test case."""
    return Grid(bits, symmetric, granularity)
