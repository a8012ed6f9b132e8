"""The console of log lines, when its reader has gone."""

from __future__ import annotations

import io

import pytest

from experiment.progress import console


class Gone(io.StringIO):
    """A file behind which nobody reads."""

    def write(self, text: str) -> int:
        """Write as to a pipe without a reader."""
        raise BrokenPipeError


def test_a_line_that_nobody_reads_ends_the_command_as_sigpipe_does(capfd):
    with pytest.raises(SystemExit) as ended:
        type(console)(file=Gone()).print("text")
    assert ended.value.code == 141
    print("still here")  # rich's own way turns stdout to nowhere
    assert capfd.readouterr().out == "still here\n"
