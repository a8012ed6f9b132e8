"""First ranges of all activations, set in a pass of their own over the first calibration samples.

QDrop (arXiv 2203.05740, main_imagenet.py of the released code) sets them before anything else, on
the full-precision network's activations; BRECQ (arXiv 2102.05426, its main_imagenet.py) once all
weights are quantized, each on what the quantizers before it leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from flexround.activations.hooks import Activations
from flexround.reconstruction.block_walk import BlockAtWork, Walk, block_walk
from flexround.reconstruction.samples import first_samples
from flexround.reconstruction.unit import units_of


def ranges_of_full_precision(activations: Activations, walk: Walk) -> None:
    """Set the ranges on activations that nothing quantizes; walk's blocks must be as they came."""
    batch_size = walk.batch_size
    for at_work in block_walk(_first(activations, replace(walk, activations_on=None))):
        with at_work as work:
            run, samples = _run(work, walk), len(work.quantized)
            activations.start_unquantized(work.block.name, run, samples, batch_size)


def ranges_of_quantized_network(activations: Activations, walk: Walk) -> None:
    """Set the ranges that are not set yet on what walk's blocks and the quantizers before give."""
    for at_work in block_walk(_first(activations, replace(walk, activations_on=activations.on))):
        with at_work as work:
            activations.start(work.block.name, _run(work, walk), len(work.quantized))


def _run(work: BlockAtWork, walk: Walk) -> Callable[[Tensor], Tensor]:
    """Return what passes samples of given indices through the block at work."""
    (unit,), calls, device = units_of(work.block, "block"), work.quantized, walk.adapter.device
    return lambda indices: unit.output(calls.replay(unit.module, indices, device))


def _first(activations: Activations, walk: Walk) -> Walk:
    """Return walk over the samples that set ranges, without the streams of a learning one."""
    there = sum(map(walk.adapter.num_samples, walk.calibration)) - walk.held_out
    samples = first_samples(walk.adapter, walk.calibration, min(activations.init_samples, there))
    return replace(walk, calibration=samples, full_precision=None, teachers=None, needs_plain=False)
