"""Walk over a model's blocks: each in turn on the device, with the activations that reach it.

Two streams of activations run through the calibration set. The plain one leaves activations as they
are, the quantized one is what the network at hand gives once its prefix is quantized. Learned
methods, solvers and the second pass over step sizes are loops over this walk (BRECQ, arXiv
2102.05426, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.calibration.calls import RecordedCalls
from flexround.calibration.finite import check_finite, first_not_finite
from flexround.models.base import ModelAdapter
from flexround.reconstruction.room import home_of
from flexround.structure import Block

NOT_FINITE = (
    "{name} makes values that are not finite of inputs that are, first of calibration sample "
    "{{sample}}"
)


@dataclass(frozen=True)
class Walk:
    """What is walked over, and how the two streams go on behind a block.

    Attributes:
        adapter: the model, whose blocks are visited in order.
        calibration: batches as adapter.forward takes them.
        cache: holds the streams.
        batch_size: calibration samples that pass a block at once.
        full_precision: gives the outputs of the full-precision blocks, which then are the plain
            stream. With None the plain stream follows the blocks as they are left, which is what
            solvers work on.
        teachers: the full-precision blocks where adapter's own hold quantized weights already.
        activations_on: returns the context in which the quantized stream passes a block, or None
            where no activation is quantized.
        needs_plain: whether a block's plain inputs are needed while it is worked on.
        held_out: the last calibration samples, on which no range is set.
    """

    adapter: ModelAdapter
    calibration: Sequence[Any]
    cache: ActivationCache
    batch_size: int
    full_precision: FullPrecisionOutputs | None = None
    teachers: Sequence[Block] | None = None
    activations_on: Callable[[], AbstractContextManager[None]] | None = None
    needs_plain: bool = True
    held_out: int = 0

    def replay_all(self, module: nn.Module, calls: RecordedCalls, name: str) -> Tensor:
        """Return the outputs over the calibration set, [samples, ...], of module called name.

        Raises:
            ValueError: when they are not finite.
        """
        parts = calls.replay_each(module, self.batch_size, self.adapter.device)
        finite = check_finite(parts, NOT_FINITE.format(name=name))
        return calls.cache.store(part.to(calls.inputs.device) for part in finite)

    def advance(self, index: int, calls: RecordedCalls, outputs: Tensor) -> RecordedCalls:
        """Return the calls of block index + 1 once block index has given outputs."""
        return calls.with_inputs(self.adapter.advance(index, outputs, calls.cache))


@dataclass
class BlockAtWork:
    """A block on the device, with what reaches it.

    Attributes:
        plain: its calls on the plain stream; on the quantized one where the walk says that the
            plain inputs are not needed.
        quantized: its calls on the quantized stream.
        outputs: the full-precision block's on the plain stream, [samples, ...]; None where the
            walk has no full precision.
        goes_on: whether the walk needs what the block as it is left gives on the quantized stream.
        passed: that, [samples, ...], where whoever works on the block has made it already.
    """

    block: Block
    teacher: Block
    plain: RecordedCalls
    quantized: RecordedCalls
    outputs: Tensor | None
    goes_on: bool = False
    passed: Tensor | None = None


@dataclass
class _Streams:
    plain: RecordedCalls
    quantized: RecordedCalls


def block_walk(walk: Walk) -> Iterator[AbstractContextManager[BlockAtWork]]:
    """Yield, for every block in order, the context in which it is at work.

    The block lies on the device in float32 inside of its context. At the end of the context both
    streams have passed the block as it was left, and it lies at home in its own type again.
    """
    first = walk.adapter.record_calls(walk.calibration, walk.cache)
    sample, block = first_not_finite(first.inputs), walk.adapter.blocks()[0]
    if sample is not None:
        raise ValueError(
            f"what the network gives its first block {block.name} is not finite, calibration "
            f"sample {sample} first: look at the weights before the block"
        )
    first = first.placed(home_of(walk.adapter, first))
    streams = _Streams(first, first)
    del first  # the streams let go of it
    for index, block in enumerate(walk.adapter.blocks()):
        yield _at_work(walk, streams, index, block)


@contextmanager
def _at_work(walk: Walk, streams: _Streams, index: int, block: Block) -> Iterator[BlockAtWork]:
    adapter, last = walk.adapter, index + 1 == len(walk.adapter.blocks())
    teacher = block if walk.teachers is None else walk.teachers[index]
    with ExitStack() as stack:
        stack.enter_context(adapter.on_device(block))
        if teacher is not block:
            stack.enter_context(adapter.on_device(teacher))
        outputs = ahead = None
        if walk.full_precision is not None:
            name = f"the full-precision network's block {block.name}"
            compute = partial(walk.replay_all, teacher.module, streams.plain, name)
            outputs = walk.full_precision.get(index, compute).to(streams.plain.inputs.device)
            ahead = None if last else walk.advance(index, streams.plain, outputs)
            del compute
        if not walk.needs_plain:
            streams.plain = streams.quantized  # not held while the block learns
        goes_on = not last and walk.full_precision is not None
        work = BlockAtWork(block, teacher, streams.plain, streams.quantized, outputs, goes_on)
        del outputs
        yield work
        work.outputs = None
        if not last:
            _advance(walk, streams, index, work, ahead)
        work.plain, work.quantized = streams.plain, streams.quantized  # those behind are let go


def _advance(
    walk: Walk, streams: _Streams, index: int, work: BlockAtWork, ahead: RecordedCalls | None
) -> None:
    """Have both streams pass the block; ahead is the plain one where it has passed already.

    One that nobody needs stays with the quantized one.
    """
    block, name = work.block, f"block {work.block.name}, as it is quantized so far,"
    if ahead is None and (walk.needs_plain or walk.activations_on is None):
        outputs = walk.replay_all(block.module, streams.plain, name)
        ahead = walk.advance(index, streams.plain, outputs)
        del outputs
        if walk.activations_on is None:  # the streams are one
            streams.plain = streams.quantized = ahead
            return
    with nullcontext() if walk.activations_on is None else walk.activations_on():
        if work.passed is None:
            passed = walk.replay_all(block.module, streams.quantized, name)
        else:
            (passed,) = check_finite([work.passed], NOT_FINITE.format(name=name))
            work.passed = None
        streams.quantized = walk.advance(index, streams.quantized, passed)
    streams.plain = streams.quantized if ahead is None else ahead
