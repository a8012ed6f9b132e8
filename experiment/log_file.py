"""Log file of a run, which a full disk ends and which never ends the run."""

from __future__ import annotations

import logging
import sys
from typing import Any


class LogFile(logging.FileHandler):
    """Writes log lines to a file; once it can't, says so and goes on without."""

    def __init__(self, filename: str, **options: Any) -> None:
        super().__init__(filename, **options | {"delay": True})  # opened by the first line
        self._ended = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        if self._ended:
            return
        try:
            super().emit(record)
        except OSError:  # from opening it, which FileHandler leaves to its caller
            self.handleError(record)

    def close(self) -> None:
        """Close the file, whose last lines may find no room."""
        try:
            super().close()
        except OSError:
            self.handleError(logging.makeLogRecord({}))

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell why there are no more lines."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if self._ended:
            return
        self._ended = True
        print(f"no more lines in {self.baseFilename}: {error.strerror}", file=sys.stderr)
