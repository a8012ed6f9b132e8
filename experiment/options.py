"""Options as the files of conf/ describe them: the one list behind --help and docs/reference.

A member of a config group is described by the first sentence of its file's opening comment, a group
and an option without one by the comment beside it in config.yaml. Files are read as text, so that
asking for help imports nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiment import ROOT

CONF = ROOT / "conf"
CONFIG = CONF / "config.yaml"
ENTRY = re.compile(r"  - (?P<group>[\w/]+): (?P<default>\S+)(?:\s+# (?P<line>.*))?$")
KEY = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#\s].*?))?(?: *# (?P<line>.*))?$")
PARENT = re.compile(r"^  - ([\w/]+)$", re.MULTILINE)
FILLED = re.compile(r"\$\{(\w+)\}")
# Filled as well, but each may have a value of its own: every table reads it where it is.
FREE = ("symmetric", "seed", "compile")
END = re.compile(r"(?<=[\w)\]`'\"%])\.(?= +[A-Z`]|$)")  # of a sentence
# Groups that are chosen in another way than by config.yaml's list of defaults.
OTHERS = {
    "recipe": "how finetune.py trains the full-precision network",
    "hydra/launcher": "where a sweep's runs (-m) are launched; without it one after the other",
    "hydra/sweeper": "how a sweep (-m) finds its runs; without it all combinations that are given",
}
# What finetune.py takes; everything else does nothing in fine-tuning, and is refused there.
OF_FINETUNING = (
    "model", "task", "recipe", "checkpoint", "data_dir", "protocol", "seed", "device", "threads",
    "rerun", "cache_dir", "checkpoints_dir", "hydra", "plugins",
)  # fmt: skip
APART = ("tuned",)  # schedules that are chosen by themselves


@dataclass(frozen=True)
class Option:
    """One option: its dotted name, its default as the file has it, and what it is."""

    name: str
    default: str
    line: str


@dataclass(frozen=True)
class Group:
    """A config group: what it chooses, its default, and its members' files by name."""

    name: str
    default: str
    line: str
    members: dict[str, Path]

    def described(self) -> dict[str, str]:
        """Return what each member is, by name."""
        return {name: first_sentence(path) for name, path in self.members.items()}


def groups() -> list[Group]:
    """Return all config groups, in the order in which config.yaml composes them."""
    found = []
    for line in CONFIG.read_text().splitlines():
        if entry := ENTRY.fullmatch(line):
            found.append(_group(entry["group"], entry["default"], entry["line"] or ""))
    return found + [_group(name, "-", line) for name, line in OTHERS.items()]


def group(name: str) -> Group | None:
    """Return the group of that name, None where there is none."""
    return next((found for found in groups() if found.name == name), None)


def scalars() -> list[Option]:
    """Return the options that are no group's, in config.yaml's order."""
    _, _, body = CONFIG.read_text().partition("\n\n")
    body, _, _ = body.partition("\nhydra:")
    return list(options_in(body))


def of_members(key: str) -> list[str]:
    """Return the options GROUP.KEY that members of groups have for this KEY."""
    return [f"{each.name}.{key}" for each in groups() if _having(each, f"{each.name}.{key}")]


def members_with(option: str) -> list[str]:
    """Return the members of a group that have an option, GROUP.KEY."""
    found = group(option.partition(".")[0])
    return [] if found is None else _having(found, option)


def _having(of: Group, option: str) -> list[str]:
    def has(path: Path) -> bool:
        text = path.read_text()
        above = "" if text.startswith("# @package _global_") else f"{of.name}."
        return any(f"{above}{own.name}" == option for own in options_in(text))

    return [
        member for member, path in of.members.items()
        if any(map(has, (*parents(of.name, path), path)))
    ]  # fmt: skip


def parents(group: str, path: Path) -> list[Path]:
    """Return the files of the group that a member's file at path is composed on."""
    named = (CONF / group / f"{name}.yaml" for name in PARENT.findall(path.read_text()))
    return [file for file in named if file.is_file()]


@cache
def filled(group: str, member: str) -> dict[str, str]:
    """Return the options of a member that an option without a group fills, by dotted name.

    `activation.bits` of static_per_tensor is `act_bits`. A user's own member has none.
    """
    path = CONF / group / f"{member}.yaml"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for file in (*parents(group, path), path):
        text = file.read_text()
        head = "" if text.startswith("# @package _global_") else f"{group}."
        for option in options_in(text):
            name, filler = f"{head}{option.name}", FILLED.fullmatch(option.default)
            if "." not in name:
                continue
            found.pop(name, None)
            if filler and filler[1] not in FREE:
                found[name] = filler[1]
    return found


def options_in(text: str) -> Iterator[Option]:
    """Yield the options in the text of a YAML file by dotted name, with the comment beside each."""
    above: list[tuple[int, str]] = []  # (indent, key) of the maps that a line stands in
    for line in text.splitlines():
        found = KEY.fullmatch(line)
        if found is None or line.lstrip().startswith("#"):
            continue
        indent = len(found["indent"])
        above = [(at, key) for at, key in above if at < indent]
        if found["value"] is None:
            above.append((indent, found["key"]))
            continue
        name = ".".join([*(key for _, key in above), found["key"]])
        yield Option(name, found["value"].strip(), (found["line"] or "").strip())


def first_sentence(path: Path) -> str:
    """Return the first sentence of a file's opening comment, empty where it has none."""
    comment = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("# "):
            break
        comment.append(line.removeprefix("# "))
    text = " ".join(comment)
    end = END.search(text)
    return (text[: end.start()] if end else text).strip()


def _group(name: str, default: str, line: str) -> Group:
    folder = CONF / name
    members = {
        str(path.relative_to(folder).with_suffix("")): path
        for path in sorted(folder.rglob("*.yaml"))
        if not path.name.startswith("_")
    }
    return Group(name, "-" if default == "null" else default, line.partition(";")[0], members)
