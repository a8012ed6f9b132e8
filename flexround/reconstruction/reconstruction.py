"""THE loop: one block at a time against its full-precision output (BRECQ, arXiv 2102.05426).

The target is the full-precision block on the full-precision stream; the student sees the output of
the prefix that is already quantized (FlexRound, arXiv 2306.00317, sec. 3.1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from flexround.activations.hooks import Activations
from flexround.activations.quantizers import Activation
from flexround.attach import check_weights
from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.grid import Grid, PerTensor, QuantizedTensor
from flexround.kernels.chunking import check_compiler
from flexround.kernels.qdrop import RESOLUTION
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory
from flexround.ranges import MinMax, Ranges
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import Checkpoints, NoCheckpoints
from flexround.reconstruction.checks import check_sites
from flexround.reconstruction.optimize import Schedule
from flexround.reconstruction.precision import Precision, check_precision
from flexround.reconstruction.step_sizes import learn_step_sizes
from flexround.reconstruction.unit import Unit, UnitJob
from flexround.structure import Block


@dataclass(frozen=True)
class Reconstruction:
    """Minimise |block(W, X) - block(W_hat, X_hat)|^2 over each unit's quantizers, in order.

    Attributes:
        unit: block, or layer for AdaRound's original layer-wise setting.
        iters: optimizer steps a unit; 0 leaves every quantizer where it starts.
        lr: learning rate of the quantizers that do not bring their own.
        batch_size: calibration samples a step, drawn without replacement within a step.
        schedule: constant, or down to 0 by a cosine or a line.
        inputs: quant feeds the student the quantized prefix's output, fp the full-precision one,
            mixed each element of the first with probability quant_prob and of the second otherwise.
        act_steps: when the step sizes of activations are learned: not at all (start), after all weights
            as in BRECQ, or together with each block's weights as in QDrop.
        act_lr: their learning rate, taken down to 0 by a cosine.
        act_iters: their iterations where they are learned after the weights.
        keep_best: end with the parameters of the mini-batch with the lowest error (SignRound).
        precision: of the iterations' matrix products: float32, tf32 or bfloat16. Weights, rounding
            and the loss stay float32, and so does everything outside of the iterations.
        compile: fuse the methods' passes by torch.compile, which needs a compiler.
        quant_prob: probability that an element stays quantized while learning, QDrop's 0.5; 1 is all.
    """

    unit: Literal["block", "layer"]
    iters: int
    lr: float
    batch_size: int
    schedule: Schedule
    inputs: Literal["quant", "fp", "mixed"]
    act_steps: Literal["start", "after", "together"]
    act_lr: float
    act_iters: int
    quant_prob: float
    keep_best: bool
    precision: Precision
    compile: bool

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("unit", self.unit, ("block", "layer")),
            ("schedule", self.schedule, ("constant", "cosine", "linear")),
            ("inputs", self.inputs, ("quant", "fp", "mixed")),
            ("act_steps", self.act_steps, ("start", "after", "together")),
        ):
            if value not in allowed:
                raise ValueError(f"recon.{name}={value}: give one of {', '.join(allowed)}")
        for name, count in (("iters", self.iters), ("act_iters", self.act_iters)):
            if count < 0:
                raise ValueError(f"recon.{name}={count}: give 0 or more")
        if self.batch_size < 1:
            raise ValueError(f"recon.batch_size={self.batch_size}: give at least 1")
        for name, rate in (("lr", self.lr), ("act_lr", self.act_lr)):
            if not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"recon.{name}={rate}: give a number above 0")
        if not 1 / RESOLUTION <= self.quant_prob <= 1:
            raise ValueError(
                f"recon.quant_prob={self.quant_prob}: give 1/{RESOLUTION} to 1, which is all"
            )
        if self.act_steps == "together" and self.unit == "layer":
            raise ValueError(
                "recon.unit=layer with recon.act_steps=together: step sizes are learned a block "
                "at a time; give recon.unit=block, or recon.act_steps=after"
            )

    def __call__(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        *,
        quantizer: QuantizerFactory,
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

        calibration holds batches as adapter.forward takes them; generator draws the mini-batches.
        With activation the model quantizes its activations from then on, too. Units that
        checkpoints has are taken from there, full-precision outputs that targets has likewise.
        streams says how the activations of the calibration set are held.

        Raises:
            ValueError: when the calibration set is smaller than a batch, a weight does not fit the
                grid, or a loss is not finite (names the block).
        """
        learns = self.check(adapter, calibration, grid, quantizer, activation)
        blocks = adapter.blocks()
        streams = streams or ActivationCache()
        fp = quant = adapter.record_calls(calibration, streams)
        units = [list(self._units(block)) for block in blocks]
        for callback in callbacks:
            callback.begin(
                [unit.name for group in units for unit in group], self.iters if learns else 0
            )
        mask = adapter.loss_mask(calibration)
        draws = torch.Generator(adapter.device).manual_seed(generator.initial_seed())
        activations = None
        if activation is not None:
            activations = Activations(blocks, activation, ranges, draws)
        job = UnitJob(
            self, adapter, quantizer, grid, ranges, generator, callbacks, mask,
            activations, draws, learns, checkpoints or NoCheckpoints(),
        )  # fmt: skip
        targets = targets or FullPrecisionOutputs()
        second_pass = activations is not None and not job.learns_activations
        teachers: list[Block] = []
        quantized: dict[str, QuantizedTensor] = {}
        for index, block in enumerate(blocks):
            with adapter.on_device(block):
                teacher = block
                if second_pass or self.unit == "layer":
                    teacher = replace(block, module=copy.deepcopy(block.module))
                fp_outputs = targets.get(index, partial(job.replay_all, block.module, fp))
                fp_outputs = fp_outputs.to(fp.inputs.device)
                ahead = None
                if index + 1 < len(blocks):
                    ahead = fp.with_inputs(adapter.advance(index, fp_outputs, streams))
                if self.inputs == "quant" and self.unit == "block":
                    fp = quant  # it has served, and need not be held while the block learns
                integers: dict[str, QuantizedTensor] = {}
                for unit in units[index]:
                    found = job.resume(unit)
                    if found is None:
                        found = job.reconstruct(
                            unit, *job.streams(block, unit, teacher.module, fp, quant, fp_outputs)
                        )
                    integers |= found
                quantized |= adapter.commit(block, integers)
                if ahead is not None:
                    fp = ahead
                    with job.quantized_activations():
                        outputs = job.replay_all(block.module, quant)
                        quant = quant.with_inputs(adapter.advance(index, outputs, streams))
                if second_pass:
                    adapter.release(teacher.module)
                    teachers.append(teacher)
        if second_pass:
            del fp, quant
            learn_step_sizes(job, blocks, teachers, calibration, targets, streams)
        if activations is not None:
            activations.leave_on()
            adapter.activations = activations
        return quantized

    def check(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        grid: Grid,
        quantizer: QuantizerFactory,
        activation: Activation | None = None,
    ) -> bool:
        """Check what can be checked before any work; return whether there is anything to learn.

        Raises:
            ValueError: when the calibration set is smaller than a batch, a weight does not fit the
                grid (names the layer), or there is nothing that steps says to learn.
        """
        if activation is not None:
            self._check_activation(activation, adapter)
        check_precision(self.precision, adapter.device)
        if self.compile:
            check_compiler(adapter.device)
        learns = False
        for block in adapter.blocks():
            with adapter.onloaded(block):
                learns |= check_weights(block.layers, grid, quantizer)
        samples = sum(adapter.num_samples(batch) for batch in calibration)
        if learns and self.iters and samples < self.batch_size:
            raise ValueError(
                f"num_samples={samples} is smaller than recon.batch_size={self.batch_size}; "
                "raise num_samples or lower recon.batch_size"
            )
        return learns

    def check_method(self, quantizer: QuantizerFactory, grid: Grid) -> None:
        """Check the method's options before any weight is loaded.

        Raises:
            ValueError: when one is out of range, or there are no iterations for what it learns.
        """
        # Without storage, and larger than any layer that a rank could be too large for.
        empty = torch.empty(8192, 8192, device="meta")
        made = quantizer(empty, grid=replace(grid, granularity=PerTensor()), ranges=MinMax())
        if not self.iters and made.param_groups(self.lr):
            raise ValueError(
                f"recon.iters=0 leaves {type(made).__name__} at round-to-nearest; give "
                "quant=rtn, or iterations"
            )

    def _check_activation(self, activation: Activation, adapter: ModelAdapter) -> None:
        if self.act_steps != "start" and not activation.learns:
            raise ValueError(
                f"recon.act_steps={self.act_steps} learns step sizes, and {type(activation).__name__} "
                "has none; give recon=block or recon=layer, or activation=static_per_tensor"
            )
        check_sites(activation, adapter)

    def _units(self, block: Block) -> Iterator[Unit]:
        if self.unit == "block":
            yield Unit(block.name, block.module, block.layers, block.activation)
            return
        for layer in block.layers:
            yield Unit(layer.name, layer.module, [layer], layer.activation)
