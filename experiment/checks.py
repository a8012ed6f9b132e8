"""Checks of a configuration that need no heavy import."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiment import ROOT
from experiment.identity import FULL_STREAMS

MOST_THREADS = 1024
STREAM_DTYPES = (FULL_STREAMS, "bfloat16", "float16")


def check_values(cfg: DictConfig) -> None:
    """Check the scalars that the schema's types leave open.

    Raises:
        ValueError: names the value, what is allowed, and the option to change.
    """
    if OmegaConf.is_missing(cfg.model, "source"):
        raise ValueError("model=hf: give model.source=ORG/NAME of the hub, or a local folder")
    if not 2 <= cfg.bits <= 8:
        raise ValueError(f"bits={cfg.bits}: give a whole number from 2 to 8")
    for name, value in (("num_samples", cfg.num_samples), ("group_size", cfg.group_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: give a whole number of at least 1")
    if cfg.cache_gib < 0:
        raise ValueError(f"cache_gib={cfg.cache_gib}: give 0, which keeps nothing, or more")
    if cfg.stream_dtype not in STREAM_DTYPES:
        raise ValueError(f"stream_dtype={cfg.stream_dtype}: give {', '.join(STREAM_DTYPES)}")
    if cfg.stream_gib is not None and not cfg.stream_gib >= 0:
        raise ValueError(f"stream_gib={cfg.stream_gib}: give 0, which spills all, more, or null")
    if cfg.seed < 0:
        raise ValueError(f"seed={cfg.seed}: give 0 or more")
    if cfg.threads is not None and not 1 <= cfg.threads <= MOST_THREADS:
        raise ValueError(f"threads={cfg.threads}: give 1 to {MOST_THREADS}, or null")


def check_ranges(cfg: DictConfig, chosen: str) -> None:
    """Check that chosen, the member of ranges=, has a zero point to move where that is its use.

    Raises:
        ValueError: when weights and activations are all on symmetric grids.
    """
    static = cfg.activation is not None and "symmetric" in cfg.activation
    if chosen == "lp_2d" and cfg.symmetric and not (static and not cfg.activation.symmetric):
        raise ValueError(
            "ranges=lp_2d moves the zero point, which symmetric=true has none of; give ranges=lp, "
            "symmetric=false, or activation=static_per_tensor activation.symmetric=false"
        )


def check_idle(cfg: DictConfig, own: Sequence[str], sweep: Sequence[str]) -> None:
    """Refuse options given by hand that do nothing for what was chosen.

    own are this job's overrides; sweep those of the whole sweep it belongs to (own again outside of
    one). In a sweep over the group that makes an option idle, the option serves the other members.

    Raises:
        ValueError: names the option and the choice that leaves it without effect.
    """
    parser = OverridesParser.create()
    given = {o.key_or_group: o.input_line for o in parser.parse_overrides(list(own))}
    swept = {o.key_or_group for o in parser.parse_overrides(list(sweep)) if o.is_sweep_override()}
    for group, options in cfg.idle.items():
        if group in swept:
            continue
        for option in options:
            for key, text in given.items():
                if key == option or key.startswith(f"{option}."):
                    raise ValueError(
                        f"{text} does nothing with the chosen {group}; leave it out, or choose "
                        f"another {group}="
                    )


def check_preset(recon: str, quant: str) -> None:
    """Check that recon, where it is a preset with settings for some methods, has them for quant.

    Raises:
        ValueError: names the methods that it has settings for.
    """
    files = ROOT.joinpath("conf", "tuned", "recon").glob(f"{recon}_*.yaml")
    methods = sorted(path.stem.removeprefix(f"{recon}_") for path in files)
    if methods and quant not in methods:
        raise ValueError(
            f"recon={recon} has settings for quant={', '.join(methods)}, not for {quant}; "
            "give recon=block, with recon.iters= and recon.lr="
        )
