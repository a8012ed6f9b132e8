"""Time of an iteration against the block's own forward and backward pass, on the device.

The block's own passes have all that they need on the device already; the loop's iterations bring
their mini-batch along, as they do in a run. Both by CUDA events, medians of rounds of ten. The
operations counted are those of the block's own products: three times its forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from benchmarks.blocks import Case, reached
from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.shapes import Shape, llama2_7b, llama31_8b, methods_for, small_cases
from benchmarks.gpu.timing import Marks, ceilings, median_and_spread, rounds_of
from benchmarks.reconstruction import GRID, job_of, loop
from benchmarks.timing import STEPS, Clock
from flexround.attach import attach
from flexround.calibration.activation_cache import rows as picked
from flexround.calibration.arguments import PerSample
from flexround.calibration.calls import RecordedCalls
from flexround.cost import flop_counter
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import MinMax
from flexround.reconstruction.learning import learn
from flexround.reconstruction.precision import Precision, check_precision, products
from flexround.reconstruction.room import home_of
from flexround.reconstruction.unit import reconstruction_loss
from flexround.utils.tensor_float32 import tensor_float32

MEASURED = 2.0  # seconds of iterations that a median is taken of
FLOOR = "the block's own passes"
Timed = list[float]  # milliseconds of an iteration in each round


class DeviceClock(Clock):
    """A callback that marks each reading of the loss on the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.marks = Marks(device)

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Note the moment."""
        self.marks.mark()


def resident(calls: RecordedCalls, device: torch.device) -> RecordedCalls:
    """Return calls with all that they hold on device."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, PerSample):
            return PerSample(leaf.values.to(device))
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    args, kwargs = tree_map(move, (calls.args, dict(calls.kwargs)))
    return replace(calls, inputs=calls.inputs.to(device), args=args, kwargs=kwargs)


@dataclass
class Bench:
    """A block on the device, made once for all that is timed on it."""

    case: Case
    context: Context

    @cached_property
    def _made(self) -> Any:
        adapter, unit, calls = reached(self.case, self.context.device)
        calls = calls.placed(home_of(adapter, calls))  # as a run has them
        outputs = calls.replay_all(unit.module, self.case.batch_size, adapter.device)
        return adapter, unit, calls, unit.output(outputs)

    def floor(self, precision: Precision) -> Timed:
        """Return what the passes of the plain block take, its weights' gradients included."""
        adapter, unit, calls, targets = self._made
        device = adapter.device
        calls, batch = resident(calls, device), torch.arange(self.case.batch_size, device=device)
        inputs, wanted = calls.inputs[batch].float(), picked(targets, batch.cpu(), device)
        weights = [layer.module.weight for layer in unit.layers]

        def step() -> None:
            for weight in weights:
                weight.grad = None
            with products(precision, device):
                output = unit.output(calls.replay(unit.module, batch, device, inputs))
            reconstruction_loss(output.float(), wanted, unit.channel_dim).backward()

        try:
            for weight in weights:
                weight.requires_grad_(True)
            with tensor_float32(precision == "tf32"):
                return self._rounds(step)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None

    @cached_property
    def flops(self) -> float:
        """The operations of the block's products in its passes, the backward one as two forward."""
        adapter, unit, calls, _ = self._made
        batch = torch.arange(self.case.batch_size)
        with torch.no_grad(), flop_counter() as counter:
            calls.replay(unit.module, batch, adapter.device)
        return 3.0 * counter.get_total_flops()

    def _rounds(self, step: Any) -> list[float]:
        device = self.context.device
        first = rounds_of(step, device, 1, 2)[0]
        return rounds_of(step, device, self._number(first), STEPS)

    def _number(self, milliseconds: float) -> int:
        """Return of how many rounds of iterations that take so long a median is taken."""
        if self.context.tiny:
            return 2
        return max(3, min(20, round(1e3 * MEASURED / (STEPS * milliseconds))))

    def iteration(self, method: QuantizerFactory, precision: Precision, compile_: bool) -> Timed:
        """Return what the loop's iterations take."""
        adapter, unit, calls, targets = self._made
        clock = DeviceClock(adapter.device)

        def iterate(quantizers: Sequence[WeightQuantizer], iters: int) -> Timed:
            recon = loop(iters, self.case.batch_size, precision, compile_)
            job = job_of(recon, adapter, method, GRID, clock)
            learn(job, unit, quantizers, [], (calls, calls), targets)
            return [time_ / STEPS for time_ in clock.marks.milliseconds()]

        try:
            made = attach(unit.layers, method, GRID, MinMax())
            first = iterate(made, 2 * STEPS + 1)  # kernels are made, memory is taken
            times = iterate(made, (1 + self._number(first[-1])) * STEPS + 1)
            return times[1:]  # the first has made the optimizer's state
        finally:
            for layer in unit.layers:
                if parametrize.is_parametrized(layer.module, "weight"):
                    parametrize.remove_parametrizations(
                        layer.module, "weight", leave_parametrized=False
                    )


@dataclass(frozen=True)
class Setting:
    """A row: what is timed on which block."""

    bench: Bench
    shape: Shape | None  # of a large block
    method: str
    precision: Precision
    compile: bool = False

    @property
    def facts(self) -> Row:
        """What names it."""
        return {
            "block": self.bench.case.name, "method": self.method, "precision": self.precision,
            "compile": self.compile,
        }  # fmt: skip

    def timed(self) -> Timed:
        """Return what it takes."""
        if self.method == FLOOR:
            return self.bench.floor(self.precision)
        methods = methods_for(self.bench.case.vision, self.shape)
        return self.bench.iteration(methods[self.method], self.precision, self.compile)


def settings(context: Context) -> list[Setting]:
    """Return all rows, the most telling first."""
    shapes = [llama31_8b(context.tiny)] + ([] if context.tiny else [llama2_7b()])
    large: list[tuple[Bench, Shape | None]] = [
        (Bench(shape.case(), context), shape) for shape in shapes
    ]
    small = [(Bench(case, context), None) for case in small_cases(context.tiny)]
    blocks = [large[0], *small, *large[1:]]
    half: Precision = "bfloat16"
    found = [Setting(*b, method, half) for b in blocks for method in (FLOOR, "flexround")]
    found += [Setting(*b, method, "float32") for b in blocks for method in (FLOOR, "flexround")]
    found += [
        Setting(*b, method, half)
        for b in (large[:1] if context.tiny else blocks)
        for method in methods_for(b[0].case.vision, b[1])
        if method != "flexround"
    ]
    if context.tiny:
        return found
    others = [p for p in get_args(Precision) if p not in (half, "float32", "auto")]
    found += [Setting(*b, "flexround", p) for p in others for b in blocks]
    found += [Setting(*b, "flexround", half, True) for b in blocks]
    found += [
        Setting(*b, method, half, True)
        for b in large for method in ("adaround", "lrq", "signround")
    ]  # fmt: skip
    return found


def rows(context: Context) -> Iterator[Row]:
    """Yield what each setting takes."""
    try:
        check_precision("bfloat16", context.device)
        bfloat16 = True
    except ValueError:
        bfloat16 = False
    ceiling = ceilings(context.device, context.tiny, bfloat16)
    floors: dict[tuple[str, str], float] = {
        (str(row["block"]), str(row["precision"])): float(str(row["ms"]))
        for row in context.earlier if row.get("method") == FLOOR
    }  # fmt: skip
    for setting in settings(context):
        yield _row(context, setting, ceiling, floors)


def _row(
    context: Context, setting: Setting, ceiling: dict[str, float],
    floors: dict[tuple[str, str], float],
) -> Row:  # fmt: skip
    large = setting.shape
    try:
        check_precision(setting.precision, context.device)
    except ValueError as error:
        return context.refused(setting.facts, str(error))
    if large is not None and (refusal := large.refusal(context.free_gib())) is not None:
        return context.refused(setting.facts, refusal)

    def make() -> Row:
        median, spread = median_and_spread(times := setting.timed())
        block = setting.bench.case.name
        if setting.method == FLOOR:
            floors[block, setting.precision] = median
        speed = setting.bench.flops / (median / 1e3)
        most = ceiling.get(setting.precision)
        own, half = (floors.get((block, p)) for p in (setting.precision, "bfloat16"))
        return {
            "ms": median, "quartiles apart": spread, "rounds of 10": len(times),
            "over the passes": None if own is None else median / own,
            "over the bfloat16 passes": None if half is None else median / half,
            "TFLOP/s": speed / 1e12, "share of the card": None if most is None else speed / most,
        }  # fmt: skip

    seconds = (30 if setting.compile else 4) + (4 if large is not None else 0)
    return context.row(setting.facts, seconds, make)
