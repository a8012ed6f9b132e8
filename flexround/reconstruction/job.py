"""Fixed parts of a reconstruction while it walks one model, and the passes that it makes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from flexround.activations.hooks import Activations
from flexround.activations.quantizers import ActivationQuantizer
from flexround.calibration.activation_cache import rows
from flexround.calibration.calls import RecordedCalls
from flexround.grid import Grid, QuantizedTensor
from flexround.kernels.qdrop import mix
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import Ranges
from flexround.reconstruction.block_walk import BlockAtWork
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import Checkpoints
from flexround.reconstruction.logit_loss import LogitLoss
from flexround.reconstruction.precision import precision_on, products
from flexround.reconstruction.report import BlockReport, Errors
from flexround.reconstruction.settings import Settings
from flexround.reconstruction.snapshots import pack, unpack
from flexround.reconstruction.unit import Unit, reconstruction_loss
from flexround.structure import Layer


@dataclass
class _Mean:
    """Mean of losses that are themselves means over positions."""

    total: float = 0.0
    positions: int = 0

    def add(self, loss: float, positions: int) -> None:
        if positions:  # a mean over none is NaN
            self.total += loss * positions
            self.positions += positions

    @property
    def value(self) -> float:
        return self.total / self.positions


@dataclass
class _Means:
    """Means over the calibration samples, and over those held out of them."""

    calibration: _Mean = field(default_factory=_Mean)
    held_out: _Mean = field(default_factory=_Mean)

    @property
    def errors(self) -> Errors:
        held_out = self.held_out.value if self.held_out.positions else None
        return Errors(self.calibration.value, held_out)


@dataclass(frozen=True)
class UnitJob:
    """What is the same for all units of one model.

    Attributes:
        generator: draws the mini-batches.
        mask: which positions count in the loss, [samples, ...], or None where all do.
        activations: the quantizers of the activations, or None where they stay as they are.
        drop_generator: decides, on the device, which elements stay quantized.
        learns: whether the method learns anything; nor does a run of round-to-nearest learn step
            sizes.
        checkpoints: keeps the finished units.
        last: the loss of the last block, None where it is like the others'.
    """

    settings: Settings
    adapter: ModelAdapter
    quantizer: QuantizerFactory
    grid: Grid
    ranges: Ranges
    generator: torch.Generator
    callbacks: Sequence[Callback]
    mask: Tensor | None
    activations: Activations | None
    drop_generator: torch.Generator
    learns: bool
    checkpoints: Checkpoints
    last: LogitLoss | None = None

    def rates(self, quantizers: Sequence[WeightQuantizer]) -> str:
        """Return the options that say by what rates the parameters of quantizers are learned."""
        asked = math.inf  # whatever has this rate has recon.lr's
        shared = any(g["lr"] == asked for q in quantizers for g in q.param_groups(asked))
        own = {f"quant.{name}" for q in quantizers for name in vars(q) if name.startswith("lr_")}
        steps = ["recon.act_lr"] if self.learns_activations else []
        names = [*["recon.lr"] * shared, *sorted(own), *steps]
        return " and ".join(names) or "the method's rates of learning"

    @property
    def learns_activations(self) -> bool:
        """Whether the student's activations are quantized while its weights are learned."""
        return self.activations is not None and self.settings.act_steps == "together"

    def quantized_activations(self, quant_prob: float = 1.0) -> AbstractContextManager[None]:
        """Return the context in which the student runs while its weights are learned."""
        if not self.learns_activations:
            return nullcontext()
        assert self.activations is not None, "learns_activations says so"
        return self.activations.on(quant_prob)

    @property
    def precision(self) -> str:
        """Which precision an iteration's matrix products have on this device."""
        return precision_on(self.adapter.device, self.settings.precision)

    def products(self) -> AbstractContextManager[None]:
        """Return the context in which an iteration's matrix products run."""
        return products(self.precision, self.adapter.device)

    def student_inputs(
        self, batch: Tensor, plain: RecordedCalls, quantized: RecordedCalls
    ) -> Tensor:
        """Return what the student sees of the samples at batch [batch], on the device."""
        device, kind = self.adapter.device, self.settings.inputs
        if kind != "mixed":
            return rows((plain if kind == "fp" else quantized).inputs, batch, device)
        both = (rows(quantized.inputs, batch, device), rows(plain.inputs, batch, device))
        return mix(*both, self.settings.quant_prob, self.drop_generator)

    def loss(
        self, unit: Unit, output: Tensor, targets: Tensor, batch: Tensor, power: float = 2.0
    ) -> Tensor:
        """Return the reconstruction loss of unit's output on the samples at batch, [batch]."""
        wanted = rows(targets, batch, self.adapter.device)
        if self.last is not None and self.last.is_of(unit.module):
            return self.last(output, wanted, batch)
        mask = None if self.mask is None else self.mask[batch]
        kind = self.settings.loss
        return reconstruction_loss(output, wanted, unit.channel_dim, mask, power, kind)

    def _positions(self, unit: Unit, output: Tensor, batch: Tensor) -> int:
        """Return over how many positions the same is a mean."""
        if self.last is not None and self.last.is_of(unit.module):
            return int(self.last.counted(batch).sum())
        if self.mask is None:
            return output.numel() // output.shape[unit.channel_dim]
        return int(self.mask[batch].sum())

    def learned_from(self, calls: RecordedCalls) -> int:
        """Return how many of the samples of calls are learned from: those not held out, first."""
        return len(calls) - self.settings.held_out

    def error(self, unit: Unit, inputs: RecordedCalls, targets: Tensor) -> Errors:
        """Return the reconstruction loss over the whole calibration set, batch by batch."""
        means = _Means()
        for _ in self._pass(unit, inputs, targets, means):
            pass
        return means.errors

    def held_out_error(self, unit: Unit, inputs: RecordedCalls, targets: Tensor) -> float:
        """Return the reconstruction loss over the samples held out alone."""
        means, first = _Means(), self.learned_from(inputs)
        for _ in self._pass(unit, inputs, targets, means, first):
            pass
        return means.held_out.value

    def error_in_the_end(
        self, unit: Unit, inputs: RecordedCalls, targets: Tensor, work: BlockAtWork
    ) -> Errors:
        """Return the same of a unit as it is left; what it gives is the block's, where it is.

        The walk over the blocks then does not pass the calibration set once more.
        """
        passes = work.goes_on and unit.module is work.block.module and inputs is work.quantized
        # In other batches a value may have another last bit than in a run that goes on from here.
        whole = self.learned_from(inputs) % self.settings.batch_size == 0
        if not passes or (self.settings.held_out and not whole):
            return self.error(unit, inputs, targets)
        means, home = _Means(), inputs.inputs.device
        outputs = self._pass(unit, inputs, targets, means)
        work.passed = inputs.cache.store(output.to(home) for output in outputs)
        return means.errors

    @torch.no_grad()
    def _pass(
        self, unit: Unit, inputs: RecordedCalls, targets: Tensor, means: _Means, first: int = 0
    ) -> Iterator[Tensor]:
        """Yield the outputs of unit's module batch by batch, and add their losses to means.

        first is the sample to begin with. No batch holds samples of both kinds.
        """
        seen, size = self.learned_from(inputs), self.settings.batch_size
        kinds = [range(first, seen), range(max(first, seen), len(inputs))]
        batches = [part for kind in kinds if kind for part in torch.tensor(kind).split(size)]
        # A quantizer makes the same weight for every batch.
        with parametrize.cached():
            for batch in batches:
                raw = inputs.replay(unit.module, batch, self.adapter.device)
                output = unit.output(raw)
                count = self._positions(unit, output, batch)
                mean = means.calibration if batch[0] < seen else means.held_out
                mean.add(self.loss(unit, output, targets, batch).item(), count)
                yield raw

    def init_activation_ranges(
        self, unit: Unit, inputs: RecordedCalls
    ) -> list[ActivationQuantizer]:
        """Set the ranges of a block's activations on calibration samples; return its quantizers."""
        assert self.activations is not None, "there are activations to quantize"

        def run(indices: Tensor) -> None:
            unit.output(inputs.replay(unit.module, indices, self.adapter.device))

        return self.activations.start(unit.name, run, self.learned_from(inputs))

    def save(
        self,
        name: str,
        report: BlockReport,
        integers: dict[str, QuantizedTensor],
        activations: Sequence[ActivationQuantizer],
    ) -> None:
        """Keep the finished unit called name and tell the callbacks."""
        generators = [self.generator, self.drop_generator]
        self.checkpoints.save(name, pack(report, integers, activations, generators))
        self.notify(report)

    def restore(
        self, name: str, layers: Sequence[Layer], activations: Sequence[ActivationQuantizer]
    ) -> dict[str, QuantizedTensor] | None:
        """Put back what `save` kept of the unit called name; None where it kept nothing."""
        saved = self.checkpoints.find(name)
        if saved is None:
            return None
        self.notify(saved.report)
        generators = [self.generator, self.drop_generator]
        return unpack(saved, layers, self.grid, activations, generators, self.adapter.device)

    def notify(self, report: BlockReport) -> None:
        """Tell the callbacks of a finished unit."""
        for callback in self.callbacks:
            callback.end_block(report)
