"""Commands that `python -m experiment` has, run in the place of this one.

Those that have moved there keep their old name; `plot shift` composes runs, which this package does
not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flexround.utils import leaving

ROOT = Path(__file__).resolve().parent.parent
RENAMED = ("plan", "status")
MOVED = (*RENAMED, "rekey")
SHIFT = ("plot", "shift")


def by_experiment(command: str, argv: Sequence[str]) -> int:
    """Run a command that looks at configurations, which this package knows nothing of."""
    if command in RENAMED:
        print(f"`python -m experiment {command}` is the new name of this command", file=sys.stderr)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    whole = [sys.executable, "-m", "experiment", command, *argv]
    return _in_place(whole, os.environ | {"PYTHONPATH": paths})


def _in_place(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run another command in the place of this one, which signals are passed on to.

    Returns its exit status as a shell has it.
    """
    child = subprocess.Popen(command, env=env)
    before = {
        number: signal.signal(number, lambda number, _: child.send_signal(number))
        for number in leaving.WORDS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
