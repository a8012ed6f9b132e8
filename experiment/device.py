"""Device that a run computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
        raise ValueError(
            f"device={name}: {str(error).splitlines()[0]}; give auto, cpu or cuda:N"
        ) from error
    return device


def device_name(device: torch.device) -> str:
    """Return cpu, or the GPU's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
