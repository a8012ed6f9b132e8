"""Local files that lm-eval's task files name, which decide a value as much as those files do."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from flexround.utils.file_errors import files_below

KEYS = ("dataset_path", "data_files", "data_dir")  # under which a task file says where its data lie
INCLUDE = "include"  # another task file, from its own folder


def named_elsewhere(files: Iterable[Path]) -> dict[str, Path]:
    """Return the files on this machine that the task files among files name, as they call them.

    Of a folder it is all files below. An address, and a data set of the hub, name none.
    """
    found: dict[str, Path] = {}
    left, seen = [path for path in files if _is_task(path)], set[Path]()
    while left:
        own = left.pop()
        if own in seen:
            continue
        seen.add(own)
        for key, text in _named(own):
            place = own.parent / text if key == INCLUDE else Path(text).expanduser()
            for path in map(Path, glob.glob(str(place))):
                if path.is_dir():
                    below = files_below(path)
                    found |= {f"{text}/{p.relative_to(path).as_posix()}": p for p in below}
                elif path.is_file():
                    found[f"{text} {path.name}"] = path
                    if key == INCLUDE:
                        left.append(path)
    return found


def _is_task(path: Path) -> bool:
    return path.name.endswith(("yaml", "yml"))  # lm-eval's templates have names without a dot


def _named(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the key and the text of each place that a task file names; of no YAML nothing."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))  # builds nothing of what tags ask for
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    yield from _below(root, None)


def _below(node: yaml.Node | None, key: str | None) -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            own = name.value if name.value in (*KEYS, INCLUDE) else key
            yield from _below(value, own)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _below(value, key)
    elif isinstance(node, yaml.ScalarNode) and key is not None and node.value:
        yield key, node.value
