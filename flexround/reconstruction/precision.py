"""Precision of an iteration's matrix products: weights and rounding keep float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


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
    if device.type == "cuda" and precision != "float32":
        name = torch.cuda.get_device_name(device)
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            raise ValueError(
                f"recon.precision={precision}: {name} has none, its compute capability is "
                f"{'.'.join(map(str, capability))} and 8.0 is needed; give float32"
            )


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Run the matrix products inside in precision; float32 is torch's own setting."""
    if precision == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    elif precision == "tf32":
        backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "tf32"
        try:
            yield
        finally:
            for backend, own in zip(backends, before, strict=True):
                backend.fp32_precision = own
    else:
        yield
