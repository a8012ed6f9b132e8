"""Cases of the tiny networks: every method and solver, and each way to quantize activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.gpu.context import Row
from benchmarks.gpu.methods import described, is_solver, made, names
from benchmarks.gpu.networks import NETWORKS
from flexround.activations.schemes import Activation, DynamicPerToken, StaticPerTensor
from flexround.calibration.activation_cache import ActivationCache, Where
from flexround.grid import Grid, PerChannel, PerGroup, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory
from flexround.ranges import LpSearch, LpSearch2D, MinMax, Ranges
from flexround.reconstruction.callbacks import Callback, ReportLog
from flexround.reconstruction.checkpoints import Checkpoints
from flexround.reconstruction.layerwise import Solve
from flexround.reconstruction.precision import Precision
from flexround.reconstruction.reconstruction import Reconstruction

Preset = Literal["block", "layer", "qdrop", "brecq"]
STATIC = StaticPerTensor(8, False, 8, 8, kv_bits=None, init_samples=4, ranges_from="quant")
ACTIVATIONS: dict[str, Activation | None] = {
    "none": None,
    "static": STATIC,
    "static, fp": StaticPerTensor(8, False, 8, 8, None, init_samples=4, ranges_from="fp"),
    "token": DynamicPerToken(8, None),
    "token, kv": DynamicPerToken(8, 8),
}
RANGES: dict[str, Ranges] = {
    "lp": LpSearch(2.4, 20, 0.03), "lp_2d": LpSearch2D(2.4, 20, 0.03), "min_max": MinMax(),
}  # fmt: skip


@dataclass(frozen=True)
class TinyCase:
    """A method on a tiny network."""

    network: str
    quant: str
    activation: str = "none"
    recon: Preset = "block"
    ranges: str = "lp"
    groups: int = 0  # of so many weights; 0 is a scale a channel
    precision: Precision = "float32"
    streams: Where = "auto"

    @property
    def facts(self) -> Row:
        """What names it."""
        return {
            "network": self.network, "quant": self.quant, "activation": self.activation,
            "recon": self.recon, "ranges": self.ranges, "groups": self.groups,
            "precision": self.precision, "streams": self.streams,
        }  # fmt: skip

    def loop(self, iters: int) -> Reconstruction | Solve:
        """Return its loop of so many iterations a unit."""
        if is_solver(self.quant):
            return Solve(batch_size=4, sequential=True)
        learns = described(self.quant)["_target_"].rpartition(".")[2] != "RTN"
        return Reconstruction(
            unit="layer" if self.recon == "layer" else "block", iters=iters if learns else 0,
            lr=5e-3, batch_size=4,
            schedule="linear" if self.quant == "signround" else "cosine",
            inputs="mixed" if self.recon == "qdrop" else "quant",
            act_steps={"qdrop": "together", "brecq": "after"}.get(self.recon, "start"),
            act_lr=1e-4, act_iters=iters if learns else 0, act_inputs="fp", quant_prob=0.5,
            keep_best=self.quant == "signround", precision=self.precision, compile=False,
        )  # fmt: skip

    def quantizer(self) -> Any:
        """Return the method's factory, or the solver."""
        changed = {"rank": 4} if self.quant == "lrq" else {}
        return made(described(self.quant), **changed)


@dataclass(frozen=True)
class Quantized:
    """What a case has found.

    Attributes:
        outputs: the quantized network's on the calibration set.
    """

    integers: dict[str, QuantizedTensor]
    reports: ReportLog
    outputs: torch.Tensor


def quantized(
    case: TinyCase,
    device: torch.device,
    iters: int,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Callback] = (),
) -> Quantized:
    """Return what case finds on device."""
    adapter: ModelAdapter
    adapter, calibration = NETWORKS[case.network](device)
    granularity = PerGroup(case.groups) if case.groups else PerChannel()
    log, quantizer = ReportLog(), case.quantizer()
    factory: QuantizerFactory = quantizer
    integers = case.loop(iters)(
        adapter, calibration, quantizer=factory,  # type: ignore[arg-type]
        grid=Grid(4, False, granularity), ranges=RANGES[case.ranges],
        generator=torch.Generator().manual_seed(0), activation=ACTIVATIONS[case.activation],
        callbacks=[log, *callbacks], checkpoints=checkpoints,
        cache=ActivationCache(where=case.streams if device.type == "cuda" else "auto"),
    )  # fmt: skip
    with torch.no_grad():
        outputs = torch.cat([out.float().cpu() for out in adapter.outputs(calibration)])
    return Quantized(integers, log, outputs)


def every_case(tiny: bool) -> list[TinyCase]:
    """Return what a GPU alone can answer, every method and solver, then settings around them.

    Time may end before they do. Of tiny ones there are the first two kinds, and fewer networks.
    """
    plain = [
        TinyCase(network, quant)
        for network in ("llama", "vision")
        for quant in names()
        if not (network == "vision" and quant == "lrq")  # for linear layers
    ]
    around = [
        TinyCase("vision", "flexround", "static, fp", "qdrop"),
        TinyCase("vision", "adaround", "static", "brecq"),
        TinyCase("llama", "flexround", "static, fp", "qdrop"),
        TinyCase("llama", "lrq", "token, kv"),
        TinyCase("vision", "gptq", "static"),
        TinyCase("bert, padded", "flexround", "token"),
        TinyCase("mixtral", "flexround"),
    ]
    if tiny:
        few = ("flexround", "adaround", "gptq")
        return [*(c for c in plain if c.network == "llama" or c.quant in few), *around]
    return [
        TinyCase("llama", "flexround", streams="cpu"),
        TinyCase("llama", "flexround", precision="bfloat16"),
        TinyCase("llama", "flexround", precision="tf32"),
        TinyCase("vision", "flexround", "static, fp", "qdrop", streams="cpu"),
        *plain, *around,
        TinyCase("vision", "flexround", "static"),
        TinyCase("vision", "flexround", recon="layer"),
        TinyCase("llama", "adaround", recon="layer"),
        TinyCase("vision", "signround", "static", "brecq"),
        TinyCase("llama", "adaround", "static", "brecq"),
        TinyCase("llama", "gptq", "token, kv"),
        TinyCase("llama", "cdquant", "static"),
        TinyCase("llama", "flexround", ranges="lp_2d", groups=16),
        TinyCase("llama", "signround", ranges="min_max", groups=16),
        TinyCase("vision", "flexround", precision="bfloat16"),
        TinyCase("bert, padded", "flexround", streams="cpu"),
        TinyCase("bert, padded", "adaround", "static, fp", "qdrop"),
        TinyCase("bert, padded", "gptq"),
        TinyCase("mixtral", "gptq"),
    ]  # fmt: skip
