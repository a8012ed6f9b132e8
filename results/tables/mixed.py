"""Conditions that no setting names and that decide a value's last bits: where cells mix them."""

from __future__ import annotations

from collections.abc import Container, Sequence

import pandas as pd

from results.records.record import Record
from results.tables.formats import MARK

MACHINE = ("device", "precision", "torch", "threads", "processor")  # what a run worked on


def conditions_of(record: Record) -> dict[str, str]:
    """Return the conditions of a record by name; what it does not know is absent."""
    found = {
        "device": record.device,
        "precision": record.precision,
        "torch": record.versions.get("torch", ""),
        "network": _short(record.network),
        "evaluation data": _short(record.evaluation_data),
        "calibration images": str(record.evaluation.get("calibration_images", "")),
    }
    if record.device == "cpu":
        found |= {"threads": str(record.threads or ""), "processor": record.processor}
    return {name: value for name, value in found.items() if value}


def mixed(records: Sequence[Record], names: Container[str] | None = None) -> str | None:
    """Return what finished runs of one cell differ in, with the values; None where they agree.

    names are the conditions that count, all of them without.
    """
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if record.status == "ok":
            for name, value in conditions_of(record).items():
                if names is None or name in names:
                    found.setdefault(name, {})[value] = None
    told = [f"{name} ({', '.join(values)})" for name, values in found.items() if len(values) > 1]
    return "; ".join(told) or None


def network_of(records: Sequence[Record]) -> str | None:
    """Return the start of the digest of the network that runs share; None without one."""
    found = {_short(r.network) for r in records if r.network}
    return found.pop() if len(found) == 1 else None


def _short(digest: str | None) -> str:
    """Return the start of a digest, which no reader of csv takes for a number."""
    return f"sha256:{digest[:8]}" if digest else ""


def remarks(cells: pd.DataFrame) -> list[str]:
    """Return a line for each way in which the cells of a leaderboard mix conditions."""
    lines = []
    for told, part in cells.dropna(subset="mixed").groupby("mixed", sort=False):
        where = ", ".join(f"{r.model} {r.quant} {r.bits} bit" for r in part.itertuples())
        lines.append(f"{MARK} runs of one cell differ in {told}: {where}")
    known = cells.dropna(subset="network")
    for (task, model), part in known.groupby(["task", "model"], sort=False):
        if (count := part["network"].nunique()) > 1:
            lines.append(
                f"{model} on {task}: the cells are of {count} full-precision networks "
                f"({', '.join(part['network'].unique())})"
            )
    return lines
