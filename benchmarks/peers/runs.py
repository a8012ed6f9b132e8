"""Runs of contenders in turns, each in a process of its own; what has ended is kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.store import code
from benchmarks.peers.comparisons import OURS, Comparison, Contender
from benchmarks.peers.environment import DISTRIBUTIONS, ROOT, Environment
from benchmarks.peers.inputs import NETWORK, TOKENS, Setting
from flexround.utils.atomic_files import write_whole

LONGEST = 200  # characters of an error
Row = dict[str, Any]


class Cut(Exception):
    """The end of the time."""


class Failed(Exception):
    """The end of a process that came to no good one, in one line."""


class Store:
    """The rows of one setting: runs with the code and the versions that they are of."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Read what folder has of these facts; those of others are in files of their own.

        Raises:
            ValueError: when the file is none of ours.
        """
        self.facts, self.rows = dict(facts), list[Row]()
        self.reference: dict[str, float] = {}
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{facts['setting']['model']}-{digest}.json"
        if not self.path.is_file():
            return
        try:
            held = json.loads(self.path.read_text())
            self.rows, self.reference = list(held["rows"]), dict(held["reference"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} can't be used ({error!r}); move it away") from error

    def find(self, **facts: Any) -> Row | None:
        """Return the row with these facts, or None."""
        return next((row for row in self.rows if facts.items() <= row.items()), None)

    def keep(self, row: Row | None = None) -> None:
        """Add row, where there is one, in place of one that failed, and write the file."""
        if row:
            same = {name: row[name] for name in ("comparison", "contender", "repetition")}
            self.rows = [old for old in self.rows if not same.items() <= old.items()] + [row]
        held = {"facts": self.facts, "reference": self.reference, "rows": self.rows}
        write_whole(self.path, (json.dumps(held, indent=1) + "\n").encode())


def facts_of(setting: Setting, environment: Environment, inputs: str) -> dict[str, Any]:
    """Return what decides a row besides the contender: the setting, the code, the versions."""
    return {
        "setting": vars(setting), "inputs": inputs, "code": code(), "versions": environment.versions
    }  # fmt: skip


@dataclass
class Bench:
    """All that a run needs.

    Attributes:
        setting: what is the same for all.
        environment: the peers'.
        folder: with inputs; the contenders' files come and go there.
        store: what has been found.
        deadline: on time.monotonic.
        say: takes a line.
    """

    setting: Setting
    environment: Environment
    folder: Path
    store: Store
    deadline: float
    say: Callable[[str], None]

    def check_evaluators(self) -> None:
        """Find the full-precision perplexity by ours and by the peers' transformers alone, once.

        Raises:
            Cut: when the time is over.
            Failed: when one can't, or they differ.
        """
        if not self.store.reference:
            ours = self._evaluated(None)["perplexity"]
            there = [p for p in DISTRIBUTIONS if not self.environment.missing(p)]
            plain = self._process((there or [OURS])[0], "child", self._job("", 0, {}))["perplexity"]
            self.store.reference = {"ours": ours, "transformers": plain}
            self.store.keep()
        ours, plain = self.store.reference.values()
        if abs(ours / plain - 1) > 1e-4:
            raise Failed(f"full precision has {ours:.4f} by ours, {plain:.4f} by transformers")

    def run(self, comparisons: Sequence[Comparison], repetitions: int) -> None:
        """Run what is missing: all contenders once, in turns, then the next repetition.

        Raises:
            Cut: when the time is over.
        """
        for repetition in range(repetitions):
            for comparison in comparisons:
                turns = comparison.contenders
                for contender in turns if repetition % 2 == 0 else reversed(turns):
                    self._turn(comparison, contender, repetition)

    def _turn(self, comparison: Comparison, contender: Contender, repetition: int) -> None:
        facts = {"comparison": comparison.name, "contender": contender.label}
        if self.environment.missing(contender.program):
            return
        earlier = self.store.find(**facts, repetition=repetition)
        if earlier is not None and "error" not in earlier:
            return
        try:
            row = self._measured(comparison, contender)
        except Failed as error:
            self.say(f"{comparison.name}, {contender.label}: {error}")
            row = {"error": str(error)}
        else:
            self.say(
                f"{comparison.name}, {contender.label}: {row['perplexity']:.3f}, "
                f"cpu {row['cpu']:.1f} s, wall {row['wall']:.1f} s, peak {row['peak']:.0f} MiB"
            )
        self.store.keep({**facts, "repetition": repetition, **row})

    def _measured(self, comparison: Comparison, contender: Contender) -> Row:
        job = self._job(contender.program, comparison.bits, dict(contender.settings))
        row: Row = {"load": os.getloadavg()[0]}
        row |= self._process(contender.program, "child", job)
        weights = Path(job["weights"])
        row["digest"] = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        same = self.store.find(digest=row["digest"], bits=comparison.bits)
        row |= {n: same[n] for n in ("perplexity", "values")} if same else self._evaluated(weights)
        weights.unlink()
        return {**row, "bits": comparison.bits}

    def _job(self, program: str, bits: int, settings: dict[str, Any]) -> dict[str, Any]:
        network = self.folder / "inputs" / NETWORK
        return {
            "program": program, "network": str(network), "bits": bits, "settings": settings,
            "tokens": str(self.folder / "inputs" / TOKENS), "threads": self.setting.threads,
            "group_size": self.setting.group_size, "batch_size": self.setting.batch_size,
            "compose": self.setting.compose(network), "found": str(self.folder / "found.json"),
            "weights": str(self.folder / "weights.safetensors"),
        }  # fmt: skip

    def _evaluated(self, weights: Path | None) -> Row:
        job = self._job("", 0, {})
        names = ("compose", "tokens", "group_size", "threads", "found")
        own = {name: job[name] for name in names} | {"weights": weights and str(weights)}
        return self._process(OURS, "evaluate", own)

    def _process(self, program: str, module: str, job: dict[str, Any]) -> Row:
        """Return what a module of ours finds in program's Python.

        Raises:
            Cut: when the time is over.
            Failed: when it ends without.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Cut
        path, log, found = self.folder / "job.json", self.folder / "log.txt", Path(job["found"])
        path.write_text(json.dumps(job))
        found.unlink(missing_ok=True)
        command = [self.environment.python(program), "-m", f"benchmarks.peers.{module}", str(path)]
        with log.open("wb") as out:
            own = {"cwd": ROOT, "env": self._variables(program), "stdout": out, "stderr": out}
            try:
                done = subprocess.run(command, timeout=left, **own)
            except subprocess.TimeoutExpired:
                raise Cut from None
        if done.returncode or not found.is_file():
            raise Failed(_last_line(log, done.returncode))
        row: Row = json.loads(found.read_text())
        return row

    def _variables(self, program: str) -> dict[str, str]:
        """Return the variables of a process: the threads, no hub, and where kernels are kept."""
        threads = str(self.setting.threads)
        # What a caller adds to our path is none of the peers'.
        own = os.environ.get("PYTHONPATH", "") if program == OURS else ""
        return {
            **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{own}".rstrip(os.pathsep),
            "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "kernels"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in the process, so that they are counted
        }  # fmt: skip


def _last_line(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[:LONGEST] if lines else "no output"
    return f"exit status {status}: {last}"
