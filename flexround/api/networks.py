"""Adapters of networks that a caller has in memory, whatever made them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flexround.api.presets import Kind
from flexround.calibration.activation_cache import HALF
from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.network_checks import NoChain
from flexround.models.tracing import first_line
from flexround.models.vision import VisionAdapter


def adapter_of(
    network: nn.Module,
    kind: Kind,
    example: Any,
    device: torch.device,
    leave: Sequence[str],
    first_last_bits: int | None,
) -> ModelAdapter:
    """Return network's adapter; network is changed (BatchNorm folded, fused experts split).

    Raises:
        ValueError: when network can't be followed; names the layer or block, and why.
    """
    name = type(network).__name__
    try:
        if kind == "language":
            return LanguageAdapter(network, example, device, leave)
        if half := {str(p.dtype) for p in network.parameters() if p.dtype in HALF}:
            raise ValueError(
                f"{name} has weights in {', '.join(sorted(half))}; give network.float(), and its "
                "calibration likewise"
            )
        return _chain(network, example, device, leave, first_last_bits)
    except ValueError:
        raise
    except Exception as error:  # a network may raise anything
        raise ValueError(f"{name} can't be followed on the calibration: {first_line(error)}") from (
            error
        )


def home_of(model: nn.Module) -> torch.device:
    """Return where model lies.

    Raises:
        ValueError: when it has no weights in memory, or on several devices.
    """
    places = {parameter.device for parameter in model.parameters()}
    if len(places) != 1 or torch.device("meta") in places:
        found = ", ".join(sorted(map(str, places))) or "no parameters"
        raise ValueError(f"{type(model).__name__} has {found}; give a network on one device")
    return places.pop()


def device_called(device: str | torch.device) -> torch.device:
    """Return the device of that name.

    Raises:
        ValueError: when there is none.
    """
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # whatever torch raises for a word, or a GPU that is not there
        raise ValueError(f"device={device}: {first_line(error)}; give cpu, or leave it out") from (
            error
        )


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of model.

    Raises:
        ValueError: when it can't be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module's own parts raise
        raise ValueError(
            f"{type(model).__name__} can't be copied: {first_line(error)}; the copy is what is "
            "quantized"
        ) from error


def _chain(
    network: nn.Module,
    example: torch.Tensor,
    device: torch.device,
    leave: Sequence[str],
    first_last_bits: int | None,
) -> VisionAdapter:
    """Return the adapter of network in the smallest blocks that are a chain.

    Where a block needs more than the one before it gives, as behind a residual connection, the
    module that holds the latter becomes a block, with all of its class.

    Raises:
        ValueError: when no module but the whole network is left to become one.
    """
    units: list[str] = []
    while True:
        try:
            return VisionAdapter(network, example, first_last_bits, device, leave, units)
        except NoChain as broken:
            holder = _holder(network, broken.block)
            if not holder or holder in units or _holds_all(network, holder):
                raise
            units += _alike(network, holder)


def _holder(network: nn.Module, name: str) -> str:
    """Return the name of the module around the one called name that is called as a whole."""
    while name := name.rpartition(".")[0]:
        if not isinstance(network.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            break
    return name


def _holds_all(network: nn.Module, name: str) -> bool:
    """Return whether every parameter of network lies in its module called name."""
    return all(p.startswith(f"{name}.") for p, _ in network.named_parameters())


def _alike(network: nn.Module, name: str) -> list[str]:
    """Return the names of the modules of the same class as name; of torch's own, name alone."""
    kind = type(network.get_submodule(name))
    if kind.__module__.startswith("torch.nn."):
        return [name]
    return [other for other, module in network.named_modules() if type(module) is kind and other]
