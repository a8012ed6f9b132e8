"""Overrides that an artifact states: what of a stranger's file may choose how it is measured.

An artifact is data. What it states may choose members of the config groups, by name, and plain
values of the options that decide a result: numbers, words, lists of them, and in model.leave the
patterns of names. It can't name a class, a path, an address, a package, a logger, or anything of
Hydra's. The user can, on his command line,
and what he gives there stands for what the file says of the same option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString

from experiment.errors import value_errors

GROUPS = (
    "model", "task", "protocol", "calibration", "quant", "granularity", "grid", "ranges", "recon",
    "activation", "transform", "allocation", "scale", "experiment",
)  # fmt: skip
# Options without a group that decide a result, and what it was computed on.
OPTIONS = (
    "bits", "symmetric", "act_bits", "act_stem_bits", "act_head_bits", "act_init_samples",
    "act_ranges_from", "kv_bits", "group_size", "clipping", "seed", "num_samples", "finetuned",
    "stream_dtype", "expected_fp", "device", "threads",
)  # fmt: skip
NODES = (*GROUPS[:-2], "preprocessing")  # whose own options it may set
# Options of those that name files, folders and addresses, or ask for work that no result needs.
PLACES = (
    "local", "include_path", "root", "path", "config", "files", "folder", "dir", "cache_dir",
    "checkpoints_dir", "num_workers", "compile",
)  # fmt: skip
# What names the full-precision network: the artifact has one of its own, and opens none by name.
NETWORK = ("checkpoint", "model.source", "model.weights")
# What else the user may give: how it is measured, on what device, by whose classes. Places too.
MEASURING = ("task", "protocol", "preprocessing", "device", "plugins")
BITS = "bits_per_layer"
SEARCH_PATH = "hydra.searchpath"  # of a user's own conf/, which no file may name
HERE = "PATH"  # what an artifact says in the place of the paths of the machine that wrote it

NAME = re.compile(r"\w[\w-]*(/\w[\w-]*)*", re.ASCII)
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?", re.ASCII)
WORD = re.compile(r"[\w .:+-]*", re.ASCII)
PATTERN = re.compile(r"[\w .:+*?!\[\]-]*", re.ASCII)  # as fnmatch has them
MATCHED = "model.leave"  # whose words are compared with names of weights, and do nothing else
MOST, LONGEST, DEEPEST = 200, 2000, 8


def composable(stated: Any, given: Sequence[str], places: bool = False) -> list[str]:
    """Return those of the overrides stated that compose a run, less those that given has too.

    With places, as of a record in this machine's own folder, they may name files and folders, and
    the network.

    Raises:
        ValueError: names the first that a file may not make, and how to give it by hand.
    """
    if stated is None:
        return []
    if not isinstance(stated, list) or len(stated) > MOST:
        raise ValueError(f"the overrides it states are no list of at most {MOST} texts")
    own = {override.key_or_group for override in _parsed(given)}
    found = []
    for text in stated:
        if isinstance(text, str) and text.startswith(f"{BITS}="):
            continue  # the file itself has the bits of each layer
        override = _one(text)
        name = override.key_or_group
        if name in own or (name in NETWORK and not places and not _is_word(override.value())):
            continue
        if reason := _refusal(override, places):
            raise ValueError(
                f"it states {text!r}: {reason}; give {name}= on the command line if you want it"
            )
        found.append(text)
    return found


def check_given(given: Sequence[str], stated: Any, places: bool = False) -> None:
    """Check that the overrides given tell how and where what is made already is measured.

    An option of how it was made would change nothing, unless the run had it and a file may not
    state it: stated are the run's overrides, and places is as for composable.

    Raises:
        ValueError: names the first other one, and what is taken.
    """
    own = {
        override.key_or_group
        for override in (_one(text) for text in stated or () if not text.startswith(f"{BITS}="))
        if _refusal(override, places)
    }
    for override, text in zip(_parsed(given), given, strict=True):
        name = override.key_or_group
        if name.partition(".")[0] in MEASURING or _is_place(name) or name in (*NETWORK, *own):
            continue
        raise ValueError(
            f"{text} would change nothing of what is made already; give the options of "
            f"{', '.join(MEASURING)}, or places such as data_dir=PATH"
        )


def shareable(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a run as its artifact states them: without this machine's paths."""
    found = []
    for override, text in zip(_parsed(overrides), overrides, strict=True):
        name = override.key_or_group
        value = override.value()
        value = value.text if isinstance(value, QuotedString) else str(value)
        local = value.startswith(("/", ".", "~"))  # otherwise ORG/NAME, or a package's file
        placed = name == SEARCH_PATH or (_is_place(name) and "/" in value)
        if placed or (name in NETWORK and local):
            text = f"{name}={HERE}"
        found.append(text)
    return found


def _one(text: Any) -> Override:
    """Return the override that text is.

    Raises:
        ValueError: when it is none, or no text that fits a line.
    """
    if not isinstance(text, str) or len(text) > LONGEST or not text.isprintable():
        raise ValueError(f"it states {str(text)[:40]!r}, which is no override of one line")
    if text.count("[") + text.count("{") + text.count("(") > DEEPEST:
        raise ValueError(f"it states {text[:40]!r}, which is nested too deep")
    (override,) = _parsed([text])
    return override


def _parsed(overrides: Sequence[str]) -> list[Override]:
    with value_errors():
        return OverridesParser.create().parse_overrides(list(overrides))


def _refusal(override: Override, places: bool) -> str | None:
    """Return what a file may not do that override does, None where it may; places if it may."""
    name, value = override.key_or_group, override.value()
    if override.package is not None or override.is_delete() or override.is_add():
        return "a file adds, moves and takes away no option"
    if override.is_sweep_override():
        return "a file sweeps nothing"
    if name in GROUPS:
        ok = value is None or (isinstance(value, str) and NAME.fullmatch(value))
        return None if ok else "a file chooses members of a group by name alone"
    head, *parts = name.split(".")
    if _is_place(name) or (places and name in NETWORK):
        return None if places and _is_local(value) else "a file names no place"
    if name not in (*OPTIONS, *NETWORK) and not (head in NODES and parts):
        return "a file sets no option but what decides a result"
    if any(part.startswith("_") for part in parts):
        return "a file names no class"
    if name == "device" and not DEVICE.fullmatch(str(value)):
        return "no such device"
    words = PATTERN if name == MATCHED else WORD
    return None if _is_plain(value, words) else "a file gives plain values alone"


def _is_place(name: str) -> bool:
    return name.endswith("_dir") or name.rpartition(".")[2] in PLACES


def _is_local(value: Any) -> bool:
    """Return whether value can say where something lies: text, nothing, or how many."""
    return value is None or isinstance(value, str | int | QuotedString)


def _is_plain(value: Any, words: re.Pattern[str]) -> bool:
    """Return whether value is a number, one of words, nothing, or a list of those."""
    if isinstance(value, list):
        return len(value) <= MOST and all(_is_plain(entry, words) for entry in value)
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) < 2**63
    return _is_word(value, words)


def _is_word(value: Any, words: re.Pattern[str] = WORD) -> bool:
    text = value.text if isinstance(value, QuotedString) else value
    return isinstance(text, str) and words.fullmatch(text) is not None
