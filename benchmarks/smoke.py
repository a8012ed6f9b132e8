"""Smoke sweeps: every preset of conf/experiment on embedded models, to its table.

`python -m benchmarks.smoke [NAME ...]` runs experiment=NAME scale=smoke for each preset or folder
of presets (paper, gptq/opt), all by default, prints how many runs each took and its seconds, and
keeps each one's output in outputs/smoke/. It ends with status 1 when a run failed or a sweep
printed no table. A preset's first sweep of a network that is trained on first use trains it too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flexround.utils.arguments import ArgumentParser

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS, OUT = ROOT / "conf" / "experiment", ROOT / "outputs" / "smoke"


def presets(asked: Sequence[str]) -> list[str]:
    """Return the names of the presets asked for, each a preset or a folder of them; all of none.

    Raises:
        ValueError: when one is neither.
    """
    there = sorted(
        str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in EXPERIMENTS.rglob("*.yaml")
    )
    found: list[str] = []
    for name in asked:
        own = [preset for preset in there if preset == name or preset.startswith(f"{name}/")]
        if not own:
            raise ValueError(
                f"{name}: no such preset; give one of conf/experiment, or a folder of them"
            )
        found += own
    return found or there


def smoke(name: str) -> tuple[int, str | None]:
    """Run the smoke sweep called name; return its number of runs and what went wrong, or None."""
    command = [
        sys.executable, str(ROOT / "run.py"), f"experiment={name}", "scale=smoke",
        f"results_dir={OUT / name}", "progress=false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    log = OUT / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    runs = re.search(r"Launching (\d+) jobs", done.stdout + done.stderr)
    errors = re.findall(r"error: .*", done.stdout + done.stderr)
    if done.returncode or errors:
        return 0, errors[0] if errors else f"exit status {done.returncode}"
    if "| model" not in done.stdout:
        return 0, "no table"
    return int(runs[1]) if runs else 1, None


def main(argv: Sequence[str]) -> int:
    """Run the presets' sweeps, or all; return the exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.smoke", description=__doc__)
    parser.add_argument("preset", nargs="*", help="a preset, or a folder of them; all by default")
    asked = parser.parse_args(argv).preset
    try:
        names = presets(asked)
    except ValueError as error:
        parser.error(str(error))
    failed, start = 0, time.perf_counter()
    print("| sweep | runs | seconds | |\n|---|---|---|---|")
    for name in names:
        before = time.perf_counter()
        runs, error = smoke(name)
        failed += error is not None
        print(f"| {name} | {runs} | {time.perf_counter() - before:.0f} | {error or 'table'} |",
              flush=True)  # fmt: skip
    print(f"\n{time.perf_counter() - start:.0f} seconds, {failed} without a table")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
