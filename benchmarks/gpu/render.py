"""Tables of what was found on each card, in Markdown, for docs/speed.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.context import Row, Value
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.store import Found, read


def tables(folder: Path) -> Iterator[str]:
    """Yield the Markdown of every file in folder, line by line.

    Raises:
        ValueError: when there is none, or one can't be read.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(
            f"{folder} holds no results; run python -m benchmarks.gpu on a GPU machine"
        )
    for path in paths:
        card, parts = read(path)
        yield f"### {card}"
        for name, part in PARTS.items():
            if name in parts:
                yield from _part(part.title, parts[name])


def _part(title: str, found: Found) -> Iterator[str]:
    commit = f"commit {found.commit}" if found.commit else f"code {found.code}"
    told = "" if found.status == "done" else f"; {found.status}"
    told += f": {found.note}" if found.note else ""
    yield f"\n{title} ({commit}, torch {found.torch}, {found.seconds:.0f} s{told}).\n"
    if found.rows:
        yield from table(found.rows)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table whose columns are all that rows have, in the order they come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(name)) for name in columns)} |"


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
