"""Learning of one unit: its quantizers attached, optimised against full precision, and baked in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from flexround.activations.quantizers import ActivationQuantizer
from flexround.attach import attach, freeze
from flexround.calibration.calls import RecordedCalls, record_calls
from flexround.cost import Cost
from flexround.grid import QuantizedTensor
from flexround.kernels.chunking import compiling
from flexround.models.experts import reached
from flexround.quantizers.base import WeightQuantizer
from flexround.reconstruction.block_walk import BlockAtWork
from flexround.reconstruction.checks import check_reached
from flexround.reconstruction.early_end import EarlyEnd
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.layer_ranges import ranges_of_layers
from flexround.reconstruction.optimize import (
    BestParameters,
    Scheduled,
    UnitOptimizer,
    scheduled,
    step_size_optimizer,
)
from flexround.reconstruction.report import Iterations, Stopwatch
from flexround.reconstruction.starting import start_from_gptq
from flexround.reconstruction.unit import Unit
from flexround.utils.tensor_float32 import tensor_float32


def quantize_unit(job: UnitJob, unit: Unit, work: BlockAtWork) -> dict[str, QuantizedTensor]:
    """Return the integers of a unit of the block at work, its weights baked in.

    Those of a unit that an earlier attempt has finished are put back instead.
    """
    activations: list[ActivationQuantizer] = []
    if job.learns_activations:
        assert job.activations is not None, "learns_activations says so"
        activations = job.activations.of(unit.name)
    found = job.restore(unit.name, unit.layers, activations)
    return found if found is not None else _reconstruct(job, unit, work)


def _inside(
    job: UnitJob, unit: Unit, work: BlockAtWork
) -> tuple[RecordedCalls, RecordedCalls, Tensor]:
    """Return unit's calls on both streams, and its full-precision targets [samples, ...]."""
    plain, quantized, outputs = work.plain, work.quantized, work.outputs
    assert outputs is not None, "the walk gives the full-precision outputs"
    block = work.block.module
    if unit.module is not block:
        path = next(name for name, module in block.named_modules() if module is unit.module)
        source = work.teacher.module.get_submodule(path)
        _check_called_once(job, work.teacher.module, source, plain)
        quantized = _calls_inside(job, block, unit.module, quantized)
        plain = _calls_inside(job, work.teacher.module, source, plain)
        outputs = plain.replay_all(source, job.settings.batch_size, job.adapter.device)
    return plain, quantized, unit.all_outputs(outputs, quantized.cache, job.adapter.device)


def _calls_inside(
    job: UnitJob, block: nn.Module, layer: nn.Module, calls: RecordedCalls
) -> RecordedCalls:
    """Return the calls that layer receives while block is replayed on calls."""
    indices = torch.arange(len(calls)).split(job.settings.batch_size)
    device, home = job.adapter.device, calls.inputs.device
    inside = record_calls(
        layer, lambda p: calls.replay(block, p, device), indices, calls.cache, home
    )
    if len(inside) != len(calls):
        raise ValueError(
            "recon.unit=layer: this model folds samples together inside of a layer "
            f"({len(calls)} samples are {len(inside)} there); give recon.unit=block"
        )
    return inside


@torch.no_grad()
def _check_called_once(
    job: UnitJob, block: nn.Module, layer: nn.Module, calls: RecordedCalls
) -> None:
    """Check that one pass of block calls layer once at most, with all that it is for.

    Raises:
        ValueError: when it calls it more often.
    """
    called = 0

    def count(*_: object) -> None:
        nonlocal called
        called += 1

    handle = layer.register_forward_hook(count)
    try:
        first = torch.arange(min(len(calls), job.settings.batch_size))
        calls.replay(block, first, job.adapter.device)
    finally:
        handle.remove()
    if called > 1:
        raise ValueError(
            f"recon.unit=layer: a {type(layer).__name__} of this model is called {called} times in "
            "one pass of its block, and would be learned for the first alone; give recon.unit=block"
        )


def _reconstruct(job: UnitJob, unit: Unit, work: BlockAtWork) -> dict[str, QuantizedTensor]:
    """Optimise the unit's quantizers, bake the weights in, and report."""
    plain, quantized, targets = _inside(job, unit, work)
    watch = Stopwatch(job.adapter.device)
    inputs = plain if job.settings.inputs == "fp" else quantized
    learns = job.settings.iters and job.learns
    ranges, start_cost = ranges_of_layers(job, unit, plain), Cost()
    if learns and job.settings.start == "gptq":
        ranges, start_cost = start_from_gptq(job, unit, inputs, ranges)
    quantizers = attach(unit.layers, job.quantizer, job.grid, job.ranges, ranges)
    for quantizer in quantizers:
        quantizer.hard = True
    activations = job.init_activation_ranges(unit, quantized) if job.learns_activations else []
    before, iterations = None, Iterations()
    if learns:
        with job.quantized_activations():
            before = job.error(unit, inputs, targets)
        for quantizer in quantizers:
            quantizer.hard = False
        iterations = learn(job, unit, quantizers, activations, (plain, quantized), targets)
        iterations = replace(iterations, cost=start_cost.then(iterations.cost))
    integers = freeze(unit.layers)
    with job.quantized_activations():
        after = job.error_in_the_end(unit, inputs, targets, work)
    if before is None:  # the hard quantizers are what freeze has baked in
        before = after
    if not math.isfinite(after.calibration):
        raise ValueError(f"block {unit.name}: its error is {after.calibration} once quantized")
    bits = {layer.name: layer.grid(job.grid).bits for layer in unit.layers}
    bits |= {activation.name: activation.bits for activation in activations}
    report = watch.report(
        unit.name, bits, before, after, iterations, unreached=_unreached(job, unit, inputs),
    )  # fmt: skip
    job.save(unit.name, report, integers, activations)
    return integers


@torch.no_grad()
def _unreached(job: UnitJob, unit: Unit, inputs: RecordedCalls) -> list[str]:
    """Return the layers of experts that no calibration token is sent to."""
    experts = [layer for layer in unit.layers if layer.expert is not None]
    hit: set[str] = set()
    samples = torch.arange(job.learned_from(inputs))
    for batch in samples.split(job.settings.batch_size) if experts else ():
        with reached(experts, None if job.mask is None else job.mask[batch]) as names:
            inputs.replay(unit.module, batch, job.adapter.device)
        hit |= names
    return [layer.name for layer in experts if layer.name not in hit]


def learn(
    job: UnitJob,
    unit: Unit,
    quantizers: Sequence[WeightQuantizer],
    activations: Sequence[ActivationQuantizer],
    streams: tuple[RecordedCalls, RecordedCalls],
    targets: Tensor,
) -> Iterations:
    """Run the iterations of one unit's weights, with its step sizes where they go together.

    streams are (plain, quantized). Return what the iterations were.

    Raises:
        ValueError: when the loss is not finite; names the unit.
    """
    settings, (plain, quantized) = job.settings, streams
    quantized = quantized.arguments_on(job.adapter.device)
    optimizers, learned = _optimizers(job, quantizers, activations)
    if not optimizers:
        return Iterations()

    def losses(batch: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        inputs = job.student_inputs(batch, plain, quantized)
        with job.quantized_activations(settings.quant_prob), job.products():
            raw = quantized.replay(unit.module, batch, job.adapter.device, inputs)
            output = unit.output(raw)
        error = job.loss(unit, output.float(), targets, batch)
        loss = error
        for quantizer in quantizers:
            loss = loss + quantizer.regularizer(progress)
        return error, loss

    def after_step() -> None:
        for quantizer in quantizers:
            quantizer.after_step()
        for activation in activations:
            activation.after_step()

    inputs = plain if settings.inputs == "fp" else quantized
    best: BestParameters | EarlyEnd | None = None
    if settings.patience:

        def held_out_error() -> float:
            with _hard(quantizers), job.quantized_activations(), tensor_float32(False):
                return job.held_out_error(unit, inputs, targets)

        best = EarlyEnd(settings.patience, settings.iters, held_out_error, learned)
    elif settings.keep_best:
        best = BestParameters(learned)
    check = partial(check_reached, unit.layers, quantizers, learned)
    steps = UnitOptimizer(
        unit.name, job.rates(quantizers), settings.iters, settings.batch_size, job.generator,
        job.callbacks,
    )  # fmt: skip
    with compiling(settings.compile), tensor_float32(job.precision == "tf32"):
        return steps.run(job.learned_from(inputs), losses, optimizers, after_step, best, check)


@contextmanager
def _hard(quantizers: Sequence[WeightQuantizer]) -> Iterator[None]:
    """Round as in the end while in the context."""
    for quantizer in quantizers:
        quantizer.hard = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.hard = False


def _optimizers(
    job: UnitJob,
    quantizers: Sequence[WeightQuantizer],
    activations: Sequence[ActivationQuantizer],
) -> tuple[list[Scheduled], list[nn.Parameter]]:
    """Return the optimizers of weights and step sizes with their schedules, and all parameters."""
    settings = job.settings
    groups = [group for q in quantizers for group in q.param_groups(settings.lr)]
    step_sizes = [size for a in activations for size in a.parameters_to_learn()]
    optimizers = []
    if groups:
        own = quantizers[0].optimizer(groups)
        optimizers.append(scheduled(own, settings.schedule, settings.iters))
    if step_sizes:
        optimizers.append(step_size_optimizer(step_sizes, settings.act_lr, settings.iters))
    return optimizers, [p for group in groups for p in group["params"]] + step_sizes
