"""Artifacts rebuilt: measured again, listed, or written for another program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pandas as pd

from experiment.artifacts.model_card import kind_of, words
from experiment.artifacts.provenance import provenance_of
from experiment.artifacts.stated_overrides import check_given, composable
from experiment.build import build, check_plugins, validate
from experiment.config import composed, parsed
from experiment.device import device_of
from experiment.errors import value_errors
from experiment.threads import running_on
from flexround.artifact.artifact import Artifact, size_of
from flexround.artifact.file_format import read
from flexround.artifact.header import locate
from flexround.models.base import ModelAdapter
from flexround.utils.atomic_files import written_folder
from flexround.utils.memory import is_shortage


@dataclass(frozen=True)
class Rebuilt:
    """An artifact, its model restored, and the task that it was quantized for."""

    artifact: Artifact
    adapter: ModelAdapter
    task: Any


def _compressed_tensors(rebuilt: Rebuilt, folder: Path, out: Path) -> None:
    from flexround.artifact.exports.compressed_tensors import export

    export(rebuilt.artifact, rebuilt.adapter, folder, out)


def _gptq(rebuilt: Rebuilt, folder: Path, out: Path) -> None:
    from flexround.artifact.exports.gptq import export

    export(rebuilt.artifact, rebuilt.adapter, folder, out)


def _onnx(rebuilt: Rebuilt, folder: Path, out: Path) -> None:
    from flexround.artifact.exports.onnx import export

    with written_folder(out) as place:
        batch = rebuilt.task.traced()
        export(rebuilt.adapter, rebuilt.artifact.layers, batch, place / "model.onnx")


# What writes an artifact's folder for another program, each importing what its format needs.
FORMATS: dict[str, Callable[[Rebuilt, Path, Path], None]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "onnx": _onnx,
}


def rebuild(path: str | Path, overrides: Sequence[str] = (), device: str | None = None) -> Rebuilt:
    """Return the model of the artifact at path; overrides follow those of its run.

    device stands for that of the overrides where it is given.

    Raises:
        ValueError: when the artifact is damaged, or its settings do not build its model any more;
            when an override is of how it was made.
    """
    artifact = read(path)
    file = locate(path)
    try:
        stated = composable(own := provenance_of(path).overrides, overrides)
    except ValueError as error:
        raise ValueError(f"artifact {file}: {error}") from error
    cfg = composed([*stated, *overrides])
    check_given(overrides, own)  # now that they are known to be options
    check_plugins(cfg.plugins, overrides)
    if "source" in list(cfg.model):  # also where it is missing, as in model=hf
        cfg.model.source = str(file.parent)  # nothing is read by the name that the run had for it
    validate(cfg)
    task, model = build(cfg.task, cfg.plugins), build(cfg.model, cfg.plugins)
    adapter = model.bare_adapter(task, cfg.checkpoint, file.parent, device_of(device or cfg.device))
    artifact.restore(adapter)
    return Rebuilt(artifact, adapter, task)


def evaluate(path: str, overrides: Sequence[str]) -> str:
    """Return the model's metrics, measured now, once they are those of the record.

    Raises:
        ValueError: when the main metric is another one.
    """
    made = provenance_of(path)
    with running_on(made.threads):  # they decide the last bits of a sum
        metrics = _measured(rebuild(path, overrides), path)
    name, value = made.metric, metrics.get(made.metric)
    if value != made.value:
        raise ValueError(
            f"{name} is {value!r}, its record {made.run_id} has {made.value!r}: other "
            f"data, another device than {made.device}, or torch {made.torch}"
        )
    told = ", ".join(f"{name} {value}" for name, value in metrics.items())
    return f"{told}: as recorded in {made.run_id}"


def _measured(rebuilt: Rebuilt, path: str) -> dict[str, float]:
    """Return the metrics of the rebuilt model.

    Raises:
        ValueError: when tensors of the artifact do not go together; what the task refuses.
    """
    try:
        metrics: dict[str, float] = rebuilt.task.evaluate(rebuilt.adapter)
    except (RuntimeError, TypeError, IndexError) as error:
        if is_shortage(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"artifact {path} makes no network that can be run: {reason}") from error
    return metrics


def inspect(path: str) -> str:
    """Return a table of the layers, and what they take together."""
    artifact = read(path)
    sizes = {name: size_of(layer) for name, layer in artifact.layers.items()}
    total = reduce(add, sizes.values())
    rows = [
        {
            "layer": name,
            "shape": "x".join(map(str, layer.codes.shape)),
            "bits": layer.grid.bits,
            "grid": kind_of(layer.grid),
            "granularity": words(layer.grid.granularity),
            "bytes": sizes[name].bytes,
            "bits a weight": f"{sizes[name].bits:.3f}",
            "of half": f"{sizes[name].share:.3f}",
        }
        for name, layer in artifact.layers.items()
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    plain = sum(tensor.nbytes for tensor in artifact.plain.values())
    static = sum(site.static for site in artifact.sites.values())
    lines = [
        table,
        f"{len(sizes)} quantized layers: {total.weights} weights in {total.bytes} bytes, "
        f"{total.bits:.3f} bits a weight, {total.share:.4f} of half precision",
        f"{len(artifact.sites)} activations quantized, {static} of them with a static step",
        f"{len(artifact.plain)} tensors that are not quantized: {plain} bytes",
    ]
    return "\n".join(lines)


def export(path: str, name: str, out: Path, overrides: Sequence[str]) -> str:
    """Write the artifact at path for another program and return where.

    Raises:
        ValueError: when the format can't express it, out is there already, or overrides have a
            device.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists; give another folder, or move it away")
    with value_errors():
        idle = [text for text in overrides if parsed(text).key_or_group == "device"]
    if idle:
        raise ValueError(f"{idle[0]} does nothing here: it is written on the CPU; leave it out")
    # Nothing is computed, and ONNX's exporter makes some of its tensors on the CPU alone.
    FORMATS[name](rebuild(path, overrides, "cpu"), locate(path).parent, out)
    return str(out)
