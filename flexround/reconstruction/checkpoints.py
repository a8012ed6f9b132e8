"""Checkpoints: what is kept of every finished unit, so that a run that was cut off goes on.

A unit is its layers' integers, its activations' ranges, the states of the random generators and its
report. Both streams are computed again from the blocks, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from flexround.activations.quantizers import ActivationQuantizer
from flexround.attach import bake
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.reconstruction.report import BlockReport
from flexround.structure import Layer
from flexround.utils.atomic_files import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A finished unit: its tensors by name, and its report."""

    tensors: dict[str, Tensor]
    report: BlockReport


class Checkpoints(Protocol):
    """Keeps the finished units of one run."""

    def find(self, unit: str) -> Snapshot | None:
        """Return the unit as an earlier attempt left it, None where none did."""
        ...

    def save(self, unit: str, snapshot: Snapshot) -> None:
        """Keep a unit that has just been finished."""
        ...


class NoCheckpoints:
    """Keeps nothing."""

    def find(self, unit: str) -> Snapshot | None:
        """Return None."""

    def save(self, unit: str, snapshot: Snapshot) -> None:
        """Do nothing."""


class FileCheckpoints:
    """One safetensors file a unit in a folder of the run's own, named by order and digest.

    key says what the units belong to; a folder of another key is emptied. A damaged file ends what
    can be used: the units behind it were made from it. Where a file can't be written, the run goes
    on without checkpoints.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]) -> None:
        self._folder, self._writes = Path(folder), True
        self._key = json.dumps(key, sort_keys=True)
        self._found = self._read()  # the files, checked: a large model's integers fill memory
        self._next = len(self._found)
        if self._found:
            log.info("going on after %d finished units of an earlier attempt", len(self._found))

    def find(self, unit: str) -> Snapshot | None:
        """Return the unit as an earlier attempt left it, None where none did."""
        path = self._found.get(unit)
        return None if path is None else _load(path)[1]

    def save(self, unit: str, snapshot: Snapshot) -> None:
        """Keep a unit that has just been finished."""
        from safetensors.torch import save

        if not self._writes:
            return
        facts = json.dumps({"unit": unit, "report": asdict(snapshot.report)})
        data = save(
            {k: v.contiguous().cpu() for k, v in snapshot.tensors.items()}, {"facts": facts}
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._next:
                write_whole(self._folder / "key.json", self._key.encode())
            name = f"{self._next:04d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
            write_whole(self._folder / name, data)
        except OSError as error:
            log.warning("no checkpoints from here on: %s (%s)", error.strerror, self._folder)
            self._writes = False
        self._next += 1

    def clear(self) -> None:
        """Delete them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._found, self._next = {}, 0

    def _read(self) -> dict[str, Path]:
        if not self._folder.exists():
            return {}
        key = self._folder / "key.json"
        if not key.exists() or key.read_text() != self._key:
            log.info(
                "the checkpoints in %s are of another version or attempt; removed", self._folder
            )
            shutil.rmtree(self._folder)
            return {}
        found: dict[str, Path] = {}
        for index, path in enumerate(sorted(self._folder.glob("*.safetensors"))):
            whole = path.name.startswith(f"{index:04d}-")
            try:
                unit, _ = _load(path)
            except (ValueError, OSError) as error:
                log.warning("checkpoint %s is damaged (%s); going on from before it", path, error)
                whole = False
            if not whole:
                path.rename(path.with_suffix(".damaged"))
                for later in sorted(self._folder.glob("*.safetensors"))[index:]:
                    later.unlink()
                break
            found[unit] = path
        return found


def _load(path: Path) -> tuple[str, Snapshot]:
    """Return (unit, snapshot) of a file.

    Raises:
        ValueError: when it is not what was written.
    """
    from safetensors.torch import load

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.stem.split("-")[1]:
        raise ValueError("its digest is another one")
    length = int.from_bytes(data[:8], "little")
    facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])
    report = facts["report"]
    report["cost"] = Cost(**report["cost"])
    return facts["unit"], Snapshot(load(data), BlockReport(**report))


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
) -> dict[str, QuantizedTensor]:
    """Put the snapshot of a unit back; return its layers' integers by name."""
    tensors, integers = snapshot.tensors, {}
    for layer in layers:
        device = cast(nn.Parameter, layer.module.weight).device
        codes, scale, zero_point = (
            tensors[f"{layer.name}.{part}"].to(device) for part in ("codes", "scale", "zero_point")
        )
        integers[layer.name] = QuantizedTensor(codes, scale, zero_point, layer.grid(grid))
        bake(layer, integers[layer.name])
    for quantizer in activations:
        start = f"{quantizer.name}."
        quantizer.load_qparams(
            {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
        )
    for index, generator in enumerate(generators):
        generator.set_state(tensors[f"generator.{index}"])
    return integers
