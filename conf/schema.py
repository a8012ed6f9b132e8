"""The typed schema of a run, and the checks that need no heavy import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf

from conf import launchers
from experiment.identity import FULL_STREAMS

ROOT = Path(__file__).resolve().parent.parent
STREAM_DTYPES = (FULL_STREAMS, "bfloat16", "float16")


@dataclass
class PreprocessingConfig:
    """How a checkpoint's images were prepared; None is the architecture's own."""

    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class RunConfig:
    """Everything that `python run.py` can be told; defaults stand in conf/config.yaml."""

    model: Any = MISSING
    task: Any = MISSING
    protocol: Any = MISSING
    calibration: Any = None
    quant: Any = MISSING
    granularity: Any = MISSING
    ranges: Any = MISSING
    recon: Any = MISSING
    activation: Any = None
    logger: Any = None
    scale: str = MISSING
    bits: int = MISSING
    symmetric: bool = MISSING
    act_bits: int = MISSING
    act_stem_bits: int = MISSING
    act_head_bits: int = MISSING
    kv_bits: int | None = MISSING
    group_size: int = MISSING
    seed: int = MISSING
    num_samples: int = MISSING
    checkpoint: str | None = MISSING
    finetuned: bool = False  # whether the task's networks are those that tasks.finetune makes
    imagenet_dir: str | None = MISSING
    data_dir: str | None = MISSING
    calibration_dir: str | None = MISSING
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    expected_fp: float | None = MISSING
    device: str = MISSING
    compile: bool = MISSING
    save: bool = MISSING
    rerun: bool = MISSING
    retry_failed: bool = MISSING
    progress: bool = MISSING
    results_dir: str = MISSING
    cache_dir: str = MISSING
    cache_gib: float = MISSING
    stream_dtype: str = MISSING
    stream_gib: float | None = MISSING
    offload: bool = MISSING
    spill_dir: str = MISSING
    checkpoints_dir: str = MISSING
    # Fine-tuning: a member of conf/recipe, which only `python -m tasks.finetune` has.
    recipe: Any = None
    # By config group: the options that do nothing under the chosen member of that group.
    idle: dict[str, list[str]] = field(default_factory=dict)


def register() -> None:
    """Make the schema and the ${root:} resolver known to Hydra."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    launchers.register()
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("by_bits", _by_bits, replace=True)
    OmegaConf.register_new_resolver("signround_lr", _signround_lr, replace=True)
    OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
    OmegaConf.register_new_resolver("if_finetuned", _if_finetuned, replace=True)
    OmegaConf.register_new_resolver("brecq", _brecq, replace=True)


def _by_scale(scale: str, full: Any, smoke: Any) -> Any:
    """Return full, or smoke under scale=smoke."""
    return smoke if scale == "smoke" else full


def _if_finetuned(checkpoint: str | None, yes: Any, no: Any) -> Any:
    """Return yes for the network that tasks.finetune makes, no for any other."""
    return yes if checkpoint == "finetuned" else no


def _brecq(scale: str, folder: str, model: str) -> str | None:
    """Return where BRECQ's checkpoint of model is looked for; None under scale=smoke."""
    return None if scale == "smoke" else f"{folder}/brecq/{model}.pth"


def _by_bits(bits: int, table: DictConfig) -> Any:
    """Return table's entry for bits or its default: ${by_bits:${bits},{2: 1e-3, default: 4e-4}}."""
    return table[bits] if bits in table else table["default"]


def _signround_lr(iters: int, bits: int) -> float:
    """Return the rate of auto-round's recipes: 1 / iters up to 1 / 200, doubled for few bits."""
    if iters >= 1000 and bits <= 3:
        return 2 / iters
    return 1 / max(200, iters)


def check_values(cfg: RunConfig) -> None:
    """Check the scalars that the schema's types leave open.

    Raises:
        ValueError: names the value, what is allowed, and the option to change.
    """
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


def check_idle(cfg: RunConfig, own: Sequence[str], sweep: Sequence[str]) -> None:
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
    files = Path(__file__).parent.joinpath("tuned", "recon").glob(f"{recon}_*.yaml")
    methods = sorted(path.stem.removeprefix(f"{recon}_") for path in files)
    if methods and quant not in methods:
        raise ValueError(
            f"recon={recon} has settings for quant={', '.join(methods)}, not for {quant}; "
            "give recon=block, with recon.iters= and recon.lr="
        )
