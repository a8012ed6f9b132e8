"""GPTQ's and GPTAQ's own code on one layer, for `python -m benchmarks.authors`."""

from __future__ import annotations

import sys
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.layer_set import RealLayer
from benchmarks.side_by_side import same
from flexround.grid import Grid, PerChannel
from flexround.ranges import MinMax
from flexround.solvers.gptaq import GPTAQ
from flexround.solvers.gptq import GPTQ
from flexround.solvers.hessian import Drift


class MinMaxRounding:
    """What GPTAQ's code asks of a quantizer, on the scales that ours has."""

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        self._grid, (self._scale, self._zero) = grid, MinMax()(weight, grid)

    def ready(self) -> bool:
        """Return that the scales are chosen."""
        return True

    def quantize(self, column: Tensor) -> Tensor:
        """Return a column of the weight, [out, 1], rounded to nearest."""
        codes = self._grid.encode(column, self._scale, self._zero)
        return (codes - self._zero) * self._scale


def gptq(layer: RealLayer, bits: int, act_order: bool) -> float:
    """GPTQ: IST-DASLab's fasterquant."""
    from gptq import GPTQ as Official
    from gptq import Quantizer

    module = nn.Linear(*reversed(layer.weight.shape), bias=False).requires_grad_(False)
    module.weight.copy_(layer.weight)
    theirs = Official(module)
    theirs.quantizer = Quantizer()
    theirs.quantizer.configure(bits, perchannel=True, sym=False, mse=False)
    for sequence in layer.inputs:
        theirs.add_batch(sequence[None], None)
    hessian = theirs.H.double()[None]
    torch.cuda.synchronize = lambda *_: None
    theirs.fasterquant(actorder=act_order)
    ours = GPTQ(128, 0.01, act_order, False, False, "ranges")
    found = ours.quantize(layer.weight, hessian, Grid(bits, False, PerChannel()), MinMax())
    return same(found, module.weight)


def gptaq(layer: RealLayer, bits: int, block_size: int) -> float:
    """GPTAQ: its fasterquant, on inputs that a prefix of 6 bits might have left.

    Beyond its own block of columns it moves the rest by what a column was rounded to, where the
    paper's equation has what it was rounded from; with one block for all there is no such rest.
    """
    helpers = ("utils", "quant_utils", "model_utils")  # of whole networks; they import more
    with mock.patch.dict(sys.modules, dict.fromkeys(helpers, mock.MagicMock())):
        from gptaq_utils import GPTAQ as Official

    grid = Grid(bits, False, PerChannel())
    module = nn.Linear(*reversed(layer.weight.shape), bias=False).requires_grad_(False)
    module.weight.copy_(layer.weight)
    theirs = Official(module)
    theirs.quantizer = MinMaxRounding(layer.weight, grid)
    step = layer.inputs.abs().max() / 31
    inputs = torch.round(layer.inputs / step) * step
    for exact, taken in zip(layer.inputs, inputs, strict=True):
        theirs.fp_inp = [exact.T]
        theirs.add_batch(taken[None], None)
    hessian, across = theirs.H.double()[None], theirs.dXXT.double()[None]
    torch.cuda.synchronize = lambda *_: None
    theirs.fasterquant(blocksize=block_size)
    ours = GPTAQ(block_size, 0.01, False, False, False, "ranges", 0.25)
    found = ours.quantize_on_drift(layer.weight, hessian, Drift(across, across), grid, MinMax())
    return same(found, module.weight)
