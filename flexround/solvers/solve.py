"""The loop of the solvers: layer by layer on the quantized prefix, in the order that they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flexround.attach import Layer, output_first
from flexround.attach import check as check_layers
from flexround.blocks import Block, Calls, takers
from flexround.grid import Grid, QuantizedTensor
from flexround.measure import Stopwatch
from flexround.models.base import ModelAdapter
from flexround.observers import Observer
from flexround.quantizers.activation import Activation
from flexround.quantizers.rtn import RTN
from flexround.ranges import Ranges
from flexround.solvers.hessian import Hessians, objective


class Solver(Protocol):
    """Rounds one weight against its Hessian."""

    def check(self, grid: Grid) -> None:
        """Check that the options go with the grid."""
        ...

    def quantize(
        self, weight: Tensor, hessian: Tensor, grid: Grid, ranges: Ranges
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in]."""
        ...


@dataclass(frozen=True)
class Solve:
    """Quantize each layer against the inputs that the quantized layers before it give.

    Attributes:
        batch_size: calibration samples at a time.
        sequential: layers that take the same tensor together, the next ones on their quantized
            outputs (GPTQ's true-sequential); otherwise a whole block on its own inputs.
    """

    batch_size: int
    sequential: bool

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"recon.batch_size={self.batch_size}: give at least 1")

    def __call__(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        *,
        quantizer: Solver,
        grid: Grid,
        ranges: Ranges,
        generator: torch.Generator,
        activation: Activation | None = None,
        observers: Sequence[Observer] = (),
    ) -> dict[str, QuantizedTensor]:
        """Quantize adapter's model in place and return each layer's integers by name.

        Nothing is drawn: generator has no part.

        Raises:
            ValueError: when a layer can't be solved; names it.
        """
        self.check(adapter, calibration, grid, quantizer, activation)
        blocks = adapter.blocks()
        for observer in observers:
            observer.begin([block.name for block in blocks], 0)
        calls = adapter.capture(calibration)
        quantized: dict[str, QuantizedTensor] = {}
        for index, block in enumerate(blocks):
            dtype = block.dtype
            block.module.to(adapter.device, torch.float32)
            watch = Stopwatch(adapter.device)
            sums = torch.zeros(2, dtype=torch.float64)
            for layers in self._sets(block, calls, adapter):
                hessians = Hessians(layers)
                with hessians.collecting():
                    self._run(block, calls, adapter)
                for layer in layers:
                    quantized[layer.name], errors = _solve(layer, hessians, quantizer, grid, ranges)
                    sums += errors
            bits = {layer.name: layer.grid(grid).bits for layer in block.layers}
            report = watch.report(block.name, bits, sums[0].item(), sums[1].item())
            for observer in observers:
                observer.end_block(report)
            if index + 1 < len(blocks):
                outputs = self._run(block, calls, adapter)
                calls = calls.with_inputs(adapter.advance(index, outputs))
            block.module.to(adapter.home, dtype)
        return quantized

    def check_method(self, quantizer: Solver, grid: Grid) -> None:
        """Check the solver's options against the grid."""
        quantizer.check(grid)

    def check(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        grid: Grid,
        quantizer: Solver,
        activation: Activation | None = None,
    ) -> None:
        """Check what can be checked before any work.

        Raises:
            ValueError: when a weight does not fit the grid (names the layer), or activations are
                to be quantized.
        """
        quantizer.check(grid)
        check_layers([layer for block in adapter.blocks() for layer in block.layers], grid, RTN)
        if activation is not None:
            raise ValueError(
                "the solvers round weights alone; give activation=none, or a learned method"
            )

    def _run(self, block: Block, calls: Calls, adapter: ModelAdapter) -> Tensor:
        return calls.run_all(block.module, self.batch_size, adapter.device)

    def _sets(self, block: Block, calls: Calls, adapter: ModelAdapter) -> list[list[Layer]]:
        """Return the layers that are solved at once: those that take the same tensor."""
        if not self.sequential:
            return [list(block.layers)]
        layers = {layer.module: layer for layer in block.layers}
        first = torch.arange(1)
        _, together = takers(layers, lambda: calls.run(block.module, first, adapter.device))
        return [[layers[module] for module in modules] for modules in together]


def _solve(
    layer: Layer, hessians: Hessians, solver: Solver, grid: Grid, ranges: Ranges
) -> tuple[QuantizedTensor, Tensor]:
    """Write layer's quantized weight; return its integers and the objectives of RTN and of it."""
    own, weight = layer.grid(grid), output_first(layer.module, layer.module.weight)  # type: ignore[arg-type]
    flat = weight.detach().flatten(1).contiguous()
    hessian = hessians.of(layer)
    try:
        found = solver.quantize(flat, hessian, own, ranges)
    except ValueError as error:
        raise ValueError(f"layer {layer.name}: {error}") from error
    rounded = RTN(flat, grid=own, ranges=ranges).finalize(flat)
    errors = [objective(flat, q.dequantize(), hessian).sum() for q in (rounded, found)]
    integers = QuantizedTensor(found.codes.view(weight.shape), found.scale, found.zero_point, own)
    value = integers.dequantize()
    with torch.no_grad():
        output_first(layer.module, layer.module.weight).copy_(value)  # type: ignore[arg-type]
    return integers, torch.stack(errors).cpu()
