"""Records that a reading leaves out, and how that is told: never in silence."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

Dropped = list[tuple[str, str]]  # (what is left out, why)
SHOWN = 5


def tell(dropped: Dropped | None, what: str, reason: str) -> None:
    """Put into dropped what is left out and why; without it, log that."""
    if dropped is None:
        log.warning("%s passed over: %s", what, reason)
    else:
        dropped.append((what, reason))


def told(dropped: Dropped) -> str:
    """Return all of it in one line, the first few by name."""
    shown = [f"{what} ({reason})" for what, reason in dropped[:SHOWN]]
    more = len(dropped) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
