"""The door of a script: bad input is one line and a status that is not zero."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


def enter(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run main on the command line's arguments, and exit with its status, 1 for bad input."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
