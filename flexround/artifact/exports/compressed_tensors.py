"""The compressed-tensors format, which transformers loads, and vLLM where it has a kernel.

Layout: github.com/vllm-project/compressed-tensors, compressors/{pack,naive}_quantized. Codes
and zero points are signed, q - 2^(bits - 1). pack-quantized packs them densely into int32 words:
codes along a row, the zero points of channels and groups along a column. int-quantized has a byte
for each.

transformers 5.24 with compressed-tensors 0.20 gives packed zero points no room where it keeps
weights compressed, so asymmetric weights are marked to be dequantized while they are loaded; that
leaves activations alone, so asymmetric weights with quantized activations go into int-quantized.
So do asymmetric ones of several numbers of bits, which that dequantization unpacks as if all had
those of one scheme, and weights of 8 bits with quantized activations, which vLLM has in bytes only.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexround.artifact.activation_ranges import StoredSite
from flexround.artifact.artifact import Artifact
from flexround.artifact.exports.huggingface import (
    change_of_scales,
    check_integer,
    check_layers,
    check_scales,
    plain_layers,
    relative_change,
    write_model,
)
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor, QuantizedTensor
from flexround.models.base import ModelAdapter

NAME = "compressed-tensors"
STRATEGIES = {PerTensor: "tensor", PerChannel: "channel", PerGroup: "group"}
log = logging.getLogger(__name__)


def export(artifact: Artifact, adapter: ModelAdapter, folder: Path, out: Path) -> None:
    """Write the artifact in folder, restored in adapter, to out; warn of scales that it rounds.

    Raises:
        ValueError: when the format can't express it.
    """
    check_layers(artifact, adapter, folder, NAME, ["Linear"])
    for name, layer in artifact.layers.items():
        check_integer(layer.grid, name, NAME)
    inputs = _inputs(artifact, adapter)
    symmetric = all(layer.grid.symmetric for layer in artifact.layers.values())
    widths = {layer.grid.bits for layer in artifact.layers.values()}
    packed = widths != {8} and symmetric if inputs else symmetric or len(widths) == 1
    kind = "pack-quantized" if packed else "int-quantized"
    tensors: dict[str, Tensor] = {}
    schemes: dict[str, list[str]] = {}  # layers by the JSON of their scheme
    change = 0.0  # of a scale, the largest
    for name, layer in artifact.layers.items():
        dtype = getattr(torch, artifact.dtypes[name])
        check_scales(
            layer,
            dtype,
            f"{NAME} has scales in the model's {artifact.dtypes[name]}, where {name}'s {{scale}} "
            "becomes {becomes}; quantize the model in float32 or bfloat16",
        )
        tensors |= {f"{name}.{key}": t for key, t in weight_tensors(layer, packed, dtype).items()}
        change = max(change, change_of_scales(layer, dtype))
        scheme = {"weights": weight_arguments(layer.grid), "input_activations": None}
        if name in inputs:
            scheme["input_activations"] = input_arguments(inputs[name])
            own = input_tensors(inputs[name], dtype)
            tensors |= {f"{name}.{key}": t for key, t in own.items()}
            if (step := inputs[name].scale) is not None:
                change = max(change, relative_change(step.view(1), dtype))
        schemes.setdefault(json.dumps(scheme), []).append(name)
    config = {
        "quant_method": NAME,
        "format": kind,
        "quantization_status": "compressed",
        "dequantize": packed and not symmetric,
        "config_groups": _groups(schemes, kind),
        "ignore": plain_layers(artifact, adapter, ["Linear"]),
    }
    write_model(out, artifact, adapter, folder, tensors, config)
    if change:
        log.warning(
            "%s has scales in the model's own type, which changes them by up to %.2e of their "
            "size: what is exported computes something else than what was evaluated",
            NAME, change,
        )  # fmt: skip


def weight_arguments(grid: Grid) -> dict[str, Any]:
    """Return the format's words for a weight's grid."""
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": STRATEGIES[type(grid.granularity)],
        "group_size": getattr(grid.granularity, "group_size", None),
        "dynamic": False,
    }


def weight_tensors(layer: QuantizedTensor, packed: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what stands for a weight [out, in]; scales are rounded to the model's dtype."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits, symmetric = layer.grid.bits, layer.grid.symmetric
    whole = isinstance(layer.grid.granularity, PerTensor)
    shape = (1,) if whole else (len(layer.codes), -1)  # [out, groups of a row]
    half = 2 ** (bits - 1)
    codes = (layer.codes if symmetric else layer.codes - half).to(torch.int8)
    tensors = {"weight_scale": layer.scale.view(shape).to(dtype)}
    if not symmetric:
        tensors["weight_zero_point"] = (layer.zero_point - half).to(torch.int8).view(shape)
    if not packed:
        return tensors | {"weight": codes}
    if not symmetric and not whole:
        zero_point = pack_to_int32(tensors["weight_zero_point"], bits, packed_dim=0)
        tensors["weight_zero_point"] = zero_point
    shapes = {"weight_shape": torch.tensor(layer.codes.shape)}
    return tensors | shapes | {"weight_packed": pack_to_int32(codes, bits)}


def input_arguments(site: StoredSite) -> dict[str, Any]:
    """Return the format's words for an activation that a layer takes."""
    return {
        "num_bits": site.bits,
        "type": "int",
        "symmetric": site.static and site.signed,
        "strategy": "tensor" if site.static else "token",
        "dynamic": not site.static,
    }


def input_tensors(site: StoredSite, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the static range of an activation; nothing where each token brings its own."""
    if site.scale is None or site.zero_point is None:
        return {}
    # A copy: query, key and value share a site, and a file of tensors shares nothing.
    tensors = {"input_scale": site.scale.view(1).to(dtype, copy=True)}
    if not site.signed:
        zero_point = site.zero_point - 2 ** (site.bits - 1)
        tensors["input_zero_point"] = zero_point.to(torch.int8).view(1)
    return tensors


def _inputs(artifact: Artifact, adapter: ModelAdapter) -> dict[str, StoredSite]:
    """Return the quantizer of what each layer takes, by the layer's name."""
    names = {module: name for name, module in adapter.model.named_modules()}
    places = [site for block in adapter.blocks() for site in block.sites]
    used = [place for place in places if place.name in artifact.sites]
    if cached := [place.name for place in used if place.role == "kv"]:
        raise ValueError(
            f"{NAME} has no keys and values quantized before rotary embedding, a range for each "
            f"token ({cached[0]}); quantize with kv_bits=null"
        )
    calls = Counter(names[module] for place in used for module in place.modules)
    inputs = {names[m]: artifact.sites[place.name] for place in used for m in place.modules}
    if several := [name for name, site in inputs.items() if site.static and calls[name] > 1]:
        raise ValueError(
            f"{NAME} has one range for what a layer takes; layer {several[0]} is called "
            f"{calls[several[0]]} times in a pass, with a range for each call; quantize with "
            "activation=dynamic_per_token or activation=none"
        )
    _check_tokens(adapter, [name for name, site in inputs.items() if not site.static])
    return inputs


@torch.no_grad()
def _check_tokens(adapter: ModelAdapter, layers: Sequence[str]) -> None:
    """Check that layers take [batch, tokens, hidden]; in two dimensions a token is not seen."""
    flat: list[str] = []
    handles = []
    for name in layers:

        def look(_: object, args: tuple[Tensor, ...], name: str = name) -> None:
            if args[0].dim() != 3:
                flat.append(name)

        handles.append(adapter.model.get_submodule(name).register_forward_pre_hook(look))
    try:
        if layers:
            adapter.forward({"input_ids": torch.arange(8).view(2, 4)})
    finally:
        for handle in handles:
            handle.remove()
    if flat:
        raise ValueError(
            f"{NAME} finds a range for each token of [batch, tokens, hidden] alone; layer "
            f"{flat[0]} takes [tokens, hidden]; quantize with activation=static_per_tensor"
        )


def _groups(schemes: Mapping[str, list[str]], kind: str) -> dict[str, Any]:
    return {
        f"group_{index}": {
            "targets": ["Linear"] if len(schemes) == 1 else names,
            "format": kind,  # else that of a layer with quantized inputs is guessed
            **json.loads(scheme),
        }
        for index, (scheme, names) in enumerate(schemes.items())
    }
