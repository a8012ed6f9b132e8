"""Context of a part: the device, the time left, and the rows that an earlier call has found."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Value = str | int | float | bool | None
Row = dict[str, Value]
ERROR, SKIPPED = "error", "skipped"  # keys of a row that has not come to its end
LONGEST = 300  # characters of an error


def one_line(error: BaseException) -> str:
    """Return the kind and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST]


def clean(row: Mapping[str, Any]) -> Row:
    """Return row as JSON has it: numbers that are not finite as words."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def key_of(facts: Mapping[str, Any]) -> str:
    """Return what names a row with these facts."""
    return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True)
class Context:
    """What a part is told.

    Attributes:
        device: where it computes.
        tiny: whether everything is as small as it can be, to try the script itself.
        folder: where results go.
        images: a folder with val/ and train/ of images, or None.
        deadline: on time.monotonic, when the part should be over.
        earlier: rows of an earlier call by the same code.
    """

    device: torch.device
    tiny: bool
    folder: Path
    images: Path | None = None
    deadline: float = math.inf
    earlier: tuple[Row, ...] = field(default=())

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Return the seconds that the part may still take."""
        return self.deadline - time.monotonic()

    def row(self, facts: Row, seconds: float, make: Callable[[], Row]) -> Row:
        """Return facts with what make finds, which takes about seconds on a card.

        Where an earlier call has found it, that is returned; where less time is left, or where
        make fails, a row that says so: the next row has its turn.
        """
        for row in self.earlier:
            if facts.items() <= row.items():
                return row
        if self.left() < (0 if self.tiny else seconds):
            line = f"takes about {seconds:.0f} s, {max(0, self.left()):.0f} s are left"
            return facts | {SKIPPED: line}
        try:
            return facts | make()
        except Exception as error:  # recorded, and the next row has its turn
            return facts | {ERROR: one_line(error)}
        finally:
            self.tidy()

    def refused(self, facts: Row, why: str) -> Row:
        """Return a row that says why it is left out."""
        return facts | {SKIPPED: why}

    def tidy(self) -> None:
        """Let go of what the last row held."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def free_gib(self) -> float:
        """Return the memory of the card that is free; without a card no limit."""
        if not self.cuda:
            return math.inf
        return float(torch.cuda.mem_get_info(self.device)[0]) / 2**30


Rows = Callable[[Context], Iterator[Row]]
