"""What the formats of the Hugging Face library's models share: the folder that is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flexround.artifact.artifact import Artifact
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.utils.atomic_files import written_folder

CONFIG = "config.json"


def check_layers(
    artifact: Artifact, adapter: ModelAdapter, folder: Path, name: str, classes: Collection[str]
) -> None:
    """Check that the artifact in folder is a transformer whose layers the format name takes.

    Raises:
        ValueError: names what the format has no words for.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{name} holds transformers; {folder} has no {CONFIG}: it is none")
    for layer, own in adapter.layers().items():
        if own.expert is not None:
            raise ValueError(f"{name}: transformers reads no experts one by one, as {layer} is")
    for layer in artifact.layers:
        kind = type(adapter.model.get_submodule(layer)).__name__
        if kind not in classes:
            raise ValueError(f"{name} holds {' and '.join(classes)}; layer {layer} is a {kind}")


def plain_layers(artifact: Artifact, adapter: ModelAdapter, classes: Collection[str]) -> list[str]:
    """Return the names of the layers of classes that are not quantized, the head's among them."""
    named = adapter.model.named_modules()
    own = [name for name, module in named if type(module).__name__ in classes]
    return [name for name in own if name not in artifact.layers]


def check_integer(grid: Grid, layer: str, name: str) -> None:
    """Check that the codes of layer are integers, which is what the format name holds.

    Raises:
        ValueError: when they are places in a table of levels.
    """
    if grid.levels is not None:
        raise ValueError(
            f"layer {layer}: {name} is written with integers, and this weight is on "
            f"grid={grid.levels.name}; quantize with grid=integer"
        )


def check_scales(layer: QuantizedTensor, dtype: torch.dtype, message: str) -> None:
    """Check that no scale of layer loses more than its last bit in dtype.

    Those of groups whose weights are all zero don't count.

    Raises:
        ValueError: message, with the scale and what it becomes at its {scale} and {becomes}.
    """
    rounded = layer.scale.to(dtype).float()
    near = torch.finfo(dtype).eps / 2 * layer.scale.abs()
    # What is no number is lost, too.
    lost = ~(_empty(layer) | ((rounded - layer.scale).abs() <= near))
    if lost.any():
        scale, becomes = layer.scale[lost][0], rounded[lost][0]
        raise ValueError(message.format(scale=f"{scale:.6g}", becomes=f"{becomes:.6g}"))


def change_of_scales(layer: QuantizedTensor, dtype: torch.dtype) -> float:
    """Return the largest |scale in dtype - scale| / |scale| of layer's groups, 0 where all fit.

    Those of groups whose weights are all zero don't count.
    """
    return relative_change(layer.scale[~_empty(layer)], dtype)


def relative_change(values: Tensor, dtype: torch.dtype) -> float:
    """Return the largest |value in dtype - value| / |value| of values, none of them 0."""
    exact = values.double()
    changes = (values.to(dtype).double() - exact).abs() / exact.abs()
    return changes.max().item() if changes.numel() else 0.0


def _empty(layer: QuantizedTensor) -> Tensor:
    """Return which groups of layer's weights are all zero, [groups, 1]."""
    rows = layer.grid.granularity.group(layer.codes)
    return (rows == layer.zero_point).all(dim=1, keepdim=True)


def check_one_grid(artifact: Artifact, name: str) -> Grid:
    """Return the grid that all layers are on.

    Raises:
        ValueError: when there are several, or it is none of integers.
    """
    for layer, integers in artifact.layers.items():
        check_integer(integers.grid, layer, name)
    grids = {layer.grid for layer in artifact.layers.values()}
    if len(grids) > 1:
        kinds = sorted({grid.bits for grid in grids})
        told = f" ({', '.join(map(str, kinds))} bits)" if len(kinds) > 1 else ""
        raise ValueError(
            f"{name} gets one grid for all layers, not {len(grids)}{told}; quantize without "
            "bits_per_layer= and allocation=, or export to compressed-tensors"
        )
    return grids.pop()


def write_model(
    out: Path,
    artifact: Artifact,
    adapter: ModelAdapter,
    folder: Path,
    tensors: Mapping[str, Tensor],
    quantization: Mapping[str, Any],
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write out as a folder that from_pretrained takes, whole or not at all.

    tensors stand for the quantized weights; folder is the artifact's, with configuration and
    tokenizer; more are texts by the name of their file.
    """
    from safetensors.torch import save_file

    stored = adapter.model.state_dict().keys()
    plain = {name: tensor for name, tensor in artifact.plain.items() if name in stored}
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    config.pop("auto_map", None)  # code that the folder does not bring
    config["architectures"] = [type(adapter.model).__name__]
    config["use_cache"] = True  # only calibration can't do with a cache
    config["quantization_config"] = quantization
    whole = {name: tensor.contiguous() for name, tensor in (plain | dict(tensors)).items()}
    with written_folder(out) as part:
        for file in folder.iterdir():
            # A link may lead to what is not the artifact's.
            own = file.is_file() and not file.is_symlink()
            if own and file.suffix in (".json", ".txt", ".model", ".jinja"):
                shutil.copyfile(file, part / file.name)
        (part / CONFIG).write_text(json.dumps(config, indent=2))
        save_file(whole, part / "model.safetensors", {"format": "pt"})
        for name, text in more.items():
            (part / name).write_text(text)
