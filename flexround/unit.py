"""One unit of the reconstruction loop: its loss, its two streams, its optimisation."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flexround.attach import Layer, attach, freeze
from flexround.blocks import Block, Calls, capture
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.observers import BlockReport, Observer
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import Ranges

if TYPE_CHECKING:
    from flexround.reconstruction import Reconstruction

# How often the loss is read: each reading makes a GPU wait.
READ_EVERY = 10


def reconstruction_loss(
    output: Tensor, target: Tensor, channel_dim: int, mask: Tensor | None = None
) -> Tensor:
    """Return the squared error summed over channels, averaged over everything else.

    mask has the shape that is left without the channels and tells which positions count, none of
    the padding. AdaRound's lambda = 0.01 is tied to this reduction.
    """
    error = (output - target).pow(2).sum(dim=channel_dim)
    return error.mean() if mask is None else error[mask].mean()


@dataclass(frozen=True)
class Unit:
    """What is optimised at once: a whole block, or one of its layers."""

    name: str
    module: nn.Module
    layers: Sequence[Layer]
    activation: nn.Module | None

    def output(self, raw: Tensor) -> Tensor:
        """Return the module's output after the activation function that belongs to it."""
        return raw if self.activation is None else self.activation(raw)


@dataclass(frozen=True)
class UnitJob:
    """The loop's fixed parts while it walks one model."""

    recon: Reconstruction
    adapter: ModelAdapter
    quantizer: QuantizerFactory
    grid: Grid
    ranges: Ranges
    generator: torch.Generator
    observers: Sequence[Observer]
    mask: Tensor | None

    def run_all(self, module: nn.Module, calls: Calls) -> Tensor:
        """Return module's outputs over the whole calibration set, [samples, ...]."""
        return calls.run_all(module, self.recon.batch_size, self.adapter.device)

    def streams(
        self,
        block: Block,
        unit: Unit,
        teacher: nn.Module,
        fp: Calls,
        quant: Calls,
        fp_outputs: Tensor,
    ) -> tuple[Calls, Tensor]:
        """Return the student's calls of unit and its full-precision targets [samples, ...]."""
        if unit.module is not block.module:
            path = next(n for n, m in block.module.named_modules() if m is unit.module)
            source = teacher.get_submodule(path)
            quant = self._inside(block.module, unit.module, quant)
            fp = self._inside(teacher, source, fp)
            fp_outputs = self.run_all(source, fp)
        targets = unit.output(fp_outputs)
        return (quant if self.recon.inputs == "quant" else fp), targets

    def _inside(self, block: nn.Module, layer: nn.Module, calls: Calls) -> Calls:
        indices = torch.arange(len(calls)).split(self.recon.batch_size)
        return capture(layer, lambda part: calls.run(block, part, self.adapter.device), indices)

    def reconstruct(self, unit: Unit, inputs: Calls, targets: Tensor) -> dict[str, QuantizedTensor]:
        """Optimise the unit's quantizers, bake them in and report."""
        start = time.perf_counter()
        if self.adapter.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.adapter.device)
        quantizers = attach(unit.layers, self.quantizer, self.grid, self.ranges)
        for quantizer in quantizers:
            quantizer.hard = True
        error_before = self.error(unit, inputs, targets)
        for quantizer in quantizers:
            quantizer.hard = False
        self.optimise(unit, quantizers, inputs, targets)
        quantized = freeze(unit.layers)
        error_after = self.error(unit, inputs, targets)
        if not math.isfinite(error_after):
            raise ValueError(f"block {unit.name}: its error is {error_after} once quantized")
        report = BlockReport(
            name=unit.name,
            layers={layer.name: layer.grid(self.grid).bits for layer in unit.layers},
            error_before=error_before,
            error_after=error_after,
            seconds=time.perf_counter() - start,
            peak_memory_gib=_peak_memory_gib(self.adapter.device),
        )
        for observer in self.observers:
            observer.end_block(report)
        return quantized

    def optimise(
        self,
        unit: Unit,
        quantizers: Sequence[WeightQuantizer],
        inputs: Calls,
        targets: Tensor,
    ) -> None:
        """Run the iterations of one unit.

        Raises:
            ValueError: when the loss is not finite; names the unit.
        """
        recon, device = self.recon, self.adapter.device
        groups = [group for q in quantizers for group in q.param_groups(recon.lr)]
        if not recon.iters or not groups:
            return
        optimizer = torch.optim.Adam(groups, fused=True)
        scheduler = None
        if recon.schedule == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recon.iters)
        for iteration in range(recon.iters):
            batch = torch.randperm(len(inputs), generator=self.generator)[: recon.batch_size]
            output = unit.output(inputs.run(unit.module, batch, device))
            target = targets[batch].to(device)
            mask = None if self.mask is None else self.mask[batch].to(device)
            error = reconstruction_loss(output, target, self.adapter.channel_dim, mask)
            loss = error
            for quantizer in quantizers:
                loss = loss + quantizer.regularizer(iteration / recon.iters)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for quantizer in quantizers:
                quantizer.after_step()
            if scheduler is not None:
                scheduler.step()
            if iteration % READ_EVERY == 0 or iteration == recon.iters - 1:
                self.read(unit, iteration, loss, error)

    def read(self, unit: Unit, iteration: int, loss: Tensor, error: Tensor) -> None:
        """Tell the observers how far the unit is."""
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"block {unit.name}: the loss is {loss.item()} at iteration {iteration}; "
                f"lower recon.lr (now {self.recon.lr})"
            )
        for observer in self.observers:
            observer.step(unit.name, iteration, error.item())

    @torch.no_grad()
    def error(self, unit: Unit, inputs: Calls, targets: Tensor) -> float:
        """Return the reconstruction loss over the whole calibration set."""
        outputs = unit.output(self.run_all(unit.module, inputs))
        dim, mask = self.adapter.channel_dim, self.mask
        return reconstruction_loss(outputs, targets, dim, mask).item()


def _peak_memory_gib(device: torch.device) -> float:
    """Return the GPU's peak of this unit, or the process's peak so far on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
