"""Errors of the command line, told in one line."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiment import ROOT
from experiment.options import members_with, of_members
from flexround.utils.arguments import shown
from flexround.utils.file_errors import number_of, told

FULL = "HYDRA_FULL_ERROR"
# What the command line calls the places that a run writes to.
PLACES = (
    "hydra.run.dir=, of a sweep hydra.sweep.dir=, results_dir=, cache_dir=, checkpoints_dir= and "
    "logger.dir= say where a command writes"
)
# What OmegaConf raises where it takes a slip of ours for one of its own.
ASSERTED = (AssertionError, AttributeError, TypeError, KeyError, IndexError)
REFUSED = (HydraException, OmegaConfBaseException, *ASSERTED)
# By what OmegaConf says of a value of another type: what a user gives instead.
WANTED = {
    "to Integer": "a whole number",
    "to Float": "a number",
    "valid bool": "true or false",
    "is not Optional": "a value, or leave it out",
    "ListConfig, list or tuple": "a list, [A,B]",
}
FEW = 3  # members of a group that a message names
# What other programs call an option.
ALIASES = {"method": ["quant"], "quantizer": ["quant"], "dataset": ["task"]}


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
    except (*REFUSED, ValueError) as error:
        if not isinstance(error, ValueError) and not _is_refusal(error):
            raise
        sys.exit(f"error: {shown(one_line(error))}")
    except BrokenPipeError:  # whoever read it has gone: the door's
        raise
    except OSError as error:  # of Hydra's own folder, before there is a run
        known = number_of(error) is not None
        what = told(error) if known else f"{error.filename}: {error.strerror or error}"
        sys.exit(f"error: {shown(what)} ({PLACES})")
    finally:
        del os.environ[FULL]


@contextmanager
def value_errors() -> Iterator[None]:
    """Turn what Hydra refuses into a ValueError of one line."""
    try:
        yield
    except REFUSED as error:
        if not _is_refusal(error):
            raise
        raise ValueError(one_line(error)) from error


def _is_refusal(error: Exception) -> bool:
    """Return whether error is one of REFUSED that Hydra or OmegaConf has raised itself."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    return _raised_in(error).partition(".")[0] in ("hydra", "omegaconf")


def _raised_in(error: Exception) -> str:
    """Return the name of the module that has raised error."""
    found = error.__traceback__
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return "" if found is None else str(found.tb_frame.f_globals.get("__name__"))


def one_line(error: Exception) -> str:
    """Return what Hydra or OmegaConf refuses on one line, with the way out."""
    if isinstance(error, OverrideParseException):
        return _unparsed(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return _sentences(str(error.__cause__))  # what one of ours has refused in words
    if isinstance(error, ASSERTED) and not isinstance(error, OmegaConfBaseException):
        if _raised_in(error) == BasicSweeper.__module__:  # its one assertion
            return "hydra.sweeper.max_batch_size: give 1 or more, or leave it out"
        return (
            f"the options do not compose ({' '.join(str(error).split())}); is one of them below "
            "another that is a value, such as preprocessing.mean.x=1?"
        )
    text = _sentences(str(error))
    if "INTERVAL_SWEEP" in text:
        return "interval() names no values that a sweep could run; give range(a,b,step) or a list"
    several = re.search(r"Ambiguous value for argument '(.*?)' 1\. To use", text)
    if several:
        key, _, value = several[1].partition("=")
        quoted = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
        return (
            f"{several[1]}: several values are a sweep, which takes -m beside them; a value that "
            f"has commas is quoted: {shlex.quote(quoted)}"
        )
    there = re.search(r"already at '([^']*)'", text)
    if there:
        return f"+{there[1]}: an option is not added but set; give {there[1]}=VALUE, without +"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        why = f"{_sentences(str(cause))}{_nearest_key(cause)}"
        merged = text.partition("Error merging override ")[2]
        wanted = [word for kind, word in WANTED.items() if kind in why]
        text = f"{merged}: {why}" if merged else f"{text} ({why})"
        text += "".join(f"; give {word}" for word in wanted[:1])
    return text


def _unparsed(error: OverrideParseException) -> str:
    """Return why Hydra's grammar does not take an override, and how to write it."""
    override = str(error.override)
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override} is no override; give KEY=VALUE"
    if value.rstrip().endswith(","):
        return f"{override}: a value is missing after the last comma; give it, or leave that out"
    value = value.strip("\"'")  # of quotes that the shell, or a slip, has left half of
    quoted = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"{override}: {_sentences(error.args[0])}"
    return (
        f"{override}: characters such as = , ( ) [ ] {{ }} ' mean something to Hydra; quote the "
        f"value (in a sweep, each value): {shlex.quote(quoted)}"
    )


def _sentences(text: str) -> str:
    """Return a message of Hydra's or OmegaConf's on one line, without what only they can use."""
    text = text.split("Config search path:")[0]
    text = re.sub(r"In '(hydra/)?(config|finetune)': ", "", text)
    lines = [line.strip() for line in text.splitlines()]
    noise = ("full_key:", "object_type=", "To append to your config", "See https://hydra.cc")
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    return re.sub(r"'([\w/.-]+)' Available options in '([\w/]+)':\s*(.*)", _listed, text)


def _listed(match: re.Match[str]) -> str:
    # Hydra lists one folder; names such as glue/rte lie deeper. A leading _ is a shared part.
    group = match[2] if match[2].startswith("hydra/") else match[2].partition("/")[0]
    names, given = members(group), match[1].removeprefix(f"{group}/")
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.7)
    told = f" did you mean {' or '.join(near)}?" if near else ""
    return f"'{match[1]}';{told} available {group}: {', '.join(names)}"


def members(group: str) -> list[str]:
    """Return the names of a config group's members; one that begins with _ is a shared part."""
    root = ROOT / "conf" / group
    names = [path.relative_to(root).with_suffix("") for path in sorted(root.rglob("*.yaml"))]
    return [name.as_posix() for name in names if not name.name.startswith("_")]


def _options_of_learning() -> list[str]:
    """Return the options of the loop that learns."""
    return list(OmegaConf.load(ROOT / "conf/recon/block.yaml").recon)


def _nearest_key(cause: OmegaConfBaseException) -> str:
    parent, key = cause.parent_node, cause.key
    unknown = isinstance(cause, ConfigAttributeError | ConfigKeyError)
    if not unknown or parent is None or key is None or not hasattr(parent, "keys"):
        return ""
    known = [str(name) for name in parent if not str(name).startswith("_")]
    if "sequential" in known and key in _options_of_learning():
        return (
            "; it is for methods that learn, and does nothing with a solver: leave it out, or give "
            "the solvers of a sweep a command of their own"
        )
    full = str(parent._get_full_key(key))
    group, others = full.partition(".")[0], members_with(full)
    if group != "recon" and 0 < len(others) <= FEW:  # a method's loop is none to choose another of
        return f"; it is an option of {' or '.join(f'{group}={name}' for name in others)}"
    same = [*_elsewhere(parent, str(key)), *ALIASES.get(str(key), ())]
    alike = difflib.get_close_matches(str(key), known, n=1, cutoff=0.75 if same else 0.6)
    near = [*alike, *same]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known keys: {', '.join(known)}"


def _elsewhere(parent: Any, key: str) -> list[str]:
    """Return the options of the same name that stand in another place than parent."""
    root = parent._get_root()
    if key in root and parent is not root:
        return [key]
    own, trains = parent._get_full_key(key), root.get("recipe") is not None
    names = [name for name in of_members(key) if name != own]
    of_recipe = [name for name in names if name.startswith("recipe.")]
    return of_recipe if trains and of_recipe else [n for n in names if n not in of_recipe]
