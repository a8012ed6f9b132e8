"""One unit of the reconstruction loop: its loss, its two streams, its optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flexround.activations.hooks import Activations
from flexround.activations.quantizers import ActivationQuantizer
from flexround.attach import attach, freeze
from flexround.calibration.activation_cache import ActivationCache, rows
from flexround.calibration.calls import RecordedCalls, record_calls
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.kernels.chunking import compiling
from flexround.kernels.qdrop import mix
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import Ranges
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import Checkpoints, pack, unpack
from flexround.reconstruction.optimize import (
    BestParameters,
    UnitOptimizer,
    scheduled,
    step_optimizer,
)
from flexround.reconstruction.precision import products
from flexround.reconstruction.report import BlockReport, Curve, Stopwatch
from flexround.structure import Block, Layer

if TYPE_CHECKING:
    from flexround.reconstruction.reconstruction import Reconstruction


def reconstruction_loss(
    output: Tensor,
    target: Tensor,
    channel_dim: int,
    mask: Tensor | None = None,
    power: float = 2.0,
) -> Tensor:
    """Return |error|^power summed over channels, averaged over everything else.

    mask has the shape that is left without the channels and tells which positions count, none of
    the padding. AdaRound's lambda = 0.01 is tied to this reduction and the power 2.
    """
    error = output - target
    error = (error.square() if power == 2 else error.abs().pow(power)).sum(dim=channel_dim)
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

    def all_outputs(self, raw: Tensor, streams: ActivationCache) -> Tensor:
        """Return the same for all samples of raw [samples, ...], held by streams."""
        if self.activation is None:
            return raw
        return streams.store(self.output(part) for part in raw.split(64))


@dataclass(frozen=True)
class UnitJob:
    """The loop's fixed parts while it walks one model.

    Attributes:
        activations: the quantizers of the activations, or None where they stay as they are.
        draws: decides, on the device, which elements stay quantized.
        learns: whether the method learns anything; nor does a run of round-to-nearest learn steps.
        checkpoints: keeps the finished units.
    """

    recon: Reconstruction
    adapter: ModelAdapter
    quantizer: QuantizerFactory
    grid: Grid
    ranges: Ranges
    generator: torch.Generator
    callbacks: Sequence[Callback]
    mask: Tensor | None
    activations: Activations | None
    draws: torch.Generator
    learns: bool
    checkpoints: Checkpoints

    @property
    def learns_activations(self) -> bool:
        """Whether the student's activations are quantized while its weights are learned."""
        return self.activations is not None and self.recon.act_steps == "together"

    def quantized_activations(self, keep: float = 1.0) -> AbstractContextManager[None]:
        """Return the context in which the student runs in this pass."""
        if not self.learns_activations:
            return nullcontext()
        assert self.activations is not None, "together says so"
        return self.activations.on(keep)

    def products(self) -> AbstractContextManager[None]:
        """Return the context in which an iteration's forward pass runs."""
        return products(self.recon.precision, self.adapter.device)

    def replay_all(self, module: nn.Module, calls: RecordedCalls) -> Tensor:
        """Return module's outputs over the whole calibration set, [samples, ...]."""
        return calls.replay_all(module, self.recon.batch_size, self.adapter.device)

    def streams(
        self,
        block: Block,
        unit: Unit,
        teacher: nn.Module,
        fp: RecordedCalls,
        quant: RecordedCalls,
        fp_outputs: Tensor,
    ) -> tuple[RecordedCalls, RecordedCalls, Tensor]:
        """Return unit's calls on both streams and its full-precision targets [samples, ...]."""
        if unit.module is not block.module:
            path = next(n for n, m in block.module.named_modules() if m is unit.module)
            source = teacher.get_submodule(path)
            quant = self._inside(block.module, unit.module, quant)
            fp = self._inside(teacher, source, fp)
            fp_outputs = self.replay_all(source, fp)
        return fp, quant, unit.all_outputs(fp_outputs, quant.streams)

    def _inside(self, block: nn.Module, layer: nn.Module, calls: RecordedCalls) -> RecordedCalls:
        indices = torch.arange(len(calls)).split(self.recon.batch_size)
        device = self.adapter.device
        inside = record_calls(
            layer, lambda p: calls.replay(block, p, device), indices, calls.streams
        )
        if len(inside) != len(calls):
            raise ValueError(
                "recon.unit=layer: this model folds samples together inside of a layer "
                f"({len(calls)} samples are {len(inside)} there); give recon.unit=block"
            )
        return inside

    def reconstruct(
        self, unit: Unit, fp: RecordedCalls, quant: RecordedCalls, targets: Tensor
    ) -> dict[str, QuantizedTensor]:
        """Optimise the unit's quantizers, bake the weights in and report."""
        watch = Stopwatch(self.adapter.device)
        quantizers = attach(unit.layers, self.quantizer, self.grid, self.ranges)
        for quantizer in quantizers:
            quantizer.hard = True
        steps = self.init_activation_ranges(unit, quant) if self.learns_activations else []
        inputs = fp if self.recon.inputs == "fp" else quant
        with self.quantized_activations():
            error_before = self.error(unit, inputs, targets)
        for quantizer in quantizers:
            quantizer.hard = False
        cost, curve = Cost(), Curve()
        if self.recon.iters and self.learns:
            cost, curve = self.optimise(unit, quantizers, steps, fp, quant, targets)
        quantized = freeze(unit.layers)
        with self.quantized_activations():
            error_after = self.error(unit, inputs, targets)
        if not math.isfinite(error_after):
            raise ValueError(f"block {unit.name}: its error is {error_after} once quantized")
        bits = {layer.name: layer.grid(self.grid).bits for layer in unit.layers}
        bits |= {step.name: step.bits for step in steps}
        report = watch.report(unit.name, bits, error_before, error_after, cost, curve=curve)
        self.save(unit.name, report, quantized, steps)
        return quantized

    def resume(self, unit: Unit) -> dict[str, QuantizedTensor] | None:
        """Return the integers of a unit that an earlier attempt has finished, put back in place."""
        steps = []
        if self.learns_activations:
            assert self.activations is not None, "together says so"
            steps = self.activations.of(unit.name)
        return self.restore(unit.name, unit.layers, steps)

    def save(
        self,
        name: str,
        report: BlockReport,
        integers: dict[str, QuantizedTensor],
        steps: Sequence[ActivationQuantizer],
    ) -> None:
        """Keep a finished unit and tell the callbacks."""
        generators = [self.generator, self.draws]
        self.checkpoints.save(name, pack(report, integers, steps, generators))
        self.notify(report)

    def restore(
        self, name: str, layers: Sequence[Layer], steps: Sequence[ActivationQuantizer]
    ) -> dict[str, QuantizedTensor] | None:
        """Put back what close kept of the unit called name; None where it kept nothing."""
        saved = self.checkpoints.find(name)
        if saved is None:
            return None
        self.notify(saved.report)
        return unpack(saved, layers, self.grid, steps, [self.generator, self.draws])

    def init_activation_ranges(
        self, unit: Unit, inputs: RecordedCalls
    ) -> list[ActivationQuantizer]:
        """Set the ranges of a block's activations on calibration samples; return its quantizers."""
        assert self.activations is not None, "there are activations to quantize"

        def run(indices: Tensor) -> None:
            unit.output(inputs.replay(unit.module, indices, self.adapter.device))

        return self.activations.start(unit.name, run, len(inputs))

    def optimise(
        self,
        unit: Unit,
        quantizers: Sequence[WeightQuantizer],
        steps: Sequence[ActivationQuantizer],
        fp: RecordedCalls,
        quant: RecordedCalls,
        targets: Tensor,
    ) -> tuple[Cost, Curve]:
        """Run the iterations of one unit's weights, with its step sizes where they go together.

        Return what they cost and the curve of the loss.

        Raises:
            ValueError: when the loss is not finite; names the unit.
        """
        recon = self.recon
        groups = [group for q in quantizers for group in q.param_groups(recon.lr)]
        optimizers = []
        if groups:
            optimizer = quantizers[0].optimizer(groups)
            optimizers.append(scheduled(optimizer, recon.schedule, recon.iters))
        sizes = [step for q in steps for step in q.parameters_to_learn()]
        if sizes:
            optimizers.append(step_optimizer(sizes, recon.act_lr, recon.iters))
        if not optimizers:
            return Cost(), Curve()
        learned = [p for group in groups for p in group["params"]] + sizes
        best = BestParameters(learned) if recon.keep_best else None

        def losses(batch: Tensor, progress: float) -> tuple[Tensor, Tensor]:
            inputs = self.inputs(batch, fp, quant)
            with self.quantized_activations(recon.quant_prob), self.products():
                output = unit.output(quant.replay(unit.module, batch, self.adapter.device, inputs))
            error = self.loss(output.float(), targets, batch)
            loss = error
            for quantizer in quantizers:
                loss = loss + quantizer.regularizer(progress)
            return error, loss

        def after_step() -> None:
            for quantizer in quantizers:
                quantizer.after_step()
            for step in steps:
                step.after_step()

        optimizer_loop = UnitOptimizer(
            unit.name, recon.iters, recon.batch_size, self.generator, self.callbacks
        )
        with compiling(recon.compile):
            return optimizer_loop.run(len(targets), losses, optimizers, after_step, best)

    def inputs(self, batch: Tensor, fp: RecordedCalls, quant: RecordedCalls) -> Tensor:
        """Return what the student sees of the samples at batch, on the device."""
        device, kind = self.adapter.device, self.recon.inputs
        if kind != "mixed":
            return rows((fp if kind == "fp" else quant).inputs, batch, device)
        streams = (rows(quant.inputs, batch, device), rows(fp.inputs, batch, device))
        return mix(*streams, self.recon.quant_prob, self.draws)

    def loss(self, output: Tensor, targets: Tensor, batch: Tensor, power: float = 2.0) -> Tensor:
        """Return the reconstruction loss of the samples at batch."""
        device, dim = self.adapter.device, self.adapter.channel_dim
        mask = None if self.mask is None else self.mask[batch].to(device)
        return reconstruction_loss(output, rows(targets, batch, device), dim, mask, power)

    def notify(self, report: BlockReport) -> None:
        """Tell the callbacks of a finished unit."""
        for callback in self.callbacks:
            callback.end_block(report)

    @torch.no_grad()
    def error(self, unit: Unit, inputs: RecordedCalls, targets: Tensor) -> float:
        """Return the reconstruction loss over the whole calibration set, batch by batch."""
        total, positions = 0.0, 0
        for batch in torch.arange(len(inputs)).split(self.recon.batch_size):
            output = unit.output(inputs.replay(unit.module, batch, self.adapter.device))
            if self.mask is None:
                count = output.numel() // output.shape[self.adapter.channel_dim]
            else:
                count = int(self.mask[batch].sum())
            total += self.loss(output, targets, batch).item() * count
            positions += count
        return total / positions
