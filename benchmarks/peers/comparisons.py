"""Comparisons: which programs quantize by which method with which settings, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"


@dataclass(frozen=True)
class Contender:
    """One program with its settings.

    Attributes:
        label: what the table calls it.
        program: the module in benchmarks.peers.programs.
        settings: what the program is told besides the setting that all share.
    """

    label: str
    program: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Contenders for the same thing; ratios are to the first one.

    Attributes:
        name: what --rows calls it.
        title: what the table calls it.
        bits: of a weight.
        contenders: the peers first, then ours.
        differs: settings that are not the same, and why.
    """

    name: str
    title: str
    bits: int
    contenders: Sequence[Contender]
    differs: str


def ours(label: str, *overrides: str, **settings: Any) -> Contender:
    """Return ours with overrides of its configuration."""
    return Contender(label, OURS, {"overrides": overrides, **settings})


def _signround(iters: int) -> Comparison:
    settings = {"iters": iters, "amp": False, "enable_torch_compile": False, "scale_dtype": "fp32"}
    return _iterations(
        f"signround-{iters}", f"W3, {iters} iterations, float32",
        Contender("auto-round, SignRound", "auto_round", settings),
        [f"recon.iters={iters}"],
        "auto-round's rate is 1 / iterations as SignRound's here; FlexRound's is the 1e-2 of "
        "conf/tuned/model. auto-round draws other mini-batches; it keeps the best iteration, as "
        "SignRound here.",
    )  # fmt: skip


def _half(iters: int) -> Comparison:
    return _iterations(
        f"bfloat16-{iters}", f"W3, {iters} iterations, bfloat16",
        Contender("auto-round, as it comes", "auto_round", {"iters": iters}),
        [f"recon.iters={iters}", "recon.precision=bfloat16"],
        "auto-round as it comes casts the whole network to bfloat16 where the processor has it, "
        "compiles by torch.compile (kept from the first repetition on) and has scales of 16 bits; "
        "ours runs the iterations' products in bfloat16, the rest in float32.",
    )  # fmt: skip


def _iterations(
    name: str, title: str, peer: Contender, recon: Sequence[str], differs: str
) -> Comparison:
    """Return auto-round beside our SignRound and FlexRound, at 3 bits."""
    mine = (("SignRound", "signround"), ("FlexRound", "flexround"))
    contenders = [peer, *(ours(label, f"quant={quant}", *recon) for label, quant in mine)]
    return Comparison(name, title, 3, contenders, differs)


def _gptq(bits: int) -> Comparison:
    return Comparison(
        f"gptq-w{bits}", f"W{bits}, GPTQ", bits,
        [
            Contender("llm-compressor, GPTQ", "llm_compressor", {"method": "gptq"}),
            ours("GPTQ, the same order", "quant=gptq", "quant.act_order=true",
                 "quant.static_groups=true", "recon.sequential=false"),
            ours("GPTQ, as it comes", "quant=gptq"),
        ],
        "llm-compressor takes columns in falling order of the Hessian with group scales from the "
        "original weights, a decoder layer's Hessians in one pass, and inverts in float32; the "
        "same order is that with Hessians in float64. As it comes ours goes from the first column "
        "to the last, with group scales from the updated weights, and its o, up, gate and down "
        "projections see the quantized ones before them.",
    )  # fmt: skip


def _rtn(bits: int) -> Comparison:
    plain = {"iters": 0, "disable_opt_rtn": True, "amp": False, "enable_torch_compile": False,
             "scale_dtype": "fp32"}  # fmt: skip
    return Comparison(
        f"rtn-w{bits}", f"W{bits}, round to nearest", bits,
        [
            Contender("auto-round, RTN", "auto_round", plain),
            Contender("llm-compressor, RTN", "llm_compressor", {"method": "rtn"}),
            Contender("torchao, RTN", "torch_ao"),
            ours("RTN, min-max", "quant=rtn", "ranges=min_max", samples=1),
        ],
        "None of them needs data; ours gets one sequence, on which it tells each block's error. "
        "All have scale and zero point from the smallest and the largest weight of a group.",
    )  # fmt: skip


ALL = (
    _signround(25), _signround(10), _half(25), _half(10), _gptq(4), _gptq(3), _rtn(4), _rtn(3),
)  # fmt: skip
COMPARISONS = {comparison.name: comparison for comparison in ALL}
