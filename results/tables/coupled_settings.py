"""Which settings the configuration changes along with another one, as its YAML files say.

Those that are computed from it (`${bits}`, also inside a resolver, one after another), and for a
config group (`quant`, `granularity`) all that its files set, choose, or leave out as idle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
NOT_OF_RUNS = ("experiment", "hydra", "recipe", "scale")  # folders of conf/
TUNED = ("model", "quant", "task")  # what the files of conf/tuned go by
REFERENCE = re.compile(r"\$\{([a-z_][\w.]*)\}", re.IGNORECASE)


def coupled_settings(setting: str) -> list[str]:
    """Return the dotted names, whole branches among them, that change along with setting."""
    groups = [setting, *(["tuned"] if setting in TUNED else [])]
    own = [name for group in groups for name, _ in _set_by(group)] if _is_group(setting) else []
    reached = [setting, *own]
    for name in reached:  # which grows on the way
        reached += [
            target
            for source, target in _computed()
            if (below(name, [source]) or below(source, [name])) and target not in reached
        ]
    return sorted({name for name in reached if not name.startswith(f"{setting}.")} - {setting})


def below(name: str, branches: Iterable[str]) -> bool:
    """Return whether a dotted name is one of branches or lies below one."""
    return any(f"{name}.".startswith(f"{branch}.") for branch in branches)


def _is_group(name: str) -> bool:
    return (CONF / name).is_dir() and name not in NOT_OF_RUNS


@cache
def _computed() -> tuple[tuple[str, str], ...]:
    """Return (name, the name of what is computed from it) of the whole configuration."""
    return tuple(
        (source, name)
        for path in sorted(CONF.rglob("*.yaml"))
        if path.relative_to(CONF).parts[0] not in NOT_OF_RUNS
        for name, value in _settings(path)
        for source in REFERENCE.findall(str(value))
    )


@cache
def _set_by(group: str) -> tuple[tuple[str, Any], ...]:
    """Return what the files of a config group set."""
    files = sorted((CONF / group).rglob("*.yaml"))
    return tuple(dict(pair for path in files for pair in _settings(path)).items())


def _settings(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names that a file sets with their values as they are written."""
    text = path.read_text()
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    parts = path.relative_to(CONF).parts
    top = "" if len(parts) == 1 or text.startswith("# @package _global_") else f"{parts[0]}."
    for choice in content.pop("defaults", []):
        for name in choice if isinstance(choice, dict) else ():
            if name.startswith("override /"):
                yield name.removeprefix("override /").partition("@")[0], None
    for left_out in (content.pop("idle", None) or {}).values():
        yield from ((name, None) for name in left_out)
    content.pop("hydra", None)
    for name, value in _leaves(content):
        yield top + name, value


def _leaves(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{name}", leaf) for name, leaf in _leaves(value))
        else:
            yield key, value
