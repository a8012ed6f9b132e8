"""The GPTQ layout (AutoGPTQ, GPTQModel): qweight, qzeros, scales, g_idx.

Layout: AutoGPTQ's qlinear modules and GPTQModel's, formats gptq (v1) and gptq_v2. A weight [out,
in] is stored turned: qweight [in * bits / 32, out] int32, codes packed densely along `in`; qzeros
[groups, out * bits / 32] int32, packed along `out`; scales [groups, out] in half precision; g_idx
[in] int32, the group of each input. v1 stores each zero point less 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexround.artifact.artifact import Artifact
from flexround.artifact.bit_packing import pack
from flexround.artifact.exports.huggingface import (
    check_layers,
    check_one_grid,
    check_scales,
    plain_layers,
    write_model,
)
from flexround.grid import Grid, PerGroup, PerTensor, QuantizedTensor
from flexround.models.base import ModelAdapter

NAME = "the GPTQ layout"
BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)  # of all kernels of GPTQModel together
WORD = 32
CLASSES = ("Linear", "Conv1D")


def export(artifact: Artifact, adapter: ModelAdapter, folder: Path, out: Path) -> None:
    """Write the artifact in folder, restored in adapter, to out.

    Raises:
        ValueError: when the format can't express it.
    """
    check_layers(artifact, adapter, folder, NAME, CLASSES)
    if artifact.sites:
        raise ValueError(f"{NAME} holds no quantized activations; quantize with activation=none")
    _check_whole(artifact, adapter)
    grid = check_one_grid(artifact, NAME)
    for name, layer in artifact.layers.items():
        try:
            _check(layer)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
    # Less 1, a zero point of 0 has no place in its bits.
    v1 = all(bool((_zero_points(layer) > 0).all()) for layer in artifact.layers.values())
    tensors: dict[str, Tensor] = {}
    for name, layer in artifact.layers.items():
        tensors |= {f"{name}.{key}": t for key, t in layer_tensors(layer, v1).items()}
    config = _config(grid, v1)
    write_model(
        out, artifact, adapter, folder, tensors, config,
        {"quantize_config.json": json.dumps(config, indent=2)},
    )  # fmt: skip


def _check_whole(artifact: Artifact, adapter: ModelAdapter) -> None:
    """Check that no layer of a block is plain: whoever reads the layout takes all to be packed.

    Raises:
        ValueError: when one is; names it.
    """
    blocks = tuple(f"{block.name}." for block in adapter.blocks())
    for name in plain_layers(artifact, adapter, CLASSES):
        if name.startswith(blocks):
            raise ValueError(
                f"{NAME} has no plain layer in a block, as {name} is by model.leave; export to "
                "compressed-tensors, which names those that are"
            )


def layer_tensors(layer: QuantizedTensor, v1: bool) -> dict[str, Tensor]:
    """Return what stands for a weight [out, in]."""
    grid, into = layer.grid, layer.codes.shape[1]
    zero_points = _zero_points(layer)  # [out, groups of a row]
    groups = zero_points.shape[1]
    codes = layer.codes - grid.qmin
    return {
        "qweight": _words(codes, grid.bits).T,
        "qzeros": _words((zero_points - int(v1)).T, grid.bits),
        "scales": _by_channel(layer.scale, layer).to(torch.float16).T,
        "g_idx": (torch.arange(into) // (into // groups)).to(torch.int32),
    }


def _words(rows: Tensor, bits: int) -> Tensor:
    """Return rows [n, numbers] packed each by itself, [n, numbers * bits / 32] int32."""
    return pack(rows.contiguous(), bits).view(torch.int32).view(len(rows), -1)


def _by_channel(values: Tensor, layer: QuantizedTensor) -> Tensor:
    """Return [groups, 1] as [out, groups of a row]."""
    out = len(layer.codes)
    if isinstance(layer.grid.granularity, PerTensor):
        return values.expand(out, 1)
    return values.view(out, -1)


def _zero_points(layer: QuantizedTensor) -> Tensor:
    return _by_channel(layer.zero_point - layer.grid.qmin, layer).to(torch.int16)


def _check(layer: QuantizedTensor) -> None:
    """Check one layer.

    Raises:
        ValueError: when the format can't express it.
    """
    bits = layer.grid.bits
    if bits not in BITS:
        raise ValueError(f"{NAME} has {', '.join(map(str, BITS))} bit, not {bits}")
    group = getattr(layer.grid.granularity, "group_size", None)
    if group not in (None, *GROUPS):
        raise ValueError(
            f"{NAME} is read in groups of {', '.join(map(str, GROUPS))}, not {group}; export to "
            "compressed-tensors, which has any"
        )
    if any(size % WORD for size in layer.codes.shape):
        raise ValueError(
            f"{NAME} fills words of {WORD} channels; the weight is {list(layer.codes.shape)}"
        )
    check_scales(
        layer,
        torch.float16,
        f"{NAME} has scales in half precision, where {{scale}} becomes {{becomes}}; export to "
        "compressed-tensors, which has the model's dtype",
    )


def _config(grid: Grid, v1: bool) -> dict[str, Any]:
    size = grid.granularity.group_size if isinstance(grid.granularity, PerGroup) else -1
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if v1 else "gptq_v2",
        "bits": grid.bits,
        "group_size": size,
        "sym": grid.symmetric,
        "desc_act": False,
    }
