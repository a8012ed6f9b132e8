"""The former name of `python artifact.py`, kept for a release."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOOR = Path(__file__).resolve().parents[2] / "artifact.py"

if __name__ == "__main__":
    print(f"`python {DOOR.name}` is the new name of this command", file=sys.stderr)
    if not DOOR.is_file():
        sys.exit(
            f"error: {DOOR.name} comes with a clone of the repository, this is the library alone"
        )
    sys.exit(subprocess.run([sys.executable, str(DOOR), *sys.argv[1:]]).returncode)
