"""Codes on the device against the CPU's, and the outputs, reports and records that go with them.

A learned method takes the last bits of every sum through its iterations, so that a few codes may
differ; round-to-nearest and the solvers have next to none. A run that is cut off and goes on finds
what an undisturbed one does.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.gpu.cases import Quantized, TinyCase, every_case, quantized
from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.store import ROOT
from flexround.grid import QuantizedTensor
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.reconstruction.report import BlockReport
from flexround.utils.tensor_float32 import tensor_float32

CPU = torch.device("cpu")
NEEDED = ("hydra", "omegaconf", "pydantic", "timm", "sklearn")  # of run.py
RESUMED = (
    TinyCase("vision", "flexround"), TinyCase("llama", "adaround"), TinyCase("llama", "gptq"),
    TinyCase("vision", "flexround", "static, fp", "qdrop"),
    TinyCase("vision", "adaround", "static", "brecq"),
)  # fmt: skip
# Of a record: what the device decides by its bits or its clock.
MEASURED = (
    "value", "fp_value", "metrics", "fp_metrics", "blocks", "seconds", "peak_memory_gib", "device",
    "processor", "threads", "started", "network", "overrides",
)  # fmt: skip


def rows(context: Context) -> Iterator[Row]:
    """Yield a row a case; every one takes a second or two, what goes on after a cut a few."""
    iters = 2 if context.tiny else 20
    for case in RESUMED[:2] if context.tiny else RESUMED:
        yield context.row(
            {"check": "resume"} | case.facts,
            5,
            lambda case=case: _resumed(case, context, iters),
        )
    for case in every_case(context.tiny):
        if case.precision == "tf32" and not context.cuda:
            continue
        yield context.row(
            {"check": "codes"} | case.facts,
            5,
            lambda case=case: _compared(case, context, iters),
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield context.refused({"check": "record"}, f"{', '.join(missing)} not installed here")
    elif not context.tiny:
        yield context.row({"check": "record"}, 40, lambda: records(str(context.device)))


def _compared(case: TinyCase, context: Context, iters: int) -> Row:
    """Return how what case finds on the device lies from what it finds on the CPU."""
    with tensor_float32(False):  # for the outputs; quantizing sees to itself
        plain = replace(case, precision="float32") if case.precision == "tf32" else case
        own, other = quantized(case, context.device, iters), quantized(plain, CPU, iters)
    found = shares(own.integers, other.integers)
    found["output"] = _distance(own, other)
    differing = reports_differ(own.reports.blocks, other.reports.blocks)
    found["reports differ in"] = ", ".join(differing)
    found["errors"] = _errors(own.reports.blocks, other.reports.blocks)
    return found


def shares(own: Mapping[str, QuantizedTensor], other: Mapping[str, QuantizedTensor]) -> Row:
    """Return the share of equal codes, and of those with the same scale to 1e-5 of itself."""
    if own.keys() != other.keys():
        raise ValueError(f"layers {sorted(own.keys() ^ other.keys())} are in one of the two alone")
    equal = total = close = scales = 0
    for name, held in own.items():
        theirs = other[name]
        same = held.codes.cpu() == theirs.codes.cpu()
        equal, total = equal + int(same.sum()), total + same.numel()
        near = torch.isclose(held.scale.cpu(), theirs.scale.cpu(), rtol=1e-5, atol=0)
        close, scales = close + int(near.sum()), scales + near.numel()
    return {"equal codes": equal / total, "equal scales": close / scales}


def _distance(own: Quantized, other: Quantized) -> float:
    """Return the largest difference of an output, as a share of the largest output."""
    return float((own.outputs - other.outputs).abs().max() / other.outputs.abs().max())


def reports_differ(own: Sequence[BlockReport], other: Sequence[BlockReport]) -> list[str]:
    """Return in what the reports of two runs differ that no bit of a value decides."""
    found = []
    for name in ("name", "layers", "unreached", "cost"):
        if [getattr(r, name) for r in own] != [getattr(r, name) for r in other]:
            found.append(name)
    if [[at for at, _ in r.curve] for r in own] != [[at for at, _ in r.curve] for r in other]:
        found.append("curve")
    if [set(r.objectives) for r in own] != [set(r.objectives) for r in other]:
        found.append("objectives")
    if "cost" in found:
        costs = [(asdict(a.cost), asdict(b.cost)) for a, b in zip(own, other, strict=False)]
        parts = sorted({key for a, b in costs for key in a if a[key] != b[key]})
        found[found.index("cost")] = f"cost ({', '.join(parts)})"
    return found


def _errors(own: Sequence[BlockReport], other: Sequence[BlockReport]) -> float:
    """Return the largest difference of a unit's error in the end, as a share of it."""
    pairs = [(a.error_after, b.error_after) for a, b in zip(own, other, strict=True)]
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


class _CutOff(Exception):
    """The end of a run after some units."""


class _Cut:
    """A callback that ends the run behind a number of units."""

    def __init__(self, units: int) -> None:
        self._left = units

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Nothing to do."""

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Nothing to do."""

    def end_block(self, report: BlockReport) -> None:
        """Raise once the units are done."""
        self._left -= 1
        if not self._left:
            raise _CutOff


def _resumed(case: TinyCase, context: Context, iters: int) -> Row:
    """Return whether a run that was cut off and goes on finds what an undisturbed one does."""
    first, second = (quantized(case, context.device, iters) for _ in range(2))
    units = len(first.reports.blocks)
    with tempfile.TemporaryDirectory() as folder:
        try:
            kept = FileCheckpoints(folder, {})
            quantized(case, context.device, iters, kept, [_Cut(max(1, units // 2))])
        except _CutOff:
            pass
        resumed = quantized(case, context.device, iters, FileCheckpoints(folder, {}))
    again = shares(second.integers, first.integers)
    return shares(resumed.integers, first.integers) | {
        "output": _distance(resumed, first), "undisturbed twice": again["equal codes"],
    }  # fmt: skip


def records(device: str) -> Row:
    """Return in what the records of run.py on device and on the CPU differ."""
    with tempfile.TemporaryDirectory() as folder:
        own, other = _record(Path(folder, "own"), device), _record(Path(folder, "cpu"), "cpu")
    differing = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
    return {
        "record differs in": ", ".join(key for key in differing if key not in MEASURED),
        "measured": ", ".join(key for key in differing if key in MEASURED),
        "value": own["value"], "value on the CPU": other["value"],
    }  # fmt: skip


def _record(folder: Path, device: str) -> Row:
    results = folder / "results"
    command = [
        sys.executable, str(ROOT / "run.py"), "model=efficientnet_lite0",
        "model.name=test_efficientnet", "task=digits", "quant=flexround", "recon.iters=20",
        "num_samples=64",
        f"device={device}", f"results_dir={results}", f"cache_dir={folder.parent / 'cache'}",
        f"hydra.run.dir={folder / 'run'}", "progress=false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"run.py device={device}: {told}")
    (path,) = results.glob("*.json")
    record: Row = json.loads(path.read_text())
    return record
