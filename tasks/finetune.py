"""The former name of `python finetune.py`, kept for a release."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOOR = Path(__file__).resolve().parents[1] / "finetune.py"

if __name__ == "__main__":
    print(f"`python {DOOR.name}` is the new name of this command", file=sys.stderr)
    sys.exit(subprocess.run([sys.executable, str(DOOR), *sys.argv[1:]]).returncode)
