"""Overrides of a command line, looked at before Hydra composes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from experiment import ROOT
from experiment.config import RunConfig
from experiment.errors import members
from experiment.values import check_value
from flexround.utils.arguments import shown

# Runs of one sweep: more than anyone waits for, and what lists of them still fit into memory.
LARGEST = 100_000
OF_HYDRA = ("hydra.", "hydra/")


def check_overrides(overrides: Sequence[str]) -> None:
    """Check what Hydra would take silently, or tell in words that help nobody.

    Raises:
        ValueError: for an option that is given twice, added or taken away, or that a task says of
            itself; for a member of a group that lies outside of it; for a number that stands for
            true or false; for a sweep that is too large.
        HydraException: when Hydra can't read one of them.
    """
    for text in overrides:
        if shown(text) != text:
            raise ValueError(f"{text} holds a character that can't be printed; give it without")
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given: dict[str, str] = {}
    for override in parsed:
        key, text = override.key_or_group, str(override.input_line)
        if key in given:
            raise ValueError(f"{given[key]} and {text}: give {key} once")
        given[key] = text
        if key.startswith(OF_HYDRA):
            if not override.is_sweep_override():
                check_value(key, override.value())
            continue
        if key == "finetuned":
            raise ValueError(
                f"{text}: a task says that of itself; give checkpoint=finetuned for what "
                "finetune.py has made, or checkpoint=PATH"
            )
        _check_change(override, key, text)
        _check_member(override, key, text)
        _check_flag(override, key, text)
    check_size(parsed)


def check_size(parsed: Sequence[Override]) -> None:
    """Check that the sweep over parsed is one that can be listed, without listing it.

    Raises:
        ValueError: when it has more runs than LARGEST.
    """
    runs = 1
    for override in parsed:
        runs *= max(1, _choices(override))
        if runs > LARGEST:
            raise ValueError(
                f"{override.input_line}: the sweep has more than {LARGEST} runs; give fewer values"
            )


def _choices(override: Override) -> int:
    """Return how many values override sweeps over; 1 where only Hydra knows, as of glob()."""
    sweep: Any = override.value()
    if isinstance(sweep, ChoiceSweep):
        return len(sweep.list)
    if isinstance(sweep, RangeSweep):
        start, stop, step = float(sweep.start or 0), float(sweep.stop or 0), float(sweep.step)
        return int(max(0.0, min((stop - start) / step, LARGEST + 1.0))) if step else LARGEST + 1
    return 1


def _check_change(override: Override, key: str, text: str) -> None:
    if not key:
        raise ValueError(f"{text} names no option; give KEY=VALUE")
    if override.is_delete():
        raise ValueError(f"{text}: an option can't be taken away; leave that out")
    known = {field.name for field in fields(RunConfig)}
    added = override.is_force_add() and key.partition(".")[0] in known
    if added or (override.is_add() and key in known):
        raise ValueError(f"{text}: an option is not added but set; give {text.lstrip('+')}")


def _check_member(override: Override, key: str, text: str) -> None:
    if key in ("experiment", "scale") and override.is_sweep_override():
        raise ValueError(f"{text}: an experiment is a sweep of its own; give each {key} a command")
    if not (ROOT / "conf" / key).is_dir() or override.is_sweep_override():
        return
    value = override.value()
    if value is None and key == "experiment":
        return
    outside = isinstance(value, str) and (value.startswith("/") or ".." in value.split("/"))
    if not isinstance(value, str) or not value or outside:
        raise ValueError(
            f"{text}: that is no member of {key}; available {key}: {', '.join(members(key))}"
        )


def _check_flag(override: Override, key: str, text: str) -> None:
    flags = {field.name for field in fields(RunConfig) if field.type in (bool, "bool")}
    value = override.value()
    if key in flags and isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{text}: give true or false")
