"""Activations and targets of the calibration set: in which type they are held, and where.

They are the part of a reconstruction that grows with the number of samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor

from flexround.calibration.disk_tensors import DiskTensors

Where = Literal["auto", "cuda", "cpu"]
HALF = (torch.float16, torch.bfloat16)
# Of one size, live at once: both cache, the targets, and the outputs that are being made.
TOGETHER = 4


@dataclass(frozen=True)
class ActivationCache:
    """Holds activations [samples, ...] in memory, or in a file where they would take too much.

    Attributes:
        dtype: what they are rounded to, None to leave them as they are.
        limit_gib: memory that those which are live at once may take; beyond it they go to spill.
        spill: where to; needed where there is a limit.
        where: on the GPU, in the CPU's memory, or (auto) on the GPU where they fit; the results are
            the same. Nothing is spilled from a GPU.
    """

    dtype: torch.dtype | None = None
    limit_gib: float = math.inf
    spill: DiskTensors | None = None
    where: Where = "auto"

    def __post_init__(self) -> None:
        if self.dtype not in (None, *HALF):
            raise ValueError(f"stream_dtype={self.dtype}: give float32, bfloat16 or float16")
        if not self.limit_gib >= 0:
            raise ValueError(f"stream_gib={self.limit_gib}: give 0, which spills all, or more")
        if self.limit_gib < math.inf and self.spill is None:
            raise ValueError(f"stream_gib={self.limit_gib}: give a folder to spill to as well")
        if self.where not in get_args(Where):
            raise ValueError(f"stream_device={self.where}: give {', '.join(get_args(Where))}")
        if self.where == "cuda" and self.limit_gib < math.inf:
            raise ValueError(
                f"stream_gib={self.limit_gib} limits what streams take of the CPU's memory, where "
                "stream_device=cuda leaves none; leave one of the two out"
            )

    def check_device(self, device: torch.device) -> None:
        """Check that a run on device can hold activations where it should.

        Raises:
            ValueError: when they are to lie on a GPU and the run has none.
        """
        if self.where == "cuda" and device.type == "cpu":
            raise ValueError(
                "stream_device=cuda does nothing for a run on device=cpu; leave it out, or give "
                "device=cuda"
            )

    def store(self, parts: Iterable[Tensor]) -> Tensor:
        """Return parts joined along their first axis, [samples, ...].

        Raises:
            ValueError: when they can't be held, for want of range or of room.
        """
        rounded = map(self._round, parts)
        held: list[Tensor] = []
        most, size = self.limit_gib * 2**30 / TOGETHER, 0
        for part in rounded:
            held.append(part)
            size += part.nbytes
            if size > most:
                assert self.spill is not None, "a limit comes with it"
                return self.spill.write(chain(_emptied(held), rounded))
        return torch.cat(held)

    def _round(self, part: Tensor) -> Tensor:
        if self.dtype is None or not part.is_floating_point():
            return part
        rounded = part.to(self.dtype)
        if self.dtype == torch.float16 and (rounded.isinf() & part.isfinite()).any():
            largest = part[part.isfinite()].abs().max().item()
            raise ValueError(
                f"stream_dtype=float16 ends at 65504, an activation is {largest:.4g}; give bfloat16"
            )
        return rounded


def _emptied(parts: list[Tensor]) -> Iterable[Tensor]:
    """Yield the parts in order and let go of each."""
    parts.reverse()
    while parts:
        yield parts.pop()


def rows(values: Tensor, indices: Tensor, device: torch.device) -> Tensor:
    """Return values [samples, ...] at indices [batch] on device, half precision as float32."""
    if device.type != "cpu" and values.device.type == "cpu":
        staged = page_locked((len(indices), *values.shape[1:]), values.dtype)
        picked = torch.index_select(values, 0, indices.cpu(), out=staged)
        picked = _sent(picked, device)
    else:
        picked = values[moved(indices, values.device)].to(device)
    return picked.float() if picked.dtype in HALF else picked


def _sent(batch: Tensor, device: torch.device) -> Tensor:
    """Return batch, which lies in page-locked memory, on a GPU, copied beside what that is at.

    Nothing in an iteration waits for the GPU, so that the next batch is asked for, and on its way,
    while the one before is computed with.
    """
    if device.type != "cuda":
        return batch.to(device, non_blocking=True)
    lane, at_work = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(lane):
        sent = batch.to(device, non_blocking=True)
    at_work.wait_stream(lane)
    sent.record_stream(at_work)  # its memory goes to no other batch before it is done with
    return sent


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Return values on device; from the CPU they get to a GPU beside what it is at."""
    if device.type == "cpu" or values.device.type != "cpu":
        return values.to(device)
    return (
        page_locked(tuple(values.shape), values.dtype).copy_(values).to(device, non_blocking=True)
    )


def page_locked(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor that a GPU reads without a detour; torch keeps it while it does."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class FullPrecisionOutputs:
    """Computes the outputs of each block; a subclass may find them where another run left them."""

    def get(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return the outputs [samples, ...] of the block at that place, wherever they lie."""
        return compute()
