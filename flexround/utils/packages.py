"""Packages that are not installed: which extra of this project brings them."""

from __future__ import annotations

import re
from importlib import metadata

REQUIREMENT = re.compile(r"([\w.-]+).*\bextra == ['\"]([\w-]+)")  # as in a package's metadata


def missing_package(error: ModuleNotFoundError) -> str:
    """Return what to install for the module that could not be imported."""
    module = (error.name or str(error)).partition(".")[0]
    extras: dict[str, set[str]] = {}
    for text in metadata.requires("flexround") or []:
        if found := REQUIREMENT.match(text):
            extras.setdefault(found[2], set()).add(_canonical(found[1]))
    # Some extras hold others, whose packages the metadata lists again: the smallest installs least.
    holding = [name for name, packages in extras.items() if _canonical(module) in packages]
    if holding:
        smallest = min(holding, key=lambda name: len(extras[name]))
        return f"{module} is not installed; pip install -e '.[{smallest}]'"
    return f"{module} is not installed; pip install {module}"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
