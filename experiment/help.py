"""Help of the doors that Hydra composes: `python run.py --help` and `--help GROUP`."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Sequence

from experiment.options import OF_FINETUNING, Group, Option, group, groups, scalars

ABOUT = {
    "run.py": "Quantize a network, measure it and record the run; with -m every combination of "
    "values that stand in a list.",
    "finetune.py": "Make the fine-tuned full-precision networks that run.py starts from for some "
    "tasks; with -m many of them.",
}
EXAMPLES = {
    "run.py": (
        "python run.py model=resnet18 quant=flexround bits=4",
        "python run.py -m model=resnet18 quant=rtn,adaround,flexround bits=4,3,2",
        "python run.py model=hf model.source=ORG/NAME task=wikitext2 quant=gptq bits=4",
        "python run.py experiment=paper/table02 scale=smoke",
    ),
    "finetune.py": (
        "python finetune.py model=bert_base task=glue/mrpc",
        "python finetune.py -m model=opt_125m,gpt_neo_125m task=wikitext2",
    ),
}
SUCH_AS = {
    "run.py": "recon.iters=500, quant.rank=64",
    "finetune.py": "recipe.lr=5e-5, recipe.max_steps=600",
}
FLAGS = {
    "--help [GROUP]": "this text, or the members of a group with a line each",
    "-m": "a sweep: every combination of values that stand in a list ({several})",
    "--cfg job": "the composed configuration, and nothing is run",
    "--info defaults-tree": "which files it is composed of",
    "--shell-completion install=bash": 'print what completes options: eval "$(python ...)"',
    "--hydra-help": "all flags of Hydra",
}
SEVERAL = {"run.py": "bits=4,3,2", "finetune.py": "model=opt_125m,gpt_neo_125m"}
WIDEST = 110


def text(door: str, words: Sequence[str] = ()) -> str:
    """Return the help of a door, or with words that of the groups and options they name.

    A word may be an override: what stands before its = is the name.

    Raises:
        ValueError: for a word that names neither.
    """
    names = [word.partition("=")[0].lstrip("+~") for word in words]
    return "\n\n".join(map(_named, names)) if names else _whole(door)


def _whole(door: str) -> str:
    parts = [
        f"usage: python {door} [-m] [OPTION=VALUE ...]\n\n{_wrapped(ABOUT[door], 0)}",
        "Groups, GROUP=MEMBER (the default in brackets):",
        *map(_short, _shown(door)),
        "Options, OPTION=VALUE (the default in brackets):",
        "\n".join(_entry(f"{o.name} [{o.default}]", o.line, 34) for o in _scalars(door)),
        f"An option of a member is given by its dotted name, such as {SUCH_AS[door]};"
        "\ndocs/reference/options.md has them all. Flags:",
        "\n".join(_entry(f, line.format(several=SEVERAL[door]), 34) for f, line in FLAGS.items()),
        "Examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[door]),
    ]
    return "\n\n".join(parts)


def _shown(door: str) -> list[Group]:
    """Return the groups that a door has."""
    return [found for found in groups() if _has(door, found.name)]


def _scalars(door: str) -> list[Option]:
    return [found for found in scalars() if _has(door, found.name)]


def _has(door: str, name: str) -> bool:
    """Return whether a door takes an option or a group of that name."""
    top = name.partition("/")[0].partition(".")[0]
    return top in OF_FINETUNING if door == "finetune.py" else top != "recipe"


def _short(found: Group) -> str:
    """Return a group in a line, and the names of its members."""
    default = "" if found.default == "-" else f" [{found.default}]"
    head = _entry(f"{found.name}{default}", found.line, 34)
    return f"{head}\n{_wrapped(', '.join(found.members), 6)}"


def _named(name: str) -> str:
    """Return what an option is, or a group and its members."""
    for option in scalars():
        if option.name == name:
            return f"{name} [{option.default}]: {option.line}"
    found = group(name)
    if found is None:
        known = [other.name for other in groups()]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"--help {name}: {hint}the groups are {', '.join(known)}")
    width = max(map(len, found.members)) + 4
    default = "" if found.default == "-" else f" (by default {found.default})"
    lines = [_entry(member, line, width) for member, line in found.described().items()]
    return "\n".join([f"{name}=: {found.line}{default}", *lines])


def _entry(name: str, line: str, width: int) -> str:
    """Return a name with what it is beside it, or below it where the name is long."""
    if not line:
        return f"  {name}"
    room = _columns() - width - 2
    first, *rest = textwrap.wrap(line, max(30, room), break_on_hyphens=False)
    head = f"  {name:<{width}}"
    lines = [f"{head}{first}"] if len(name) < width else [f"  {name}", " " * (width + 2) + first]
    return "\n".join([*lines, *(" " * (width + 2) + more for more in rest)])


def _wrapped(words: str, indent: int) -> str:
    space = " " * indent
    return textwrap.fill(
        words, _columns(), initial_indent=space, subsequent_indent=space,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _columns() -> int:
    return min(WIDEST, shutil.get_terminal_size((100, 24)).columns)
