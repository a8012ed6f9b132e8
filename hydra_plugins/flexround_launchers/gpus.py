"""GPUs of this machine, one for each run at a time; found without torch, which takes seconds.

A process sees the GPUs that CUDA_VISIBLE_DEVICES names, by number or by the UUID of a card or of a
part of one (MIG), up to the first name that is none (CUDA C++ Programming Guide, CUDA Environment
Variables). A run is given one name, so that its only GPU is cuda:0.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

VISIBLE = "CUDA_VISIBLE_DEVICES"
PROC = Path("/proc/driver/nvidia/gpus")  # a folder for each card, where the driver is loaded
NAME = re.compile(r"\d+|GPU-[0-9a-fA-F-]+|MIG-[\w/-]+")
CARD = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)")
PART = re.compile(r"\s+MIG .*: (MIG-[^)]+)\)")
SECONDS = 20
log = logging.getLogger(__name__)

_held: list[IO[str]] = []  # the lock of this process's GPU, as long as it lives


def visible() -> list[str]:
    """Return the names of the GPUs that a run started here would see, in order."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return of_machine()
    found: list[str] = []
    for name in map(str.strip, given.split(",")):
        if not NAME.fullmatch(name) or name in found:
            break
        found.append(name)
    return found


def of_machine() -> list[str]:
    """Return the names of this machine's GPUs, of a card that is cut up those of its parts."""
    if shutil.which("nvidia-smi") is not None:
        command = ["nvidia-smi", "-L"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0:
            return _listed(done.stdout)
    try:
        return [str(number) for number, _ in enumerate(PROC.iterdir())]
    except OSError:
        return []


def _listed(lines: str) -> list[str]:
    """Return the names in what nvidia-smi -L prints."""
    found: list[list[str]] = []
    for line in lines.splitlines():
        card, part = CARD.match(line), PART.match(line)
        if card is not None:
            found.append([card[1]])
        elif part is not None and found:
            found[-1].append(part[1])
    return [name for card, *parts in found for name in parts or [card]]


def shares(gpus: Sequence[str], processes: int) -> str:
    """Return the line that says how many processes have a GPU."""
    if processes <= len(gpus):
        return f"GPUs: {len(gpus)}, each run has one of its own"
    most = -(-processes // len(gpus))
    return (
        f"GPUs: {len(gpus)}, shared by {processes} runs at a time, up to {most} on one: its memory "
        f"has to do for all of them (hydra.launcher.n_jobs={len(gpus)} gives each its own)"
    )


def take(gpus: Sequence[str]) -> None:
    """Have this process see one of gpus alone, one that the fewest others have.

    A GPU is taken by a locked file, whichever sweep of the user's it is for, free again when its
    process has ended, however that was.
    """
    if not gpus or _held:
        return
    folder = Path(tempfile.gettempdir(), f"flexround-gpus-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        places = ((gpu, place) for place in itertools.count() for gpu in gpus)
        for gpu, place in places:
            if (file := _locked(folder / f"{gpu.replace('/', '-')}.{place}")) is not None:
                _held.append(file)
                break
    except OSError as error:
        gpu = gpus[os.getpid() % len(gpus)]  # those that start together have numbers in a row
        log.warning(
            "GPUs can't be kept apart by locks in %s (%s): one may be shared", folder, error
        )
    os.environ[VISIBLE] = gpu


def _locked(path: Path) -> IO[str] | None:
    """Return the file at path, locked until it is closed; None where another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file
