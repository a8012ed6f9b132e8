"""Defaults that differ between the methods of one sweep, as each has its own paper's.

GPTQ's protocol in language is not FlexRound's: such numbers stand in one table, and do not compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodRun:
    """A run's model, task and method, and the settings that its record has."""

    model: str
    task: str
    quant: str
    settings: dict[str, Any]


def differing_defaults(runs: Iterable[MethodRun]) -> Iterator[str]:
    """Yield a line for each condition in which methods differ on the same model and task.

    A condition that is swept is no difference: every method has all its values.
    """
    found: dict[tuple[str, str], dict[str, dict[str, dict[str, None]]]] = {}
    for run in runs:
        methods = found.setdefault((run.model, run.task), {})
        for condition, word in conditions_of(run.settings).items():
            words = methods.setdefault(condition, {}).setdefault(run.quant, {})
            words[word] = None
    lines: dict[str, list[str]] = {}
    for (model, task), by_condition in found.items():
        for condition, by_method in by_condition.items():
            if len({frozenset(words) for words in by_method.values()}) > 1:
                line = f"{condition} differs between methods of this sweep: {_told(by_method)}"
                lines.setdefault(line, []).append(f"{model} on {task}")
    for line, where in lines.items():
        yield line if len(where) == len(found) else f"{line} ({', '.join(where)})"


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
