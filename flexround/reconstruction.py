"""THE loop: one block at a time against its full-precision output (BRECQ, arXiv 2102.05426).

The target is the full-precision block on the full-precision stream; the student sees the output of
the prefix that is already quantized (FlexRound, arXiv 2306.00317, sec. 3.1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from flexround.attach import check
from flexround.blocks import Block
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.observers import Observer
from flexround.quantizers.base import QuantizerFactory
from flexround.ranges import Ranges
from flexround.unit import Unit, UnitJob


@dataclass(frozen=True)
class Reconstruction:
    """Minimise |block(W, X) - block(W_hat, X_hat)|^2 over each unit's quantizers, in order.

    Attributes:
        unit: block, or layer for AdaRound's original layer-wise setting.
        iters: optimizer steps a unit; 0 leaves every quantizer where it starts.
        lr: learning rate of the quantizers that do not bring their own.
        batch_size: calibration samples a step, drawn without replacement within a step.
        schedule: constant, or cosine down to 0.
        inputs: quant feeds the student the quantized prefix's output, fp the full-precision one.
    """

    unit: Literal["block", "layer"]
    iters: int
    lr: float
    batch_size: int
    schedule: Literal["constant", "cosine"]
    inputs: Literal["quant", "fp"]

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("unit", self.unit, ("block", "layer")),
            ("schedule", self.schedule, ("constant", "cosine")),
            ("inputs", self.inputs, ("quant", "fp")),
        ):
            if value not in allowed:
                raise ValueError(f"recon.{name}={value}: give one of {', '.join(allowed)}")
        if self.iters < 0:
            raise ValueError(f"recon.iters={self.iters}: give 0 or more")
        if self.batch_size < 1:
            raise ValueError(f"recon.batch_size={self.batch_size}: give at least 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"recon.lr={self.lr}: give a number above 0")

    def __call__(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        *,
        quantizer: QuantizerFactory,
        grid: Grid,
        ranges: Ranges,
        generator: torch.Generator,
        observers: Sequence[Observer] = (),
    ) -> dict[str, QuantizedTensor]:
        """Quantize adapter's model in place and return each layer's integers by name.

        calibration holds batches as adapter.forward takes them; generator draws the mini-batches.

        Raises:
            ValueError: when the calibration set is smaller than a batch, a weight does not fit the
                grid, or a loss is not finite (names the block).
        """
        self.check(adapter, calibration, grid)
        blocks = adapter.blocks()
        fp = quant = adapter.capture(calibration)
        units = [list(self._units(block)) for block in blocks]
        for observer in observers:
            observer.begin([unit.name for group in units for unit in group], self.iters)
        mask = adapter.loss_mask(calibration)
        job = UnitJob(self, adapter, quantizer, grid, ranges, generator, observers, mask)
        quantized: dict[str, QuantizedTensor] = {}
        for index, block in enumerate(blocks):
            dtype = next(block.module.parameters()).dtype
            block.module.to(adapter.device, torch.float32)  # half precision is too coarse to train
            teacher = copy.deepcopy(block.module)
            fp_outputs = job.run_all(teacher, fp)
            for unit in units[index]:
                inputs, targets = job.streams(block, unit, teacher, fp, quant, fp_outputs)
                quantized |= job.reconstruct(unit, inputs, targets)
            if index + 1 < len(blocks):
                outputs = fp_outputs, job.run_all(block.module, quant)
                fp, quant = (
                    calls.with_inputs(adapter.advance(index, out))
                    for calls, out in zip((fp, quant), outputs, strict=True)
                )
            block.module.to(adapter.home, dtype)
        return quantized

    def check(self, adapter: ModelAdapter, calibration: Sequence[Any], grid: Grid) -> None:
        """Check what can be checked before any work.

        Raises:
            ValueError: when the calibration set is smaller than a batch, or a weight does not fit
                the grid (names the layer).
        """
        check([layer for block in adapter.blocks() for layer in block.layers], grid)
        samples = sum(adapter.num_samples(batch) for batch in calibration)
        if self.iters and samples < self.batch_size:
            raise ValueError(
                f"num_samples={samples} is smaller than recon.batch_size={self.batch_size}; "
                "raise num_samples or lower recon.batch_size"
            )

    def _units(self, block: Block) -> Iterator[Unit]:
        if self.unit == "block":
            yield Unit(block.name, block.module, block.layers, block.activation)
            return
        for layer in block.layers:
            yield Unit(layer.name, layer.module, [layer], layer.activation)
