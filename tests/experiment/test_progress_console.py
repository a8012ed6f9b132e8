"""The console of log lines, when its reader has gone, and the bars of other libraries."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from experiment.progress import console, quiet_libraries


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


@pytest.mark.parametrize(
    ("progress", "terminal", "word"), [(True, True, None), (False, True, "1"), (True, False, "1")]
)
def test_bars_of_other_libraries_are_off_where_ours_is(monkeypatch, progress, terminal, word):
    monkeypatch.setenv("TQDM_DISABLE", "")  # so that it is as it was afterwards
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(type(console), "is_terminal", terminal)
    quiet_libraries(progress)
    assert os.environ.get("TQDM_DISABLE") == word
    # What a library sees that is imported from now on.
    lines = "from tqdm.auto import tqdm; print(tqdm([]).disable)"
    shown = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True).stdout
    assert shown == f"{word is not None}\n"
