"""Pace of a GPU's work: how far what it is asked for may lie ahead of what it has done."""

from __future__ import annotations

import functools
from collections import deque

import torch

# Passes that a GPU may be behind: while one runs the next one is there, with its batch.
BEHIND = 2


class Pace:
    """Keeps a GPU no more than BEHIND passes behind what it has been asked for.

    Each pass's batch is copied to it as soon as it is asked for, and would pile up in its memory
    until something is read off it.
    """

    def __init__(self) -> None:
        self._asked: deque[torch.cuda.Event] = deque()

    def step(self, device: torch.device) -> None:
        """Note that a pass has been asked for; wait for the one BEHIND before it."""
        if device.type != "cuda":
            return
        self._asked.append(torch.cuda.current_stream(device).record_event())
        if len(self._asked) > BEHIND:
            self._asked.popleft().synchronize()


@functools.cache
def pace_of(device: torch.device) -> Pace:
    """Return the pace of all passes on device, whichever loop they are in."""
    return Pace()
