"""Schema of a run: every option with its type; the defaults stand in conf/config.yaml."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from experiment import ROOT, launchers, resolvers
from experiment.errors import value_errors
from experiment.values import check_every_value

# Options that have had another name; it is taken for a release.
RENAMED = {"recon.steps": "recon.act_steps", "recon.keep": "recon.quant_prob"}


def renamed(overrides: Sequence[str]) -> list[str]:
    """Return overrides with the names that options have now; each old one is told on stderr."""
    found = []
    for text in overrides:
        name, equals, value = text.partition("=")
        prefix = name[: len(name) - len(name.lstrip("+~"))]
        new = RENAMED.get(name.removeprefix(prefix))
        if new is not None and equals:
            print(
                f"{name} is called {new} now; the old name goes with the next release",
                file=sys.stderr,
            )
            text = f"{prefix}{new}={value}"
        found.append(text)
    return found


@cache
def parsed(text: str) -> Override:
    """Return an override as Hydra reads it, with the name that its option has now.

    Raises:
        HydraException: when Hydra can't read it.
    """
    (new,) = renamed([text])
    (found,) = OverridesParser.create().parse_overrides([new])
    return found


@dataclass
class PreprocessingConfig:
    """How a checkpoint's images were prepared; None is the architecture's own.

    Attributes:
        resize: pixels of the short side that an image is brought to.
        crop: pixels of the sides of the square cut out of its middle, at most resize.
        interpolation: between pixels: nearest, nearest-exact, bilinear, bicubic, box, hamming or
            lanczos.
        mean: of red, green and blue, between 0 and 1; taken off.
        std: of the three; divided by afterwards.
    """

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
    grid: Any = None
    ranges: Any = MISSING
    recon: Any = MISSING
    activation: Any = None
    transform: Any = None
    allocation: Any = None
    logger: Any = None
    scale: str = MISSING
    bits: int = MISSING
    bits_per_layer: Any = MISSING
    symmetric: bool = MISSING
    act_bits: int = MISSING
    act_stem_bits: int = MISSING
    act_head_bits: int = MISSING
    act_init_samples: int = MISSING
    act_ranges_from: str = MISSING
    kv_bits: int | None = MISSING
    group_size: int = MISSING
    clipping: bool = MISSING
    seed: int = MISSING
    num_samples: int = MISSING
    checkpoint: str | None = MISSING
    finetuned: bool = False  # whether the task's networks are those that finetune.py makes
    imagenet_dir: str | None = MISSING
    data_dir: str | None = MISSING
    calibration_dir: str | None = MISSING
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    expected_fp: float | None = MISSING
    device: str = MISSING
    threads: int | None = MISSING
    compile: bool = MISSING
    save: bool = MISSING
    rerun: bool = MISSING
    retry_failed: bool = MISSING
    progress: bool = MISSING
    results_dir: str = MISSING
    cache_dir: str = MISSING
    cache_gib: float = MISSING
    stream_dtype: str = MISSING
    stream_device: str = MISSING
    stream_gib: float | None = MISSING
    offload: bool = MISSING
    spill_dir: str = MISSING
    checkpoints_dir: str = MISSING
    plugins: list[str] = MISSING
    # Fine-tuning: a member of conf/recipe, which only `python finetune.py` has.
    recipe: Any = None
    # By config group: the options that do nothing under the chosen member of that group.
    idle: dict[str, list[str]] = field(default_factory=dict)


def register() -> None:
    """Make the schema and the ${root:} resolver known to Hydra."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    launchers.register()
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
    for name, resolver in resolvers.BY_NAME.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


@contextmanager
def hydra_of_conf() -> Iterator[Hydra]:
    """Yield Hydra on the files of conf/; what it refuses becomes a ValueError of one line."""
    register()
    with value_errors(), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None, "initialize_config_dir has made it"
        yield hydra


def composed(
    overrides: Sequence[str], run_mode: RunMode = RunMode.RUN, config: str = "config"
) -> DictConfig:
    """Return the configuration of one job, with Hydra's own under hydra.

    With RunMode.MULTIRUN it is that of a sweep: its swept values are in hydra.overrides, and those
    of an experiment in hydra.sweeper.

    Raises:
        ValueError: when the overrides do not compose.
    """
    with hydra_of_conf() as hydra:
        cfg = hydra.compose_config(
            config, renamed(overrides), run_mode, with_log_configuration=False, from_shell=False
        )
    check_keys(cfg)
    check_every_value(cfg)
    return cfg


def check_keys(cfg: DictConfig) -> None:
    """Check that nothing was added (+KEY=VALUE) to the options there are, nor taken away (~KEY).

    Options of what is built (task., recon., quant., ...) are checked against its own signature.

    Raises:
        ValueError: names the option and the nearest that there is.
    """
    known = [f.name for f in fields(RunConfig)]
    for key in map(str, cfg):
        if key not in (*known, "hydra"):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{key}: there is no such option; {hint}")
    gone = [key for key in known if key not in cfg]
    if gone:
        raise ValueError(f"~{gone[0]}: an option can't be taken away; leave that out")
