"""Local files that lm-eval's task files name, which decide a value as much as those files do."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from flexround.utils.file_errors import files_below

DATA = ("data_files", "data_dir")  # under which a task file says where its data lie
DATASET, INCLUDE = "dataset_path", "include"  # what reads them, or a folder; another task file
# Of datasets: what they read stands elsewhere.
READERS = ("json", "csv", "parquet", "text", "arrow", "pandas", "xml", "webdataset")
CODE = "!function"  # the tag of NAME.FUNCTION, in NAME.py beside the task file
TEXT = "tag:yaml.org,2002:str"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is


def named_elsewhere(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return what the task files among files name outside of folder on this machine, by name.

    That is other task files, their code, and data: a file, those that a pattern matches, all below
    a folder. An address, a data set of the hub and what it holds are none of them.
    """
    inside, found = folder.resolve(), dict[str, Path]()
    left = [(p.relative_to(folder).as_posix(), p.resolve()) for p in files if _is_task(p)]
    seen = set[Path]()
    while left:
        name, own = left.pop()
        if own in seen:
            continue
        seen.add(own)
        for text, place in _places(own):
            for path in _files_at(place):
                if path.resolve().is_relative_to(inside):
                    continue
                # By what names it, and where it lies from there, so that all may move together.
                called = f"{name} {text} {os.path.relpath(path, _fixed(place))}"
                found[called] = path
                if _is_task(path):
                    left.append((called, path.resolve()))
    return found


def _is_task(path: Path) -> bool:
    return path.name.endswith(("yaml", "yml"))  # lm-eval's templates have names without a dot


def _files_at(place: Path) -> Iterator[Path]:
    """Yield the files at place: itself, those that it matches, those below a folder."""
    for path in map(Path, glob.glob(str(place), recursive=True)):
        if path.is_dir():
            yield from (p for p in files_below(path) if p.suffix != ".pyc")
        elif path.is_file():
            yield path


def _fixed(place: Path) -> Path:
    """Return the folder that all files at place lie in, whatever a pattern in it matches."""
    while glob.has_magic(str(place)):
        place = place.parent
    return place if place.is_dir() else place.parent


def _places(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the places that a task file names, each with its text; of what is no YAML, none."""
    try:
        # Nodes alone: nothing is built of what tags ask for.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    named = list(_named(root, None))
    datasets = [text for key, text in named if key == DATASET and text not in READERS]
    of_hub = not all(_at_home(text).exists() for text in datasets)
    for key, text in named:
        if key in (INCLUDE, CODE):
            yield text, path.parent / text
        elif text in datasets or (key in DATA and (Path(text).is_absolute() or not of_hub)):
            yield text, _at_home(text)


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of a user that there is none of
        return Path(text)


def _named(node: yaml.Node | None, key: str | None) -> Iterator[tuple[str, str]]:
    """Yield the texts of a task file that may name places, each with the key that it is under."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            own = name.value if name.value in (*DATA, DATASET, INCLUDE) else key
            yield from _named(value, own)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _named(value, key)
    elif isinstance(node, yaml.ScalarNode):
        if node.tag == CODE:
            yield CODE, f"{node.value.rpartition('.')[0]}.py"
        elif key is not None and node.tag == TEXT and node.value:
            yield key, node.value
