"""Precision of an iteration's matrix products: weights and rounding keep float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16", "auto"]
FIRST_WITH_BFLOAT16 = (8, 0)  # compute capability, which TF32 came with, too


def check_precision(precision: str, device: torch.device) -> None:
    """Check that device has precision.

    Raises:
        ValueError: for a name that is none, and for one that the device lacks.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"recon.precision={precision}: give {', '.join(get_args(Precision))}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"recon.precision=tf32 is for an NVIDIA GPU, this is device={device}; give bfloat16 or "
            "float32"
        )
    if device.type == "cuda" and precision in ("tf32", "bfloat16"):
        name = torch.cuda.get_device_name(device)
        capability = torch.cuda.get_device_capability(device)
        if capability < FIRST_WITH_BFLOAT16:
            raise ValueError(
                f"recon.precision={precision}: {name} has none, its compute capability is "
                f"{'.'.join(map(str, capability))} and 8.0 is needed; give float32, or auto"
            )


def precision_on(device: torch.device, precision: str) -> str:
    """Return precision; for auto bfloat16 on an NVIDIA GPU that has it, float32 elsewhere."""
    if precision != "auto":
        return precision
    on_gpu = device.type == "cuda"
    has_it = on_gpu and torch.cuda.get_device_capability(device) >= FIRST_WITH_BFLOAT16
    return "bfloat16" if has_it else "float32"


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Run the matrix products of a forward pass in precision; its backward pass follows it.

    tf32 is the setting of `tensor_float32`, which the backward pass looks up again.
    """
    if precision == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    else:
        yield
