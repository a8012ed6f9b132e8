"""Snapshot of a finished unit: what is kept of it, as a file's bytes and back.

A unit is its layers' integers, its activations' ranges, the states of the random generators and its
report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexround.activations.quantizers import ActivationQuantizer
from flexround.attach import bake
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.reconstruction.report import BlockReport
from flexround.structure import Layer
from flexround.utils.file_errors import StorageError

FACTS = "facts"  # in the file's metadata: the unit's name and its report


@dataclass(frozen=True)
class Snapshot:
    """A finished unit: its tensors by name, its report, and the file that it was read from."""

    tensors: dict[str, Tensor]
    report: BlockReport
    source: str = ""


def to_bytes(unit: str, snapshot: Snapshot) -> bytes:
    """Return the snapshot of unit as the bytes of a safetensors file."""
    from safetensors.torch import save

    facts = json.dumps({"unit": unit, "report": asdict(snapshot.report)})
    tensors = {k: v.contiguous().cpu() for k, v in snapshot.tensors.items()}
    return save(tensors, {FACTS: facts})


def from_bytes(data: bytes, source: str) -> tuple[str, Snapshot]:
    """Return (unit, snapshot) of the bytes of the file called source.

    Raises:
        ValueError: when they are none that `to_bytes` gives.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    length = int.from_bytes(data[:8], "little")
    try:
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][FACTS])
        return str(facts["unit"]), Snapshot(load(data), _report(facts["report"]), source)
    except (KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"it holds no unit ({type(error).__name__})") from error


def _report(held: Mapping[str, Any]) -> BlockReport:
    report = BlockReport(**(dict(held) | {"cost": Cost(**held["cost"])}))
    numbers = [report.error_before, report.error_after, report.seconds, report.peak_memory_gib]
    numbers += [getattr(report.cost, f.name) for f in fields(Cost)]
    numbers += report.layers.values()
    rows = (*report.curve, *report.held_out_curve, *report.objectives.values())
    numbers += [n for row in rows for n in row] + [report.iterations]
    held_out = (report.held_out_before, report.held_out_after)
    numbers += [error for error in held_out if error is not None]
    texts = [report.name, *report.layers, *report.objectives, *report.unreached]
    if not all(isinstance(n, int | float) for n in numbers):
        raise TypeError("a number of its report is none")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name in its report is none")
    return report


def pack(
    report: BlockReport,
    integers: Mapping[str, QuantizedTensor],
    activations: Sequence[ActivationQuantizer],
    generators: Sequence[torch.Generator],
) -> Snapshot:
    """Return the snapshot of a unit."""
    tensors = {}
    for name, held in integers.items():
        tensors[f"{name}.codes"] = held.codes
        tensors[f"{name}.scale"] = held.scale
        tensors[f"{name}.zero_point"] = held.zero_point
    for quantizer in activations:
        for name, value in quantizer.qparams().items():
            tensors[f"{quantizer.name}.{name}"] = value
    for index, generator in enumerate(generators):
        tensors[f"generator.{index}"] = generator.get_state()
    return Snapshot(tensors, report)


def unpack(
    snapshot: Snapshot,
    layers: Sequence[Layer],
    grid: Grid,
    activations: Sequence[ActivationQuantizer],
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> dict[str, QuantizedTensor]:
    """Put the snapshot of a unit back on device; return its layers' integers by name.

    Raises:
        StorageError: when it is of another unit than this one.
    """
    tensors, integers = snapshot.tensors, {}
    try:
        for layer in layers:
            integers[layer.name] = _integers(tensors, layer, grid)
            bake(layer, integers[layer.name])
        for quantizer in activations:
            start = f"{quantizer.name}."
            quantizer.load_qparams(
                {k[len(start) :]: v.to(device) for k, v in tensors.items() if k.startswith(start)}
            )
        for index, generator in enumerate(generators):
            generator.set_state(tensors[f"generator.{index}"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        line = (
            f"checkpoint {snapshot.source} does not fit the unit that it is kept for; delete its "
            "folder, and run the same command again"
        )
        raise StorageError(line) from error
    return integers


def _integers(tensors: Mapping[str, Tensor], layer: Layer, grid: Grid) -> QuantizedTensor:
    """Return layer's integers among tensors.

    Raises:
        KeyError, ValueError: when they are not there, or of another shape or range than its weight.
    """
    device = cast(nn.Parameter, layer.module.weight).device
    codes, scale, zero_point = (
        tensors[f"{layer.name}.{part}"].to(device) for part in ("codes", "scale", "zero_point")
    )
    own = layer.grid(grid)
    rows = own.granularity.group(codes)
    if scale.shape != (len(rows), 1) or zero_point.shape != scale.shape:
        raise ValueError(f"scales {list(scale.shape)} for {len(rows)} groups")
    if codes.dtype != torch.int16 or not (own.qmin <= codes.min() and codes.max() <= own.qmax):
        raise ValueError("codes beyond the grid")
    return QuantizedTensor(codes, scale, zero_point, own)
