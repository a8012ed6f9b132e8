"""Loop of the solvers: layer by layer on the quantized prefix, in the order that layers run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexround.activations.hooks import Activations
from flexround.activations.schemes import Activation
from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.calibration.calls import ended_at
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.quantizers.rtn import RTN
from flexround.ranges import Ranges
from flexround.reconstruction.activation_ranges import ranges_of_full_precision
from flexround.reconstruction.block_walk import BlockAtWork, Walk, block_walk
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import Checkpoints, NoCheckpoints
from flexround.reconstruction.checks import Checked, check_finite_samples, check_model, check_sites
from flexround.reconstruction.drift import ExactBlock, check_no_experts
from flexround.reconstruction.report import BlockReport, Errors, Iterations, Stopwatch, thin
from flexround.reconstruction.room import SOLVED, check_room
from flexround.reconstruction.snapshots import pack, unpack
from flexround.reconstruction.together import Together, in_one_pass, in_order
from flexround.solvers.base import DriftSolver, Solution, Solver, solve_layer
from flexround.solvers.hessian import Hessians
from flexround.utils.tensor_float32 import tensor_float32


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
    held_out: ClassVar[int] = 0  # solvers see every sample

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"recon.batch_size={self.batch_size}: give at least 1")

    @tensor_float32(False)
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
        full_precision: FullPrecisionOutputs | None = None,
        cache: ActivationCache | None = None,
        checked: Checked | None = None,
    ) -> dict[str, QuantizedTensor]:
        """Quantize adapter's model in place and return each layer's integers by name.

        Nothing is drawn: generator has no part, and full_precision only under a solver that looks
        at the drift of a layer's inputs. Blocks that checkpoints has are taken from there. cache
        says how the activations of the calibration set are held, checked what `check` has found
        where it was called before.

        Raises:
            ValueError: when a layer can't be solved; names it.
        """
        if checked is None:
            self.check(adapter, calibration, grid, quantizer, activation)
        blocks, kept = adapter.blocks(), checkpoints or NoCheckpoints()
        for callback in callbacks:
            callback.begin([block.name for block in blocks], 0)
        mask, activations, given = adapter.loss_mask(calibration), None, None
        if activation is not None:
            activations = Activations(blocks, activation, ranges, generator, mask)
        if isinstance(quantizer, DriftSolver):
            given = full_precision or FullPrecisionOutputs()
        job = _LayerJob(self, adapter, quantizer, grid, ranges, activations, mask)
        walk = Walk(
            adapter, calibration, cache or ActivationCache(), self.batch_size,
            full_precision=given,
            activations_on=None if activations is None else activations.on,
        )  # fmt: skip
        if activations is not None and activations.ranges_from == "fp":
            ranges_of_full_precision(activations, walk)
        integers: dict[str, QuantizedTensor] = {}
        for at_work in block_walk(walk):
            with at_work as work:
                block = work.block
                sites = [] if activations is None else activations.of(block.name)
                saved = kept.find(block.name)
                if saved is None:
                    found, report = job.solve_block(work)
                    kept.save(block.name, pack(report, found, sites, []))
                else:
                    report = saved.report
                    found = unpack(saved, block.layers, grid, sites, [], adapter.device)
                integers |= adapter.commit(block, found)
                for callback in callbacks:
                    callback.end_block(report)
        if activations is not None:
            activations.leave_on()
            adapter.activations = activations
        return integers

    def check_method(self, quantizer: Solver, grid: Grid) -> None:
        """Check the solver's options against the grid."""
        quantizer.check_grid(grid)

    def precision_on(self, device: torch.device) -> str:
        """Return which precision a solver's matrix products have on device."""
        return "float32"

    def check(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        grid: Grid,
        quantizer: Solver,
        activation: Activation | None = None,
    ) -> Checked:
        """Check what can be checked before any work; return what was found.

        Raises:
            ValueError: when a weight does not fit the grid (names the layer), or activations can't
                be quantized.
        """
        quantizer.check_grid(grid)
        if isinstance(quantizer, DriftSolver):
            check_no_experts(quantizer, adapter)
        check_finite_samples(adapter, calibration)
        checked = check_model(adapter, grid, RTN)
        check_room(adapter, SOLVED, hessians=True)
        if activation is not None:
            check_sites(activation, adapter)
        return checked


@dataclass(frozen=True)
class _LayerJob:
    """What is the same for all layers of one model.

    Attributes:
        mask: which positions count, [samples, ...], or None where all do.
    """

    settings: Solve
    adapter: ModelAdapter
    solver: Solver
    grid: Grid
    ranges: Ranges
    activations: Activations | None
    mask: Tensor | None

    def solve_block(self, work: BlockAtWork) -> tuple[dict[str, QuantizedTensor], BlockReport]:
        """Return the integers of a block's layers, solved on its plain calls, and the report."""
        watch = Stopwatch(self.adapter.device)
        block, found = work.block, list[Solution]()
        exact = ExactBlock(work) if isinstance(self.solver, DriftSolver) else None
        device, sets = self.adapter.device, in_one_pass(block)
        if self.settings.sequential:
            sets = in_order(block, work.plain, device)
        for together in sets:
            hessians = self._hessians(together, work, exact)
            found += [
                solve_layer(layer, hessians, self.solver, self.grid, self.ranges)
                for layer in together.layers
            ]
        bits = {layer.name: layer.grid(self.grid).bits for layer in block.layers}
        report = watch.report(
            block.name,
            bits | self._init_activation_ranges(work),
            Errors(sum(solution.objectives[0] for solution in found if solution.reached)),
            Errors(sum(solution.objectives[-1] for solution in found if solution.reached)),
            Iterations(cost=sum((solution.cost for solution in found), Cost())),
            {solution.layer: thin(solution.objectives) for solution in found},
            unreached=[solution.layer for solution in found if not solution.reached],
        )
        return {solution.layer: solution.integers for solution in found}, report

    def _hessians(
        self, together: Together, work: BlockAtWork, exact: ExactBlock | None
    ) -> Hessians:
        """Return the Hessians of layers on the plain calls of the block at work.

        With exact, the block as it came, they are those of the quantized calls, and the plain ones
        tell how far the inputs have drifted.
        """
        hessians, device = Hessians(together.layers), self.adapter.device
        calls = work.plain if exact is None else work.quantized
        for batch in torch.arange(len(calls)).split(self.settings.batch_size):
            mask = None if self.mask is None else self.mask[batch]
            taken = None if exact is None else exact.inputs(together, batch, device)
            collecting = hessians.collecting(mask, taken)
            with collecting, ended_at(together.calls), torch.no_grad():
                calls.replay(work.block.module, batch, device)
        return hessians

    def _init_activation_ranges(self, work: BlockAtWork) -> dict[str, int]:
        """Set the ranges of a block's activations; return their bits by name."""
        if self.activations is None:
            return {}
        block, calls = work.block, work.quantized

        def run(indices: Tensor) -> None:
            output = calls.replay(block.module, indices, self.adapter.device)
            if block.activation is not None:
                block.activation(output)  # its output is a site of the block

        sites = self.activations.start(block.name, run, len(calls))
        return {site.name: site.bits for site in sites}
