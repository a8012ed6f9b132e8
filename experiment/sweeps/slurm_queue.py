"""SLURM's queue and partitions, as its own commands tell them, and why sbatch refuses."""

from __future__ import annotations

import logging
import shutil
import subprocess
from typing import NamedTuple

log = logging.getLogger(__name__)

COMMANDS = ("sbatch", "srun", "squeue")
# A job in one of these will not run again.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT", "no longer known",
}  # fmt: skip
# Reasons to wait that pass by themselves.
PATIENCE = {"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning"}
HINTS = {
    "Invalid job array specification": "hydra.sweeper.max_batch_size=1000 splits the sweep",
    "Memory specification can not be satisfied": "hydra.launcher.memory= is too much for a node",
    "Invalid generic resource": "hydra.launcher.gpus=0 asks for none",
    "Invalid account": "hydra.launcher.account= names yours",
}


class Entry(NamedTuple):
    """A job in the queue."""

    state: str
    reason: str

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED

    @property
    def held(self) -> str:
        """Why it waits, where that may last for ever; else empty."""
        return "" if self.state != "PENDING" or self.reason in PATIENCE else self.reason


UNKNOWN = Entry("no longer known", "")


def require() -> None:
    """Check that there is a SLURM to talk to.

    Raises:
        ValueError: says where to run instead.
    """
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise ValueError(
            f"hydra/launcher=slurm: there is no {missing[0]} on this machine; run on a login node "
            "of the cluster, try SLURM here (apt install slurm-wlm, see docs/sweeps.md), or leave "
            "out hydra/launcher="
        )


def partitions() -> dict[str, bool]:
    """Return whether each partition has GPUs, the default one first; nothing where sinfo fails."""
    lines = _lines("sinfo", "--noheader", "--format=%P %G") or []
    found: dict[str, bool] = {}
    for line in sorted(lines, key=lambda line: "* " not in line):
        name, _, resources = line.partition(" ")
        name = name.rstrip("*")
        found[name] = found.get(name, False) or "gpu" in resources
    return found


def queue(everyone: bool = False) -> dict[str, Entry] | None:
    """Return the user's jobs that SLURM still knows, or everyone's, None if it is silent.

    squeue needs no accounting database, unlike sacct.
    """
    whose = () if everyone else ("--me",)
    options = ("--array", "--states=all", "--noheader", "--format=%i|%T|%r")
    lines = _lines("squeue", *whose, *options)
    if lines is None:
        return None
    entries = (line.split("|", 2) for line in lines)
    return {job: Entry(state, reason) for job, state, reason in entries}


def refusal(message: str, partition: str | None) -> str:
    """Return on one line why sbatch refused, and the way out."""
    lines = [line.partition("error: ")[2] or line for line in message.splitlines() if line.strip()]
    text = "; ".join(dict.fromkeys(line.strip() for line in lines)) or "no reason given"
    if "partition" in text:
        known = ", ".join(partitions()) or "none"
        text += f" (hydra.launcher.partition={partition or 'null'}; sinfo lists: {known})"
    hints = [hint for words, hint in HINTS.items() if words in text]
    return "; ".join([f"sbatch: {text}", *hints])


def _lines(*command: str) -> list[str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("%s: %s", " ".join(command), error)
        return None
    return done.stdout.splitlines()
