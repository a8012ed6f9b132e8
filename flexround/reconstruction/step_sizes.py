"""Second pass over a model whose weights are done: the step sizes of its activations.

BRECQ (arXiv 2102.05426) learns them block by block after all weights, by the L_2.4 error against
the full-precision block on the full-precision stream. All ranges are set before any is learned, on
what the quantized network gives. The student sees the full-precision stream too: the released code
leaves asym at its default, False (main_imagenet.py, data_utils.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flexround.activations.quantizers import ActivationQuantizer
from flexround.calibration.calls import RecordedCalls
from flexround.reconstruction.activation_ranges import ranges_of_quantized_network
from flexround.reconstruction.block_walk import BlockAtWork, Walk, block_walk
from flexround.reconstruction.early_end import EarlyEnd
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.optimize import UnitOptimizer, step_size_optimizer
from flexround.reconstruction.report import Iterations, Stopwatch
from flexround.reconstruction.unit import Unit, units_of
from flexround.structure import Block
from flexround.utils.tensor_float32 import tensor_float32

POWER = 2.4


def learn_step_sizes(job: UnitJob, walk: Walk) -> None:
    """Set every block's activation ranges, and learn their step sizes where the settings say so.

    walk is over blocks whose weights are quantized, with the full-precision ones as teachers.
    """
    assert job.activations is not None, "there are activations to quantize"
    iters = step_size_iters(job)
    if iters:  # or else the walk meets every block with the ranges of those before it as they start
        ranges_of_quantized_network(job.activations, walk)
    blocks = job.adapter.blocks()
    for callback in job.callbacks:
        callback.begin([_name(block) for block in blocks if job.activations.of(block.name)], iters)
    for at_work in block_walk(walk):
        with at_work as work:
            activations = job.activations.of(work.block.name)
            if activations and job.restore(_name(work.block), (), activations) is None:
                _learn_block(job, work, iters)


def step_size_iters(job: UnitJob) -> int:
    """Return the iterations of the second pass, 0 where nothing is learned in it."""
    return job.settings.act_iters if job.settings.act_steps == "after" and job.learns else 0


def feeds_plain(job: UnitJob) -> bool:
    """Return whether the second pass feeds the full-precision stream."""
    return bool(step_size_iters(job)) and job.settings.act_inputs == "fp"


def _name(block: Block) -> str:
    return f"{block.name} activations"


def _learn_block(job: UnitJob, work: BlockAtWork, iters: int) -> None:
    """Set the ranges of a block's activations, learn their step sizes, and report."""
    assert job.activations is not None, "there are activations to quantize"
    assert work.outputs is not None, "the walk gives the full-precision outputs"
    watch, name = Stopwatch(job.adapter.device), _name(work.block)
    (unit,) = units_of(work.block, "block")
    targets = unit.all_outputs(work.outputs, work.quantized.cache, job.adapter.device)
    activations = job.init_activation_ranges(unit, work.quantized)
    inputs = work.plain if feeds_plain(job) else work.quantized
    with job.activations.on():
        before = job.error(unit, inputs, targets)
    iterations = Iterations()
    if iters:
        iterations = _learn(job, unit, activations, inputs, targets)
    with job.activations.on():
        after = job.error_in_the_end(unit, inputs, targets, work)
    bits = {activation.name: activation.bits for activation in activations}
    report = watch.report(name, bits, before, after, iterations)
    job.save(name, report, {}, activations)


def _learn(
    job: UnitJob,
    unit: Unit,
    activations: Sequence[ActivationQuantizer],
    inputs: RecordedCalls,
    targets: Tensor,
) -> Iterations:
    """Run the iterations of one block's step sizes; return what they were."""
    settings, sizes = job.settings, [s for a in activations for s in a.parameters_to_learn()]
    if not sizes:
        return Iterations()
    assert job.activations is not None, "there are activations to quantize"
    on, inputs = job.activations.on, inputs.arguments_on(job.adapter.device)

    def losses(batch: Tensor, _: float) -> tuple[Tensor, Tensor]:
        with on(), job.products():
            output = unit.output(inputs.replay(unit.module, batch, job.adapter.device))
        error = job.loss(unit, output.float(), targets, batch, POWER)
        return error, error

    def after_step() -> None:
        for activation in activations:
            activation.after_step()

    def held_out_error() -> float:
        with on(), tensor_float32(False):
            return job.held_out_error(unit, inputs, targets)

    best = None
    if settings.patience:
        best = EarlyEnd(settings.patience, settings.act_iters, held_out_error, sizes)
    iterations = UnitOptimizer(
        f"{unit.name} activations", "recon.act_lr", settings.act_iters, settings.batch_size,
        job.generator, job.callbacks,
    )  # fmt: skip
    optimizers = [step_size_optimizer(sizes, settings.act_lr, settings.act_iters)]
    with tensor_float32(job.precision == "tf32"):
        return iterations.run(job.learned_from(inputs), losses, optimizers, after_step, best)
