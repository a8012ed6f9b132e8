"""Command lines of run.py, good and bad, composed from the schema, conf/ and the signatures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiment.config import RunConfig, composed
from tests.conftest import TINY

CONF = Path(__file__).resolve().parents[2] / "conf"
# The smallest networks, each with what makes a run of it short.
SHORT = ("num_samples=8",)
BASES: dict[str, Sequence[str]] = {
    "vision": TINY,
    "causal": ("model=tiny_llama", "task.seq_len=16", "protocol.max_windows=8"),
    "encoder": ("model=tiny_bert", "task.max_len=32"),
}
# Methods, and what makes each short. The names are those of the option that stops the work.
LEARNED = ("recon.iters=1", "recon.batch_size=4")
METHODS: dict[str, Sequence[str]] = {
    **dict.fromkeys(
        (
            "flexround", "flexround_fixed_s1", "flexround_no_s3_s4", "adaround", "adaquant",
            "adaquant_flexround", "signround", "lwc", "flexround_lwc",
        ),
        LEARNED,
    ),
    "lrq": (*LEARNED, "quant.rank=2"),
    "rtn": (), "gptq": (), "cdquant": (), "gptaq": (), "qronos": (),
}  # fmt: skip
# Choices that make other options count; they need not go with the network or the method.
CHOICES: tuple[Sequence[str], ...] = (
    (),
    ("activation=static_per_tensor",),
    ("activation=dynamic_per_token",),
    ("granularity=per_group", "group_size=8"),
    ("granularity=per_channel", "ranges=min_max"),
    ("ranges=lp_2d", "symmetric=false"),
)
PRESETS: tuple[Sequence[str], ...] = (
    ("recon=qdrop", "activation=static_per_tensor"),
    ("recon=brecq", "activation=static_per_tensor", "recon.act_iters=1"),
    ("recon=layer",),
)
# Members that are left out, since a run of theirs takes minutes or another process.
LONG = {"logger": ("wandb",), "task": ("zero_shot", "five_shot"), "experiment": None, "tuned": None}
# A true value of these takes a minute (a compiler), and a recipe trains a network anew.
SLOW_OPTIONS = ("compile", "recon.compile", "task.recipe", "task.data.words")

NUMBERS = ("0", "1", "2", "3", "4", "8", "0.5", "1e-3", "2.5")
BAD_NUMBERS = (
    "-1", "-0.5", "nan", "inf", "-inf", "1e300", "1e-320", "2147483648", "9223372036854775808",
    "99999999999999999999", "1_0", "0x4", "٤", "1e1",
)  # fmt: skip
WORDS = ("true", "false", "null", "abc", "''", "' '", "none", "auto", "cpu", "file", "block")
BAD_WORDS = (
    "'a\x01b'", "é日本", "'~/x'", "'~nobody/x'", "/proc/x", "/etc/passwd", "/etc", "/dev/null",
    "/nowhere", "../x", "package:nope/x", "tiny:nope", "cpu:3", "meta", "cuda:99", "x" * 300,
    "y/" * 2100, "finetuned",
)  # fmt: skip
SHAPES = ("[]", "[1,2]", "[a]", "{}", "{a: 1}", "[nan]", "[[1]]", "${seed}", "${nope}", "${bits}")
BROKEN = ("", "=", "(", "'", '"', "\\", "[", "{", "${", "a,", ",", "a b", "a'b", "$", "a:b")
SWEEPS = (
    "2,3", "1,9", "choice(2,3)", "range(2,4)", "range(4,2)", "range(1,100000000)", "glob(*)",
    "glob(nope*)", "interval(0,1)", "shuffle(2,3)", "sort(3,2)", "2,2", "choice()", "a,b",
)  # fmt: skip
HYDRA = (
    "hydra.run.dir=''", "hydra.run.dir=/proc/x", "hydra.run.dir=/etc/passwd", "hydra.foo=1",
    "hydra/launcher=nope", "hydra/launcher=joblib", "hydra/launcher=slurm", "hydra.verbose=nope",
    "hydra.launcher.n_jobs=0", "hydra.launcher.time=x", "hydra.job.name=''", "hydra.mode=NOPE",
    "hydra.sweep.dir=''", "hydra.sweep.subdir=''", "hydra.output_subdir=null", "hydra=nope",
    "hydra.job.chdir=nope", "hydra.sweeper.params=1", "hydra.callbacks.table=null",
)  # fmt: skip
FLAGS = (
    "--cfg=job", "--cfg=nope", "--info=defaults", "--info=nope", "--resolve", "--nope", "-x",
    "--config-name=nope", "--config-dir=/nowhere", "--version", "-c", "--package=nope",
)  # fmt: skip
values = st.one_of(*map(st.sampled_from, (NUMBERS, BAD_NUMBERS, WORDS, BAD_WORDS, SHAPES)))


@functools.cache
def members(group: str) -> tuple[str, ...]:
    """Return the members of a config group that a short run may have."""
    root = CONF / group
    names = [p.relative_to(root).with_suffix("").as_posix() for p in sorted(root.rglob("*.yaml"))]
    left = LONG.get(group) or ()
    if group == "model":  # those of timm and torchvision would be trained on the digits
        names = [n for n in names if (CONF / "model" / f"{n}.yaml").read_text().count("source")]
    return tuple(name for name in names if name not in left)


@functools.cache
def groups() -> tuple[str, ...]:
    return tuple(p.name for p in sorted(CONF.iterdir()) if p.is_dir() and _is_group(p.name))


def _is_group(name: str) -> bool:
    return name in {field.name for field in fields(RunConfig)} and name != "recipe"


@functools.cache
def options(args: tuple[str, ...]) -> tuple[str, ...]:
    """Return the dotted names of all options of a short run."""
    cfg = composed(args)
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("hydra", "idle")])
    names = _names("", OmegaConf.to_container(own, resolve=False))
    return tuple(n for n in names if not n.startswith(SLOW_OPTIONS) and "_target_" not in n)


def _names(prefix: str, node: object) -> Sequence[str]:
    if not isinstance(node, dict):
        return [prefix]
    found = [prefix] if prefix else []
    for key, value in node.items():
        if str(key):
            found += _names(f"{prefix}.{key}" if prefix else str(key), value)
    return found


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Return the arguments of run.py: a short run, with up to three things that may be wrong."""
    base = draw(st.sampled_from(sorted(BASES)))
    method = draw(st.sampled_from(sorted(METHODS)))
    presets = PRESETS if METHODS[method] else ()
    choice = draw(st.sampled_from((*CHOICES, *presets)))
    args = [*BASES[base], f"quant={method}", *SHORT[:1], *METHODS[method], *choice]
    sweep = draw(st.integers(0, 5)) == 0
    more = []
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 1, 2, 2, 3)))):
        more.append(draw(_oddities(tuple(args), sweep)))
    if draw(st.integers(0, 9)):  # the short run keeps what it is short by, unless that is given
        given = {word.lstrip("+~").partition("=")[0] for word in more}
        args = [word for word in args if word.partition("=")[0] not in given]
    args += more
    if sweep:
        args.insert(draw(st.integers(0, len(args))), "-m")
    return args


def _oddities(args: tuple[str, ...], sweep: bool) -> st.SearchStrategy[str]:
    names = st.sampled_from(options(args))
    group = st.sampled_from(groups())
    choice = group.flatmap(
        lambda g: st.sampled_from([f"{g}={m}" for m in (*members(g), "nope", "''", "null", "../x")])
    )
    kinds = [
        *[st.builds("{}={}".format, names, values)] * 5,
        choice,
        st.builds("{}={}".format, names, st.sampled_from(BROKEN)),
        st.builds("{}{}={}".format, st.sampled_from(("+", "++", "~")), names, values),
        st.builds("{}{}={}".format, names, st.sampled_from(("x", ".x", ".")), values),
        st.builds("{}={}".format, names, st.text(max_size=8).filter(lambda t: "\0" not in t)),
        st.sampled_from(HYDRA),
        st.sampled_from(FLAGS),
        st.sampled_from(("bits", "=4", "~bits", "~quant", "+foo=1", "quant.=1", "bits=4 bits=3")),
    ]
    sweeps = st.builds("{}={}".format, st.one_of(names, group), st.sampled_from(SWEEPS))
    return st.one_of(*kinds, *([sweeps] * (5 if sweep else 1)))
