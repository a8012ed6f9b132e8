"""Whole numbers packed to their bits, with nothing lost between them.

Number i takes the bits i * bits .. (i + 1) * bits - 1 of a little-endian stream of bytes, so that 8
numbers fill `bits` bytes whatever the width; what is left of the last byte is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

BYTE = 8


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes count numbers of bits take."""
    return -(-count * bits // BYTE)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Return numbers of any shape, in 0 .. 2^bits - 1, as bytes [packed_bytes].

    Raises:
        ValueError: when one is out of that range.
    """
    flat = numbers.reshape(-1).to(torch.int64)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        raise ValueError(f"codes from {int(flat.min())} to {int(flat.max())} do not fit {bits} bit")
    eights = torch.nn.functional.pad(flat, (0, -len(flat) % BYTE)).view(-1, BYTE)
    words = torch.zeros(len(eights), dtype=torch.int64, device=flat.device)
    for place in range(BYTE):
        words |= eights[:, place] << place * bits
    packed = torch.stack([words >> BYTE * byte & 255 for byte in range(bits)], dim=1)
    return packed.to(torch.uint8).view(-1)[: packed_bytes(len(flat), bits)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the count numbers in packed, [count] int16.

    Raises:
        ValueError: when packed has another length, or bits behind its last number.
    """
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ValueError(
            f"{count} codes of {bits} bit are {packed_bytes(count, bits)} bytes, "
            f"not {list(packed.shape)} {str(packed.dtype).removeprefix('torch.')}"
        )
    padded = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits).long()
    words = torch.zeros(len(padded), dtype=torch.int64, device=packed.device)
    for byte in range(bits):
        words |= padded[:, byte] << BYTE * byte
    numbers = torch.stack([words >> place * bits & 2**bits - 1 for place in range(BYTE)], dim=1)
    flat = numbers.to(torch.int16).view(-1)
    if flat[count:].any():
        raise ValueError(f"there are bits behind the last of {count} codes of {bits} bit")
    return flat[:count]
