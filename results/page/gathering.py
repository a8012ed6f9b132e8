"""Gathering of what a page shows besides its tables: claims, searches, units of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results.ledger.gathering import verdicts_in
from results.page.sections import Beside
from results.records.reading import newest_with_units
from results.records.record import Record
from results.search import searches_in


def gathered(
    place: Path, rows: Sequence[Record], chosen: Sequence[Record]
) -> tuple[Beside, list[str]]:
    """Return what there is beside the records chosen of place's rows, and why some of it is not."""
    remarks: list[str] = []

    def found(name: str, look: Callable[[], list[Any]]) -> list[Any]:
        try:
            return look()
        except ValueError as error:
            remarks.append(f"the page is without {name}: {error}")
        return []

    beside = Beside(
        found("claims", lambda: verdicts_in(place, rows)),
        found("searches", lambda: searches_in(place, rows, chosen)),
        newest_with_units(place, chosen),
    )
    return beside, remarks
