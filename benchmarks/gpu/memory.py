"""Memory and seconds of a whole Llama-3.1-8B-shaped block: each stage's peak, fast and default.

128 x 2048 tokens, 4 bits a weight. On a CPU the peaks are of the process's own memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.methods import described, made
from benchmarks.gpu.shapes import GIB, Shape, llama31_8b
from benchmarks.gpu.stages import Stages
from flexround.calibration.activation_cache import ActivationCache, Where
from flexround.grid import Grid, PerGroup
from flexround.models.base import ModelAdapter
from flexround.ranges import LpSearch, MinMax, Ranges
from flexround.reconstruction.precision import Precision, check_precision
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.utils.memory import STATUS, forget_peak, proc_bytes

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, FEW = 128, 20
STAGES = ("targets", "ranges", "iterations", "evaluation", "whole")


@dataclass(frozen=True)
class BlockRun:
    """One reconstruction of the block."""

    quant: str
    iters: int
    lr: float
    group_size: int
    precision: Precision
    streams: Where = "auto"

    @property
    def facts(self) -> Row:
        """What names it."""
        return {
            "quant": self.quant, "iterations": self.iters, "groups of": self.group_size,
            "precision": self.precision, "streams": self.streams,
        }  # fmt: skip

    @property
    def loop_facts(self) -> tuple[object, ...]:
        """What decides how long an iteration takes."""
        return self.quant, self.group_size, self.precision, self.streams

    @property
    def ranges(self) -> Ranges:
        """The search of the method's protocol."""
        return MinMax() if self.quant == "signround" else LpSearch(2.4, 80, 0.01)

    def loop(self, batch_size: int) -> Reconstruction:
        """Return its loop."""
        signed = self.quant == "signround"
        return Reconstruction(
            unit="block", iters=self.iters, lr=self.lr, batch_size=batch_size,
            schedule="linear" if signed else "cosine", inputs="quant", act_steps="start",
            act_lr=1e-4, act_iters=0, act_inputs="quant", quant_prob=1.0, keep_best=signed,
            precision=self.precision, compile=False,
        )  # fmt: skip


def fast() -> tuple[int, float]:
    """Return the iterations and the rate of recon=fast for FlexRound."""
    text = ROOT.joinpath("conf", "tuned", "recon", "fast_flexround.yaml").read_text()
    recon = yaml.safe_load(text)["recon"]
    return int(recon["iters"]), float(recon["lr"])


def runs(tiny: bool) -> list[BlockRun]:
    """Return the runs in the order of what they tell; a short one says how long its like takes."""
    iters, lr = fast()
    if tiny:
        return [BlockRun("flexround", 2, lr, 16, "bfloat16"), BlockRun("signround", 2, lr, 16,
                "float32")]  # fmt: skip
    return [
        BlockRun("flexround", FEW, lr, 128, "bfloat16"),
        BlockRun("flexround", iters, lr, 128, "bfloat16"),
        BlockRun("flexround", FEW, lr, 128, "bfloat16", streams="cpu"),
        BlockRun("flexround", FEW, lr, 64, "bfloat16"),
        BlockRun("signround", FEW, 1 / FEW, 128, "bfloat16"),
        BlockRun("flexround", FEW, lr, 128, "float32"),
        BlockRun("signround", 200, 1 / 200, 128, "bfloat16"),
        BlockRun("adaround", FEW, 1e-3, 128, "bfloat16"),
        BlockRun("lrq", FEW, 1e-3, 128, "bfloat16"),
    ]


def rows(context: Context) -> Iterator[Row]:
    """Yield what each run takes."""
    shape = llama31_8b(context.tiny, SAMPLES)
    known: dict[tuple[object, ...], tuple[float, float]] = {}  # seconds fixed, an iteration
    for run in runs(context.tiny):
        refusal = _refusal(run, shape, context)
        if refusal is not None:
            yield context.refused(run.facts, refusal)
            continue
        fixed, each = known.get(run.loop_facts, (20.0, 0.5))
        seconds = fixed + each * run.iters
        row = context.row(run.facts, seconds, lambda run=run: _measured(run, shape, context))
        if "whole, s" in row:
            whole, inside = (float(str(row[f"{name}, s"])) for name in ("whole", "iterations"))
            known[run.loop_facts] = (whole - inside, inside / run.iters)
        yield row


def _refusal(run: BlockRun, shape: Shape, context: Context) -> str | None:
    """Return why run is left out, or None."""
    try:
        check_precision(run.precision, context.device)
    except ValueError as error:
        return str(error)
    return shape.refusal(context.free_gib())


def _measured(run: BlockRun, shape: Shape, context: Context) -> Row:
    """Return the seconds and peaks, GiB, of each stage of run."""
    adapter: ModelAdapter
    adapter, calibration = shape.make(context.device)
    node = described(run.quant)
    quantizer = made(node, **({"rank": min(1024, shape.hidden // 4)} if run.quant == "lrq" else {}))
    stages = Stages(context.device)
    forget_peak()
    with stages.watched():
        run.loop(shape.batch_size)(
            adapter, calibration, quantizer=quantizer, ranges=run.ranges,
            grid=Grid(4, False, PerGroup(run.group_size)),
            generator=torch.Generator().manual_seed(0),
            cache=ActivationCache(where=run.streams),
        )  # fmt: skip
    row: Row = {f"{name}, s": stages.seconds.get(name) for name in STAGES}
    row["s an iteration"] = stages.seconds["iterations"] / run.iters
    if context.cuda:
        row |= {f"{name}, GiB": stages.peaks.get(name) for name in STAGES}
    row["process, GiB"] = proc_bytes(STATUS, "VmHWM") / GIB
    return row
