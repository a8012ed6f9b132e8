"""Forged files: what a stranger, a bad disk or another program may leave, drawn by a seed."""

from __future__ import annotations

import json
import random
from typing import Any

HOSTILE = (
    "", " ", "\n", "\x00", "\x1b[2J\x1b[31m", "\u202e", "</script><script>alert(1)</script>",
    "| a | b |\n|---|", "`rm -rf /`", "../../etc/passwd", "nan", "-1", "1e400", "x" * 5000,
    "{{7*7}}", "${oc.env:HOME}", "%s%n", "'; DROP TABLE", "\\", "\ud800",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 10**400, 1.5, 1e308, float("nan"), float("inf"),
    -float("inf"), [], {}, [[]], [None], {"": None}, {"a": {"b": [1, "x"]}}, *HOSTILE,
)  # fmt: skip


def nested(depth: int) -> bytes:
    """Return JSON that is depth lists deep."""
    return b"[" * depth + b"]" * depth


def forge_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return data with bytes flipped, cut off, repeated or replaced."""
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        return rng.randbytes(rng.choice((0, 1, 7, 64, 2000)))
    if kind == 2:
        return data + rng.randbytes(rng.choice((1, 8, 500)))
    if kind == 3:
        at = rng.randrange(len(data) + 1)
        return data[:at] + bytes(rng.choice((1, 8, 64))) + data[at:]
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def forge_json(data: bytes, rng: random.Random) -> bytes:
    """Return data, which is a JSON object, with some of what it holds replaced."""
    if rng.random() < 0.05:
        return nested(rng.choice((100, 150, 1000, 100_000)))
    held = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        where: Any = held
        key = rng.choice(list(where))
        while isinstance(where[key], dict | list) and where[key] and rng.random() < 0.7:
            where = where[key]
            key = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
        kind = rng.randrange(8)
        if kind == 0 and isinstance(where, dict):
            del where[key]
        elif kind == 1 and isinstance(where, dict):
            where[rng.choice(HOSTILE)] = where.get(key)
        elif kind == 2:
            where[key] = json.loads(nested(rng.choice((5, 90, 150))))
        else:
            where[key] = rng.choice(VALUES)
        if not held:
            break
    try:
        return json.dumps(held).encode()
    except ValueError:  # more digits than Python writes
        return b"{}"


def forged(data: bytes, seed: int, is_json: bool = True) -> bytes:
    """Return the forgery of data that seed draws."""
    rng = random.Random(seed)
    if is_json and rng.random() < 0.7:
        return forge_json(data, rng)
    return forge_bytes(data, rng)
