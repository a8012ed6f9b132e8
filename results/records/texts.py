"""Texts of records as others may have made them: none moves a terminal's cursor."""

from __future__ import annotations

import re
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tabs and ends of lines
# In a file, what may stand for one: JSON escapes them.
ESCAPED = re.compile(rb"\\[ubfnrt]|[^\n -~]")


def check_texts(held: Any, data: bytes) -> None:
    """Check the texts of held, which stands in data, where there may be one that is not plain.

    Raises:
        ValueError: when one moves a terminal's cursor, or a name is more than a line.
    """
    # The first three take a tenth of the fourth's time; a bare control character is no JSON.
    plain = data.isascii() and b"\\" not in data and b"\x7f" not in data
    if not plain and ESCAPED.search(data):  # looking through all of them takes as long as reading
        _check_texts(held)


def _check_texts(data: Any) -> None:
    """Check that no text of a record moves a terminal's cursor, and no name is more than a line.

    Raises:
        ValueError: when one does.
    """
    if isinstance(data, dict):
        if not all(name.isprintable() for name in data):
            raise ValueError("record with an unprintable name")
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            _check_texts(value)
    elif isinstance(data, str) and CONTROL.search(data):
        raise ValueError("record with control characters")
