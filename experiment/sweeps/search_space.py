"""The settings that a search varies: conf/search/METHOD.yaml, and intervals on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from experiment import ROOT
from experiment.errors import members, value_errors
from experiment.launchers import SEARCHING
from experiment.sweeps.jobs import jobs_of, sweep_overrides
from results.records.searches import Search

SPACES = ROOT / "conf" / "search"
FORM = "give interval(LOW, HIGH), or tag(log, interval(LOW, HIGH)) with both above 0"


@dataclass(frozen=True)
class Interval:
    """The values of one setting."""

    low: float
    high: float
    log: bool
    text: str


@dataclass(frozen=True)
class Planned:
    """A search that is to be run: its job without the searched settings, its space, its config."""

    search: Search
    job: list[str]
    space: dict[str, Interval]
    cfg: DictConfig


def space_of(method: str, given: Sequence[Override]) -> dict[str, Interval]:
    """Return the intervals that a search over method's settings draws from, by dotted name.

    given are the intervals of the command line, which win over those of the file.

    Raises:
        ValueError: when there is none, or one is no interval.
    """
    path = SPACES / f"{method}.yaml"
    texts: Mapping[str, str] = {}
    if path.exists():
        texts = {str(k): str(v) for k, v in OmegaConf.load(path).items()}
    with value_errors():
        parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in texts.items()])
    found = {o.key_or_group: _interval(o) for o in (*parsed, *given)}
    if not found:
        raise ValueError(
            f"hydra/sweeper=optuna: quant={method} has nothing to search; conf/search has "
            f"{', '.join(members('search'))}; or give an interval, such as "
            "'recon.lr=interval(1e-3,1e-1)'"
        )
    return found


def trials_of(hydra: DictConfig, loader: ConfigLoader | None = None) -> int | None:
    """Return how many runs a sweep has that is a search, None for any other.

    hydra is Hydra's part of the sweep's configuration; loader as in jobs_of.

    Raises:
        ValueError: when its settings are no sweep that can be run.
    """
    if not is_search(hydra):
        return None
    parsed = OverridesParser.create(loader).parse_overrides(sweep_overrides(hydra))
    fixed = [str(o.input_line) for o in parsed if not is_interval(o)]
    return len(jobs_of(fixed, loader)) * int(hydra.sweeper.trials)


def is_search(hydra: DictConfig) -> bool:
    """Return whether a sweep is a search, by Hydra's part of its configuration."""
    return bool(hydra.runtime.choices.get("hydra/sweeper") == SEARCHING)


def is_interval(override: Override) -> bool:
    """Return whether an override is one to search in, rather than a value or a list of them."""
    return isinstance(override.value(), IntervalSweep)


def _interval(override: Override) -> Interval:
    value: Any = override.value()
    text = str(override.input_line).partition("=")[2]
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None:
        raise ValueError(f"{override.input_line}: {FORM}")
    low, high, log = float(value.start), float(value.end), "log" in value.tags
    if not low < high or (log and low <= 0):
        raise ValueError(f"{override.input_line}: {FORM}")
    return Interval(low, high, log, text)
