"""Smoke sweeps: every table and figure of the paper on embedded models, to its table.

`python -m benchmarks.smoke [NAME ...]` runs experiment=paper/NAME scale=smoke, all by default,
prints how many runs each took and its seconds, and keeps each one's output in outputs/smoke/. It
ends with status 1 when a run failed or a sweep printed no table.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS, OUT = ROOT / "conf" / "experiment" / "paper", ROOT / "outputs" / "smoke"


def smoke(name: str) -> tuple[int, str | None]:
    """Run the smoke sweep called name; return its number of runs and what went wrong, or None."""
    command = [
        sys.executable, str(ROOT / "run.py"), f"experiment=paper/{name}", "scale=smoke",
        f"results_dir={OUT / name}", "progress=false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.log").write_text(done.stdout + done.stderr)
    runs = re.search(r"Launching (\d+) jobs", done.stdout + done.stderr)
    errors = re.findall(r"error: .*", done.stdout + done.stderr)
    if done.returncode or errors:
        return 0, errors[0] if errors else f"exit status {done.returncode}"
    if "| model" not in done.stdout:
        return 0, "no table"
    return int(runs[1]) if runs else 1, None


def main(names: Sequence[str]) -> int:
    """Run the sweeps called names, or all; return the exit status."""
    failed, start = 0, time.perf_counter()
    print("| sweep | runs | seconds | |\n|---|---|---|---|")
    for name in names or sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")):
        before = time.perf_counter()
        runs, error = smoke(name)
        failed += error is not None
        print(f"| {name} | {runs} | {time.perf_counter() - before:.0f} | {error or 'table'} |",
              flush=True)  # fmt: skip
    print(f"\n{time.perf_counter() - start:.0f} seconds, {failed} without a table")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
