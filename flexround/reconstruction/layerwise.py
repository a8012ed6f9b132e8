"""The loop of the solvers: layer by layer on the quantized prefix, in the order that they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexround.activations.hooks import Activations
from flexround.activations.quantizers import Activation
from flexround.attach import bake, check_weights
from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.calibration.calls import RecordedCalls, layers_sharing_input
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.quantizers.rtn import RTN
from flexround.ranges import Ranges
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import Checkpoints, NoCheckpoints, pack, unpack
from flexround.reconstruction.checks import check_sites
from flexround.reconstruction.report import BlockReport, Stopwatch, thin
from flexround.solvers.base import Solver
from flexround.solvers.hessian import Hessians, objective
from flexround.structure import Block, Layer, output_first


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
        callbacks: Sequence[Callback] = (),
        checkpoints: Checkpoints | None = None,
        targets: FullPrecisionOutputs | None = None,
        streams: ActivationCache | None = None,
    ) -> dict[str, QuantizedTensor]:
        """Quantize adapter's model in place and return each layer's integers by name.

        Nothing is drawn, and full-precision outputs are no targets: generator and targets have no
        part. Blocks that checkpoints has are taken from there; streams says how the activations of
        the calibration set are held.

        Raises:
            ValueError: when a layer can't be solved; names it.
        """
        self.check(adapter, calibration, grid, quantizer, activation)
        blocks = adapter.blocks()
        for callback in callbacks:
            callback.begin([block.name for block in blocks], 0)
        kept = checkpoints or NoCheckpoints()
        streams = streams or ActivationCache()
        calls = noisy = adapter.record_calls(calibration, streams)
        activations = None
        if activation is not None:
            activations = Activations(blocks, activation, ranges, generator)
        quantized: dict[str, QuantizedTensor] = {}
        for index, block in enumerate(blocks):
            with adapter.on_device(block):
                sites = [] if activations is None else activations.of(block.name)
                saved = kept.find(block.name)
                if saved is None:
                    integers, report = self._block(
                        block, calls, noisy, adapter, quantizer, grid, ranges, activations
                    )
                    kept.save(block.name, pack(report, integers, sites, []))
                else:
                    integers = unpack(saved, block.layers, grid, sites, [])
                    report = saved.report
                quantized |= adapter.commit(block, integers)
                for callback in callbacks:
                    callback.end_block(report)
                if index + 1 < len(blocks):
                    outputs = self._run(block, calls, adapter)
                    if activations is not None:
                        with activations.on():
                            heard = self._run(block, noisy, adapter)
                        noisy = noisy.with_inputs(adapter.advance(index, heard, streams))
                    calls = calls.with_inputs(adapter.advance(index, outputs, streams))
        if activations is not None:
            activations.leave_on()
            adapter.activations = activations
        return quantized

    def _block(
        self,
        block: Block,
        calls: RecordedCalls,
        noisy: RecordedCalls,
        adapter: ModelAdapter,
        quantizer: Solver,
        grid: Grid,
        ranges: Ranges,
        activations: Activations | None,
    ) -> tuple[dict[str, QuantizedTensor], BlockReport]:
        """Quantize a block's layers on calls; noisy are those with quantized activations."""
        watch = Stopwatch(adapter.device)
        found: list[Solution] = []
        for layers in self._sets(block, calls, adapter):
            hessians = Hessians(layers)
            with hessians.collecting():
                for _ in calls.replay_each(block.module, self.batch_size, adapter.device):
                    pass
            found += [solve(layer, hessians, quantizer, grid, ranges) for layer in layers]
        bits = {layer.name: layer.grid(grid).bits for layer in block.layers}
        if activations is not None:
            bits |= self._start(activations, block, noisy, adapter)
        report = watch.report(
            block.name,
            bits,
            sum(solution.objectives[0] for solution in found),
            sum(solution.objectives[-1] for solution in found),
            sum((solution.cost for solution in found), Cost()),
            {solution.layer: thin(solution.objectives) for solution in found},
        )
        return {solution.layer: solution.integers for solution in found}, report

    def check_method(self, quantizer: Solver, grid: Grid) -> None:
        """Check the solver's options against the grid."""
        quantizer.check_grid(grid)

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
            ValueError: when a weight does not fit the grid (names the layer), or activations can't
                be quantized.
        """
        quantizer.check_grid(grid)
        for block in adapter.blocks():
            with adapter.onloaded(block):
                check_weights(block.layers, grid, RTN)
        if activation is not None:
            check_sites(activation, adapter)

    def _start(
        self, activations: Activations, block: Block, calls: RecordedCalls, adapter: ModelAdapter
    ) -> dict[str, int]:
        """Set the ranges of a block's activations; return their bits by name."""

        def run(indices: Tensor) -> None:
            output = calls.replay(block.module, indices, adapter.device)
            if block.activation is not None:
                block.activation(output)  # its output is a site of the block

        return {site.name: site.bits for site in activations.start(block.name, run, len(calls))}

    def _run(self, block: Block, calls: RecordedCalls, adapter: ModelAdapter) -> Tensor:
        return calls.replay_all(block.module, self.batch_size, adapter.device)

    def _sets(self, block: Block, calls: RecordedCalls, adapter: ModelAdapter) -> list[list[Layer]]:
        """Return the layers that are solved at once: those that take the same tensor."""
        if not self.sequential:
            return [list(block.layers)]
        layers = {layer.module: layer for layer in block.layers}
        first = torch.arange(1)
        _, together = layers_sharing_input(
            layers, lambda: calls.replay(block.module, first, adapter.device)
        )
        return [[layers[module] for module in modules] for modules in together]


@dataclass(frozen=True)
class Solution:
    """One solved layer.

    Attributes:
        objectives: mean squared error of an output, summed over outputs: of round-to-nearest on
            the same scales, where the search starts and after each step, and of the integers.
    """

    layer: str
    integers: QuantizedTensor
    objectives: list[float]
    cost: Cost


def solve(layer: Layer, hessians: Hessians, solver: Solver, grid: Grid, ranges: Ranges) -> Solution:
    """Write layer's quantized weight and return what was found."""
    own, weight = layer.grid(grid), output_first(layer.module, layer.module.weight)  # type: ignore[arg-type]
    flat = weight.detach().flatten(1).contiguous()
    hessian = hessians.of(layer)
    steps: list[float] = []
    try:
        found = solver.quantize(flat, hessian, own, ranges, steps.append)
    except ValueError as error:
        raise ValueError(f"layer {layer.name}: {error}") from error
    codes = own.encode(own.granularity.group(flat), found.scale, found.zero_point)
    nearest = QuantizedTensor(codes.view(flat.shape), found.scale, found.zero_point, own)
    ends = [objective(flat, q.dequantize(), hessian).sum().item() for q in (nearest, found)]
    integers = QuantizedTensor(found.codes.view(weight.shape), found.scale, found.zero_point, own)
    bake(layer, integers)
    cost = solver.cost(len(flat), flat.shape[1], len(steps))
    cost += Cost(flops=hessians.flops(layer))
    return Solution(layer.name, integers, [ends[0], *steps, ends[1]], cost)
