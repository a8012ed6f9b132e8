"""Quantization of a network in memory by one call, with the harness's methods and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import nn

from flexround.api.calibration import batches_of, count, first
from flexround.api.networks import adapter_of, copy_of, device_called, home_of
from flexround.api.presets import LAYER_BITS, Choice, Kind, choose
from flexround.api.rules import BITS
from flexround.artifact.artifact import Size, size_of
from flexround.calibration.activation_cache import ActivationCache
from flexround.grid import Grid, QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.models.coverage import Coverage
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.report import BlockReport
from flexround.reconstruction.samples import first_samples
from flexround.reconstruction.settings import Settings
from flexround.transforms.base import Calibration, apply, check_kind
from flexround.utils.tensor_float32 import tensor_float32

MOST_SEED = 2**32 - 1  # the largest that the command line takes


@dataclass(frozen=True)
class Quantized:
    """A quantized network and what it was made of.

    Attributes:
        network: a copy of the one given, in eval mode, its quantized weights dequantized in place
            (BatchNorm folded); with act_bits its activations are quantized at every call.
        layers: by layer the integers, on the CPU: codes [out, in, *kernel] int16, scale and
            zero_point [groups, 1], grid; codes stand for scale * (codes - zero_point), or
            on a table of levels for scale * level.
        units: what became of each unit of reconstruction, in order; `results.units` makes a frame.
        coverage: which share of the blocks' weights is quantized, and what was left.
        settings: everything that decided the result, by the command line's names ("recon.iters").
    """

    network: nn.Module
    layers: Mapping[str, QuantizedTensor]
    units: list[BlockReport]
    coverage: Coverage
    settings: Mapping[str, Any]

    @property
    def size(self) -> Size:
        """Weights and bytes of the integers, packed, scales and zero points included."""
        return reduce(add, (size_of(layer) for layer in self.layers.values()))

    def __repr__(self) -> str:
        bits = sorted({layer.grid.bits for layer in self.layers.values()})
        told = " and ".join(map(str, bits))
        return (
            f"<{type(self.network).__name__} by {self.settings['quant']}: {len(self.layers)} "
            f"layers at {told} bits, {self.size.bits:.2f} bits a weight with scales; "
            f"{self.coverage.summary()}>"
        )


def quantize(
    model: nn.Module,
    calibration: Any,
    method: str = "flexround",
    bits: int = 4,
    *,
    granularity: str | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    grid: str | None = None,
    bits_per_layer: Mapping[str, int] | None = None,
    act_bits: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
) -> Quantized:
    """Return model quantized by method, with the integers; model itself stays as it is.

    The numbers are those of `python run.py` on the same network, calibration set and seed.

    Args:
        model: a network of vectors or images whose layers are Linear and convolutions, cut into
            the smallest blocks that are a chain; or a language model or encoder of transformers.
        calibration: samples as model takes them, on any device: a tensor [samples, ...], a list of
            tensors or dicts (batches), or a DataLoader, of whose pairs the labels are left aside.
        method: one of `flexround.methods()`, as quant= on the command line.
        bits: of a weight, 2 to 8.
        granularity: per_tensor, per_channel or per_group. Without it the paper's: one scale a
            tensor, symmetric, for networks of tensors; one an output channel, asymmetric, for text.
        group_size: weights that share a scale; chooses per_group where no granularity is given.
        symmetric: codes around 0 rather than around a zero point.
        grid: integer, or a table of levels: nf4, fp4, or mxfp4 with its own groups; bits=4 alone.
        bits_per_layer: bits of layers by name or pattern, {"*.down_proj": 8}; the last that fits.
        act_bits: quantize activations too, 2 to 8 bits; chooses activation=static_per_tensor where
            options have no other.
        seed: of the mini-batches, 0 to 4294967295.
        device: where blocks are worked on, cpu or cuda; without it where model lies.
        options: everything else by the command line's name: {"recon": "qdrop", "recon.iters": 500,
            "recon.lr": 1e-3, "quant.rank": 64, "model.first_last_bits": None, "model.leave": [..]}.

    >>> import torch, flexround
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> found = flexround.quantize(net, torch.randn(64, 8), bits=3, options={
    ...     "recon.iters": 20, "model.first_last_bits": None})
    >>> found.layers["0"].codes.shape, int(found.layers["0"].codes.max()) <= 3
    (torch.Size([16, 8]), True)
    >>> bool((found.network[0].weight == found.layers["0"].dequantize()).all())
    True

    Raises:
        ValueError: for a network that can't be followed (names the layer), an unknown method, an
            option that there is not or that does nothing, bits or a seed out of range, calibration
            data that are empty, too few or not finite.
    """
    given = _given(
        bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric,
        grid=grid, bits_per_layer=bits_per_layer, act_bits=act_bits, seed=seed, options=options,
    )  # fmt: skip
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    batches, kind = batches_of(calibration, model)
    choice = choose(kind, method, given)
    _check(choice, kind, count(batches))
    home = home_of(model)
    at_work = home if device is None else device_called(device)
    own, log = choice.values["model"], ReportLog()
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
        adapter = adapter_of(
            copy_of(model), kind, first(batches), at_work, own["leave"], own["first_last_bits"]
        )
        integers = _integers(adapter, batches, choice, seed, log)
    layers = {name: layer.on(torch.device("cpu")) for name, layer in integers.items()}
    network = _finished(adapter, model, home)
    return Quantized(network, layers, log.blocks, adapter.coverage(), _settings(choice))


@tensor_float32(False)
def _integers(
    adapter: ModelAdapter, batches: list[Any], choice: Choice, seed: int, log: ReportLog
) -> dict[str, QuantizedTensor]:
    """Quantize adapter's network in place and return its integers."""
    grid, recon, cache = _grid(choice), choice.build("recon"), ActivationCache()
    adapter.assign_bits(choice.values[LAYER_BITS])
    transform = choice.build("transform")
    if transform is not None:
        draws = torch.Generator().manual_seed(seed)
        seen = first_samples(adapter, batches, count(batches) - recon.held_out)
        apply(transform, adapter, Calibration(seen, recon.batch_size, grid, cache, draws))
    found: dict[str, QuantizedTensor] = recon(
        adapter, batches, quantizer=choice.build("quant"), grid=grid,
        ranges=choice.build("ranges"), activation=choice.build("activation"),
        generator=torch.Generator().manual_seed(seed), callbacks=[log], cache=cache,
    )  # fmt: skip
    return found


def _check(choice: Choice, kind: Kind, samples: int) -> None:
    """Check what needs no network.

    Raises:
        ValueError: when bits or an option of the method are out of range, samples are too few, or
            the transform is for another kind of network.
    """
    recon = choice.build("recon")
    recon.check_method(choice.build("quant"), _grid(choice))
    _check_enough(recon, samples)
    transform = choice.build("transform")
    if transform is not None:
        check_kind(transform, kind, offload=False)


def _grid(choice: Choice) -> Grid:
    values = choice.values
    levels = choice.build("grid")
    symmetric = values["symmetric"] or levels is not None
    return Grid(values["bits"], symmetric, choice.build("granularity"), levels)


def _settings(choice: Choice) -> dict[str, Any]:
    """Return everything that was chosen by its name: groups by a word, their options dotted."""
    told: dict[str, Any] = {}
    for name, value in choice.values.items():
        if name in (*choice.names, "model") and isinstance(value, Mapping):
            told |= {f"{name}.{key}": part for key, part in value.items() if key[0] != "_"}
        else:
            told[name] = value
    return told | choice.names


def _given(options: Mapping[str, Any] | None, **arguments: Any) -> dict[str, Any]:
    """Return everything that was given, by the command line's names.

    Raises:
        ValueError: when something is given twice, bits is None, or seed is no whole number from 0
            to 2^32 - 1.
    """
    if arguments["bits"] is None:  # which for other arguments means that none is given
        raise ValueError("bits=None: give a whole number from {} to {}".format(*BITS))
    seed = arguments["seed"]
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed={seed!r}: give a whole number from 0 to {MOST_SEED}")
    given = {name: value for name, value in arguments.items() if value is not None}
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ValueError(f"options={options!r}: give a dict, such as {{'recon.iters': 500}}")
    if twice := [name for name in options if name in arguments or name == "quant"]:
        raise ValueError(f"options has {twice[0]}, which is an argument of its own; give it there")
    return given | dict(options)


def _check_enough(recon: Any, samples: int) -> None:
    """Check that a mini-batch can be drawn of the samples.

    Raises:
        ValueError: when it can't be.
    """
    if not isinstance(recon, Settings):
        return
    left = samples - recon.held_out
    if left < recon.batch_size and (recon.held_out or recon.iters):
        but = f" but for recon.held_out={recon.held_out}" if recon.held_out else ""
        raise ValueError(
            f"calibration holds {samples} samples{but}, fewer than "
            f"recon.batch_size={recon.batch_size}; give more, or "
            f"options={{'recon.batch_size': {max(1, left)}}}"
        )


def _finished(adapter: ModelAdapter, model: nn.Module, home: torch.device) -> nn.Module:
    """Return adapter's network as a caller goes on with it: at home, its config as it was."""
    config, before = (getattr(net, "config", None) for net in (adapter.model, model))
    if config is not None and before is not None and hasattr(before, "use_cache"):
        config.use_cache = before.use_cache
    return adapter.model.to(home)
