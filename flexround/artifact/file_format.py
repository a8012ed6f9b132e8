"""File format of an artifact: one safetensors file.

A quantized weight NAME is NAME.codes (packed, see bit_packing.py; symmetric codes are stored from
0), NAME.scale [groups, 1] and on an asymmetric grid NAME.zero_point (packed alike). On a table of
levels a code is a place in it, and scales that are powers of two are bytes, exponents plus 127. A
static activation range is SITE.act_scale and SITE.act_zero_point. Every other parameter stands
under its own name, as it is. The header (header.py) tells bits, grid, granularity and shape of each
layer, the activations' bits, the run's record, and a digest of everything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flexround.artifact.activation_ranges import StoredSite
from flexround.artifact.artifact import Artifact
from flexround.artifact.bit_packing import pack, unpack
from flexround.artifact.header import (
    DIGEST,
    FORMAT,
    KEY,
    LEVELS_FORMAT,
    check_name,
    locate,
    read_header,
    whole_numbers,
)
from flexround.grid import (
    MAX_BITS,
    MIN_BITS,
    Grid,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedTensor,
)
from flexround.levels import BY_NAME, levels_named

GRANULARITIES: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup)
}

BIAS = 127  # of a scale that is a power of two, a byte: E8M0
WEIGHTS = ("float32", "float16", "bfloat16", "float64")  # what a network may store its weights in
MOST_WEIGHTS = 2**48  # of a layer: more is no layer, and overflows


def check_storable(grid: Grid) -> None:
    """Check that a file has words for grid.

    Raises:
        ValueError: when its granularity or its table of levels is none of those that are read.
    """
    kind, levels = type(grid.granularity), grid.levels
    if GRANULARITIES.get(kind.__name__) is not kind:
        raise ValueError(
            f"granularity={kind.__name__}: an artifact holds {', '.join(GRANULARITIES)}; give "
            "save=false"
        )
    if levels is not None and BY_NAME.get(levels.name) is not type(levels):
        raise ValueError(
            f"grid={levels.name}: an artifact holds {', '.join(BY_NAME)} and integers; give "
            "save=false"
        )


def write(artifact: Artifact, path: Path) -> None:
    """Write the file.

    Raises:
        ValueError: when codes or zero points are not on their grid, or that can't be stored.
    """
    from safetensors.torch import save_file

    tensors = dict(artifact.plain)
    for name, layer in artifact.layers.items():
        try:
            check_storable(layer.grid)
            tensors |= {f"{name}.{part}": t for part, t in _packed(layer).items()}
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
    for name, site in artifact.sites.items():
        if site.scale is not None and site.zero_point is not None:
            tensors[f"{name}.act_scale"] = site.scale
            tensors[f"{name}.act_zero_point"] = site.zero_point.to(torch.int32)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(_header(artifact))
    save_file(tensors, path, {KEY: text, DIGEST: _digest(text, tensors)})
    path.chmod(0o644)  # safetensors' is the owner's alone


def _header(artifact: Artifact) -> dict[str, Any]:
    layers = {
        name: {
            "bits": layer.grid.bits,
            "symmetric": layer.grid.symmetric,
            "granularity": type(layer.grid.granularity).__name__,
            **asdict(cast(Any, layer.grid.granularity)),
            **({} if layer.grid.levels is None else {"levels": layer.grid.levels.name}),
            "shape": list(layer.codes.shape),
            "dtype": artifact.dtypes[name],
        }
        for name, layer in artifact.layers.items()
    }
    sites = {name: site.header() for name, site in artifact.sites.items()}
    even = all(layer.grid.levels is None for layer in artifact.layers.values())
    version = FORMAT if even else LEVELS_FORMAT
    return {"format": version, "layers": layers, "sites": sites, "facts": dict(artifact.facts)}


def read(path: str | Path) -> Artifact:
    """Return the artifact at path, its file or its folder.

    Raises:
        ValueError: when it is damaged, its tensors are not what its header says, or it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = locate(path)
    header, digest = read_header(file)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"artifact {file} is damaged or truncated ({error})") from error
    if digest != _digest(json.dumps(header), tensors):
        raise ValueError(f"artifact {file} is damaged: it is not what was written")
    try:
        return _parse(header, tensors)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"artifact {file}: its header has no sound {error}") from error
    except ValueError as error:
        raise ValueError(f"artifact {file}: {error}") from error


def _parse(header: dict[str, Any], tensors: dict[str, Tensor]) -> Artifact:
    def part(name: str) -> Tensor:
        if name not in tensors:
            raise ValueError(f"its header names {name}, which it does not hold")
        return tensors.pop(name)

    layers, sites = {}, {}
    for name, facts in header["layers"].items():
        check_name(name)
        try:
            layers[name] = _unpacked(name, facts, part)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
    if not layers:
        raise ValueError("it has no quantized layer")
    for name, facts in header["sites"].items():
        check_name(name)
        try:
            sites[name] = _site(name, facts, part)
        except ValueError as error:
            raise ValueError(f"activation {name}: {error}") from error
    dtypes = {name: facts["dtype"] for name, facts in header["layers"].items()}
    return Artifact(layers, dtypes, sites, tensors, header["facts"])


def _site(name: str, facts: Mapping[str, Any], part: Callable[[str], Tensor]) -> StoredSite:
    bits, signed, static = facts["bits"], facts["signed"], facts["static"]
    if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits {str(bits)[:40]}")
    if not (isinstance(static, bool) and isinstance(signed, bool)):
        raise ValueError("static and signed are true or false")
    if not static:
        return StoredSite(bits)
    scale, zero_point = part(f"{name}.act_scale"), part(f"{name}.act_zero_point")
    if scale.numel() != 1 or not scale.is_floating_point() or zero_point.shape != scale.shape:
        raise ValueError("its step and zero point are one number each")
    if not (scale.isfinite() & (scale > 0)).all():
        raise ValueError("a step that is 0, negative or not finite")
    if zero_point.dtype != torch.int32 or int(zero_point.abs()) >= 2**bits:
        raise ValueError(f"a zero point that is none of {bits} bit")
    return StoredSite(bits, scale, zero_point, signed)


def _packed(layer: QuantizedTensor) -> dict[str, Tensor]:
    grid = layer.grid
    parts = {"codes": pack(layer.codes - grid.qmin, grid.bits), "scale": layer.scale}
    if grid.levels is not None and grid.levels.powers:
        parts["scale"] = (torch.frexp(layer.scale).exponent + (BIAS - 1)).to(torch.uint8)
    if not grid.symmetric:
        parts["zero_point"] = pack(layer.zero_point, grid.bits)
    elif layer.zero_point.any():
        raise ValueError("a symmetric grid with a zero point")
    return parts


def _unpacked(
    name: str, facts: Mapping[str, Any], part: Callable[[str], Tensor]
) -> QuantizedTensor:
    shape = torch.Size(whole_numbers(facts["shape"]))
    if len(shape) < 2 or not 0 < math.prod(shape) < MOST_WEIGHTS:
        raise ValueError(f"a weight of shape {list(shape)}")
    if type(facts["bits"]) is not int or not isinstance(facts["symmetric"], bool):
        raise ValueError("bits are a whole number, symmetric is true or false")
    if facts["dtype"] not in WEIGHTS:
        raise ValueError(f"dtype {str(facts['dtype'])[:40]!r}; there are {', '.join(WEIGHTS)}")
    options = {"group_size": facts["group_size"]} if "group_size" in facts else {}
    if not all(type(size) is int for size in options.values()):
        raise ValueError(f"group_size {str(options)[:40]}")
    granularity = GRANULARITIES[facts["granularity"]](**options)
    grid = Grid(facts["bits"], facts["symmetric"], granularity, levels_named(facts.get("levels")))
    groups = len(granularity.group(torch.empty(shape, device="meta")))
    scale = part(f"{name}.scale")
    if grid.levels is not None and grid.levels.powers:
        if scale.dtype != torch.uint8:
            raise ValueError("scales that are no exponents, a byte each")
        scale = torch.exp2(scale.double() - BIAS).to(torch.float32)
    if list(scale.shape) != [groups, 1] or not scale.is_floating_point():
        raise ValueError(f"scales {list(scale.shape)}, {groups} groups in its header")
    # SignRound's full-range symmetric grid has scales of either sign.
    if not (scale.isfinite() & (scale != 0 if grid.symmetric else scale > 0)).all():
        raise ValueError("a scale that is 0, negative or not finite")
    codes = unpack(part(f"{name}.codes"), grid.bits, shape.numel()).view(shape) + grid.qmin
    if codes.max() > grid.qmax:
        raise ValueError(f"a code beyond the levels of {facts['levels']}")
    zero_point = torch.zeros_like(scale)
    if not grid.symmetric:
        zero_point = unpack(part(f"{name}.zero_point"), grid.bits, groups).view(-1, 1).to(scale)
    return QuantizedTensor(codes, scale, zero_point, grid)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(memoryview(flat))
    return digest.hexdigest()
