"""The second pass over a model whose weights are done: its activations' step sizes.

BRECQ (arXiv 2102.05426) learns them block by block after all weights, by the L_2.4 error against
the full-precision block on the full-precision stream. The student sees the quantized prefix as it
does at evaluation, weights and activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.calibration.calls import RecordedCalls
from flexround.cost import Cost
from flexround.reconstruction.optimize import UnitOptimizer, step_optimizer
from flexround.reconstruction.report import Curve, Stopwatch
from flexround.reconstruction.unit import Unit, UnitJob
from flexround.structure import Block

POWER = 2.4


def learn_step_sizes(
    job: UnitJob,
    blocks: Sequence[Block],
    teachers: Sequence[Block],
    calibration: Sequence[Any],
    targets: FullPrecisionOutputs,
    streams: ActivationCache,
) -> None:
    """Set every block's activation ranges, and learn them where the setting does.

    teachers are the full-precision blocks; blocks hold the quantized weights.
    """
    assert job.activations is not None, "there are activations to quantize"
    recon, adapter = job.recon, job.adapter
    iters = recon.act_iters if recon.act_steps == "after" and job.learns else 0
    for callback in job.callbacks:
        callback.begin([_name(block) for block in blocks if job.activations.of(block.name)], iters)
    fp = quant = adapter.record_calls(calibration, streams)
    for index, (block, teacher) in enumerate(zip(blocks, teachers, strict=True)):
        with adapter.on_device(block), adapter.on_device(teacher):
            fp_outputs = targets.get(index, partial(job.replay_all, teacher.module, fp))
            fp_outputs = fp_outputs.to(fp.inputs.device)
            sites = job.activations.of(block.name)
            if sites and job.restore(_name(block), (), sites) is None:
                _learn_block(job, block, quant, fp_outputs, iters)
            if index + 1 < len(blocks):
                fp = fp.with_inputs(adapter.advance(index, fp_outputs, streams))
                with job.activations.on():
                    outputs = job.replay_all(block.module, quant)
                    quant = quant.with_inputs(adapter.advance(index, outputs, streams))


def _name(block: Block) -> str:
    return f"{block.name} activations"


def _learn_block(
    job: UnitJob, block: Block, quant: RecordedCalls, outputs: Tensor, iters: int
) -> None:
    assert job.activations is not None, "there are activations to quantize"
    watch = Stopwatch(job.adapter.device)
    unit = Unit(block.name, block.module, block.layers, block.activation)
    targets = unit.all_outputs(outputs, quant.streams)
    quantizers = job.init_activation_ranges(unit, quant)
    on = job.activations.on
    with on():
        before = job.error(unit, quant, targets)
    sizes = [step for quantizer in quantizers for step in quantizer.parameters_to_learn()]
    cost, curve = Cost(), Curve()
    if iters and sizes:

        def losses(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
            with on(), job.products():
                output = unit.output(quant.replay(unit.module, batch, job.adapter.device))
            error = job.loss(output.float(), targets, batch, POWER)
            return error, error

        def after_step() -> None:
            for quantizer in quantizers:
                quantizer.after_step()

        optimizers = [step_optimizer(sizes, job.recon.act_lr, iters)]
        optimizer_loop = UnitOptimizer(
            _name(block), iters, job.recon.batch_size, job.generator, job.callbacks
        )
        cost, curve = optimizer_loop.run(len(targets), losses, optimizers, after_step)
    with on():
        after = job.error(unit, quant, targets)
    bits = {quantizer.name: quantizer.bits for quantizer in quantizers}
    report = watch.report(_name(block), bits, before, after, cost, curve=curve)
    job.save(_name(block), report, {}, quantizers)
