"""Store of what was found: one JSON file a card, written anew with every row."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import ERROR, SKIPPED, Row
from flexround.utils.atomic_files import write_whole

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
STATUSES = ("done", "partial", "failed", "cut", "skipped")
CODE = (("flexround", "*.py"), ("benchmarks", "*.py"), ("conf", "*.yaml"))  # what decides a row


@dataclass
class Found:
    """What became of a part.

    Attributes:
        status: done; partial where a row is missing or has failed; failed as a whole; cut off when
            the time was over; skipped for want of time or for what note says.
        note: one line, why it is not done.
        code: the digest of the code, which must be the same for a part not to be repeated.
        commit: of the checkout, None without git.
    """

    status: str
    note: str = ""
    code: str = ""
    commit: str | None = None
    torch: str = ""
    started: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def finished_rows(self) -> tuple[Row, ...]:
        """Return the rows that have come to their end."""
        return tuple(row for row in self.rows if ERROR not in row and SKIPPED not in row)


def code() -> str:
    """Return a digest of the files that decide what is measured."""
    found = hashlib.sha256()
    for folder, pattern in CODE:
        for path in sorted((ROOT / folder).rglob(pattern)):
            found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def commit() -> str | None:
    """Return the commit of the checkout, with + where files differ from it; None without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def slug(card: str, tiny: bool) -> str:
    """Return the name of a card's file."""
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return f"{name}-tiny" if tiny else name


class Store:
    """The file of one card."""

    def __init__(self, folder: Path, card: str, tiny: bool) -> None:
        """Read what is there.

        Raises:
            ValueError: when the file is none of ours, or of another schema.
        """
        self.path = folder / f"{slug(card, tiny)}.json"
        self._card, self._tiny = card, tiny
        self.parts: dict[str, Found] = read(self.path)[1] if self.path.exists() else {}

    def keep(self, name: str, found: Found) -> None:
        """Write the file with found as what became of the part called name."""
        self.parts[name] = found
        held = {
            "schema": SCHEMA, "card": self._card, "tiny": self._tiny,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, (json.dumps(held, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> tuple[str, dict[str, Found]]:
    """Return (card, parts by name) of a file.

    Raises:
        ValueError: when it is none of ours, or of another schema; names it.
    """
    try:
        held: dict[str, Any] = json.loads(path.read_text())
        if held["schema"] != SCHEMA:
            raise ValueError(f"its schema is {held['schema']}, this program's {SCHEMA}")
        parts = {str(name): Found(**part) for name, part in held["parts"].items()}
        odd: Sequence[str] = [p.status for p in parts.values() if p.status not in STATUSES]
        if odd:
            raise ValueError(f"a part's status is {odd[0]}")
        return str(held["card"]), parts
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} can't be used ({error}); move it away") from error
