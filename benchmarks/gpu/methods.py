"""Methods and solvers as conf/quant has them, read without Hydra: a bare machine may lack it."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

QUANT = Path(__file__).resolve().parents[2] / "conf" / "quant"
VALUES = {"${seed}": 0}


def described(name: str) -> dict[str, Any]:
    """Return the node quant of conf/quant/NAME.yaml, with those that it is made from."""
    held = yaml.safe_load((QUANT / f"{name}.yaml").read_text())
    node: dict[str, Any] = {}
    for base in held.get("defaults", ()):
        if isinstance(base, str):
            node |= described(base)
    return node | held["quant"]


def made(node: dict[str, Any], **changed: Any) -> Any:
    """Return what node describes, with options changed; a factory where it says _partial_."""
    options = {name: _value(value) for name, value in node.items() if not name.startswith("_")}
    module, _, kind = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), kind)
    bound = partial(target, **(options | changed))
    return bound if node.get("_partial_") else bound()


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return made(value)
    if not isinstance(value, str):
        return value
    if value.startswith("${") and value not in VALUES:
        raise ValueError(f"{value} can't be told without Hydra; name its value in VALUES")
    with suppress(ValueError):  # what YAML 1.1 takes for text: 1e-5
        return float(value)
    return VALUES.get(value, value)


def names() -> list[str]:
    """Return all that conf/quant has, by name."""
    return sorted(path.stem for path in QUANT.glob("*.yaml"))


def is_solver(name: str) -> bool:
    """Return whether it is a solver rather than a learned method."""
    return ".solvers." in described(name)["_target_"]
