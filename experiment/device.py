"""Device that a run computes on, and the kind of machine it is: what decides the last bits."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

CPUINFO = Path("/proc/cpuinfo")


def device_of(name: str) -> torch.device:
    """Return the device called name; auto is the GPU where there is one.

    Raises:
        ValueError: when the machine does not have it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = str(error).splitlines()[0]
        if name.startswith("cuda") and seen is not None:
            count = torch.cuda.device_count()
            why = f"CUDA_VISIBLE_DEVICES={seen} lets this process see {count or 'no'} GPUs ({why})"
        raise ValueError(f"device={name}: {why}; give auto, cpu or cuda:N") from error
    return device


def device_name(device: torch.device) -> str:
    """Return cpu, or the GPU's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def precision_told(cfg: DictConfig, products: str) -> str:
    """Return what a record calls the precision: of the products, and whether passes are compiled.

    Compiled passes end on other last digits, and no setting of a run's name tells them apart.
    """
    idle = [option for options in cfg.idle.values() for option in options]
    compiled = "compile" in cfg.recon and cfg.recon.compile and "compile" not in idle
    return f"{products} compiled" if compiled else products


@functools.cache
def processor() -> str:
    """Return the CPU's model and the vector instructions that torch uses on it."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        entries = [line.partition(":") for line in CPUINFO.read_text().splitlines()]
        model = next(value.strip() for key, _, value in entries if key.strip() == "model name")
    except (OSError, StopIteration):  # another system, or an ARM machine
        pass
    return f"{model} {torch.backends.cpu.get_cpu_capability()}"


def kind_of(device: torch.device) -> str:
    """Return the kind of device: on two of one kind the same code gives the same bits on a CPU.

    On a GPU some backward passes, of convolutions and of attention, add in no fixed order.
    """
    return device_name(device) if device.type == "cuda" else processor()
