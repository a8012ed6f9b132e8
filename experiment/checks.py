"""Checks of a configuration that need no heavy import."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from experiment import ROOT
from experiment.build import has_idle_loop
from experiment.config import parsed
from experiment.errors import FEW
from experiment.finetuned import FINETUNED
from experiment.identity import FULL_STREAMS
from experiment.idle import does_nothing, idle_options
from experiment.options import filled, parents
from experiment.options import group as group_of
from experiment.values import check_every_value
from flexround.api.rules import (
    check_imatrix,
    check_layer_bits,
    check_moving_zero_point,
)
from flexround.calibration.enough import check_enough
from results.records.given import below
from results.records.selection import flatten

STREAM_DTYPES = (FULL_STREAMS, "bfloat16", "float16")
STREAM_DEVICES = ("auto", "cuda", "cpu")
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def check_choices(
    cfg: DictConfig, choices: Mapping[str, Any], own: Sequence[str], sweep: Sequence[str]
) -> None:
    """Check what a job chooses, as far as that needs no heavy import.

    choices are the chosen members by config group; own and sweep the overrides of `check_idle`.

    Raises:
        ValueError: for settings that do not go together.
    """
    check_values(cfg)
    if choices.get("scale") == "smoke" and choices.get("experiment") is None:
        raise ValueError(
            "scale=smoke is an experiment's, of which it makes a trial in minutes; give "
            "experiment=NAME, or leave it out"
        )
    check_idle(cfg, own, sweep)
    check_filled(cfg, choices)
    check_loop(cfg)
    if not has_idle_loop(cfg):  # round-to-nearest is the same in every setting
        check_preset(choices["recon"], choices["quant"])
        check_samples(cfg)
    symmetric = cfg.symmetric or cfg.grid is not None
    check_moving_zero_point(choices["ranges"], symmetric, cfg.activation)
    check_imatrix(
        choices["ranges"], cfg.symmetric and cfg.grid is None, "source" in cfg.model,
        cfg.activation is not None and "symmetric" in cfg.activation, cfg.quant,
    )  # fmt: skip


def check_values(cfg: DictConfig) -> None:
    """Check the scalars that the schema's types leave open.

    Raises:
        ValueError: names the value, what is allowed, and the option to change.
    """
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    for name, value in flatten({k: v for k, v in written.items() if k != "hydra"}).items():
        if value == MISSING:
            place = name.rpartition(".")[2] in ("source", "path")
            what = "ORG/NAME of the hub, or a local folder" if place else "its value"
            raise ValueError(f"{name}= is not given; give {what}")
    check_every_value(cfg)
    check_bits_of_layers(cfg)
    for name in ("name", "source", "weights"):
        value = cfg.model.get(name)
        if not isinstance(value, str | None):
            raise ValueError(f"model.{name}={value}: give a text")
    if cfg.stream_dtype not in STREAM_DTYPES:
        raise ValueError(f"stream_dtype={cfg.stream_dtype}: give {', '.join(STREAM_DTYPES)}")
    if cfg.stream_device not in STREAM_DEVICES:
        raise ValueError(f"stream_device={cfg.stream_device}: give {', '.join(STREAM_DEVICES)}")
    if cfg.stream_device == "cuda" and (cfg.device == "cpu" or cfg.stream_gib is not None):
        other = "device=cpu" if cfg.device == "cpu" else f"stream_gib={cfg.stream_gib}"
        raise ValueError(
            f"stream_device=cuda with {other}: activations then lie on the GPU alone; leave one of "
            "the two out"
        )
    if not DEVICE.fullmatch(cfg.device):
        raise ValueError(f"device={cfg.device}: give auto, cpu or cuda:N")
    if (cfg.checkpoint == FINETUNED or cfg.finetuned) and "checkpoints_dir" not in cfg.task:
        asked = f"checkpoint={FINETUNED}" if cfg.checkpoint == FINETUNED else "finetuned=true"
        raise ValueError(
            f"{asked}: nothing is fine-tuned for this task; give a file, or leave that out"
        )


def check_filled(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Check that what another option fills is set by that one, which tables and names go by.

    Raises:
        ValueError: names both.
    """
    for group, member in choices.items():
        for name, filler in filled(group, str(member)).items():
            above, _, last = name.rpartition(".")
            node = OmegaConf.select(cfg, above)
            held = isinstance(node, DictConfig)
            found: Any = OmegaConf.to_container(node, resolve=False) if held else {}
            if found.get(last, told := f"${{{filler}}}") != told:
                raise ValueError(
                    f"{name}={found[last]}: {name} is what {filler}= says; give {filler}= instead"
                )


def check_loop(cfg: DictConfig) -> None:
    """Check that the loop over layers is one for the chosen method: to learn it, or to solve.

    Raises:
        ValueError: names both, and the preset to choose.
    """
    learned, loop_learns = "_partial_" in cfg.quant, "sequential" not in cfg.recon
    choices = [str(node.get("_target_")).rpartition(".")[2] for node in (cfg.quant, cfg.recon)]
    if learned and not loop_learns:
        raise ValueError(
            f"{choices[0]} is learned, and the chosen recon ({choices[1]}) only solves; "
            "give recon=block"
        )
    if loop_learns and not learned:
        own = not str(cfg.quant.get("_target_")).startswith("flexround.")
        raise ValueError(
            f"{choices[0]} solves layer by layer, and the chosen recon ({choices[1]}) learns; "
            "give recon=solve, or leave recon= out"
            + ("; the file of a method that learns says `_partial_: true`" if own else "")
        )


def check_samples(cfg: DictConfig) -> None:
    """Check that a learned method's calibration set holds a mini-batch; every task draws all of it.

    It is looked at again where the samples are: they come after the network and its log lines.

    Raises:
        ValueError: when it does not.
    """
    if "_partial_" in cfg.quant and cfg.recon.iters:
        check_enough(cfg.num_samples, cfg.recon.batch_size, cfg.recon.held_out)


def bits_of_layers(cfg: DictConfig) -> dict[str, Any]:
    """Return bits_per_layer by name: the command line takes a layer called 0 for a number."""
    given: Any = OmegaConf.to_container(cfg.bits_per_layer or OmegaConf.create(), resolve=True)
    return {str(name): own for name, own in given.items()}


def check_bits_of_layers(cfg: DictConfig) -> None:
    """Check bits_per_layer, and that no layer gets its bits from two places.

    Raises:
        ValueError: names what is wrong.
    """
    given = cfg.bits_per_layer
    plain = bits_of_layers(cfg) if isinstance(given, DictConfig) else given
    check_layer_bits(plain, cfg.bits, cfg.grid is not None)
    if cfg.allocation is not None and given:
        raise ValueError(
            "bits_per_layer= and allocation= both choose the bits of layers; leave one out"
        )
    if cfg.allocation is not None and cfg.grid is not None:
        raise ValueError(
            "allocation= chooses among numbers of bits, and a table of levels has one; give "
            "grid=integer"
        )


def check_idle(cfg: DictConfig, own: Sequence[str], sweep: Sequence[str]) -> None:
    """Refuse options given by hand that do nothing for what was chosen.

    own are this job's overrides; sweep those of the whole sweep it belongs to (own again outside of
    one). In a sweep over the group that makes an option idle, the option serves the other members.

    Raises:
        ValueError: names the option and the choice that leaves it without effect.
    """
    given = {o.key_or_group: o.input_line for o in map(parsed, own)}
    last = {o.key_or_group: o.is_sweep_override() for o in map(parsed, sweep)}
    swept = {group for group, several in last.items() if several}
    for group, options in idle_options(cfg).items():
        # An option that makes others idle may be another in each member of its own group.
        if group in swept or group.partition(".")[0] in swept:
            continue
        for key, text in given.items():
            if any(does_nothing(key, option, cfg) for option in options):
                others = _members_taking(group, key)
                way = f"give {' or '.join(others)}" if others else f"choose another {group}="
                raise ValueError(
                    f"{text} does nothing with the chosen {group}; leave it out, or {way}"
                )


def _members_taking(name: str, option: str) -> list[str]:
    """Return GROUP=MEMBER of those members that option does something under, if they are few."""
    found, taking = group_of(name), []
    for member, path in {} if found is None else found.members.items():
        files = [OmegaConf.load(file) for file in (*parents(name, path), path)]
        plain: list[Any] = [OmegaConf.to_container(file, resolve=False) for file in files]
        lists = [own.get("idle", {}).get(name) for own in plain]  # one may be by another option
        if not any(below(option, own) for own in lists if isinstance(own, list)):
            taking.append(f"{name}={member}")
    return taking if len(taking) <= FEW else []


def check_preset(recon: str, quant: str) -> None:
    """Check that recon, where it is a preset with settings for some methods, has them for quant.

    Raises:
        ValueError: names the methods that it has settings for.
    """
    conf = ROOT / "conf"
    known = sorted(path.stem for path in (conf / "quant").glob("*.yaml"))
    methods = [name for name in known if (conf / "tuned/recon" / f"{recon}_{name}.yaml").is_file()]
    if methods and quant not in methods:
        raise ValueError(
            f"recon={recon} has settings for quant={', '.join(methods)}, not for {quant}; "
            "give recon=block, with recon.iters= and recon.lr="
        )
