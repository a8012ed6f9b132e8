"""Defaults that differ between the methods of one sweep, as each has its own paper's.

GPTQ's protocol in language is not FlexRound's: such numbers stand in one table, and do not compare.
Of one method and its ablations the schedule is a condition too: a model's own files are the
method's alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SCHEDULE = ("lr", "iters", "batch_size")


@dataclass(frozen=True)
class MethodRun:
    """A run's model, task and method, and the settings that its record has."""

    model: str
    task: str
    quant: str
    settings: dict[str, Any]


def differing_defaults(runs: Iterable[MethodRun]) -> Iterator[str]:
    """Yield a line for each condition in which methods differ on the same model and task.

    Quantizers of one class, which are variants of one method, are also told apart by what they
    learn by. A condition that is swept is no difference: every method has all its values; nor is
    one of a schedule that is searched, where every variant has several.
    """
    every = list(runs)
    yield from _lines(every, conditions_of, "methods of this sweep")
    for name in dict.fromkeys(map(_method, every)):
        variants = [run for run in every if _method(run) == name]
        yield from _lines(variants, schedule_of, f"variants of {name} in this sweep", searched=True)


def _lines(
    runs: Sequence[MethodRun],
    conditions: Callable[[dict[str, Any]], dict[str, str]],
    between: str,
    searched: bool = False,
) -> Iterator[str]:
    """Yield a line for each of the conditions that differs between runs of one model and task.

    One that may be searched differs where some method has a single value of it.
    """
    found: dict[tuple[str, str], dict[str, dict[str, dict[str, None]]]] = {}
    for run in runs:
        methods = found.setdefault((run.model, run.task), {})
        for condition, word in conditions(run.settings).items():
            words = methods.setdefault(condition, {}).setdefault(run.quant, {})
            words[word] = None
    lines: dict[str, list[str]] = {}
    for (model, task), by_condition in found.items():
        for condition, by_method in by_condition.items():
            several = searched and min(map(len, by_method.values())) > 1
            if len({frozenset(words) for words in by_method.values()}) > 1 and not several:
                line = f"{condition} differs between {between}: {_told(by_method)}"
                lines.setdefault(line, []).append(f"{model} on {task}")
    for line, where in lines.items():
        yield line if len(where) == len(found) else f"{line} ({', '.join(where)})"


def schedule_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return what a method learns by, each in a word; nothing of one that does not learn."""
    recon = settings.get("recon") or {}
    return {f"recon.{name}": str(recon[name]) for name in SCHEDULE if name in recon}


def _method(run: MethodRun) -> str:
    """Return the class that a run's quantizer is of."""
    return str((run.settings.get("quant") or {}).get("_target_")).rpartition(".")[2]


def conditions_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return the conditions that a number was found under, each in a word."""
    task, granularity = settings.get("task") or {}, settings["granularity"]
    calibration = task.get("calibration", task.get("calibration_corpus"))
    protocol = task.get("protocol")
    found = {
        "granularity": _word(granularity),
        "symmetric": str(settings.get("symmetric", True)).lower(),
        "ranges": _word(settings["ranges"]),
        "calibration": _drawn_from(calibration["corpus"]) if calibration else "own",
        "num_samples": str(settings["num_samples"]),
        "task.seq_len": str(task.get("seq_len")),
        "protocol": "{name} {split} {window}".format(**protocol) if protocol else "none",
    }
    if "group_size" in granularity:
        found["granularity"] += f" {granularity['group_size']}"
    return found


def _told(by_method: dict[str, dict[str, None]]) -> str:
    return ", ".join(f"{method} {' and '.join(words)}" for method, words in by_method.items())


def _drawn_from(corpus: dict[str, Any]) -> str:
    """Return what calibration= calls a corpus, a data set of the hub by its own name."""
    if corpus["_target_"].rpartition(".")[2] == "Column":
        return str(corpus["path"]).rpartition("/")[2]
    return _word(corpus)


def _word(node: dict[str, Any]) -> str:
    """Return an object's class as the command line has it: per_channel of PerChannel."""
    name = node["_target_"].rpartition(".")[2]
    return {"LpSearch": "lp", "C4": "c4"}.get(name) or re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
