"""Options that do nothing for what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from flexround.api.rules import idle_besides, idle_but
from results.records.given import below


def idle_in(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what `idle` of conf/ says of settings, by the group that makes options idle.

    Scores that choose the bits of layers, and ranges of the full-precision network's activations,
    go by the batches that the calibration samples are cut into.
    """
    idle = {group: list(options) for group, options in settings["idle"].items()}
    steps = settings.get("activation") or {}
    if settings.get("allocation") is None and steps.get("ranges_from") != "fp":
        return idle
    return idle_but(idle, "recon", settings["recon"], "batch_size")  # _target_ is not kept


def idle_options(cfg: DictConfig) -> dict[str, list[str]]:
    """Return the options that do nothing for what was chosen, by the group that makes them idle."""
    idle = idle_in(cfg)
    if cfg.calibration is not None and "protocol" in cfg.calibration:  # its name cuts the samples
        idle = idle_but(idle, "protocol", cfg.protocol, "_target_", "name")
    language = not str(cfg.model._target_).endswith(".VisionModel")
    for group, besides in idle_besides(cfg.granularity, language, cfg.clipping).items():
        idle.setdefault(group, []).extend(besides)
    return idle


def does_nothing(key: str, option: str, cfg: DictConfig) -> bool:
    """Return whether what key= says does nothing where option does not.

    BRECQ's and QDrop's settings also say from what the first ranges of activations are.
    """
    if key == "recon":  # the choice of a loop, of which all or all but the batches do nothing
        steps = cfg.recon.get("act_steps", "start")
        says = cfg.activation is not None and steps != "start"
        return option in ("recon", "recon._target_") and not says
    return below(key, [option])
