"""Errors of the command line, told in one line."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiment import ROOT
from experiment.config import renamed

FULL = "HYDRA_FULL_ERROR"


def command_line(main: Callable[[], object]) -> None:
    """Run the Hydra application main on this process's arguments, as a user typed them."""
    with one_line_errors():
        sys.argv[1:] = renamed(sys.argv[1:])
        main()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what Hydra refuses into one line on stderr and exit status 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback comes through.
    """
    if os.environ.get(FULL) == "1":
        yield
        return
    os.environ[FULL] = "1"  # so that Hydra raises instead of printing its own several lines
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        sys.exit(f"error: {_one_line(error)}")
    finally:
        del os.environ[FULL]


def _one_line(error: Exception) -> str:
    text = _sentences(str(error))
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        text += f" ({_sentences(str(cause))}{_nearest_key(cause)})"
    return text


def _sentences(text: str) -> str:
    """Return a message of Hydra's or OmegaConf's on one line, without what only they can use."""
    text = text.split("Config search path:")[0]
    text = re.sub(r"In '(hydra/)?config': ", "", text)
    lines = [line.strip() for line in text.splitlines()]
    noise = ("full_key:", "object_type=", "To append to your config", "See https://hydra.cc")
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    return re.sub(r" Available options in '([\w/]+)':\s*(.*)", _listed, text)


def _listed(match: re.Match[str]) -> str:
    # Hydra lists one folder; names such as glue/rte lie deeper. A leading _ is a shared part.
    group = match[1] if match[1].startswith("hydra/") else match[1].partition("/")[0]
    root = ROOT / "conf" / group
    names = [path.relative_to(root).with_suffix("") for path in sorted(root.rglob("*.yaml"))]
    return f"; available {group}: {', '.join(str(n) for n in names if n.name[0] != '_')}"


def _nearest_key(cause: OmegaConfBaseException) -> str:
    parent, key = cause.parent_node, cause.key
    unknown = isinstance(cause, ConfigAttributeError | ConfigKeyError)
    if not unknown or parent is None or key is None or not hasattr(parent, "keys"):
        return ""
    known = [str(name) for name in parent]
    near = difflib.get_close_matches(str(key), known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known keys: {', '.join(known)}"
