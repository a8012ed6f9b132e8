"""`make reference`: docs/reference/options.md, every option with its type, default and source.

Made of the files of conf/ (defaults and comments), of the signatures of what they name (types) and
of those classes' docstrings. A test fails where the page is stale.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from experiment import ROOT
from experiment.config import PreprocessingConfig, RunConfig
from experiment.options import (
    CONF,
    Group,
    Option,
    first_sentence,
    groups,
    options_in,
    parents,
    scalars,
)
from flexround.utils.atomic_files import write_whole

PAGE = ROOT / "docs" / "reference" / "options.md"
UP = "../.."  # from the page to the repository
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {6,}.*)*)", re.MULTILINE)
TARGET = "_target_"
HEAD = """# Options

Every option of `python run.py` and `python finetune.py`: what it is, its type, its default and
where that stands. `make reference` writes this page from the files of [`conf/`]({up}/conf) and the
classes that they name; `--help` prints the short of it. A group chooses a member, `quant=gptq`; the
options of a member are set by dotted names, `quant.damp=0.05`. Later lines of
[`config.yaml`]({up}/conf/config.yaml) win over earlier ones, and the command line over all of them.
A default such as `${{act_bits}}` is filled by the option without a group that it names, and set by
that one alone; of `symmetric`, `seed` and `compile` a member may have its own.
"""
COLUMNS = ("option", "type", "default", "what it is", "of this default")


@dataclass
class Member:
    """A file of a config group.

    Attributes:
        own: its options below the group's name, by dotted name; with those of its parent.
        sets: what it sets besides, as OPTION=VALUE.
        target: the class that it builds, empty where that is another file's.
        parts: classes of what its options hold, by dotted name.
    """

    name: str
    path: Path
    own: dict[str, Option]
    sets: list[str]
    target: str = ""
    parts: dict[str, str] = field(default_factory=dict)


def text() -> str:
    """Return the page."""
    parts = [HEAD.format(up=UP), "## Without a group\n", _scalars()]
    parts += ["## preprocessing.\n", _preprocessing()]
    for group in groups():
        parts += [f"## {group.name}=\n", *_group(group)]
    return "\n".join(parts).rstrip() + "\n"


def _scalars() -> str:
    types = {f.name: str(f.type) for f in fields(RunConfig)}
    rows = [(f"`{o.name}`", _code(types[o.name]), _code(o.default), o.line) for o in scalars()]
    place = _link("conf/config.yaml")
    return f"Defaults: {place}; types: {_link('experiment/config.py')}.\n\n" + _table(
        ("option", "type", "default", "what it is"), rows
    )


def _preprocessing() -> str:
    name = f"{PreprocessingConfig.__module__}.{PreprocessingConfig.__name__}"
    rows = [
        (f"`preprocessing.{f.name}`", _code(str(f.type)), _code("null"),
         _documented(name, f.name))
        for f in fields(PreprocessingConfig)
    ]  # fmt: skip
    head = "Of the images of `task=imagenet`; `null` is the checkpoint's or architecture's own."
    return f"{head}\n\n" + _table(("option", "type", "default", "what it is"), rows)


def _group(group: Group) -> Iterator[str]:
    members = [_member(group, name, path) for name, path in group.members.items()]
    default = "" if group.default == "-" else f" Default: `{group.default}`."
    yield f"{group.line[:1].upper()}{group.line[1:]}.{default}\n"
    rows = [
        (_link(f"conf/{group.name}/{m.name}.yaml", m.name), first_sentence(m.path),
         ", ".join(map(_code, m.sets)))
        for m in members
    ]  # fmt: skip
    yield _table(("member", "what it is", "also sets"), rows)
    for target, alike in _by_class(members).items():
        if any(m.own for m in alike):
            yield _class(target, alike)


def _by_class(members: Iterable[Member]) -> Mapping[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.target, []).append(member)
    return found


def _class(target: str, members: Sequence[Member]) -> str:
    """Return the options of the members that build one class."""
    names = dict.fromkeys(name for member in members for name in member.own)
    rows = []
    for name in names:
        held = [member.own[name] for member in members if name in member.own]
        values = list(dict.fromkeys(option.default for option in held))
        owner = next((m.parts[_above(name)] for m in members if _above(name) in m.parts), "")
        last = name.rpartition(".")[2]
        line = next((option.line for option in held if option.line), "")
        default = _code(values[0]) if len(values) == 1 else "by member"
        told = _documented(owner, last)
        first, second = (told, line) if told else (line, "")
        rows.append((f"`{name}`", _type(owner, last), default, first, second))
    shown = ", ".join(f"`{m.name}`" for m in members[:6]) + (", ..." if len(members) > 6 else "")
    head = f"Options of {shown}"
    head += f", {_source(target)}:" if target else ":"
    return f"{head}\n\n" + _table(COLUMNS, rows)


@cache
def _read(path: Path) -> tuple[Option, ...]:
    return tuple(options_in(path.read_text()))


def _member(group: Group, name: str, path: Path) -> Member:
    """Return a member with what it takes from the file that it begins with."""
    prefix = group.name.replace("/", ".")
    whole = "# @package _global_" in path.read_text()
    made = Member(name, path, {}, [])
    for file in parents(group.name, path):
        base = _member(group, file.stem, file)
        made.own |= base.own
        made.parts |= base.parts
        made.target = base.target
    for option in _read(path):
        full = option.name if whole else f"{prefix}.{option.name}"
        where, _, last = full.rpartition(".")
        if last == TARGET:
            made.parts[where] = option.default
            made.target = option.default if where == prefix else made.target
        elif full.startswith(f"{prefix}.") and last[0] != "_":
            made.own[full] = Option(full, option.default, option.line)
        elif full.split(".")[0] not in ("idle", "defaults", "hydra") and last[0] != "_":
            made.sets.append(f"{full}={option.default}")
    return made


def _above(name: str) -> str:
    return name.rpartition(".")[0]


@cache
def _made(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None  # a launcher of a package that is not installed


def _type(target: str, name: str) -> str:
    """Return the type that a class takes an argument as, empty where it does not say."""
    made = _made(target) if target else None
    if made is None or name not in inspect.signature(made).parameters:
        return ""
    try:
        hint = get_type_hints(made if is_dataclass(made) else made.__init__).get(name, "")
    except NameError:  # of an import for type checkers alone
        hint = inspect.signature(made).parameters[name].annotation
    words = hint.__name__ if inspect.isclass(hint) and not get_args(hint) else str(hint)
    return _code(words.replace("typing.", "").replace("collections.abc.", ""))


def _documented(target: str, name: str) -> str:
    """Return what a class's docstring says of an argument, its parents' where it says nothing."""
    made = _made(target) if target else None
    for owner in getattr(made, "__mro__", ()):
        for names, line in ENTRY.findall(inspect.getdoc(owner) or ""):
            if name in names.split(", "):
                return _sentence(line)
        init = inspect.getdoc(owner.__dict__.get("__init__")) or ""
        for names, line in ENTRY.findall(init):
            if name in names.split(", "):
                return _sentence(line)
    return ""


def _sentence(line: str) -> str:
    return " ".join(line.split()).rstrip(".")


def _source(target: str) -> str:
    """Return a link to the file of a class."""
    module, _, name = target.rpartition(".")
    file = f"{module.replace('.', '/')}.py"
    return _link(file, name) if (ROOT / file).is_file() else f"`{target}`"


def _link(path: str, name: str = "") -> str:
    return f"[`{name or path}`]({UP}/{path})"


def _code(value: str) -> str:
    return f"`{value}`" if value else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    assert CONF.is_dir(), "a clone has it"
    write_whole(PAGE, text().encode())
