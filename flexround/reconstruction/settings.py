"""Settings of a reconstruction: what the YAML files of conf/recon choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from flexround.kernels.qdrop import RESOLUTION
from flexround.reconstruction.early_end import check_patience
from flexround.reconstruction.logit_loss import LastLoss
from flexround.reconstruction.optimize import Schedule
from flexround.reconstruction.precision import Precision
from flexround.reconstruction.unit import Loss

Start = Literal["nearest", "gptq"]


@dataclass(frozen=True)
class Settings:
    """The settings of the loop over units.

    Attributes:
        unit: block, or layer for AdaRound's original layer-wise setting.
        iters: optimizer steps a unit; 0 leaves every quantizer where it starts.
        lr: learning rate of the quantizers that do not bring their own.
        batch_size: calibration samples a step, drawn without replacement within a step.
        schedule: constant, or down to 0 by a cosine or a line.
        inputs: quant feeds the student the quantized prefix's output, fp the full-precision one,
            mixed each element of the first with probability quant_prob and of the second otherwise.
        act_steps: when the step sizes of activations are learned: not at all (start), after all
            weights as in BRECQ, or together with each block's weights as in QDrop.
        act_lr: their learning rate, taken down to 0 by a cosine.
        act_iters: their iterations where they are learned after the weights.
        act_inputs: what the student sees meanwhile: fp feeds it the full-precision network's
            activations, as BRECQ's code does, quant the quantized prefix's.
        quant_prob: probability that an element stays quantized while learning, QDrop's 0.5; 1 is
            all of them.
        keep_best: end the iterations of a unit's weights with the parameters of the mini-batch with
            the lowest error (SignRound); step sizes learned after them end with the last.
        precision: of the iterations' matrix products: float32, tf32, bfloat16, or auto, which is
            bfloat16 on a GPU that has it and float32 elsewhere. Weights, rounding and the loss stay
            float32, and so does everything outside of the iterations.
        compile: fuse the methods' passes by torch.compile, which needs a compiler.
        held_out: calibration samples, the last ones, that nothing is learned from and no range is
            set on; each unit's error on them is reported.
        patience: end a unit whose held-out error has not fallen for so many looks of the
            early_end.LOOKS that are taken, and keep the parameters of the lowest, in the place of
            keep_best's; 0 takes all iterations.
        last_loss: of the last block: that of its output like any other's (block), or through the
            last norm and the head: the next token's distribution against the full-precision
            network's (logits, LFQ), the logits' squared error (logits_mse), or the calibration
            text's own next tokens (next_token, as auto-round's port of LFQ).
        loss: of a unit's output: the squared error; that of each token over the mean square of its
            target or of itself, the larger one (relative); or without a thousandth of a
            mini-batch's values, those that err most (trimmed, SignRound v2).
        start: the codes that learning starts from: the nearest, or GPTQ's on the same scales.
        e2e_iters: iterations in which, once all units are learned, the scales alone are, through
            the whole network (`end_to_end`); 0 for none.
        e2e_lr: their rate at the start, of the scales' logarithms; it falls to 0 linearly.
        e2e_batch_size: their samples.
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
    act_inputs: Literal["quant", "fp"]
    quant_prob: float
    keep_best: bool
    precision: Precision
    compile: bool
    held_out: int = 0
    patience: int = 0
    last_loss: LastLoss = "block"
    loss: Loss = "squared"
    start: Start = "nearest"
    e2e_iters: int = 0
    e2e_lr: float = 3e-3
    e2e_batch_size: int = 1

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("unit", self.unit, ("block", "layer")),
            ("schedule", self.schedule, ("constant", "cosine", "linear")),
            ("inputs", self.inputs, ("quant", "fp", "mixed")),
            ("act_steps", self.act_steps, ("start", "after", "together")),
            ("act_inputs", self.act_inputs, ("quant", "fp")),
            ("last_loss", self.last_loss, get_args(LastLoss)),
            ("loss", self.loss, get_args(Loss)),
            ("start", self.start, get_args(Start)),
        ):
            if value not in allowed:
                raise ValueError(f"recon.{name}={value}: give one of {', '.join(allowed)}")
        for name, count in (
            ("iters", self.iters), ("act_iters", self.act_iters), ("held_out", self.held_out),
            ("e2e_iters", self.e2e_iters),
        ):  # fmt: skip
            if count < 0:
                raise ValueError(f"recon.{name}={count}: give 0 or more")
        for name, size in (("", self.batch_size), ("e2e_", self.e2e_batch_size)):
            if size < 1:
                raise ValueError(f"recon.{name}batch_size={size}: give at least 1")
        check_patience(self.patience, self.held_out)
        for name, rate in (("lr", self.lr), ("act_lr", self.act_lr), ("e2e_lr", self.e2e_lr)):
            if not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"recon.{name}={rate}: give a number above 0")
        if not 1 / RESOLUTION <= self.quant_prob <= 1:
            raise ValueError(
                f"recon.quant_prob={self.quant_prob}: give 1/{RESOLUTION} to 1, which is all"
            )
        if self.act_steps == "together" and self.unit == "layer":
            raise ValueError(
                "recon.unit=layer with recon.act_steps=together: step sizes are learned a block at "
                "a time; give recon.unit=block, or recon.act_steps=after"
            )
        if self.last_loss != "block" and self.unit == "layer":
            raise ValueError(
                f"recon.unit=layer with recon.last_loss={self.last_loss}: that is a loss of the "
                "whole last block; give recon.unit=block, or recon.last_loss=block"
            )
