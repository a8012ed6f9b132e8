"""Reconstruction of a model, one block at a time against its full-precision output.

The loop is BRECQ's (arXiv 2102.05426). The target is the full-precision block on the full-precision
stream; the student sees the output of the prefix that is already quantized (FlexRound, arXiv
2306.00317, sec. 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flexround.activations.hooks import Activations
from flexround.activations.schemes import Activation
from flexround.attach import made_for
from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.grid import Grid, PerTensor, QuantizedTensor
from flexround.importance import ImportanceSearch
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import Ranges
from flexround.reconstruction.activation_ranges import ranges_of_full_precision
from flexround.reconstruction.block_walk import Walk, block_walk
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import Checkpoints, NoCheckpoints
from flexround.reconstruction.checks import (
    Checked,
    check_annealed,
    check_finite_samples,
    check_loss,
    check_machine,
    check_model,
    check_samples,
    check_sites,
    check_start,
    check_step_sizes,
)
from flexround.reconstruction.end_to_end import check_end_to_end, learn_end_to_end
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.learning import quantize_unit
from flexround.reconstruction.logit_loss import LogitLoss, check_last_loss
from flexround.reconstruction.precision import precision_on
from flexround.reconstruction.room import LEARNED, SOLVED, check_room
from flexround.reconstruction.settings import Settings
from flexround.reconstruction.step_sizes import feeds_plain, learn_step_sizes
from flexround.reconstruction.unit import units_of
from flexround.structure import Block
from flexround.utils.memory import explained
from flexround.utils.tensor_float32 import tensor_float32


class Reconstruction(Settings):
    """Minimise |block(W, X) - block(W_hat, X_hat)|^2 over each unit's quantizers, in order."""

    @tensor_float32(False)
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
        full_precision: FullPrecisionOutputs | None = None,
        cache: ActivationCache | None = None,
        checked: Checked | None = None,
    ) -> dict[str, QuantizedTensor]:
        """Quantize adapter's model in place and return each layer's integers by name.

        calibration holds batches as adapter.forward takes them; generator draws the mini-batches.
        With activation the model quantizes its activations from then on, too. Units that
        checkpoints has are taken from there, full-precision outputs that full_precision has
        likewise. cache says how the activations of the calibration set are held, checked what
        `check` has found where it was called before.

        Raises:
            ValueError: when the calibration set is smaller than a batch, a weight does not fit the
                grid, or a loss is not finite (names the block).
        """
        if checked is None:
            checked = self.check(adapter, calibration, grid, quantizer, activation)
        drop_generator = torch.Generator(adapter.device).manual_seed(generator.initial_seed())
        mask, activations, last = adapter.loss_mask(calibration), None, None
        tokens: dict[str, Tensor] = {}
        if self.last_loss != "block" or self.e2e_iters:
            tokens = {key: torch.cat([b[key] for b in calibration]) for key in calibration[0]}
        if activation is not None:
            activations = Activations(adapter.blocks(), activation, ranges, drop_generator, mask)
        if self.last_loss != "block":
            last = LogitLoss(self.last_loss, adapter, tokens, mask)
        job = UnitJob(
            self, adapter, quantizer, grid, ranges, generator, callbacks, mask, activations,
            drop_generator, checked.learns, checkpoints or NoCheckpoints(), last,
        )  # fmt: skip
        sees_plain = self.inputs != "quant" or self.unit == "layer"
        walk = Walk(
            adapter, calibration, cache or ActivationCache(), self.batch_size,
            full_precision or FullPrecisionOutputs(), activations_on=job.quantized_activations,
            needs_plain=sees_plain or isinstance(ranges, ImportanceSearch), held_out=self.held_out,
        )  # fmt: skip
        if activations is not None and activations.ranges_from == "fp":
            ranges_of_full_precision(activations, walk)
        integers, teachers, outputs = _learn_weights(job, walk)
        if outputs is not None:
            less = "lower recon.e2e_batch_size, or give recon.e2e_iters=0"
            with explained("scales end to end", adapter.device, less):
                integers = learn_end_to_end(job, tokens, integers, outputs)
        if activations is not None:
            if not job.learns_activations:
                walk = replace(
                    walk, teachers=teachers, activations_on=activations.on,
                    needs_plain=feeds_plain(job),
                )  # fmt: skip
                learn_step_sizes(job, walk)
            activations.leave_on()
            adapter.activations = activations
        return integers

    def precision_on(self, device: torch.device) -> str:
        """Return which precision the iterations' matrix products have on device."""
        return precision_on(device, self.precision)

    def check(
        self,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        grid: Grid,
        quantizer: QuantizerFactory,
        activation: Activation | None = None,
    ) -> Checked:
        """Check what can be checked before any work; return what was found.

        Raises:
            ValueError: when the calibration set is smaller than a batch, a weight does not fit the
                grid (names the layer), or there is nothing that act_steps says to learn.
        """
        if activation is not None:
            check_step_sizes(self, activation)
            check_sites(activation, adapter)
        check_machine(self, adapter)
        check_last_loss(self.last_loss, adapter)
        check_end_to_end(self, adapter, grid, activation)
        check_loss(self.loss, adapter)
        if self.unit == "layer" and any(layer.expert for layer in adapter.layers().values()):
            raise ValueError(
                "recon.unit=layer: an expert sees tokens of all samples together; give "
                "recon.unit=block"
            )
        check_finite_samples(adapter, calibration)
        checked = check_model(adapter, grid, quantizer)
        learns = checked.learns and self.iters > 0
        at_work = LEARNED if learns and self.unit == "block" else SOLVED
        check_room(adapter, at_work, hessians=learns and self.start == "gptq")
        if self.held_out or learns:
            check_samples(adapter, calibration, self.batch_size, self.held_out)
        return checked

    def check_method(self, quantizer: QuantizerFactory, grid: Grid) -> None:
        """Check the method's options before any weight is loaded.

        Raises:
            ValueError: when one is out of range, there are no iterations for what it learns, or the
                grid is none that learning can start on as the settings say.
        """
        # Larger than any layer that a rank could be too large for.
        plain = replace(grid, granularity=PerTensor(), levels=None)
        made = made_for((8192, 8192), plain, quantizer)
        if not self.iters and made.param_groups(self.lr):
            raise ValueError(
                f"recon.iters=0 leaves {type(made).__name__} at round-to-nearest; give "
                "quant=rtn, or iterations"
            )
        check_start(self.start, grid)
        if type(made).regularizer is not WeightQuantizer.regularizer:
            check_annealed(self, type(made).__name__)


def _learn_weights(
    job: UnitJob, walk: Walk
) -> tuple[dict[str, QuantizedTensor], list[Block], Tensor | None]:
    """Quantize every block's weights; return the integers, the blocks of before, and what the last.

    The blocks are there where a second pass, over step sizes, needs them, and what the last one
    gives, [samples, tokens, hidden], where scales are learned end to end.
    """
    settings, adapter = job.settings, job.adapter
    second_pass = job.activations is not None and not job.learns_activations
    units = [units_of(block, settings.unit) for block in adapter.blocks()]
    for callback in job.callbacks:
        names = [unit.name for group in units for unit in group]
        callback.begin(names, settings.iters if job.learns else 0)
    integers: dict[str, QuantizedTensor] = {}
    teachers: list[Block] = []
    outputs: Tensor | None = None
    for group, at_work in zip(units, block_walk(walk), strict=True):
        with at_work as work:
            if second_pass or settings.unit == "layer":
                work.teacher = replace(work.block, module=copy.deepcopy(work.block.module))
            if settings.e2e_iters and group is units[-1]:
                outputs = work.outputs
            found: dict[str, QuantizedTensor] = {}
            for unit in group:
                found |= quantize_unit(job, unit, work)
            integers |= adapter.commit(work.block, found)
            if second_pass:
                adapter.release(work.teacher.module)
                teachers.append(work.teacher)
    return integers, teachers, outputs
