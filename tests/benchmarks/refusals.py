"""Refusal of a script's options, as its user sees it."""

from __future__ import annotations

import pytest


def check_refused_in_one_line(parsed, words, line, capsys):
    """Check that parsed ends with status 2 at words and says line, and nothing besides it."""
    with pytest.raises(SystemExit) as end:
        parsed(words)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1
