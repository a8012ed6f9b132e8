"""TF32, float32 with 10 of its 23 bits, which an NVIDIA GPU takes for products where it may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_float32(on: bool) -> Iterator[None]:
    """Let an NVIDIA GPU take TF32 for products of float32, or see that none does.

    torch's own setting takes it for convolutions: float32 with 10 of its 23 bits.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [own.fp32_precision == "tf32" for own in (matmul, cudnn.conv)]  # type: ignore[attr-defined]
    _set_tensor_float32(on, on)
    try:
        yield
    finally:
        _set_tensor_float32(*before)


def _set_tensor_float32(products_: bool, convolutions: bool) -> None:
    # By torch's older names: it refuses to read them once only fp32_precision is set, and its
    # compiler reads them.
    torch.backends.cuda.matmul.allow_tf32 = products_
    torch.backends.cudnn.allow_tf32 = convolutions
    if not convolutions:  # not left to torch.backends.fp32_precision, which may say TF32
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
