"""A command that dies at every file mutation or at random moments, and is then given again.

`python tests/experiment/killed.py points CASE [--step N] [--first N] [--signal SIGTERM]` and
`... storm CASE --rounds N --seed N` print what they found as JSON. Every attempt is a fork of this
process, which has imported all that the command needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork of a process with several would wait for ever

import numpy as np
import torch
from safetensors import safe_open

import finetune
import run
from experiment.command_line import command_line
from results.records.leftovers import leftovers

torch.set_num_threads(1)
VISION = [
    "model=efficientnet_lite0", "model.name=test_efficientnet", "task=digits", "num_samples=64",
]  # fmt: skip
LANGUAGE = ["model=tiny_llama", "num_samples=4", "task.seq_len=32", "protocol.max_windows=2"]
CASES = {
    "vision": [run, *VISION, "quant=rtn", "bits=3", "save=true"],
    "flexround": [run, *VISION, "quant=flexround", "recon.iters=4", "bits=3", "save=true"],
    "rerun": [run, *VISION, "quant=rtn", "bits=3", "save=true", "rerun=true"],
    "offload": [
        run, *LANGUAGE, "quant=flexround", "recon.iters=2", "recon.batch_size=2", "bits=3",
        "offload=true", "save=true",
    ],
    "finetune": [finetune, "model=tiny_bert", "task=python_topics", "recipe.max_steps=2"],
    "digits": [run, *VISION, "quant=rtn", "bits=8"],
    "topics": [run, "model=tiny_bert", "task=python_topics", "quant=rtn", "num_samples=8"],
    "llama": [run, *LANGUAGE, "quant=rtn", "bits=8"],
}  # fmt: skip
TRAINED = ("digits", "topics", "llama")  # cases in which the cache is empty
MUTATIONS = {
    "os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.chmod",
    "os.utime", "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
# What two runs of one command differ in.
TIMES = ("seconds", "started", "peak_memory_gib", "commit", "overrides", "places")


def cut_first_use_short():
    """Let networks be trained for as long as it takes to see what is written, and no longer."""
    from tasks.language import tiny_models
    from tasks.vision.digits import Digits

    tiny_models.RECIPE = dataclasses.replace(tiny_models.RECIPE, steps=2)
    Digits.recipe = dataclasses.replace(Digits.recipe, epochs=1)


class Mutations:
    """An audit hook that counts the mutations of files below a folder, and dies at one of them."""

    def __init__(self, folder):
        self.folder, self.count, self.at, self.signal, self.log = f"{folder}/", None, 0, 0, None
        sys.addaudithook(self)

    def __call__(self, event, args):
        """Look at one event of the interpreter."""
        mutates = self._writes(args) if event == "open" else event in MUTATIONS
        if self.count is None or not mutates:
            return
        if not any(self.folder in str(path) for path in args[:2]):
            return
        self.count += 1
        if self.log is not None:
            os.write(self.log, f"{event} {args[0]}\n".encode())
        elif self.count == self.at:
            os.kill(os.getpid(), self.signal)

    @staticmethod
    def _writes(args):
        path, mode, flags = args
        if not isinstance(path, str | bytes):
            return False
        if mode is None:
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return any(letter in mode for letter in "wax+")


class Command:
    """A command of a case in a folder of its own, run in forks."""

    def __init__(self, case, folder, cache):
        self.door, *self.args = CASES[case]
        self.case, self.folder, self.first = case, folder / "at", cache
        self.results, self.cache = self.folder / "results", self.folder / "cache"
        self.networks = self.folder / "networks"
        self.mutations = Mutations(self.folder)
        self.args += [
            f"cache_dir={self.cache}", f"checkpoints_dir={self.networks}",
            f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        if self.door is run:
            self.args.append(f"results_dir={self.results}")

    def reset(self):
        """Begin anew with the cache that every attempt begins with."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.first, self.folder)

    def start(self, **mutations):
        """Fork; return the process id and the file that it writes to."""
        said = tempfile.TemporaryFile()  # noqa: SIM115  its reader closes it
        process = os.fork()
        if process == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os._exit(self._run(mutations))
        return process, said

    def _run(self, mutations):
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        sys.argv, status = ["run.py", *self.args], 0
        signal.signal(signal.SIGINT, signal.default_int_handler)
        vars(self.mutations).update(mutations, count=0)
        try:
            command_line(self.door.main)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1 if end.code else 0
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return status

    def finish(self, **mutations):
        """Run it to its end; return (status, what it said)."""
        process, said = self.start(**mutations)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        return status, said.read().decode(errors="replace")

    def made(self):
        """Return all that the command has made, without the times."""
        found, left = {}, {one.path for one in self.leftovers()}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or path.suffix == ".lock" or "/digests/" in f"/{name}":
                continue
            if path in left or path.parent in left:
                continue
            if path.suffix == ".json" and path.parent == self.results:
                record = json.loads(path.read_text())
                blocks = [{**b, "seconds": 0, "peak_memory_gib": 0} for b in record["blocks"]]
                kept = {k: v for k, v in record.items() if k not in TIMES} | {"blocks": blocks}
                found[name] = json.dumps(kept, sort_keys=True)
            elif path.suffix == ".npz":
                with np.load(path) as held:
                    found[name] = {k: held[k].tobytes() for k in held if k != "started"}
            elif path.suffix == ".safetensors":
                with safe_open(path, "np") as held:
                    found[name] = {k: _digest(held.get_tensor(k).tobytes()) for k in held.keys()}  # noqa: SIM118
            elif path.suffix in (".md", ".sha256") or "history" in name:
                found[name] = "there"  # an artifact's card has the times of its record
            else:
                found[name] = _digest(path.read_bytes())
        if self.case == "rerun":
            found = {k: v for k, v in found.items() if not k.startswith("results/history/")}
        return found

    def leftovers(self):
        """Return what `clean` would remove."""
        return leftovers(self.results, self.cache, self.networks)

    def left(self):
        """Return (what `clean` would remove, what else looks like a leftover)."""
        known = {one.path for one in self.leftovers()}
        odd = {
            path
            for path in self.folder.rglob("*")
            if path.name.endswith((".part", ".dead", ".old", ".damaged", ".claim", ".tmp"))
            or path.name.startswith((".now", ".probe", "tmp"))
            or path.parent.name in ("running", "unfinished")
        }
        return known, odd - known


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def warm(command):
    """Import in this process all that the command needs; return what it makes undisturbed."""
    modules = command.folder.parent / "modules"
    process = os.fork()
    if process == 0:
        status = command._run({})
        modules.write_text("\n".join(name for name in sys.modules if name != "__main__"))
        os._exit(status)
    assert os.waitpid(process, 0)[1] == 0, "the undisturbed command fails"
    for name in modules.read_text().split():
        try:
            importlib.import_module(name)
        except BaseException:
            continue
    return command.made()


def points(command, first, step, number, seconds):
    """Die at every step-th mutation from the first on, for so long; return what was found."""
    began = time.monotonic()
    expected = warm(command)
    log = command.folder.parent / "log"
    command.reset()
    if command.case == "rerun":
        shutil.copytree(command.first, command.folder, dirs_exist_ok=True)
    with log.open("wb") as file:
        assert command.finish(log=file.fileno())[0] == 0
    seen = log.read_text().splitlines()
    counts, bad, left = Counter(points=len(seen)), [], {}
    for at in range(first, len(seen) + 1, step):
        if time.monotonic() - began > seconds:
            return {"counts": counts, "bad": bad, "left": left, "next": at}
        command.reset()
        status, said = command.finish(at=at, signal=number)
        counts[f"status {status}"] += 1
        wrong = _wrong_at_death(command, status, said, number)
        again, said = command.finish()
        same = command.made() == expected
        counts["identical"] += same
        known, odd = command.left()
        left |= {f"{p.parent.name}/{p.name[:10]}...{p.suffix}": at for p in known}
        counts["left for clean"] += len(known)
        if wrong or again or not same or odd:
            bad.append([at, seen[at - 1], wrong, again, same, [str(p) for p in odd], said[-600:]])
    return {"counts": counts, "bad": bad, "left": left}


def _wrong_at_death(command, status, said, number, process=None):
    """Return what an attempt that a signal has ended must not leave, or say.

    process, where it is given, is the only one whose claims count: others may have been killed.
    """
    wrong = []
    for path in command.results.glob("*.json"):
        record = json.loads(path.read_text())  # never half written
        if record["status"] != "ok":
            wrong.append(f"a failed record: {record['error']}")
    if number == signal.SIGKILL or status == 0:
        return wrong
    if status != 128 + number:
        wrong.append(f"status {status}")
    if "Traceback" in said or not said.strip().splitlines()[-1].startswith(("interr", "ended by")):
        wrong.append(said[-1500:])
    for path in (command.results / "running").glob("*.json"):
        if process in (None, json.loads(path.read_text())["pid"]):
            wrong.append(f"claim {path.name}")
    return wrong


def storm(command, rounds, seed):
    """End it at random moments by random signals until it is done, again and again."""
    expected, draws, counts, bad = warm(command), random.Random(seed), Counter(), []
    command.reset()
    began = time.monotonic()
    command.finish()
    whole = time.monotonic() - began
    for at in range(rounds):
        command.reset()
        for kills in range(100):
            process, said = command.start()
            number = draws.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [6, 2, 2])[0]
            if kills < 6:
                time.sleep(draws.uniform(0, whole))
                os.kill(process, number)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            said.seek(0)
            text = said.read().decode(errors="replace")
            if status == 0:
                break
            counts[number.name] += 1
            early = number == signal.SIGTERM and status == -number  # before the door was open
            killed = number == signal.SIGKILL and status == -number
            if not (killed or early) and (
                wrong := _wrong_at_death(command, status, text, number, process)
            ):
                bad.append([at, kills, number.name, wrong])
        same = command.made() == expected
        counts["rounds"] += 1
        counts["identical"] += same
        known, odd = command.left()
        counts["left for clean"] += len(known)
        if not same or odd:
            bad.append([at, same, [str(p) for p in odd]])
    return {"counts": counts, "bad": bad}


def main():
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("points", "storm"))
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cut_first_use_short()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "first")
        first.mkdir()
        command = Command(args.case, Path(folder), first)
        command.folder.mkdir()
        if args.case not in TRAINED:  # begin with the network, not with what runs share
            assert command.finish()[0] == 0
            for name in (
                "cache/shared",
                *(() if args.case == "rerun" else ("results", "networks")),
            ):
                shutil.rmtree(command.folder / name, ignore_errors=True)
            command.folder.rename(first.with_name("made"))
            first.rmdir()
            first.with_name("made").rename(first)
        command.reset()
        number = signal.Signals[args.signal]
        if args.kind == "points":
            found = points(command, args.first, args.step, number, args.seconds)
        else:
            found = storm(command, args.rounds, args.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
