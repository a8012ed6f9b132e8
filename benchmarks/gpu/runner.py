"""Runner of the parts: each in its turn, guarded, within the time, kept at once."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu.child import PartCut, PartFailed, rows_of
from benchmarks.gpu.context import ERROR, SKIPPED, Context, Row, Rows
from benchmarks.gpu.parts import MINUTES, Part
from benchmarks.gpu.store import Found, Store, code, commit

GRACE = 60.0  # seconds beyond its share after which a part is taken to hang
Tell = Callable[[str], None]


def run_parts(
    names: Sequence[str],
    parts: Mapping[str, Part],
    store: Store,
    context: Context,
    minutes: float,
    tell: Tell,
    again: bool = False,
) -> int:
    """Run the parts called names; return how many have failed, wholly or in a row.

    What an earlier call by the same code has finished stays, unless again.
    """
    end, failed, own = time.monotonic() + 60 * minutes, 0, code()
    for name in names:
        part, known = parts[name], store.parts.get(name)
        same = known is not None and not again and known.code == own
        if known is not None and same and known.status == "done":
            tell(f"{name}: there from an earlier call, {len(known.rows)} rows (--again repeats it)")
            continue
        earlier = known.finished_rows() if known is not None and same else ()
        left = end - time.monotonic()
        if left < (0 if context.tiny else part.takes):
            line = f"it takes about {part.takes:.0f} s, {max(0, left):.0f} s are left"
            tell(f"{name}: skipped, {line}")
            if not earlier:
                store.keep(name, Found("skipped", line, own, commit(), torch.__version__))
            continue
        tell(f"{name}: about {part.takes:.0f} s ...")
        found = _run(name, part, store, replace(context, earlier=earlier), minutes, end)
        failed += found.status == "failed" or any(ERROR in row for row in found.rows)
        note = f", {found.note}" if found.note else ""
        tell(f"{name}: {found.status}, {len(found.rows)} rows in {found.seconds:.0f} s{note}")
    return failed


def _run(
    name: str, part: Part, store: Store, context: Context, minutes: float, end: float
) -> Found:
    start = time.monotonic()
    most = end - start
    if part.most is not None and not context.tiny:
        most = min(most, part.most * max(1.0, minutes / MINUTES))
    context = replace(context, deadline=start + most)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found = Found("cut", "", code(), commit(), torch.__version__, now)
    # Rows of before are kept until their turn comes, however this call ends.
    before = {id(row): row for row in context.earlier}

    def keep() -> None:
        found.seconds = round(time.monotonic() - start, 1)
        rest = [row for row in before.values() if row not in found.rows]
        store.keep(name, replace(found, rows=found.rows + rest))

    hang = min(most + GRACE, max(1.0, end - start))
    with closing(rows_of(partial(_begun, part.rows, context), hang)) as rows:
        try:
            for row in rows:
                found.rows.append(row)
                keep()
            found.status, found.note = _ended(found.rows)
        except PartFailed as error:
            found.status, found.note = "failed", str(error)
        except PartCut:
            found.note = f"its time was over after {len(found.rows)} rows"
    keep()
    return found


def _begun(rows: Rows, context: Context) -> Iterator[Row]:
    """Yield what rows yields, once the card is in use: its memory can be asked for from then on."""
    if context.cuda:
        if context.device.index is not None:
            torch.cuda.set_device(context.device)
        torch.zeros(1, device=context.device)
    yield from rows(context)


def _ended(rows: Sequence[Row]) -> tuple[str, str]:
    """Return (status, note) of a part that has come to its end with rows."""
    skipped = [row for row in rows if SKIPPED in row]
    missing = len(skipped) + sum(ERROR in row for row in rows)
    if not missing:
        return "done", ""
    if len(skipped) == len(rows):
        return "skipped", str(skipped[0][SKIPPED])
    return "partial", f"{missing} of {len(rows)} rows are missing"
